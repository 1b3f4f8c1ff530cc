"""How values are shown: E2B's own formats beside IPython's.

`e2b/data` is a DataFrame as a dict of columns, `e2b/chart` what a matplotlib figure draws,
and lists and dicts that JSON can say are also `application/json`.
"""

import json
import sys
import warnings
from typing import Any

from IPython.core.formatters import BaseFormatter
from traitlets import ObjectName, Unicode

MAX_FRAME_CELLS = 100_000  # a longer DataFrame is shown as text and HTML only

# `__module__` of `DataFrame` since pandas 3, and before.
_FRAMES = (("pandas", "DataFrame"), ("pandas.core.frame", "DataFrame"))


class DataFormatter(BaseFormatter):
    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = dict


class ChartFormatter(BaseFormatter):
    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = dict

    # Not registered by type: matplotlib's inline backend, when it sets itself up, takes figures
    # out of every formatter's register.
    def __call__(self, value: Any) -> Any:
        figures = sys.modules.get("matplotlib.figure")
        if figures is not None and isinstance(value, figures.Figure):
            return _chart(value)
        return super().__call__(value)


# `Any`: an IPython shell, which has no types.
def install(shell: Any) -> None:
    formatters = shell.display_formatter.formatters
    for formatter_class in (DataFormatter, ChartFormatter):
        formatter = formatter_class(parent=shell.display_formatter)
        formatters[formatter.format_type] = formatter
    for module, name in _FRAMES:
        formatters["e2b/data"].for_type_by_name(module, name, _columns)
    for container in (list, dict):
        formatters["application/json"].for_type(container, _json)
    shell.set_hook("show_in_pager", _print_page, priority=0)


def _columns(frame: Any) -> Any:
    if frame.size > MAX_FRAME_CELLS:
        return None
    columns = {str(name): column.tolist() for name, column in frame.items()}
    return _plain(columns, fallback=str)


def _chart(figure: Any) -> Any:
    try:
        from e2b_charts import chart_figure_to_dict
    except ImportError:
        return None
    try:
        with warnings.catch_warnings():  # of its own, about plots that the user made
            warnings.simplefilter("ignore")
            return _plain(chart_figure_to_dict(figure), fallback=str)
    except Exception:  # any figure at all comes here; an odd one is a picture without a chart
        return None


def _json(value: Any) -> Any:
    """`value` when JSON can say it, else nothing: it is shown as text anyway."""
    try:
        return _plain(value, fallback=_refuse)
    except (TypeError, ValueError, RecursionError):
        return None


def _plain(value: Any, *, fallback: Any) -> Any:
    """`value` in JSON's types: dates in ISO form, what is not a number as null."""

    def convert(item: Any) -> Any:
        if hasattr(item, "isoformat"):
            return item.isoformat() if item == item else None  # NaT differs from itself
        if type(item).__module__ == "numpy" and hasattr(item, "tolist"):
            return item.tolist()
        if type(item).__name__ == "NAType":
            return None
        return fallback(item)

    return json.loads(json.dumps(value, default=convert), parse_constant=lambda name: None)


def _refuse(item: Any) -> Any:
    raise TypeError(f"{type(item)} has no JSON form")


def _print_page(shell: Any, data: Any, *pager_options: Any, **more_options: Any) -> None:
    """`name?` prints: a pager needs a person."""
    print(data["text/plain"] if isinstance(data, dict) else data)

"""Runs in the session's interpreter, in a namespace of its own, before the agent's first code.

Only `final_answer` and `_agent_shows` are put among the user's names. An answer and what is told of
the session leave the sandbox as displayed data of a MIME type of ours: a bare `except:` around
`final_answer` cannot swallow what was sent already.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import reprlib
import sys
import types
from itertools import islice
from typing import Any

from IPython import get_ipython
from IPython.display import display

MIME = "application/vnd.e2b-agent-mcp+json"
LONGEST_JSON = 200_000  # characters of an answer
LONGEST_TEXT = 20_000
MOST_ROWS = 1000  # of a table
MOST_NAMES = 40
DEEPEST = 20
LONGEST_KIND = 150  # characters that tell of a variable
HIDDEN = {"In", "Out", "exit", "quit", "open", "get_ipython", "final_answer"}
KNOWN = {"builtins", "datetime", "decimal", "fractions", "pathlib", "numpy", "pandas"}  # modules
SECRET = re.compile(r"secret|token|passw|credential|._?key$|(?:^|_)auth(?:$|_)", re.I)  # in a name
NOTABLE = (
    *("numpy", "pandas", "polars", "matplotlib", "seaborn", "plotly", "scikit-learn", "scipy"),
    *("statsmodels", "sympy", "pillow", "opencv-python", "requests", "httpx", "beautifulsoup4"),
    *("lxml", "openpyxl", "pyarrow", "nltk", "textblob", "spacy", "torch", "xgboost", "networkx"),
)


class _Short(reprlib.Repr):
    """Calls no `__repr__` of a class of the user's: it may raise, print or never return."""

    def repr_instance(self, x: Any, level: int) -> str:
        if type(x).__module__.partition(".")[0] in KNOWN:
            return super().repr_instance(x, level)
        return f"<{type(x).__name__}>"


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 3, 10, 10, 60


class FinalAnswer(BaseException):
    """Ends the code that gave its answer."""

    def _render_traceback_(self) -> list[str]:
        return ["The final answer was given."]


# Any, here and below: whatever the code made.
def final_answer(answer: Any = None) -> None:
    """Ends the task with this answer."""
    if _is_picture(answer):
        display(answer)
    _send({"kind": "answer", **_forms(answer)})
    raise FinalAnswer


def show_variables(*names: str) -> None:
    """Tells what the agent's code has put into them, where they are."""
    values = get_ipython().user_ns
    _send({"kind": "variables", "variables": [_told(n, values[n]) for n in names if n in values]})


def tell_facts() -> None:
    _send(
        {
            "kind": "facts",
            "python": platform.python_version(),
            "folder": os.getcwd(),
            "packages": _packages(),
            "variables": _variables(),
            "files": _files(),
        }
    )


def _send(payload: dict[str, Any]) -> None:
    display({MIME: payload}, raw=True)


def _forms(answer: Any) -> dict[str, Any]:
    text = _text(answer)
    try:
        value = _plain(answer, DEEPEST)
        fits = len(json.dumps(value)) <= LONGEST_JSON
    except Exception:  # any object at all comes here; what JSON cannot say is text
        fits = False
    return {"text": text, "value": value if fits else text}


def _text(answer: Any) -> str:
    try:
        text = answer.to_string(max_rows=60) if _is_frame(answer) else str(answer)
    except Exception as exc:  # a broken __str__
        text = f"<{type(answer).__name__}: {type(exc).__name__}>"
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"


def _plain(value: Any, depth: int) -> Any:
    """In JSON's types: a table as columns and rows, a date in ISO form, an odd number as null."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if not depth:
        return str(value)
    if _is_frame(value):
        rows = value.head(MOST_ROWS).astype(object).values.tolist()
        return {
            "columns": [str(name) for name in value.columns],
            "rows": _plain(rows, depth - 1),
            "row_count": len(value),
        }
    if isinstance(value, dict):
        return {str(key): _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth - 1) for item in value]
    if hasattr(value, "isoformat"):
        return value.isoformat() if value == value else None  # NaT differs from itself
    if type(value).__name__ == "Series" and hasattr(value, "to_dict"):
        return _plain(value.to_dict(), depth - 1)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(value.tolist(), depth - 1)
    return str(value)


def _is_frame(value: Any) -> bool:
    return type(value).__name__ == "DataFrame" and hasattr(value, "columns")


def _is_picture(value: Any) -> bool:
    origin = type(value).__module__
    return origin.startswith("PIL.") or origin == "matplotlib.figure"


def _packages() -> list[str]:
    """Well-known ones, and those that were installed into the session."""
    found = {}
    for name in NOTABLE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    home = [path for path in sys.path if path.startswith(os.path.expanduser("~") + "/")]
    for package in importlib.metadata.distributions(path=home):
        if package.name not in {"pip", "setuptools", "wheel"}:
            found[package.name] = package.version
    return [f"{name} {version}" for name, version in islice(found.items(), 2 * MOST_NAMES)]


def _variables() -> list[str]:
    names = get_ipython().user_ns
    shown = [
        _told(name, value)
        for name, value in list(names.items())
        if not name.startswith("_") and name not in HIDDEN
        if not isinstance(value, types.ModuleType)
    ]
    return shown[-MOST_NAMES:]


def _told(name: str, value: Any) -> str:
    # Told unasked, to the model's service.
    if isinstance(value, str) and SECRET.search(name):
        return f"{name}: str, not shown"
    return f"{name}: {_kind(value)}"


def _kind(value: Any) -> str:
    kind = type(value).__name__
    try:
        if isinstance(value, (bool, int, float, str)):
            return f"{kind} = {_SHORT.repr(value)}"[:LONGEST_KIND]
        if _is_frame(value):
            columns = ", ".join(map(str, value.columns))
            return f"{kind} {value.shape}, columns {columns}"[:LONGEST_KIND]
        if (shape := getattr(value, "shape", None)) is not None:
            return f"{kind} {shape}"[:80]
        if isinstance(value, (list, tuple, set, dict)):
            return f"{kind} of {len(value)}: {_SHORT.repr(_first(value))}"[:LONGEST_KIND]
    except Exception:  # a property of a value can raise anything
        return kind
    return kind


def _first(value: Any) -> Any:
    """So many items as `_SHORT` shows, and one more: it would sort all of a large set or dict."""
    if isinstance(value, dict):
        return dict(islice(value.items(), _SHORT.maxdict + 1))
    return list(islice(value, _SHORT.maxlist + 1))


def _files() -> list[str]:
    """Of the working folder, without hidden ones; folders end in a slash."""
    with os.scandir() as entries:
        shown = sorted(
            entry.name + ("/" if entry.is_dir() else f" ({entry.stat().st_size} bytes)")
            for entry in entries
            if not entry.name.startswith(".")
        )
    return shown[:MOST_NAMES]


get_ipython().user_ns.update(final_answer=final_answer, _agent_shows=show_variables)

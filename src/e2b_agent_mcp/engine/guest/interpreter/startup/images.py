"""PIL images are displayed when they are shown or saved to a path, as in E2B's template.

PIL is patched when the user imports it, never before. A picture that matplotlib saves is
left alone: the figure itself is displayed at the end of the cell.
"""

import sys
from collections.abc import Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "PIL.Image"


class ImageFinder(MetaPathFinder):
    """Finds `PIL.Image` as Python would, and patches it after it was executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _patch_after(spec.loader)
        return spec


def install() -> None:
    if MODULE in sys.modules:
        _patch(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, ImageFinder())


def _patch_after(loader: Loader) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _patch(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


# `Any`: the module PIL.Image, which the guest does not have.
def _patch(module: Any) -> None:
    image_class = module.Image
    save = image_class.save

    @wraps(save)
    def save_and_display(image: Any, fp: Any, format: Any = None, **params: Any) -> None:
        save(image, fp, format, **params)
        if isinstance(fp, (str, Path)) and not _called_by_matplotlib():
            _display(image)

    def show(image: Any, *args: Any, **kwargs: Any) -> None:
        _display(image)

    image_class.save = save_and_display
    image_class.show = show


def _called_by_matplotlib() -> bool:
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return str(caller).startswith("matplotlib")


def _display(image: Any) -> None:
    from IPython.display import display

    display(image)

"""What a zygote imports for the kernels that are forked from it: the scientific stack, and the
parts of IPython, pandas and matplotlib that otherwise load with a kernel's first cells.

`matplotlib.pyplot` and its backend look for a running shell: each kernel imports them itself.
"""

import os
import sys
import tempfile
from importlib import import_module

BACKEND = "module://matplotlib_inline.backend_inline"  # what ipykernel chooses for a kernel

MODULES = (
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.logger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "PIL.PngImagePlugin",
    "e2b_charts",
    "e2b_startup.output",
    "faulthandler",
    "ipykernel.debugger",
    "matplotlib.figure",
    "matplotlib_inline.config",
    "numpy",
    "pandas",
    "pexpect",
    "tornado.platform.asyncio",
)


def preload() -> None:
    from . import launch, shell  # before the others: it keeps debugpy out

    os.environ["MPLBACKEND"] = BACKEND
    for name in MODULES:
        import_module(name)
    _draw_a_plot()
    _show_a_table()
    _forget_what_needs_a_shell()
    shell.build_ahead(launch.make_app().config)


def rehearse_a_kernel() -> None:
    """In a process of its own, which alone imports what that takes."""
    from . import rehearsal

    rehearsal.rehearse()


def _draw_a_plot() -> None:
    figure = import_module("matplotlib.figure").Figure()
    figure.subplots().plot([0, 1])
    with tempfile.TemporaryFile() as picture:
        figure.savefig(picture, format="png")


def _show_a_table() -> None:
    frame = import_module("pandas").DataFrame({"number": [0, 1], "text": ["a", "b"]})
    frame.describe()._repr_html_()
    frame.to_string()


def _forget_what_needs_a_shell() -> None:
    """`e2b_charts` imports them."""
    del sys.modules["matplotlib.pyplot"], import_module("matplotlib").pyplot
    del sys.modules["matplotlib_inline.backend_inline"]

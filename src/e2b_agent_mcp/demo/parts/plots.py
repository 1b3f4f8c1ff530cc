"""One look for all plots of the demo. The demo puts this file into the sandbox as a module."""

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes

INK, QUIET, GRID = "#1f2a37", "#6b7280", "#e5e7eb"
COLORS = ["#2f6fde", "#e4572e", "#17a398", "#f2b134", "#8e5bd0", "#5c6b7a"]


def apply_style() -> None:
    plt.rcParams.update(
        {
            "figure.dpi": 140,
            "figure.facecolor": "white",
            "font.size": 10.5,
            "text.color": INK,
            "axes.prop_cycle": cycler(color=COLORS),
            "axes.edgecolor": GRID,
            "axes.labelcolor": QUIET,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": GRID,
            "xtick.color": QUIET,
            "ytick.color": QUIET,
            "legend.frameon": False,
        }
    )


def label_line_end(axes: Axes, x: object, y: float, text: str, color: str) -> None:
    """Names a line where it ends, which reads easier than a legend."""
    axes.annotate(
        text,
        (x, y),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=color,
        fontsize=9.5,
        fontweight="bold",
    )

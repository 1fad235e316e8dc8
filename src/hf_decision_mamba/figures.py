"""What all pictures of the package have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def tidy(axes: Axes, grid: Literal["x", "y", "both"] = "y") -> None:
    """Leave away the frame's upper and right side, and draw a pale grid behind everything."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, axes: Axes, ncols: int) -> None:
    """Explain below the picture what is labelled in the axes, each label once however often it was drawn."""
    marks = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if marks:
        figure.legend(marks.values(), marks, loc="outside lower left", ncols=ncols, frameon=False, fontsize=9)

"""What all pictures and tables of the package have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_SMALLEST_WRITTEN_OUT = 1e-4


def number(value: float | None, decimals: int | None = None, thousands: str = ",", beside: Iterable[float] = ()) -> str:
    """Return a number for reading, with three digits that say something or more (1234.56: 1,234.6; 0.01234: 0.0123).

    Args:
        value: "n/a" where there is none, or none that is finite.
        decimals: as many as that; more where the number is so small that they would hide it. If not given, as many as
            the number has.
        thousands: what separates them.
        beside: numbers that it stands with, of which the largest needs three digits only.
    """
    if value is None or not math.isfinite(value):
        return "n/a"
    if decimals is None:
        return f"{value:.10g}"
    largest = max(map(abs, (value, *beside)))
    if 0 < largest < _SMALLEST_WRITTEN_OUT:
        return f"{value:.3g}"
    places = decimals if largest == 0 else max(decimals, 2 - math.floor(math.log10(largest)))
    text = f"{value:{thousands}.{places}f}"
    spare = places - decimals
    kept = text[: len(text) - spare] + text[len(text) - spare :].rstrip("0") if spare else text
    return kept.rstrip(".")


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

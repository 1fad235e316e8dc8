"""What all pictures and tables of the package have in common: palette, figures and their files, numbers for reading."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMALLEST_WRITTEN_OUT = 1e-4
_SCREEN_DPI = 72  # of a figure that a notebook shows

#: The palette: what is measured, what is said of it (means, fits, medians), lines and text beside it.
BLUE, RED, DARK, GREY, PALE_GREY = "#4c78a8", "#e4572e", "#2b2f36", "#5b616b", "#8a8f98"

logger = logging.getLogger(__name__)


def new_figure(width: float, height: float, dpi: int = 150) -> Figure:
    """Make an empty figure with a constrained layout, which a notebook shows; pyplot's state is left alone.

    Args:
        width, height: in inches.
        dpi: of the files that it is saved as.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"pictures need matplotlib ({error}): pip install matplotlib") from error
    figure: Figure = _shown_in_notebooks(Figure)(figsize=(width, height), dpi=dpi, layout="constrained")
    return figure


@cache
def _shown_in_notebooks(base: type[Any]) -> type[Any]:
    """Return a class of figures that notebooks show without pyplot, too."""

    class ShownFigure(base):
        def _repr_png_(self) -> bytes:
            drawn = io.BytesIO()
            self.savefig(drawn, format="png", dpi=_SCREEN_DPI, metadata={"Software": None})
            return drawn.getvalue()

    return ShownFigure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture; the same numbers give the same bytes."""
    figure.savefig(path, metadata={"Software": None})


@contextmanager
def drawing(name: str, hint: str) -> Iterator[None]:
    """Go on without a picture where matplotlib is not installed, and warn that it is missing.

    Args:
        name: of the picture's file.
        hint: the command that installs what is missing.
    """
    try:
        yield
    except ImportError:
        logger.warning("%s was not drawn: matplotlib is not installed (%s).", name, hint)


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


def fit_titles(figure: Figure, fontsize: float) -> None:
    """Break lines of left titles at semicolons where they are wider than their panels; the figure grows for them.

    Args:
        figure: with a constrained layout.
        fontsize: of the titles, in points.
    """
    from matplotlib.textpath import TextPath

    figure.draw_without_rendering()  # how wide the panels are follows from the layout
    more = 0
    for axes in figure.axes:
        room, title = axes.get_window_extent().width * 72 / figure.dpi, axes.get_title(loc="left")
        lines: list[str] = []
        for line in title.splitlines():
            first, *others = line.split("; ")
            lines.append(first)
            for part in others:
                longer = f"{lines[-1]}; {part}"
                if TextPath((0, 0), longer, size=fontsize).get_extents().width <= room:
                    lines[-1] = longer
                else:
                    lines[-1] += ";"
                    lines.append(f"    {part}")
        more = max(more, len(lines) - len(title.splitlines()))
        axes.set_title("\n".join(lines), loc="left", fontsize=fontsize)
    figure.set_figheight(figure.get_figheight() + more * 1.3 * fontsize / 72)


def legend_below(figure: Figure, axes: Axes, ncols: int) -> None:
    """Explain below the picture what is labelled in the axes, each label once however often it was drawn."""
    marks = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if marks:
        figure.legend(marks.values(), marks, loc="outside lower left", ncols=ncols, frameon=False, fontsize=9)

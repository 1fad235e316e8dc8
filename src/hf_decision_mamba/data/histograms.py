"""Histograms of a data set's returns and lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..reporting.figures import BLUE, RED, new_figure, number, save_figure, tidy
from ..reporting.tables import count_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_histograms(path: Path, title: str, returns: NDArray[Any] | None, lengths: NDArray[Any]) -> None:
    """Write a picture of how returns and lengths of episodes (E,) are distributed, see `plot_histograms`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    save_figure(plot_histograms(title, returns, lengths), path)


def plot_histograms(title: str, returns: NDArray[Any] | None, lengths: NDArray[Any]) -> Figure:
    """Draw how returns and lengths of episodes (E,) are distributed, beside each other; of None returns lengths alone.

    Raises:
        ImportError: matplotlib is not installed.
    """
    drawn = [] if returns is None else [(returns, "return of an episode", False)]
    drawn.append((lengths, "steps of an episode", True))
    figure = new_figure(4.2 * len(drawn), 3.4)
    counts = f"{count_in_words(len(lengths), 'episode')}, {count_in_words(int(lengths.sum()), 'step')}"
    figure.suptitle(f"{title}: {counts}", x=0.01, ha="left", fontsize=11)
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (values, label, whole) in zip(panels, drawn, strict=True):
        _draw(axes, values, label, whole)
    panels[0].set_ylabel("episodes")
    return figure


def _draw(axes: Axes, values: NDArray[Any], label: str, whole: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    if low == high:  # one bar, as wide as a step or a small part of the value
        half = 0.5 if whole else max(abs(low), 1.0) / 100
        edges = np.array([low - 10 * half, low - half, low + half, low + 10 * half])
    else:
        edges = np.linspace(low, high, min(41, 2 + len(values)))
    axes.hist(values, bins=edges.tolist(), color=BLUE)
    middle = float(np.median(values))
    axes.axvline(middle, color=RED, linewidth=1.5, label=f"median: {number(middle, 1)}")
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=whole, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)

"""Histograms of a data set's returns and lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..reporting.figures import number, tidy
from ..reporting.tables import count_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_histograms(path: Path, title: str, returns: NDArray[Any], lengths: NDArray[Any]) -> None:
    """Draw how returns and lengths of episodes (E,) are distributed, beside each other.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # draws without a display and leaves pyplot's state alone

    figure = Figure(figsize=(8.4, 3.4), dpi=150, layout="constrained")
    counts = f"{count_in_words(len(returns), 'episode')}, {count_in_words(int(lengths.sum()), 'step')}"
    figure.suptitle(f"{title}: {counts}", x=0.01, ha="left", fontsize=11)
    left, right = figure.subplots(1, 2)
    _draw(left, returns, "return of an episode", whole=False)
    _draw(right, lengths, "steps of an episode", whole=True)
    left.set_ylabel("episodes")
    figure.savefig(path, metadata={"Software": None})  # so that the same data give the same bytes


def _draw(axes: Axes, values: NDArray[Any], label: str, whole: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    if low == high:  # one bar, as wide as a step or a small part of the value
        half = 0.5 if whole else max(abs(low), 1.0) / 100
        edges = np.array([low - 10 * half, low - half, low + half, low + 10 * half])
    else:
        edges = np.linspace(low, high, min(41, 2 + len(values)))
    axes.hist(values, bins=edges.tolist(), color="#4c78a8")
    middle = float(np.median(values))
    axes.axvline(middle, color="#e4572e", linewidth=1.5, label=f"median: {number(middle, 1)}")
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=whole, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)

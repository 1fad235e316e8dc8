"""Intervals and summaries of returns and scores."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000


def describe_values(name: str, values: NDArray[np.float64] | None) -> dict[str, Any]:
    """Mean, deviation, interval and interquartile mean of values (n,), under names that begin with `name`."""
    if values is None:
        return {f"{name}_mean": None, f"{name}_std": None, f"{name}_ci95": [None, None], f"{name}_iqm": None}
    trimmed = len(values) // 4
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_std": float(values.std()),
        f"{name}_ci95": _bootstrap_interval(values),
        f"{name}_iqm": float(np.sort(values)[trimmed : len(values) - trimmed].mean()),
    }


def _bootstrap_interval(values: NDArray[np.float64]) -> list[float] | list[None]:
    """95 % interval of the mean of values (n,) by the percentile bootstrap."""
    if len(values) < 2:
        return [None, None]
    generator = np.random.default_rng(0)
    rows = max(1, 1_000_000 // len(values))  # bounds the memory, whatever the number of episodes
    means: list[float] = []
    while len(means) < _RESAMPLES:
        drawn = generator.integers(len(values), size=(min(rows, _RESAMPLES - len(means)), len(values)))
        means.extend(values[drawn].mean(1))
    return [float(bound) for bound in np.percentile(means, [2.5, 97.5])]


def t_interval(values: Sequence[float]) -> list[float] | list[None]:
    """95 % t-interval of the mean of independent values (n,), such as the scores of trainings from n seeds.

    Returns:
        `[low, high]`; `[None, None]` for fewer than two values.
    """
    if len(values) < 2:
        return [None, None]
    half = _t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return [mean - half, mean + half]


@functools.lru_cache
def _t_quantile(freedom: int) -> float:
    """Half-width of a 95 % t-interval in standard errors, from a million draws (to about 0.3 %)."""
    return float(np.quantile(np.abs(np.random.default_rng(0).standard_t(freedom, 1_000_000)), 0.95))


def interval_text(interval: list[float] | list[None], text: Callable[[float], str] = "{:.1f}".format) -> str:
    """An interval for people, of which `text` writes the ends; a dash where there is none."""
    low, high = interval
    return "-" if low is None or high is None else f"{text(low)} to {text(high)}"

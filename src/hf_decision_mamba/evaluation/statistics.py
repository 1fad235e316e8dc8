"""Intervals and summaries of returns and scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000
_NORMAL_QUANTILE = 1.959963984540054  # 97.5 %
_ALIKE = 0.01  # share of the mean within which episodes are one trajectory
#: 97.5 % quantiles of Student's t distribution for 1 to 30 degrees of freedom.
_T_QUANTILES = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139),
    *(2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963),
    *(2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272),
)


def describe_values(name: str, values: NDArray[np.float64] | None) -> dict[str, Any]:
    """Return mean, deviation, interval and interquartile mean of values (n,), under names that begin with `name`."""
    if values is None:
        return {f"{name}_mean": None, f"{name}_std": None, f"{name}_ci95": [None, None], f"{name}_iqm": None}
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_std": float(values.std()),
        f"{name}_ci95": _bootstrap_interval(values),
        f"{name}_iqm": float(interquartile_mean(values)),
    }


def interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean (...) of the middle half of values (..., n)."""
    trimmed = values.shape[-1] // 4
    middle: NDArray[np.float64] = np.sort(values, axis=-1)[..., trimmed : values.shape[-1] - trimmed]
    return middle.mean(-1)


def _bootstrap_interval(values: NDArray[np.float64]) -> list[float] | list[None]:
    """Return the 95 % interval of the mean of values (n,) by the percentile bootstrap, all episodes drawn alike."""
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
    """Return the 95 % t-interval of the mean of independent values (n,), such as the scores of trainings from n seeds.

    Returns:
        `[low, high]`; `[None, None]` for fewer than two values.
    """
    if len(values) < 2:
        return [None, None]
    half = _t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return [mean - half, mean + half]


def _t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution.

    Beyond the table it is the normal quantile z with three terms of the expansion of Cornish and Fisher (Abramowitz
    and Stegun 1964, 26.7.5): z + (z³ + z) / 4ν + (5z⁵ + 16z³ + 3z) / 96ν² + (3z⁷ + 19z⁵ + 17z³ - 15z) / 384ν³, which
    is exact to six digits there.
    """
    if freedom <= len(_T_QUANTILES):
        return _T_QUANTILES[freedom - 1]
    z, v = _NORMAL_QUANTILE, freedom
    terms = (z**3 + z) / (4 * v), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    return z + math.fsum(terms) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)


def wilson_interval(successes: int, count: int) -> list[float]:
    """Return the 95 % interval [low, high] of a probability, from so many successes in `count` trials.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z2, share = _NORMAL_QUANTILE**2, successes / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def describe_success(successes: Sequence[bool | None]) -> dict[str, Any]:
    """Return the share of successes with its 95 % interval, of the episodes that are not None; None if all are."""
    known = [success for success in successes if success is not None]
    if not known:
        return {"success_rate": None, "success_ci95": [None, None]}
    return {"success_rate": sum(known) / len(known), "success_ci95": wilson_interval(sum(known), len(known))}


def are_one_trajectory(returns: Sequence[float], lengths: Sequence[int]) -> bool:
    """Return whether episodes of these returns (n,) and lengths (n,) are so alike that they count as one.

    That is where there are two or more, and no return and no length is further than 1 % from its mean: a policy without
    chance of its own, from starts that hardly differ, plays one trajectory again and again. An interval over them
    says how alike they are, and nothing about the policy.
    """
    every = [np.asarray(values, dtype=np.float64) for values in (returns, lengths)]
    return len(returns) > 1 and all(
        (np.abs(values - values.mean()) <= _ALIKE * abs(values.mean())).all() for values in every
    )


def interval_text(interval: Sequence[float | None], text: Callable[[float], str] = "{:.1f}".format) -> str:
    """Return an interval for people, whose ends `text` writes; a dash where there is none."""
    low, high = interval
    return "-" if low is None or high is None or not math.isfinite(low) else f"{text(low)} to {text(high)}"

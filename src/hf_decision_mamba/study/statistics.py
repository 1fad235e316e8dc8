"""What scores of several seeds on several data sets say together.

A score is that of one trained model. Resampling is stratified: the seeds of each data set are drawn by themselves, so
that every resample has as many models of every data set as were trained.
Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (arXiv 2108.13264).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..evaluation import statistics as evaluation_statistics

#: Scores by data set, each of as many seeds as there are.
Scores: TypeAlias = Sequence[Sequence[float]]
#: What is computed from resamples: of each data set (resamples, seeds), to (resamples, ...).
Statistic: TypeAlias = Callable[..., NDArray[np.float64]]

_RESAMPLES = 5_000  # the ends of an interval move by a hundredth of its width from one draw to another
_BETWEEN = (2.5, 97.5)


def interquartile_mean(strata: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean of the middle half of all scores, whatever their data set.

    Args:
        strata: of each data set (resamples, seeds).

    Returns:
        (resamples,)
    """
    return evaluation_statistics.interquartile_mean(np.concatenate(strata, axis=1))


def share_above(strata: Sequence[NDArray[np.float64]], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the performance profile: the share of models, averaged over data sets, that score above each threshold.

    Args:
        strata: of each data set (resamples, seeds).
        thresholds: (n,)

    Returns:
        (resamples, n)
    """
    return np.mean([(scores[:, :, None] > thresholds).mean(1) for scores in strata], axis=0)


def probability_of_improvement(
    ours: Sequence[NDArray[np.float64]], theirs: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return how probable it is that a model of ours scores higher than one of theirs, averaged over data sets.

    A tie is half an improvement (the statistic of Mann and Whitney).

    Args:
        ours, theirs: of each data set (resamples, seeds), in the same order.

    Returns:
        (resamples,)
    """
    shares = []
    for one, other in zip(ours, theirs, strict=True):
        difference = one[:, :, None] - other[:, None, :]
        shares.append(((difference > 0) + 0.5 * (difference == 0)).mean((1, 2)))
    return np.mean(shares, axis=0)


def with_interval(statistic: Statistic, *groups: Scores, **options: Any) -> tuple[Any, Any, Any]:
    """Return a statistic, and the ends of its 95 % interval by the stratified percentile bootstrap.

    Args:
        statistic: one of those above.
        groups: the scores that it takes, those of each model as a group.
        options: of the statistic.

    Returns:
        Value, low and high, numbers or (n,). The ends are None where no data set has two seeds.
    """
    strata = [[np.asarray(scores, dtype=np.float64) for scores in group] for group in groups]
    value = statistic(*([scores[None] for scores in group] for group in strata), **options)[0]
    if max(len(scores) for group in strata for scores in group) < 2:
        return value, None, None
    generator = np.random.default_rng(0)
    drawn = [
        [scores[generator.integers(len(scores), size=(_RESAMPLES, len(scores)))] for scores in group]
        for group in strata
    ]
    low, high = np.percentile(statistic(*drawn, **options), _BETWEEN, axis=0)
    return value, low, high

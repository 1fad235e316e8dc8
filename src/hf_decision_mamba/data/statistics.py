"""What a model and its card need to know about trajectories: one pass over the rows, in float64.

Source of the merged means and deviations: Chan, Golub & LeVeque 1979 (equation 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Returns-to-go, scaled, that span less, or reach farther, are too small or too large for a model to tell apart.
_INVISIBLE, _HUGE = 0.01, 100.0
#: A state dimension that varies less than this is constant: it is centred, never divided by its tiny deviation.
CONSTANT_STD = 1e-6
#: What values are normalised by: mean and deviation; smallest and largest, or 1st and 99th percentile, which become -1
#: and 1; or nothing. Each subtracts a number from a dimension, and divides it by another one.
Normalization: TypeAlias = Literal["mean_std", "min_max", "quantile", "none"]
#: The percentiles of `quantile`.
QUANTILE_ENDS = (1, 99)


@dataclass(frozen=True, eq=False)
class TrajectoryStatistics:
    """What a model and its card need to know about a data set, computed in float64.

    `state_mean`, `state_std` (S,) are in observation units; a `state_std` below `CONSTANT_STD` is given as 1. Images
    have None: the model divides pixels by 255. `goal_mean`, `goal_std` (G,) are those of the achieved goals, or of the
    recorded ones where only these are known; None where there are none.

    `action_low`, `action_high` (A,) are the smallest and largest continuous action taken; discrete actions have
    `action_counts` (A,) instead, how often each was taken. Returns are undiscounted sums of rewards over whole
    episodes, returns-to-go those from each step on, and None where there are no rewards; lengths are in steps; standard
    deviations are those of the population. `terminated` episodes ended by the task, all others count as `truncated`.
    """

    state_mean: NDArray[np.float64] | None
    state_std: NDArray[np.float64] | None
    action_low: NDArray[np.float64] | None
    action_high: NDArray[np.float64] | None
    action_counts: NDArray[np.int64] | None
    episodes: int
    transitions: int
    return_mean: float | None
    return_std: float | None
    return_min: float | None
    return_max: float | None
    return_to_go_min: float | None
    return_to_go_max: float | None
    length_mean: float
    length_min: int
    length_max: int
    terminated: int
    truncated: int
    goal_mean: NDArray[np.float64] | None = None
    goal_std: NDArray[np.float64] | None = None

    @property
    def return_scale(self) -> float:
        """What makes returns-to-go ones of size one: the largest, to two digits; 1 where all are 0 or none is."""
        if self.return_to_go_min is None or self.return_to_go_max is None:
            return 1.0
        scale = float(f"{max(-self.return_to_go_min, self.return_to_go_max):.1e}")
        return scale if scale >= np.finfo(np.float32).tiny else 1.0

    def remark_on_scale(self, scale: float) -> str | None:
        """Say what is wrong with returns-to-go that are divided by this; None where nothing is, or no scale helps."""
        if self.return_to_go_min is None or self.return_to_go_max is None:
            return None
        low, high = self.return_to_go_min / scale, self.return_to_go_max / scale
        huge = max(-low, high) > _HUGE
        invisible = high - low < _INVISIBLE <= (high - low) * scale / self.return_scale
        if not (huge or invisible):
            return None
        size = "large" if huge else "much alike"
        return (
            f"return_scale {scale:g} makes returns-to-go of {self.return_to_go_min:.4g} to {self.return_to_go_max:.4g} "
            f"ones of {low:.4g} to {high:.4g}, too {size} for a model to tell apart: the target return would have no "
            f"effect. {self.return_scale:g} fits these data"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain lists and numbers, ready for JSON."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrajectoryStatistics:
        """Return the statistics of which these are the plain lists and numbers (the very same: JSON keeps every bit).

        Raises:
            KeyError: one is missing.
        """
        found: dict[str, Any] = {entry.name: values[entry.name] for entry in fields(cls)}
        found |= {name: np.array(value) for name, value in found.items() if isinstance(value, list)}
        return cls(**found)


def scaling_to_range(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (mid, scale), with which `low` (D,) becomes -1 and `high` (D,) 1; the scale of constant ones is 1."""
    half = (high - low) / 2
    return (low + high) / 2, np.where(half < CONSTANT_STD, 1.0, half)


@dataclass
class RunningMoments:
    """Mean and deviation of each dimension of values that come in blocks, in float64.

    Blocks are merged without the cancellation that sums of squares have.
    """

    count: int = 0
    mean: Any = 0.0
    squares: Any = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Add values (T, D)."""
        block = values.astype(np.float64)
        mean, total = block.mean(axis=0), self.count + len(block)
        shift = mean - self.mean
        self.squares = self.squares + np.square(block - mean).sum(axis=0) + shift**2 * (self.count * len(block) / total)
        self.mean = self.mean + shift * (len(block) / total)
        self.count = total

    @property
    def std(self) -> Any:
        """The standard deviation of the population, (D,)."""
        return np.sqrt(self.squares / self.count)


#: Names of the quantiles that `spread` gives, and which they are.
QUANTILES = {"min": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "max": 100}


def spread(values: ArrayLike) -> dict[str, float]:
    """Return mean, standard deviation (of the population) and the `QUANTILES` of some numbers (n,)."""
    numbers = np.asarray(values, dtype=np.float64)
    quantiles = np.percentile(numbers, list(QUANTILES.values()))
    return {
        "mean": float(numbers.mean()),
        "std": float(numbers.std()),
        **{name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
    }

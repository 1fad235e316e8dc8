"""Goals: numbers of the observations that are one, and which goal a window is trained towards.

A policy of goals learns from what episodes achieved (hindsight): whatever was reached later in an episode is a goal
that its actions lead to. Sources: Andrychowicz et al. 2017 (arXiv 1707.01495); GCSL (Ghosh et al. 2019, arXiv
1912.06088) and RvS-G (Emmons et al. 2021, arXiv 2112.10751), which draw it uniformly from the future, the default here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ..model.observations_decision_mamba import ACHIEVED, DESIRED, part_places
from .trajectories import Trajectories

#: Which goal a window is trained towards: that which its steps were `recorded` with; or one that was achieved in the
#: rest of the episode, from the window's last step on: its `last` one, or drawn.
Goals: TypeAlias = Literal["recorded", "last", "uniform", "geometric"]

#: For numbers of an observation: all of them. A goal is then a state like any other, as OGBench's are.
OBSERVATIONS: Literal["observations"] = "observations"
#: Draws of a goal that there are for each window: enough to tell apart all steps of the longest episodes.
DRAWS = 1 << 20
#: A step later in the future is drawn so much less often (`geometric`). Source: the discount of Andrychowicz et al.
DISCOUNT = 0.98
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class GoalsFrom:
    """Which numbers of the observations are goals; None for the parts that gymnasium calls so, where there are such.

    Args:
        goals: of the goal that a step was recorded with. It is taken out of the observations, because it is no state.
        achieved: of the goal that was achieved, or `"observations"` for all that is left of these. They stay in the
            observations; a part of gymnasium's does not, which is a copy of what is in `observation`.
    """

    goals: Sequence[int] | None = None
    achieved: Sequence[int] | Literal["observations"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.achieved, str) and self.achieved != OBSERVATIONS:
            raise ValueError(
                f"achieved_goals_from={self.achieved!r} (--achieved_goals_from) must be numbers of an observation, or "
                f"{OBSERVATIONS!r} for all of them"
            )

    def of(self, trajectories: Trajectories) -> Trajectories:
        """Return trajectories with these goals as columns; observations that change are copies.

        Raises:
            ValueError: there are no such numbers, or the data have that column already.
        """
        parts = trajectories.observation_parts or []
        if trajectories.state_type == "image":
            if self.goals or self.achieved:
                raise ValueError(
                    f"data set {trajectories.name!r} observes images, of which no number is a goal; leave goals_from "
                    "and achieved_goals_from (--goals_from, --achieved_goals_from) out"
                )
            return trajectories
        columns, left_out = dict[str, Any](), list[int]()
        for column, given, name in (("goals", self.goals, DESIRED), ("achieved_goals", self.achieved, ACHIEVED)):
            places = part_places(parts, name)
            if given == OBSERVATIONS:
                self._check(trajectories, column, range(trajectories.state_dim))
            elif given:
                self._check(trajectories, column, given)
                columns[column] = np.ascontiguousarray(trajectories.observations[:, list(given)])
                left_out += [*given] if column == "goals" else []
            elif places and getattr(trajectories, column) is None:
                columns[column] = np.ascontiguousarray(trajectories.observations[:, places])
            left_out += places
        everything = self.achieved == OBSERVATIONS
        if not columns and not left_out and not everything:
            return trajectories
        kept = np.setdiff1d(np.arange(trajectories.state_dim), left_out)
        if not len(kept):
            raise ValueError(
                f"data set {trajectories.name!r}: all {trajectories.state_dim} numbers of its observations would be "
                "goals, and none a state; correct goals_from (--goals_from)"
            )
        observations = trajectories.observations
        if left_out:
            observations = np.ascontiguousarray(observations[:, kept], np.float32)
        if everything:
            columns["achieved_goals"] = observations
        return replace(
            trajectories,
            observations=observations,
            observation_parts=self._kept_parts(trajectories.name, parts, left_out) or None,
            **columns,
        )

    def _check(self, trajectories: Trajectories, column: str, given: Sequence[int]) -> None:
        option = {"goals": "goals_from", "achieved_goals": "achieved_goals_from"}[column]
        what = f"data set {trajectories.name!r}: {option}={[*given]} (--{option})"
        if getattr(trajectories, column) is not None:
            raise ValueError(f"{what}, but it has a column of {column} already; leave it out")
        size = trajectories.state_dim
        if len({*given}) < len(given) or not all(0 <= number < size for number in given):
            raise ValueError(f"{what} must be different numbers of its observations, 0 to {size - 1}")

    def _kept_parts(self, name: str, parts: Sequence[Any], left_out: Sequence[int]) -> list[dict[str, Any]]:
        kept, first = [], 0
        for part in parts:
            numbers = {*range(first, first + part["size"])}
            first += part["size"]
            taken = numbers & {*left_out}
            if taken and taken != numbers:
                raise ValueError(
                    f"data set {name!r}: goals_from={[*(self.goals or [])]} (--goals_from) takes some numbers of the "
                    f"part {'.'.join(map(str, part['path']))!r} of its observations; take all of them or none"
                )
            kept += [] if taken else [part]
        return kept


def checked_goals(trajectories: Trajectories, goals: Goals | None) -> Goals:
    """Return which goals windows are trained towards: `uniform` ones by default, `recorded` where only these are known.

    Raises:
        ValueError: the data have no goals of this kind, or there is no such choice.
    """
    if goals is None:
        goals = "recorded" if trajectories.achieved_goals is None else "uniform"
    if goals not in get_args(Goals):
        raise ValueError(f"goals must be one of {', '.join(get_args(Goals))}, got {goals!r}")
    column = "goals" if goals == "recorded" else "achieved_goals"
    if getattr(trajectories, column) is None:
        name, option = {"goals": (DESIRED, "goals_from"), "achieved_goals": (ACHIEVED, "achieved_goals_from")}[column]
        raise ValueError(
            f"data set {trajectories.name!r} has no {column}, which goals={goals!r} needs: no column {column} or "
            f"{name}, and no such part of its observations. Say which numbers of an observation they are with "
            f"{option}=[0, 1] (--{option} 0 1)"
        )
    return goals


def drawn_steps(
    goals: Goals, first: NDArray[np.int64], lengths: NDArray[np.int64], share: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the steps (b,) of their episodes whose achieved goals windows are trained towards.

    Args:
        goals: `last`, `uniform` or `geometric`.
        first: (b,) the earliest that may be taken, the last real step of each window.
        lengths: (b,) of their episodes.
        share: (b,) in [0, 1), from the earliest to the latest.
    """
    left = lengths - first
    if goals == "last":
        ahead = left - 1
    elif goals == "uniform":
        ahead = (share * left).astype(np.int64)
    else:  # the quantile of a geometric distribution that ends with the episode
        ahead = (np.log1p(-share * -np.expm1(left * np.log(DISCOUNT))) / np.log(DISCOUNT)).astype(np.int64)
    return first + np.minimum(ahead, left - 1)


def shares(windows: NDArray[np.int64], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a share in [0, 1) for each draw of windows (b,) each: even over the draws, and over the windows.

    Source: the additive recurrence of the golden ratio (Weyl 1916), so that windows without draws, as those of a
    held-out loss, have goals at all distances too.
    """
    spread: NDArray[np.float64] = (windows * _GOLDEN + (draws + 0.5) / DRAWS) % 1.0
    return spread

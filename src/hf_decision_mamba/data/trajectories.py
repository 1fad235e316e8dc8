"""Trajectories as flat columns, every step of every episode in a row of one array, and where the episodes lie in them.

This is the one form in which data travels after loading: no Python lists, so that a batch of windows is one gather.
Source: the offline data of Decision Transformer (Chen et al. 2021, section 3), stored as D4RL stores it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import storage
from .histograms import plot_histograms
from .statistics import (
    CONSTANT_STD,
    QUANTILE_ENDS,
    Normalization,
    RunningMoments,
    TrajectoryStatistics,
    scaling_to_range,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS_AT_ONCE = 1 << 18  # bounds the float64 copies that checks and statistics make, whatever the size of the data
MOST_SORTED = 1 << 26  # numbers that percentiles are taken of at once; of more, those of evenly spaced rows
_LARGEST = float(np.finfo(np.float32).max)
#: What is kept beside the columns.
_KEPT = ("name", "env_id", "num_actions", "action_start", "observation_parts", "env_kwargs", "fps")
#: Discrete actions that there can be: a model has a row of weights for each, and none has more (`SIZE_LIMITS`).
MOST_ACTIONS = 1 << 20
#: The types that a column may have, and the axes that it has then.
FORMS: dict[str, dict[type[np.generic], tuple[str, ...]]] = {
    "observations": {np.float32: ("steps", "dimensions"), np.uint8: ("steps", "height", "width")},
    "actions": {np.float32: ("steps", "dimensions"), np.int64: ("steps",)},
    "rewards": {np.float32: ("steps",)},
    "terminations": {np.bool_: ("steps",)},
    "truncations": {np.bool_: ("steps",)},
    "goals": {np.float32: ("steps", "dimensions")},
    "achieved_goals": {np.float32: ("steps", "dimensions")},
}
#: The columns that data may be without.
_OPTIONAL = ("rewards", "goals", "achieved_goals")


@dataclass(frozen=True, eq=False)
class _Store:
    """Columns that belong together: these `returns_to_go` are of these `rewards`, and one folder holds what is mapped.

    Args:
        columns: those of `FORMS`, and where there are rewards the returns-to-go of their episodes.
        starts, lengths: where their episodes are, (E,), in the order of the rows.
        num_actions: discrete actions that there are, of which all of `actions` are.
        folder: where `Trajectories.save` wrote the columns, when they are memory-mapped.
    """

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    starts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    num_actions: int | None = None
    folder: Path | None = None

    def holds(self, trajectories: Trajectories) -> bool:
        """Return whether trajectories have these very columns, and episodes of these."""
        if any(self.columns.get(name) is not getattr(trajectories, name) for name in FORMS):
            return False
        place = np.searchsorted(self.starts, trajectories.starts).clip(max=len(self.starts) - 1)
        known = (self.starts[place] == trajectories.starts) & (self.lengths[place] == trajectories.lengths)
        return bool(known.all()) and self.num_actions == trajectories.num_actions


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """E episodes with N steps in all, as flat columns. Arrays may be memory-mapped.

    Row t of an episode holds the observation s_t, the action a_t taken there, the reward r_t which that action earned,
    and whether the episode terminated (task over) or was truncated (time limit, end of recording) with it. Data without
    rewards, such as a robot's demonstrations, have no returns either: `has_rewards` says so. Data may have goals: where
    the episode was to lead, and where it was, in the space of goals (as in gymnasium's environments of goals).
    Episode e is the `lengths[e]` rows of each column from `starts[e]` on. Other rows of the columns, which have R rows
    in all, are of no episode: a selection (see `select`) has the columns of the whole.

    Args:
        observations: (R, S) float32, in the units of the environment; or (R, H, W) uint8, one grey frame a step, which
            `WindowDataset` stacks.
        actions: (R, A) float32; or (R,) int64, one of `num_actions` discrete actions, counted from 0.
        rewards: (R,) float32; None for data that have none.
        terminations: (R,) bool.
        truncations: (R,) bool.
        starts: (E,) int64, the row at which each episode begins.
        lengths: (E,) int64, the steps of each episode, at least one.
        name: what messages and cards call this data set.
        env_id: the gymnasium id of the environment it was recorded in, when the source says so.
        num_actions: discrete actions that there are, when the source says so; default the largest one taken + 1.
        action_start: number of the environment's first discrete action, which is 0 in `actions`.
        observation_parts: the parts that the environment's observations are concatenated from, when the source says so
            (see `metadata.describe_observations`).
        env_kwargs: keyword arguments that the environment was made with, when the source says so.
        goals: (R, G) float32, the goal that each step was recorded with; None for data that have none.
        achieved_goals: (R, G) float32, the goal that was achieved at each step, before its action; likewise.
        fps: steps a second that it was recorded at, when the source says so.

    Raises:
        ValueError: a column has the wrong type or shape, episodes are not within the rows or not apart from each
            other, or a discrete action is none of the `num_actions`.
    """

    observations: NDArray[np.float32] | NDArray[np.uint8]
    actions: NDArray[np.float32] | NDArray[np.int64]
    rewards: NDArray[np.float32] | None
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    name: str = field(default="trajectories")
    env_id: str | None = None
    num_actions: int | None = None
    action_start: int = 0
    observation_parts: list[dict[str, Any]] | None = None
    env_kwargs: dict[str, Any] | None = None
    goals: NDArray[np.float32] | None = None
    achieved_goals: NDArray[np.float32] | None = None
    fps: float | None = None
    #: What belongs to the columns; it goes along when a `replace` leaves them as they are.
    _store: _Store = field(default=_Store())

    def __post_init__(self) -> None:
        columns = {name: getattr(self, name) for name in FORMS}
        columns = {name: values for name, values in columns.items() if name not in _OPTIONAL or values is not None}
        for column, values in columns.items():
            _check_column(self.name, column, values)
        _check_episodes(self.name, self.starts, self.lengths, {name: len(values) for name, values in columns.items()})
        self._check_goals()
        if self.action_type == "continuous" and self.num_actions is not None:
            raise ValueError(
                f"data set {self.name!r}: num_actions={self.num_actions} was given, but its actions are continuous "
                "(float32); leave it out, or make each action one int64"
            )
        if not self._store.holds(self):
            num_actions = self._checked_num_actions() if self.action_type == "discrete" else None
            if self.rewards is not None:
                columns["returns_to_go"] = _returns_to_go(self.rewards, self.starts, self.lengths)
            order = np.argsort(self.starts)
            object.__setattr__(self, "num_actions", num_actions)
            object.__setattr__(self, "_store", _Store(columns, self.starts[order], self.lengths[order], num_actions))

    @classmethod
    def from_episodes(
        cls, episodes: Sequence[Mapping[str, np.ndarray]], name: str = "trajectories", **metadata: Any
    ) -> Trajectories:
        """Join episodes that are kept one by one.

        Args:
            episodes: each with the columns observations, actions, terminations and truncations, and all or none with
                rewards, goals and achieved_goals, of T rows and the types that the class takes. `load_trajectories`
                takes other types and names, and checks more.
            name, metadata: as the class takes them.

        Raises:
            ValueError: there are none, an episode has no such column or steps of other dimensions, or its columns are
                not what the class takes.
        """
        columns, lengths = join_episodes(name, episodes)
        columns.setdefault("rewards", None)
        return cls(**columns, starts=offsets_of(lengths)[:-1], lengths=lengths, name=name, **metadata)

    def __repr__(self) -> str:
        observation = f"frame_shape={self.frame_shape}" if self.state_type == "image" else f"state_dim={self.state_dim}"
        action = "num_actions" if self.action_type == "discrete" else "act_dim"
        rewards = "" if self.has_rewards else ", no rewards"
        rewards += "" if self.goal_dim is None else f", goal_dim={self.goal_dim}"
        return (
            f"Trajectories({self.name!r}: {self.num_episodes} episodes, {self.num_steps} steps, "
            f"{observation}, {action}={self.act_dim}, env_id={self.env_id!r}{rewards})"
        )

    @property
    def num_episodes(self) -> int:
        """Number of episodes, E."""
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        """Number of steps (transitions) of all episodes, N."""
        return int(self.lengths.sum())

    @property
    def has_rewards(self) -> bool:
        """Whether there are rewards, and so returns; models imitate data that have none."""
        return self.rewards is not None

    @property
    def goal_dim(self) -> int | None:
        """Numbers in a goal, G; None for data that have none."""
        known = [values for values in (self.goals, self.achieved_goals) if values is not None]
        return int(known[0].shape[1]) if known else None

    @property
    def returns_to_go(self) -> NDArray[np.float32]:
        """The sum of the rewards from each step to the end of its episode, (R,) in reward units.

        Each episode is summed on its own, in float64, so a return-to-go does not depend on which other episodes the
        data set holds. Source: Chen et al. 2021, section 3 ("Trajectory representation").

        Raises:
            ValueError: there are no rewards.
        """
        self._needed_rewards()
        return self._store.columns["returns_to_go"]

    @property
    def state_type(self) -> Literal["vector", "image"]:
        """What an observation is: the `state_type` of a model's config."""
        return "image" if self.observations.dtype == np.uint8 else "vector"

    @property
    def action_type(self) -> Literal["continuous", "discrete"]:
        """What an action is: the `action_type` of a model's config."""
        return "discrete" if self.actions.dtype == np.int64 else "continuous"

    @property
    def state_dim(self) -> int:
        """Numbers in one vector observation, S.

        Raises:
            ValueError: the observations are images: no size of a model follows from their number of pixels.
        """
        if self.state_type == "image":
            raise ValueError(f"data set {self.name!r} observes images, which have no state_dim; use frame_shape")
        return int(self.observations.shape[1])

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Height and width of one frame, (H, W), in pixels.

        Raises:
            ValueError: the observations are vectors.
        """
        if self.state_type == "vector":
            raise ValueError(f"data set {self.name!r} observes vectors, which have no frame_shape; use state_dim")
        height, width = self.observations.shape[1:]
        return int(height), int(width)

    @property
    def act_dim(self) -> int:
        """Numbers in one continuous action, or number of discrete actions, A."""
        return int(self.actions.shape[1]) if self.num_actions is None else self.num_actions

    def returns(self) -> NDArray[np.float64]:
        """Return each episode's undiscounted sum of rewards, (E,) float64.

        Raises:
            ValueError: there are no rewards.
        """
        rewards = self._needed_rewards()
        return np.array([rewards[rows].sum(dtype=np.float64) for rows in _slices(self.starts, self.lengths)])

    def plot(self) -> Figure:
        """Draw how returns, where there are rewards, and lengths of the episodes are distributed, beside each other.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return plot_histograms(self.name, self.returns() if self.has_rewards else None, self.lengths)

    def statistics(self) -> TrajectoryStatistics:
        """Return the statistics of this data set, from one pass over the rows, in float64; kept beside mapped columns.

        Raises:
            ValueError: an observation, action or reward is NaN or infinite; names the episode, step and column.
        """
        folder = self._store.folder
        if folder is None:
            return self._statistics()
        return storage.kept_statistics(folder, np.stack([self.starts, self.lengths]), self._statistics)

    def _statistics(self) -> TrajectoryStatistics:
        lengths = self.lengths
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is reported below, with its place
            of_returns = self._statistics_of_returns()
            mean = std = goal_mean = goal_std = None
            if self.state_type == "vector":
                mean, std = self._moments("observations")
            if self.goal_dim is not None:
                goal_mean, goal_std = self._moments("goals" if self.achieved_goals is None else "achieved_goals")
        low = high = counts = None
        taken = (rows for _, rows in self._blocks("actions"))
        if self.action_type == "discrete":
            counts = np.sum([np.bincount(rows, minlength=self.act_dim) for rows in taken], axis=0)
        else:
            bounds = np.array([(rows.min(axis=0), rows.max(axis=0)) for rows in taken], np.float64)
            low, high = bounds[:, 0].min(axis=0), bounds[:, 1].max(axis=0)
        found = (mean, std, low, high, goal_mean, *of_returns.values())
        if not all(np.isfinite(values).all() for values in found if values is not None):
            self.check_finite()
        last = self.starts + lengths - 1
        terminated = int(np.count_nonzero(self.terminations[last]))
        for values in self._store.columns.values():
            storage.release(values)
        return TrajectoryStatistics(
            state_mean=mean,
            state_std=std,
            action_low=low,
            action_high=high,
            action_counts=counts,
            episodes=self.num_episodes,
            transitions=self.num_steps,
            **of_returns,
            length_mean=float(lengths.mean()),
            length_min=int(lengths.min()),
            length_max=int(lengths.max()),
            terminated=terminated,
            truncated=self.num_episodes - terminated,
            goal_mean=goal_mean,
            goal_std=goal_std,
        )

    def normalization(self, column: str, method: Normalization) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what normalises the values of a column (N, D): (value - mid) / scale, both (D,) float64.

        The scale of a dimension that is constant (between the percentiles of `quantile`) is 1. Percentiles of more than
        67 million numbers are those of evenly spaced steps.

        Args:
            column: `"observations"`, `"actions"`, `"goals"` or `"achieved_goals"`.
            method: `"mean_std"`; `"min_max"`, which makes the smallest value -1 and the largest 1; `"quantile"`, which
                does so with the 1st and the 99th percentile; or `"none"`.

        Raises:
            ValueError: observations are images, or actions discrete, which are not normalised.
        """
        values = self._store.columns[column]
        if values.dtype != np.float32:
            kind, setting = ("discrete", "action") if column == "actions" else ("images", "state")
            raise ValueError(
                f"data set {self.name!r}: its {column} are {kind}, which are not normalised; leave "
                f"{setting}_normalization={method} out"
            )
        if method == "none":
            return np.zeros(values.shape[1]), np.ones(values.shape[1])
        scaling = self._moments(column) if method == "mean_std" else scaling_to_range(*self._ends(column, method))
        storage.release(values)
        return scaling

    def _ends(self, column: str, method: Normalization) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the values of a column that `method` makes -1 and 1, each (D,)."""
        if method == "min_max":
            ends = np.array([(rows.min(axis=0), rows.max(axis=0)) for _, rows in self._blocks(column)], np.float64)
            return ends[:, 0].min(axis=0), ends[:, 1].max(axis=0)
        every = -(-self.num_steps * self._store.columns[column].shape[1] // MOST_SORTED)
        taken = np.concatenate([rows[-first % every :: every] for first, rows in self._blocks(column)])
        low, high = np.array([np.percentile(numbers.astype(np.float64), QUANTILE_ENDS) for numbers in taken.T]).T
        return low, high

    def _moments(self, column: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and deviation of each dimension of a column; 1 for the deviation of constant ones."""
        moments = RunningMoments()
        for _, rows in self._blocks(column):
            moments.add(rows)
        return moments.mean, np.where(moments.std < CONSTANT_STD, 1.0, moments.std)

    def _statistics_of_returns(self) -> dict[str, float | None]:
        """Return those of the returns and returns-to-go; None for each where there are no rewards."""
        names = ("return_mean", "return_std", "return_min", "return_max", "return_to_go_min", "return_to_go_max")
        if not self.has_rewards:
            return dict.fromkeys(names)
        returns = self.returns()
        left = np.array([(rows.min(), rows.max()) for _, rows in self._blocks("returns_to_go")])
        values = (returns.mean(), returns.std(), returns.min(), returns.max(), left.min(), left.max())
        return dict(zip(names, map(float, values), strict=True))

    def split(self, held_out_fraction: float, seed: int) -> tuple[Trajectories, Trajectories]:
        """Split into (train, held out) by whole episodes, chosen at random from `seed`; their order is kept.

        Both are selections (see `select`): no column is copied.

        Args:
            held_out_fraction: share of the episodes to hold out, between 0 and 1; at least one episode goes each way.
            seed: the same seed holds out the same episodes.

        Raises:
            ValueError: the fraction is not between 0 and 1, or there is only one episode.
        """
        if not 0 < held_out_fraction < 1:
            raise ValueError(f"held_out_fraction must be between 0 and 1, both excluded; got {held_out_fraction}")
        if self.num_episodes < 2:
            raise ValueError(
                f"data set {self.name!r} has one episode, which cannot be split into a training and a held-out part; "
                "use more episodes or hold none out"
            )
        count = min(max(round(held_out_fraction * self.num_episodes), 1), self.num_episodes - 1)
        held_out = np.zeros(self.num_episodes, dtype=np.bool_)
        held_out[np.random.default_rng(seed).permutation(self.num_episodes)[:count]] = True
        return self.select(~held_out), self.select(held_out)

    def best(self, fraction: float) -> Trajectories:
        """Select the episodes of the highest returns, in the order in which they stand (see `select`).

        As many as hold at most this share of all steps, but at least one; of equal returns the earlier is better.
        Source: %BC (Chen et al. 2021, section 5.1).

        Args:
            fraction: above 0 and at most 1.

        Raises:
            ValueError: the fraction is not in this range, or there are no rewards.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1; got {fraction}")
        order = np.argsort(-self.returns(), kind="stable")
        steps = np.cumsum(self.lengths[order])
        count = max(1, int(np.count_nonzero(steps <= fraction * steps[-1] * (1 + 1e-9))))  # 0.7 of 10 is 7
        chosen = np.zeros(self.num_episodes, dtype=np.bool_)
        chosen[order[:count]] = True
        return self.select(chosen)

    def check_finite(self) -> None:
        """Check every observation, action, goal and reward, and that the rewards of an episode have a sum.

        Raises:
            ValueError: one is NaN or infinite; names the data set, episode, step and column.
        """
        columns = ["observations", "actions", *(name for name in _OPTIONAL if name in self._store.columns)]
        if self.has_rewards and not (
            sum(np.abs(rows).sum(dtype=np.float64) for _, rows in self._blocks("rewards")) < _LARGEST
        ):
            columns.append("returns_to_go")  # no sum of some of them could be too large
        for column in columns:
            if not np.issubdtype(self._store.columns[column].dtype, np.floating):
                continue  # every pixel and every discrete action is a number
            for start, rows in self._blocks(column):
                finite = np.isfinite(rows)
                if finite.all():
                    continue
                place = np.argwhere(~finite)[0]
                episode, step = locate(self.step_offsets(), start + int(place[0]))
                dimension = f", dimension {place[1]}" if len(place) > 1 else ""
                raise ValueError(
                    f"data set {self.name!r}, episode {episode}, step {step}, column {column!r}{dimension}: the value "
                    f"is {rows[tuple(place)]} in float32; correct or remove this episode"
                )

    def select(self, chosen: NDArray[np.bool_]) -> Trajectories:
        """Return the episodes that `chosen` (E,) marks: other episodes of the same columns, of which none is copied."""
        return replace(self, starts=self.starts[chosen], lengths=self.lengths[chosen])

    def compact(self) -> Trajectories:
        """Return the same episodes with columns that hold their rows alone, in order: copies, unless these do."""
        offsets = self.step_offsets()
        if len(self.actions) == self.num_steps and np.array_equal(self.starts, offsets[:-1]):
            return self
        columns: dict[str, np.ndarray] = {}
        for column, values in self._store.columns.items():
            columns[column] = np.empty((self.num_steps, *values.shape[1:]), values.dtype)
            for start, rows in self._blocks(column):
                columns[column][start : start + len(rows)] = rows
        return self._with(columns, self.lengths, self.num_actions)

    def save(self, folder: Path, **more: Any) -> None:
        """Write the columns, with their returns-to-go, into an empty folder.

        Args:
            folder: where to.
            more: what else to write; JSON.

        Raises:
            OSError: something cannot be written.
        """
        columns = {**self._store.columns, "starts": self.starts, "lengths": self.lengths}
        storage.save_columns(folder, columns, {**self._kept(), **more})

    @classmethod
    def open(cls, folder: Path) -> tuple[Trajectories, dict[str, Any]]:
        """Open what `save` wrote, memory-mapped; and return what else it wrote.

        Raises:
            OSError, ValueError, KeyError, TypeError, RecursionError: a file is missing or damaged.
        """
        columns, more = storage.open_columns(folder)
        kept = {name: more.pop(name) for name in _KEPT}
        starts, lengths = columns.pop("starts"), columns.pop("lengths")
        store = _Store(columns, starts, lengths, kept["num_actions"], folder)
        of_forms: dict[str, Any] = {name: columns[name] for name in FORMS if name not in _OPTIONAL or name in columns}
        return cls(**{"rewards": None, **of_forms}, starts=starts, lengths=lengths, **kept, _store=store), more

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let workers that are handed memory-mapped trajectories open them again, instead of getting a copy."""
        if self._store.folder is None:
            return super().__reduce_ex__(protocol)
        return _reopen, (self._store.folder, {**self._kept(), "starts": self.starts, "lengths": self.lengths})

    def _kept(self) -> dict[str, Any]:
        """Return what is kept beside the columns."""
        return {name: getattr(self, name) for name in _KEPT}

    def step_offsets(self) -> NDArray[np.int64]:
        """Return how many steps there are before each episode, and in all, (E + 1,)."""
        return offsets_of(self.lengths)

    def _with(
        self, columns: Mapping[str, np.ndarray], lengths: NDArray[np.int64], num_actions: int | None
    ) -> Trajectories:
        """Return trajectories that are called alike, with these columns of a `_Store`, of episodes in a row."""
        store = _Store(columns, offsets_of(lengths)[:-1], lengths, num_actions)
        changed: dict[str, Any] = {name: columns.get(name) for name in FORMS}
        changed |= {"starts": store.starts, "lengths": lengths, "num_actions": num_actions}
        return replace(self, **changed, _store=store)

    def _blocks(self, column: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first step, rows of a column) in blocks of bounded size, which together are all steps in order."""
        values, offsets = self._store.columns[column], self.step_offsets()
        shifts = self.starts - offsets[:-1]
        for first in range(0, self.num_steps, ROWS_AT_ONCE):
            stop = min(first + ROWS_AT_ONCE, self.num_steps)
            begin, end = np.searchsorted(offsets, first, side="right") - 1, np.searchsorted(offsets, stop)
            counts = np.diff(offsets[begin : end + 1].clip(first, stop))
            yield first, values.take(np.arange(first, stop) + np.repeat(shifts[begin:end], counts), axis=0)

    def _needed_rewards(self) -> NDArray[np.float32]:
        if self.rewards is None:
            raise ValueError(
                f"data set {self.name!r} has no rewards, so no returns; rewards_from='COLUMN' (--rewards_from) makes "
                "rewards of a column when it is loaded"
            )
        return self.rewards

    def _check_goals(self) -> None:
        """Check that goals and achieved goals are of one space."""
        if self.goals is None or self.achieved_goals is None or self.goals.shape[1] == self.achieved_goals.shape[1]:
            return
        raise ValueError(
            f"data set {self.name!r}: goals of {self.goals.shape[1]} numbers, and achieved goals of "
            f"{self.achieved_goals.shape[1]}; both are of one space of goals, so correct one of them"
        )

    def _checked_num_actions(self) -> int:
        """Return the number of discrete actions, when every action is one of them."""
        count = int(self.actions.max()) + 1 if self.num_actions is None else self.num_actions
        highest = min(count, MOST_ACTIONS)
        if self.actions.min() >= 0 and self.actions.max() < highest and count == highest:
            return count
        if self.num_actions is not None and count > MOST_ACTIONS:
            raise ValueError(
                f"data set {self.name!r}: num_actions={count:.4g}, but models have at most {MOST_ACTIONS:,}; correct it"
            )
        row = int(np.flatnonzero((self.actions < 0) | (self.actions >= highest))[0])
        episodes = np.flatnonzero((self.starts <= row) & (row < self.starts + self.lengths))
        where = f"episode {episodes[0]}, step {row - self.starts[episodes[0]]}" if len(episodes) else f"row {row}"
        start = self.action_start
        known = f"discrete actions count from {start}"
        if self.num_actions is not None:
            known = f"there are num_actions={count}" + (f" from {start} on" if start else "")
        known = f"models have at most {MOST_ACTIONS:,}" if self.actions[row] >= MOST_ACTIONS else known
        raise ValueError(
            f"data set {self.name!r}, {where}, column 'actions': the action is "
            f"{self.actions[row] + start}, but {known}; correct it, or num_actions where the data set says it"
        )


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """Return the episodes of one or more trajectories as trajectories of their own.

    Raises:
        ValueError: their columns differ in type or dimensions, or only some have rewards or goals.
    """
    parts = [part.compact() for part in parts]
    first = parts[0]
    for part in parts:
        for column in _OPTIONAL:
            if (getattr(part, column) is None) != (getattr(first, column) is None):
                one, other = (part, first) if getattr(part, column) is None else (first, part)
                way = ", or name a column that is in both with rewards_from='COLUMN' (--rewards_from)"
                raise ValueError(
                    f"data set {one.name!r} has no {column}, and {other.name!r} has; leave out one of them"
                    f"{way if column == 'rewards' else ''}"
                )
        for column in (name for name in FORMS if name in first._store.columns):
            expected, found = getattr(first, column), getattr(part, column)
            if (expected.dtype, expected.shape[1:]) != (found.dtype, found.shape[1:]):
                raise ValueError(
                    f"data set {part.name!r}, column {column!r}: {found.dtype} of {found.shape[1:]} a step, where "
                    f"other episodes have {expected.dtype} of {expected.shape[1:]}; every step needs the same "
                    "dimensions"
                )
    columns = {name: np.concatenate([part._store.columns[name] for part in parts]) for name in first._store.columns}
    num_actions = max((part.num_actions for part in parts if part.num_actions is not None), default=None)
    return first._with(columns, np.concatenate([part.lengths for part in parts]), num_actions)


def join_episodes(name: str, episodes: Sequence[Mapping[str, np.ndarray]]) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Return the flat columns of episodes that are kept one by one, and the steps of each, (E,).

    Args, raises: as `Trajectories.from_episodes`, but that types are not checked.
    """
    if not len(episodes):
        raise ValueError(f"data set {name!r} has no episodes; check the source")
    wanted = [column for column in FORMS if column not in _OPTIONAL or any(column in episode for episode in episodes)]
    for number, episode in enumerate(episodes):
        for column in wanted:
            if column not in episode:
                raise ValueError(
                    f"data set {name!r}, episode {number} has no column {column!r}; every episode needs "
                    f"{', '.join(wanted)}"
                )
            if len(episode[column]) != len(episode["actions"]):
                raise ValueError(
                    f"data set {name!r}, episode {number}, column {column!r} has {len(episode[column])} steps, but "
                    f"there are {len(episode['actions'])} actions; every step needs a value in each column"
                )
    columns = {column: join(name, column, [episode[column] for episode in episodes]) for column in wanted}
    return columns, np.array([len(episode["actions"]) for episode in episodes])


def join(name: str, column: str, pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Return the steps of a column of episodes that are kept one by one.

    Args:
        name: what errors call the data set.
        column: what they call the column.
        pieces: its rows in each episode; of an empty one no dimensions are asked.

    Raises:
        ValueError: they have different dimensions; names the first episode whose dimensions are not those of most.
    """
    filled = [piece for piece in pieces if len(piece)]
    usual = Counter(piece.shape[1:] for piece in filled).most_common(1)
    for number, piece in enumerate(pieces):
        if len(piece) and piece.shape[1:] != usual[0][0]:
            raise ValueError(
                f"data set {name!r}, episode {number}, column {column!r}: {piece.dtype} of {piece.shape[1:]} a step, "
                f"where other episodes have {usual[0][0]}; every step needs the same dimensions"
            )
    return np.concatenate(filled) if filled else pieces[0]


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row at which each of some episodes in a row begins, and where the last one ends, (E + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _reopen(folder: Path, kept: dict[str, Any]) -> Trajectories:
    return replace(Trajectories.open(folder)[0], **kept)


def locate(offsets: NDArray[np.int64], row: int) -> tuple[int, int]:
    """Return (episode, step within it) of a row of episodes that begin at these offsets."""
    episode = int(np.searchsorted(offsets, row, side="right")) - 1
    return episode, row - int(offsets[episode])


def _slices(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[slice]:
    """Return the rows of each episode."""
    return [slice(start, end) for start, end in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]


def _returns_to_go(
    rewards: NDArray[np.float32], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return what each step of each episode has still to come, (R,); 0 in rows of no episode."""
    returns_to_go = np.zeros(len(rewards), dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is reported by `check_finite`
        for rows in _slices(starts, lengths):
            returns_to_go[rows] = np.cumsum(rewards[rows][::-1], dtype=np.float64)[::-1]
    return returns_to_go


def _check_episodes(name: str, starts: NDArray[np.int64], lengths: NDArray[np.int64], rows: Mapping[str, int]) -> None:
    """Check that there are episodes, that none is empty, and that each has rows of its own in every column."""
    for what, values in (("starts", starts), ("lengths", lengths)):
        if not isinstance(values, np.ndarray) or values.dtype != np.int64 or values.ndim != 1:
            raise ValueError(f"data set {name!r}: {what} must be a one-dimensional int64 array")
    if len(starts) != len(lengths):
        raise ValueError(f"data set {name!r}: {len(starts)} starts, but {len(lengths)} lengths; an episode has both")
    if len(starts) == 0:
        raise ValueError(f"data set {name!r} has no episodes; check the source, and what is selected of it")
    empty = np.flatnonzero(lengths <= 0)
    if len(empty):
        raise ValueError(
            f"data set {name!r}, episode {empty[0]} is empty; every episode needs one step or more, so remove it"
        )
    ends = starts + lengths
    last = int(ends.argmax())
    for column, count in rows.items():
        if starts.min() < 0 or ends[last] > count or count != rows["actions"]:
            raise ValueError(
                f"data set {name!r}, column {column!r} has {count} rows, but there are {rows['actions']} actions, and "
                f"the episodes begin at row {starts.min()} and end at {ends[last]}; every step is a row of each column"
            )
    order = np.argsort(starts, kind="stable")
    following = starts[order][1:]
    shared = np.flatnonzero((following < ends[order][:-1]) & (following != starts[order][:-1]))
    if len(shared):
        raise ValueError(
            f"data set {name!r}, episode {order[shared[0] + 1]} begins within episode {order[shared[0]]}; a step is of "
            "one episode"
        )


def _check_column(name: str, column: str, values: np.ndarray) -> None:
    """Check one flat column's type and shape."""
    forms = {np.dtype(dtype): axes for dtype, axes in FORMS[column].items()}
    if not isinstance(values, np.ndarray) or values.dtype not in forms:
        found = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        wanted = " or ".join(map(str, forms))
        raise ValueError(f"data set {name!r}, column {column!r}: expected a {wanted} array, found {found}; convert it")
    axes = forms[values.dtype]
    if values.ndim != len(axes) or 0 in values.shape[1:]:
        shape = f"({', '.join(axes)}) with one or more of each" if len(axes) > 1 else "(steps,)"
        raise ValueError(
            f"data set {name!r}, column {column!r}: expected shape {shape} of {values.dtype} values, "
            f"found {values.shape}"
        )

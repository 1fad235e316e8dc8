"""Trajectories as flat columns: every step of every episode in a row of one array, and the offsets of the episodes.

This is the one form in which data travels after loading: no Python lists, so that a batch of windows is one gather.
Source: the offline data of Decision Transformer (Chen et al. 2021, section 3), stored as D4RL stores it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import storage
from .statistics import CONSTANT_STD, RunningMoments, TrajectoryStatistics

_ROWS_AT_ONCE = 1 << 18  # bounds the float64 copies that checks and statistics make, whatever the size of the data
_LARGEST = float(np.finfo(np.float32).max)
#: What is kept beside the columns.
_KEPT = ("name", "env_id", "num_actions", "action_start", "observation_parts", "env_kwargs")
#: Discrete actions that there can be: a model has a row of weights for each, and none has more (`SIZE_LIMITS`).
MOST_ACTIONS = 1 << 20
#: The types that a column may have, and the axes that it has then.
FORMS: dict[str, dict[type[np.generic], tuple[str, ...]]] = {
    "observations": {np.float32: ("steps", "dimensions"), np.uint8: ("steps", "height", "width")},
    "actions": {np.float32: ("steps", "dimensions"), np.int64: ("steps",)},
    "rewards": {np.float32: ("steps",)},
    "terminations": {np.bool_: ("steps",)},
    "truncations": {np.bool_: ("steps",)},
}


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """E episodes with N steps in all, as flat columns. Arrays may be memory-mapped.

    Row t of an episode holds the observation s_t, the action a_t taken there, the reward r_t which that action earned,
    and whether the episode terminated (task over) or was truncated (time limit, end of recording) with it.
    The columns hold N rows, in the order of the steps. Those of a selection (see `select`) are the columns of the
    whole, with rows of other episodes: its episode e is the `lengths()[e]` rows from `episode_starts[e]` on.

    Args:
        observations: (N, S) float32, in the units of the environment; or (N, H, W) uint8, one grey frame a step, which
            `WindowDataset` stacks.
        actions: (N, A) float32; or (N,) int64, one of `num_actions` discrete actions, counted from 0.
        rewards: (N,) float32.
        terminations: (N,) bool.
        truncations: (N,) bool.
        episode_offsets: int64, strictly increasing from 0 to the number of rows: where each episode of the columns
            begins, and where the last one ends. An episode has at least one step.
        name: what messages and cards call this data set.
        env_id: the gymnasium id of the environment it was recorded in, when the source says so.
        num_actions: discrete actions that there are, when the source says so; default the largest one taken + 1.
        episodes: (E,) int64, which episodes of the columns are meant, in this order; default all of them.
        action_start: number of the environment's first discrete action, which is 0 in `actions`.
        observation_parts: of which parts the environment's observations are concatenated, when the source says so (see
            `facts.describe_observations`).
        env_kwargs: keyword arguments that the environment was made with, when the source says so.

    Raises:
        ValueError: a column has the wrong type or shape, the offsets do not describe the rows, or a discrete action is
            none of the `num_actions`.
    """

    observations: NDArray[np.float32] | NDArray[np.uint8]
    actions: NDArray[np.float32] | NDArray[np.int64]
    rewards: NDArray[np.float32]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    episode_offsets: NDArray[np.int64]
    name: str = field(default="trajectories")
    env_id: str | None = None
    num_actions: int | None = None
    episodes: NDArray[np.int64] | None = None
    action_start: int = 0
    observation_parts: list[dict[str, Any]] | None = None
    env_kwargs: dict[str, Any] | None = None
    #: Where the columns are, when they are memory-mapped ones that `save` wrote.
    folder: Path | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _check_offsets(self.name, self.episode_offsets)
        for column in FORMS:
            _check_column(self.name, column, getattr(self, column), int(self.episode_offsets[-1]))
        if self.episodes is not None and len(self.episodes) == 0:
            raise ValueError(f"data set {self.name!r}: no episodes are selected")
        if self.action_type == "discrete" and (self.episodes is None or self.num_actions is None):
            object.__setattr__(self, "num_actions", self._checked_num_actions())
        elif self.action_type == "continuous" and self.num_actions is not None:
            raise ValueError(
                f"data set {self.name!r}: num_actions={self.num_actions} was given, but its actions are continuous "
                "(float32); leave it out, or make each action one int64"
            )

    def __repr__(self) -> str:
        observation = f"frame_shape={self.frame_shape}" if self.state_type == "image" else f"state_dim={self.state_dim}"
        action = "num_actions" if self.action_type == "discrete" else "act_dim"
        return (
            f"Trajectories({self.name!r}: {self.num_episodes} episodes, {self.num_steps} steps, "
            f"{observation}, {action}={self.act_dim}, env_id={self.env_id!r})"
        )

    @property
    def num_episodes(self) -> int:
        """Number of episodes, E."""
        return len(self.episode_offsets) - 1 if self.episodes is None else len(self.episodes)

    @property
    def num_steps(self) -> int:
        """Number of steps (transitions) of all episodes, N."""
        return int(self.episode_offsets[-1] if self.episodes is None else self.lengths().sum())

    @property
    def episode_starts(self) -> NDArray[np.int64]:
        """The row of the columns at which each episode begins, (E,)."""
        return self.episode_offsets[:-1] if self.episodes is None else self.episode_offsets[self.episodes]

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

    def lengths(self) -> NDArray[np.int64]:
        """Return the steps of each episode, (E,)."""
        lengths = np.diff(self.episode_offsets)
        return lengths if self.episodes is None else lengths[self.episodes]

    def returns(self) -> NDArray[np.float64]:
        """Return each episode's undiscounted sum of rewards, (E,) float64."""
        returns: NDArray[np.float64] = np.add.reduceat(self.rewards, self.episode_offsets[:-1], dtype=np.float64)
        return returns if self.episodes is None else returns[self.episodes]

    @cached_property
    def returns_to_go(self) -> NDArray[np.float32]:
        """The sum of the rewards from each step to the end of its episode, a row of each of the columns' rows.

        In reward units; the sums are float64 inside. Each episode is summed on its own, so a return-to-go does not
        depend on which other episodes the data set holds. Computed at first use; what comes from the cache brings it.
        Source: Chen et al. 2021, section 3 ("Trajectory representation").
        """
        returns_to_go = np.empty(self.episode_offsets[-1], dtype=np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is reported by `check_finite`
            for start, end in zip(self.episode_offsets[:-1].tolist(), self.episode_offsets[1:].tolist(), strict=True):
                backwards = self.rewards[start:end][::-1]
                returns_to_go[start:end] = np.cumsum(backwards, dtype=np.float64)[::-1]
        return returns_to_go

    def statistics(self) -> TrajectoryStatistics:
        """Return the statistics of this data set, from one pass over the rows, in float64; kept in the `folder`.

        Raises:
            ValueError: an observation, action or reward is NaN or infinite; names the episode, step and column.
        """
        return (
            self._statistics()
            if self.folder is None
            else storage.kept_statistics(self.folder, self.episodes, self._statistics)
        )

    def _statistics(self) -> TrajectoryStatistics:
        lengths = self.lengths()
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is reported below, with its place
            returns = self.returns()
            mean = std = None
            if self.state_type == "vector":
                moments = RunningMoments()
                for _, rows in self._blocks("observations"):
                    moments.add(rows)
                mean, std = moments.mean, moments.std
        low = high = counts = None
        taken = (rows for _, rows in self._blocks("actions"))
        if self.action_type == "discrete":
            counts = np.sum([np.bincount(rows, minlength=self.act_dim) for rows in taken], axis=0)
        else:
            bounds = np.array([(rows.min(axis=0), rows.max(axis=0)) for rows in taken], np.float64)
            low, high = bounds[:, 0].min(axis=0), bounds[:, 1].max(axis=0)
        left = np.array([(rows.min(), rows.max()) for _, rows in self._blocks("returns_to_go")])
        if not all(np.isfinite(values).all() for values in (mean, std, low, high, returns, left) if values is not None):
            self.check_finite()
        last = self.episode_starts + lengths - 1
        terminated = int(np.count_nonzero(self.terminations[last]))
        self.release()
        return TrajectoryStatistics(
            state_mean=mean,
            state_std=None if std is None else np.where(std < CONSTANT_STD, 1.0, std),
            action_low=low,
            action_high=high,
            action_counts=counts,
            episodes=self.num_episodes,
            transitions=self.num_steps,
            return_mean=float(returns.mean()),
            return_std=float(returns.std()),
            return_min=float(returns.min()),
            return_max=float(returns.max()),
            return_to_go_min=float(left.min()),
            return_to_go_max=float(left.max()),
            length_mean=float(lengths.mean()),
            length_min=int(lengths.min()),
            length_max=int(lengths.max()),
            terminated=terminated,
            truncated=self.num_episodes - terminated,
        )

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

    def check_finite(self) -> None:
        """Check every observation, action and reward, and that the rewards of an episode have a sum.

        Raises:
            ValueError: one is NaN or infinite; names the data set, episode, step and column.
        """
        columns = ["observations", "actions", "rewards"]
        if not sum(np.abs(rows).sum(dtype=np.float64) for _, rows in self._blocks("rewards")) < _LARGEST:
            columns.append("returns_to_go")  # no sum of some of them could be too large
        for column in columns:
            if not np.issubdtype(getattr(self, column).dtype, np.floating):
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
        episodes = np.arange(self.num_episodes) if self.episodes is None else self.episodes
        return replace(self, episodes=episodes[chosen])._attach(self.returns_to_go, self.folder)

    def compact(self) -> Trajectories:
        """Return a selection with columns of its own, which hold its rows alone."""
        if self.episodes is None:
            return self
        columns: dict[str, Any] = {}
        for column in FORMS:
            values = getattr(self, column)
            columns[column] = np.empty((self.num_steps, *values.shape[1:]), values.dtype)
            for start, rows in self._blocks(column):
                columns[column][start : start + len(rows)] = rows
        return replace(self, **columns, episode_offsets=self.step_offsets(), episodes=None)

    def save(self, folder: Path, **facts: Any) -> None:
        """Write the columns of trajectories that are no selection, with their returns-to-go, into an empty folder.

        Args:
            folder: where to.
            facts: what else to write; JSON.

        Raises:
            OSError: something cannot be written.
        """
        columns = {name: getattr(self, name) for name in (*FORMS, "episode_offsets", "returns_to_go")}
        kept = {name: getattr(self, name) for name in _KEPT}
        storage.save_columns(folder, columns, {**kept, **facts})

    @classmethod
    def open(cls, folder: Path) -> tuple[Trajectories, dict[str, Any]]:
        """Open what `save` wrote, memory-mapped; and return what else it wrote.

        Raises:
            OSError, ValueError, KeyError, TypeError, RecursionError: a file is missing or damaged.
        """
        columns, facts = storage.open_columns(folder)
        returns_to_go = columns.pop("returns_to_go")
        kept = {name: facts.pop(name) for name in _KEPT}
        return cls(**columns, **kept)._attach(returns_to_go, folder), facts

    def mapped(self) -> dict[str, np.ndarray]:
        """Return the columns that are memory-mapped; none where they are in memory."""
        columns = {column: getattr(self, column) for column in (*FORMS, "returns_to_go")}
        return {column: values for column, values in columns.items() if storage.mapping(values) is not None}

    def release(self) -> None:
        """Take memory-mapped columns out of this process's memory until they are read again."""
        for column in (*FORMS, "returns_to_go"):
            storage.release(getattr(self, column))

    def _attach(self, returns_to_go: NDArray[np.float32], folder: Path | None) -> Trajectories:
        """Add what belongs to these columns, and must not outlive a `replace` of one of them."""
        vars(self).update(returns_to_go=returns_to_go, folder=folder)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Workers that are handed memory-mapped trajectories open them again, instead of getting a copy."""
        return super().__reduce_ex__(protocol) if self.folder is None else (_reopen, (self.folder, self.episodes))

    def step_offsets(self) -> NDArray[np.int64]:
        """Return how many steps there are before each episode, and in all, (E + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths())])

    def _blocks(self, column: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first step, rows of a column) in blocks of bounded size, which together are all steps in order."""
        values, offsets = getattr(self, column), self.step_offsets()
        shifts = self.episode_starts - offsets[:-1]
        for first in range(0, self.num_steps, _ROWS_AT_ONCE):
            stop = min(first + _ROWS_AT_ONCE, self.num_steps)
            if self.episodes is None:
                yield first, values[first:stop]
            else:
                begin, end = np.searchsorted(offsets, first, side="right") - 1, np.searchsorted(offsets, stop)
                counts = np.diff(offsets[begin : end + 1].clip(first, stop))
                yield first, values[np.arange(first, stop) + np.repeat(shifts[begin:end], counts)]
            storage.release(values)

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
        episode, step = locate(self.episode_offsets, row)
        start = self.action_start
        known = f"discrete actions count from {start}"
        if self.num_actions is not None:
            known = f"there are num_actions={count}" + (f" from {start} on" if start else "")
        known = f"models have at most {MOST_ACTIONS:,}" if self.actions[row] >= MOST_ACTIONS else known
        raise ValueError(
            f"data set {self.name!r}, episode {episode}, step {step}, column 'actions': the action is "
            f"{self.actions[row] + start}, but {known}; correct it, or num_actions where the data set says it"
        )


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """Return the episodes of one or more trajectories as trajectories of their own.

    Raises:
        ValueError: their columns differ in type or dimensions.
    """
    parts = [part.compact() for part in parts]
    first = parts[0]
    for part in parts:
        for column in FORMS:
            mine, theirs = getattr(first, column), getattr(part, column)
            if (mine.dtype, mine.shape[1:]) != (theirs.dtype, theirs.shape[1:]):
                raise ValueError(
                    f"data set {part.name!r}, column {column!r}: {theirs.dtype} of {theirs.shape[1:]} a step, where "
                    f"other episodes have {mine.dtype} of {mine.shape[1:]}; every step needs the same dimensions"
                )
    columns: dict[str, Any] = {column: np.concatenate([getattr(part, column) for part in parts]) for column in FORMS}
    lengths = np.concatenate([part.lengths() for part in parts])
    num_actions = max((part.num_actions for part in parts if part.num_actions is not None), default=None)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return replace(first, **columns, episode_offsets=offsets, num_actions=num_actions)


def _reopen(folder: Path, episodes: NDArray[np.int64] | None) -> Trajectories:
    whole, _ = Trajectories.open(folder)
    return whole if episodes is None else replace(whole, episodes=episodes)._attach(whole.returns_to_go, folder)


def locate(episode_offsets: NDArray[np.int64], row: int) -> tuple[int, int]:
    """Return (episode, step within it) of a row of the flat columns."""
    episode = int(np.searchsorted(episode_offsets, row, side="right")) - 1
    return episode, row - int(episode_offsets[episode])


def _check_offsets(name: str, offsets: NDArray[np.int64]) -> None:
    """Check that the offsets describe at least one episode and no empty one."""
    if not isinstance(offsets, np.ndarray) or offsets.dtype != np.int64 or offsets.ndim != 1:
        raise ValueError(f"data set {name!r}: episode_offsets must be a one-dimensional int64 array")
    if len(offsets) < 2:
        raise ValueError(f"data set {name!r} has no episodes; check the source and the split")
    if offsets[0] != 0:
        raise ValueError(f"data set {name!r}: episode_offsets must begin with 0, not {offsets[0]}")
    empty = np.flatnonzero(np.diff(offsets) <= 0)
    if len(empty):
        raise ValueError(
            f"data set {name!r}, episode {empty[0]} is empty; every episode needs one step or more, so remove it"
        )


def _check_column(name: str, column: str, values: np.ndarray, num_steps: int) -> None:
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
    if len(values) != num_steps:
        raise ValueError(
            f"data set {name!r}, column {column!r} has {len(values)} rows, but the episode offsets end at {num_steps}"
        )

"""Trajectories as flat columns: every step of every episode in a row of one array, and the offsets of the episodes.

This is the one form in which data travels after loading: no Python lists, so that a batch of windows is one gather.
Source: the offline data of Decision Transformer (Chen et al. 2021, section 3), stored as D4RL stores it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

#: A state dimension that varies less than this is constant: it is centred, never divided by its tiny deviation.
CONSTANT_STD = 1e-6

_ROWS_AT_ONCE = 1 << 18  # bounds the float64 copies that checks and statistics make, whatever the size of the data
#: The types that a column may have, and the axes that it has then.
_FORMS: dict[str, dict[type[np.generic], tuple[str, ...]]] = {
    "observations": {np.float32: ("steps", "dimensions"), np.uint8: ("steps", "height", "width")},
    "actions": {np.float32: ("steps", "dimensions"), np.int64: ("steps",)},
    "rewards": {np.float32: ("steps",)},
    "terminations": {np.bool_: ("steps",)},
    "truncations": {np.bool_: ("steps",)},
}


@dataclass(frozen=True, eq=False)
class TrajectoryStatistics:
    """What a model and its card need to know about a data set, computed in float64.

    `state_mean`, `state_std` (S,) are in observation units; a `state_std` below `CONSTANT_STD` is given as 1. Images
    have None: the model divides pixels by 255. `action_low`, `action_high` (A,) are the smallest and largest continuous
    action taken; discrete actions have `action_counts` (A,) instead, how often each was taken. Returns are undiscounted
    sums of rewards over whole episodes; lengths are in steps; standard deviations are those of the population.
    `terminated` episodes ended by the task, all others count as `truncated`.
    """

    state_mean: NDArray[np.float64] | None
    state_std: NDArray[np.float64] | None
    action_low: NDArray[np.float64] | None
    action_high: NDArray[np.float64] | None
    action_counts: NDArray[np.int64] | None
    episodes: int
    transitions: int
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    length_mean: float
    length_min: int
    length_max: int
    terminated: int
    truncated: int

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain lists and numbers, ready for JSON."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """E episodes with N steps in all, as flat columns. Arrays may be memory-mapped.

    Row t of an episode holds the observation s_t, the action a_t taken there, the reward r_t which that action earned,
    and whether the episode terminated (task over) or was truncated (time limit, end of recording) with it.
    Episode e is the rows `episode_offsets[e]` up to `episode_offsets[e + 1]`.

    Args:
        observations: (N, S) float32, in the units of the environment; or (N, H, W) uint8, one grey frame a step, which
            `WindowDataset` stacks.
        actions: (N, A) float32; or (N,) int64, one of `num_actions` discrete actions, counted from 0.
        rewards: (N,) float32.
        terminations: (N,) bool.
        truncations: (N,) bool.
        episode_offsets: (E + 1,) int64, from 0 to N, strictly increasing: an episode has at least one step.
        name: what messages and cards call this data set.
        env_id: the gymnasium id of the environment it was recorded in, when the source says so.
        num_actions: discrete actions that there are, when the source says so; default the largest one taken + 1.

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

    def __post_init__(self) -> None:
        _check_offsets(self.name, self.episode_offsets)
        for column in _FORMS:
            _check_column(self.name, column, getattr(self, column), self.num_steps)
        if self.action_type == "discrete":
            object.__setattr__(self, "num_actions", self._checked_num_actions())
        elif self.num_actions is not None:
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
        return len(self.episode_offsets) - 1

    @property
    def num_steps(self) -> int:
        """Number of steps (transitions) of all episodes, N."""
        return int(self.episode_offsets[-1])

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
        return np.diff(self.episode_offsets)

    def returns(self) -> NDArray[np.float64]:
        """Return each episode's undiscounted sum of rewards, (E,) float64."""
        return np.add.reduceat(self.rewards, self.episode_offsets[:-1], dtype=np.float64)

    def returns_to_go(self) -> NDArray[np.float32]:
        """Return the sum of the rewards from each step to the end of its episode, (N,), in reward units.

        The sums are float64 inside. Each episode is summed on its own, so a return-to-go does not depend on which
        other episodes the data set holds. Source: Chen et al. 2021, section 3 ("Trajectory representation").
        """
        returns_to_go = np.empty(self.num_steps, dtype=np.float32)
        for start, end in zip(self.episode_offsets[:-1].tolist(), self.episode_offsets[1:].tolist(), strict=True):
            backwards = self.rewards[start:end][::-1]
            returns_to_go[start:end] = np.cumsum(backwards, dtype=np.float64)[::-1]
        return returns_to_go

    def statistics(self) -> TrajectoryStatistics:
        """Compute the statistics of this data set in one pass over the rows, in float64.

        Raises:
            ValueError: an observation, action or reward is NaN or infinite; names the episode, step and column.
        """
        lengths = self.lengths()
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is reported below, with its place
            returns = self.returns()
            mean, std = _mean_and_std(self.observations) if self.state_type == "vector" else (None, None)
        low = high = counts = None
        if self.action_type == "discrete":
            counts = np.bincount(self.actions, minlength=self.act_dim)
        else:
            low, high = self.actions.min(axis=0).astype(np.float64), self.actions.max(axis=0).astype(np.float64)
        if not all(np.isfinite(values).all() for values in (mean, std, low, high, returns) if values is not None):
            self.check_finite()
        last = self.episode_offsets[1:] - 1
        terminated = int(np.count_nonzero(self.terminations[last]))
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
            length_mean=float(lengths.mean()),
            length_min=int(lengths.min()),
            length_max=int(lengths.max()),
            terminated=terminated,
            truncated=self.num_episodes - terminated,
        )

    def split(self, held_out_fraction: float, seed: int) -> tuple[Trajectories, Trajectories]:
        """Split into (train, held out) by whole episodes, chosen at random from `seed`; their order is kept.

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
        """Check every observation, action and reward.

        Raises:
            ValueError: one is NaN or infinite; names the data set, episode, step and column.
        """
        for column in ("observations", "actions", "rewards"):
            values = getattr(self, column)
            if not np.issubdtype(values.dtype, np.floating):
                continue  # every pixel and every discrete action is a number
            for start, rows in _blocks(values):
                finite = np.isfinite(rows)
                if finite.all():
                    continue
                place = np.argwhere(~finite)[0]
                episode, step = locate(self.episode_offsets, start + int(place[0]))
                dimension = f", dimension {place[1]}" if len(place) > 1 else ""
                raise ValueError(
                    f"data set {self.name!r}, episode {episode}, step {step}, column {column!r}{dimension}: the value "
                    f"is {rows[tuple(place)]} in float32; correct or remove this episode"
                )

    def select(self, chosen: NDArray[np.bool_]) -> Trajectories:
        """Return a copy of the episodes that `chosen` (E,) marks."""
        lengths = self.lengths()
        rows = np.repeat(chosen, lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths[chosen])]).astype(np.int64)
        columns = {column: getattr(self, column)[rows] for column in _FORMS}
        return Trajectories(
            **columns, episode_offsets=offsets, name=self.name, env_id=self.env_id, num_actions=self.num_actions
        )

    def _checked_num_actions(self) -> int:
        """Return the number of discrete actions, when every action is one of them."""
        count = int(self.actions.max()) + 1 if self.num_actions is None else self.num_actions
        if self.actions.min() >= 0 and self.actions.max() < count:
            return count
        row = int(np.flatnonzero((self.actions < 0) | (self.actions >= count))[0])
        episode, step = locate(self.episode_offsets, row)
        known = "discrete actions count from 0" if self.num_actions is None else f"there are num_actions={count}"
        raise ValueError(
            f"data set {self.name!r}, episode {episode}, step {step}, column 'actions': the action is "
            f"{self.actions[row]}, but {known}; correct it, or num_actions where the data set says it"
        )


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
    forms = {np.dtype(dtype): axes for dtype, axes in _FORMS[column].items()}
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


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) in blocks of bounded size."""
    for start in range(0, len(values), _ROWS_AT_ONCE):
        yield start, values[start : start + _ROWS_AT_ONCE]


def _mean_and_std(values: np.ndarray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and population standard deviation (D,) of (N, D) values, block by block in float64.

    Blocks are merged by Chan, Golub & LeVeque 1979 (equation 2.1): no cancellation, as sums of squares have.
    """
    mean = np.zeros(values.shape[1])
    squares = np.zeros(values.shape[1])
    for start, block in _blocks(values):
        rows = block.astype(np.float64)
        block_mean = rows.mean(axis=0)
        total = start + len(rows)
        shift = block_mean - mean
        squares += np.square(rows - block_mean).sum(axis=0) + shift**2 * (start * len(rows) / total)
        mean += shift * (len(rows) / total)
    return mean, np.sqrt(squares / len(values))

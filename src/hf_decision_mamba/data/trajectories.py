"""Trajectories as flat columns: every step of every episode in a row of one array, and the offsets of the episodes.

This is the one form in which data travels after loading: no Python lists, so that a batch of windows is one gather.
Source: the offline data of Decision Transformer (Chen et al. 2021, section 3), stored as D4RL stores it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A state dimension that varies less than this is constant: it is centred, never divided by its tiny deviation.
CONSTANT_STD = 1e-6

_ROWS_AT_ONCE = 1 << 18  # bounds the float64 copies that checks and statistics make, whatever the size of the data
_ONE_NUMBER_PER_STEP = ("rewards", "terminations", "truncations")
_COLUMNS: dict[str, type[np.generic]] = {
    "observations": np.float32,
    "actions": np.float32,
    "rewards": np.float32,
    "terminations": np.bool_,
    "truncations": np.bool_,
}


@dataclass(frozen=True, eq=False)
class TrajectoryStatistics:
    """What a model and its card need to know about a data set, computed in float64.

    `state_mean`, `state_std` (S,) are in observation units; a `state_std` below `CONSTANT_STD` is given as 1.
    `action_low`, `action_high` (A,) are the smallest and largest action taken. Returns are undiscounted sums of rewards
    over whole episodes; lengths are in steps; standard deviations are those of the population. `terminated` episodes
    ended by the task, all others count as `truncated`.
    """

    state_mean: NDArray[np.float64]
    state_std: NDArray[np.float64]
    action_low: NDArray[np.float64]
    action_high: NDArray[np.float64]
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
        observations: (N, S) float32, in the units of the environment.
        actions: (N, A) float32.
        rewards: (N,) float32.
        terminations: (N,) bool.
        truncations: (N,) bool.
        episode_offsets: (E + 1,) int64, from 0 to N, strictly increasing: an episode has at least one step.
        name: what messages and cards call this data set.
        env_id: the gymnasium id of the environment it was recorded in, when the source says so.

    Raises:
        ValueError: a column has the wrong type or shape, or the offsets do not describe the rows.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    episode_offsets: NDArray[np.int64]
    name: str = field(default="trajectories")
    env_id: str | None = None

    def __post_init__(self) -> None:
        _check_offsets(self.name, self.episode_offsets)
        for column, dtype in _COLUMNS.items():
            _check_column(self.name, column, getattr(self, column), dtype, self.num_steps)

    def __repr__(self) -> str:
        return (
            f"Trajectories({self.name!r}: {self.num_episodes} episodes, {self.num_steps} steps, "
            f"state_dim={self.state_dim}, act_dim={self.act_dim}, env_id={self.env_id!r})"
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
    def state_dim(self) -> int:
        """Numbers in one observation, S."""
        return int(self.observations.shape[1])

    @property
    def act_dim(self) -> int:
        """Numbers in one action, A."""
        return int(self.actions.shape[1])

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
            mean, std = _mean_and_std(self.observations)
        low, high = self.actions.min(axis=0).astype(np.float64), self.actions.max(axis=0).astype(np.float64)
        if not all(np.isfinite(values).all() for values in (mean, std, low, high, returns)):
            self.check_finite()
        last = self.episode_offsets[1:] - 1
        terminated = int(np.count_nonzero(self.terminations[last]))
        return TrajectoryStatistics(
            state_mean=mean,
            state_std=np.where(std < CONSTANT_STD, 1.0, std),
            action_low=low,
            action_high=high,
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
        return self._select(~held_out), self._select(held_out)

    def check_finite(self) -> None:
        """Check every observation, action and reward.

        Raises:
            ValueError: one is NaN or infinite; names the data set, episode, step and column.
        """
        for column in ("observations", "actions", "rewards"):
            for start, rows in _blocks(getattr(self, column)):
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

    def _select(self, chosen: NDArray[np.bool_]) -> Trajectories:
        """Copy the episodes that `chosen` (E,) marks."""
        lengths = self.lengths()
        rows = np.repeat(chosen, lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths[chosen])]).astype(np.int64)
        columns = {column: getattr(self, column)[rows] for column in _COLUMNS}
        return Trajectories(**columns, episode_offsets=offsets, name=self.name, env_id=self.env_id)


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


def _check_column(name: str, column: str, values: np.ndarray, dtype: type[np.generic], num_steps: int) -> None:
    """Check one flat column's type and shape."""
    if not isinstance(values, np.ndarray) or values.dtype != dtype:
        found = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        wanted = np.dtype(dtype)
        raise ValueError(f"data set {name!r}, column {column!r}: expected a {wanted} array, found {found}; convert it")
    ndim = 1 if column in _ONE_NUMBER_PER_STEP else 2
    if values.ndim != ndim or (ndim == 2 and values.shape[1] == 0):
        shape = "(steps,)" if ndim == 1 else "(steps, dimensions) with one dimension or more"
        raise ValueError(f"data set {name!r}, column {column!r}: expected shape {shape}, found {values.shape}")
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

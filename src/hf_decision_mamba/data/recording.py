"""Episodes as they are recorded: built step by step, written to parquet as they end, and counted for the card.

One row is one episode, in the layout that `load_trajectories` reads; memory holds the episodes of one row group.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from ..reporting.files import writing
from .statistics import RunningMoments, spread
from .trajectories import join_episodes, offsets_of

#: Bytes of episodes that are held back until they are written together, as one row group.
ROW_GROUP_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class Episode:
    """One recorded episode of T steps.

    Args:
        observations: (T, S) float32, or grey frames (T, H, W) uint8: what was seen before each action.
        actions: (T, A) float32 or (T,) int64: what was done.
        rewards: (T,) float32: what each action earned.
        terminated: whether the task ended it; if not, a limit or the end of the recording truncated it.
        seed: the environment was reset with it.
        success: whether the environment called it one; None where it says nothing.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    terminated: bool
    seed: int
    success: bool | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns of `Trajectories`, in which actions are as the environment counts them."""
        ends = np.arange(len(self)) == len(self) - 1
        return {
            "observations": self.observations,
            "actions": self.actions,
            "rewards": self.rewards,
            "terminations": ends & self.terminated,
            "truncations": ends & (not self.terminated),
        }

    @property
    def total(self) -> float:
        """The return: the undiscounted sum of the rewards."""
        return float(self.rewards.sum(dtype=np.float64))


class EpisodeBuilder:
    """An episode that is being played.

    Args:
        seed: that its environment was reset with.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._observations: list[NDArray[Any]] = []
        self._actions: list[NDArray[Any]] = []
        self._rewards: list[float] = []

    def __len__(self) -> int:
        return len(self._rewards)

    def add(self, observation: ArrayLike, action: ArrayLike, reward: float) -> None:
        """Add a step: an observation, the action taken there and the reward that it earned."""
        seen = np.asarray(observation)
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is reported at the end
            self._observations.append(np.array(seen, dtype=np.uint8 if seen.ndim == 2 else np.float32))
        self._actions.append(np.array(action))
        self._rewards.append(float(reward))

    def finish(self, terminated: bool, success: bool | None = None) -> Episode:
        """Return the episode, which has ended.

        Raises:
            ValueError: an observation, action or reward is NaN or infinite; names the step and the seed.
        """
        actions = np.stack(self._actions)
        with np.errstate(over="ignore"):
            rewards = np.asarray(self._rewards, dtype=np.float32)
        columns = {
            "observation": np.stack(self._observations),
            "action": actions.astype(np.float32 if actions.ndim == 2 else np.int64),
            "reward": rewards,
        }
        for name, values in columns.items():
            wrong = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
            if len(wrong):
                raise ValueError(
                    f"The {name} is {values[wrong[0]]} at step {wrong[0]} of the episode with seed {self.seed}, which "
                    "is not finite in float32; no model can learn from that, so correct the environment or the policy."
                )
        return Episode(columns["observation"], columns["action"], rewards, terminated, self.seed, success)


class EpisodeWriter:
    """A parquet file of episodes: written beside its place, and put there when it is complete.

    Leaving it by an error removes what was written.

    Raises:
        OSError: the file cannot be written; what was written is removed.
    """

    def __init__(self, path: Path):
        self.path = path
        self._unfinished = path.with_name(f"{path.name}.part")
        self._file: pq.ParquetWriter | None = None
        self.waiting: list[Episode] = []
        self._bytes = 0
        self._made_folder = False

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write()
                self._finish()
        finally:
            self._discard()

    def add(self, episode: Episode) -> None:
        """Add an episode; every few megabytes they are written."""
        self.waiting.append(episode)
        self._bytes += episode.observations.nbytes + episode.actions.nbytes
        if self._bytes >= ROW_GROUP_BYTES:
            self._write()

    def _finish(self) -> None:
        if self._file is not None:
            with writing(self.path):
                self._file.close()
                self._unfinished.replace(self.path)

    def _discard(self) -> None:
        """Remove what is unfinished, with the folder if it was made for it."""
        with suppress(OSError):  # again what went wrong before
            if self._file is not None and self._file.is_open:
                self._file.close()
        self._unfinished.unlink(missing_ok=True)
        if self._made_folder:
            with suppress(OSError):  # the file is in it
                self.path.parent.rmdir()

    def _write(self) -> None:
        if self.waiting:
            with writing(self.path):
                self._write_table(_table(self.waiting))
            self.waiting, self._bytes = [], 0

    def _write_table(self, table: pa.Table) -> None:
        if self._file is None:
            floats = [field.path for field in _leaves(table.schema) if field.physical_type == "FLOAT"]
            self._made_folder = not self.path.parent.is_dir()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pq.ParquetWriter(
                self._unfinished,
                table.schema,
                compression="zstd",
                use_dictionary=False,
                use_byte_stream_split=floats,
            )
        self._file.write_table(table)


def _leaves(schema: pa.Schema) -> list[Any]:
    """Return the columns as parquet names them."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return [columns.column(number) for number in range(len(columns))]


def _table(episodes: list[Episode]) -> pa.Table:
    columns, lengths = join_episodes("recorded", [episode.columns() for episode in episodes])
    offsets = offsets_of(lengths).astype(np.int32)
    table: dict[str, pa.Array] = {}
    if columns["observations"].dtype == np.uint8:
        frames = [episode.observations.tobytes() for episode in episodes]
        table["observations"], _ = pa.array(frames, pa.binary()), columns.pop("observations")
    table |= {name: _lists(values, offsets) for name, values in columns.items()}
    table["seed"] = pa.array([episode.seed for episode in episodes], pa.int64())
    return pa.table(table)


def _list(values: pa.Array, offsets: NDArray[np.int32]) -> pa.Array:
    kind = pa.list_(pa.field("element", values.type))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind)


def _lists(values: NDArray[Any], offsets: NDArray[np.int32]) -> pa.Array:
    """Return one list an episode: of numbers, of values (N,); of vectors, of values (N, D)."""
    if values.ndim == 1:
        return _list(pa.array(values), offsets)
    steps, width = values.shape
    vectors = _list(pa.array(values.reshape(-1)), np.arange(0, steps * width + 1, width, dtype=np.int32))
    return _list(vectors, offsets)


@dataclass
class RunningStatistics(RunningMoments):
    """The moments of values that come in blocks, and their range."""

    low: Any = np.inf
    high: Any = -np.inf

    def add(self, values: NDArray[Any]) -> None:
        """Add values (T, D)."""
        super().add(values)
        low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)


@dataclass
class EpisodeStatistics:
    """What a card says about the episodes, gathered as they are written."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    transitions: int = 0
    terminated: int = 0
    successes: list[bool] = field(default_factory=list)
    observations: RunningStatistics = field(default_factory=RunningStatistics)
    actions: RunningStatistics = field(default_factory=RunningStatistics)
    action_counts: dict[int, int] = field(default_factory=dict)

    def add(self, episode: Episode) -> None:
        """Count an episode."""
        self.returns.append(episode.total)
        self.lengths.append(len(episode))
        self.transitions += len(episode)
        self.terminated += episode.terminated
        self.successes += [] if episode.success is None else [episode.success]
        if episode.observations.ndim == 2:
            self.observations.add(episode.observations)
        if episode.actions.ndim == 2:
            self.actions.add(episode.actions)
            return
        for action, count in zip(*np.unique(episode.actions, return_counts=True), strict=True):
            self.action_counts[int(action)] = self.action_counts.get(int(action), 0) + int(count)

    @property
    def episodes(self) -> int:
        """Episodes so far."""
        return len(self.returns)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single episodes, ready for JSON; what there is none of is None."""
        return {
            "episodes": self.episodes,
            "transitions": self.transitions,
            "terminated": self.terminated,
            "truncated": self.episodes - self.terminated,
            "returns": spread(self.returns),
            "lengths": spread(self.lengths),
            "observations": _rows(self.observations) if self.observations.count else None,
            "actions": _rows(self.actions) if self.actions.count else None,
            "action_counts": dict(sorted(self.action_counts.items())) or None,
        }


def _rows(values: RunningStatistics) -> list[dict[str, float]]:
    """Return one row for each dimension: mean, std (of the population), low, high."""
    names = ("mean", "std", "low", "high")
    columns = zip(*(getattr(values, name).tolist() for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in columns]

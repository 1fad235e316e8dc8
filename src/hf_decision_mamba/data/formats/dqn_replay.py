"""The DQN replay data set: folders of `$store$_*_ckpt.N.gz`, the logs of a DQN agent that learns an Atari game.

Fifty checkpoints of a million transitions are a game's whole training; the papers learn from 1 % of it. Frames are read
as a stream, as far as they are needed. Rewards are clipped to [-1, 1], as the agent saw them. Memory is taken for what
a file declares only where it can hold so much.
Source: Agarwal et al. 2020 (arXiv 1907.04543); Dopamine's replay buffer; the 1 % are Chen et al. 2021's, section 4.1.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..columns import Column, assemble
from ..metadata import SourceMetadata, metadata_of_card
from ..trajectories import Trajectories
from .rows import reading

#: 1 % of the 50 million transitions of a game: what the papers learn from.
DEFAULT_STEPS = 500_000

_EPISODES_AT_ONCE = 10  # Decision Transformer takes so many from a checkpoint, then draws another checkpoint
_SEED = 0
_PADDING = 3  # Dopamine puts up to so many blank frames before an episode, for its stacks of four
_MOST_ROWS = 1 << 22  # of a checkpoint, which has a million
_SKIPPED_AT_ONCE = 1 << 23  # bytes
_LARGEST_SIDE = 1 << 12  # of a frame, in pixels; models read none that are larger
_MOST_DEFLATED = 1032  # times; what deflate can do
#: The header of a .npy file, as NumPy writes it; Python 2 wrote its long numbers with an L. NumPy would parse Python.
_HEADER = re.compile(
    rb"\{'descr': '([<>=|]?[A-Za-z?][0-9]{0,5})', 'fortran_order': (False|True), "
    rb"'shape': \(([0-9L, ]{0,200})\),? ?\}\s*"
)
_LONGEST_HEADER = 1 << 12
_CHECKPOINT = re.compile(r"\$store\$_observation_ckpt\.(\d+)\.gz")


def find_logs(path: Path) -> Path | None:
    """Return the folder of the logs: this one, `replay_logs` of a run, or that of a game's first run; else None."""
    for folder in (path, path / "replay_logs", path / "1" / "replay_logs"):
        if folder.is_dir() and any(map(_CHECKPOINT.fullmatch, (file.name for file in folder.iterdir()))):
            return folder
    return None


def read_dqn_replay(source_name: str, path: Path, steps: str | None, metadata: SourceMetadata) -> Trajectories:
    """Read whole episodes of a game, by the papers' protocol.

    While more transitions are wanted, a checkpoint is drawn at random, always by the same seed, and the next ten
    episodes of it are taken. If there are no more than wanted, all are taken. Left out are the parts of episodes at
    both ends of a checkpoint, and episodes with steps that the agent's buffer calls invalid.

    Args:
        source_name: what errors call it.
        path: the folder that the user named, in which `find_logs` finds some.
        steps: number of transitions wanted, or "all"; default 500,000, which take 3.5 GB of memory.
        metadata: what is known about it; the card is asked for the rest.

    Raises:
        ValueError: the files are damaged or do not belong together, or hold no whole episode.
    """
    wanted, logs = _wanted(source_name, steps), find_logs(path) or path
    numbers = sorted(int(found[1]) for file in logs.iterdir() if (found := _CHECKPOINT.fullmatch(file.name)))
    checkpoints = [_Checkpoint.open(source_name, logs, number) for number in numbers]
    chosen = _choose(checkpoints, wanted)
    episodes = [
        (checkpoint, checkpoint.starts[:count], checkpoint.ends[:count])
        for checkpoint, count in zip(checkpoints, chosen, strict=True)
        if count
    ]
    if not episodes:
        raise ValueError(f"data set {source_name!r} holds no whole episode in {logs}; more checkpoints may")
    return _trajectories(source_name, path, logs, episodes, metadata)


def _wanted(source_name: str, steps: str | None) -> float:
    if steps is None:
        return DEFAULT_STEPS
    if steps == "all":
        return math.inf
    if steps.isascii() and steps.isdigit() and int(steps) > 0:
        return int(steps)
    raise ValueError(
        f"data set {source_name!r}: config={steps!r} is no number of transitions of a DQN replay; give one such as "
        '"500000", or "all"'
    )


def _choose(checkpoints: list[_Checkpoint], wanted: float) -> list[int]:
    """Return how many episodes to take of each checkpoint, from its beginning."""
    available, taken = [len(checkpoint.ends) for checkpoint in checkpoints], [0] * len(checkpoints)
    total = 0
    random = np.random.default_rng(_SEED)
    while total < wanted:
        left = [number for number, count in enumerate(taken) if count < available[number]]
        if not left:
            break
        drawn = int(random.choice(left))
        more = slice(taken[drawn], taken[drawn] + _EPISODES_AT_ONCE)
        total += int((checkpoints[drawn].ends[more] - checkpoints[drawn].starts[more]).sum())
        taken[drawn] = min(more.stop, available[drawn])
    return taken


@dataclass(frozen=True)
class _Checkpoint:
    """One checkpoint: where its files are, its small columns, and (first row, row after the last) of its episodes."""

    source_name: str
    logs: Path
    number: int
    actions: np.ndarray
    rewards: np.ndarray
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def open(cls, source_name: str, logs: Path, number: int) -> _Checkpoint:
        """Read the small columns, and find the whole episodes."""
        actions, rewards, terminals = (
            _read_column(source_name, _file(logs, name, number), kinds)
            for name, kinds in (("action", "iu"), ("reward", "iuf"), ("terminal", "biu"))
        )
        rows = len(terminals)
        if len(actions) != rows or len(rewards) != rows:
            raise ValueError(
                f"data set {source_name!r}: checkpoint {number} has {len(actions)} actions, {len(rewards)} rewards "
                f"and {rows} terminals; get it again"
            )
        flags = Column(f"{source_name}, checkpoint {number}", "terminal", terminals).as_flags()
        ends = np.flatnonzero(flags[: _rows_written(source_name, logs, number, rows)]) + 1
        starts = np.concatenate([[0], ends])[: len(ends)]
        invalid = _invalid_rows(source_name, logs, number)
        whole = np.searchsorted(invalid, starts) == np.searchsorted(invalid, ends)
        whole[: number > 0] = False  # its beginning is in the checkpoint before
        return cls(source_name, logs, number, actions, rewards, starts[whole], ends[whole])

    def frames(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames (T, H, W) of the episodes between these rows, in order."""
        path, row = _file(self.logs, "observation", self.number), 0
        with _reading(self.source_name, path) as file:
            shape, dtype = _header(self.source_name, path, file)
            frame = shape[1:]
            if dtype != np.uint8 or len(shape) != 3 or shape[0] != len(self.actions) or not _is_frame(frame):
                raise ValueError(
                    f"data set {self.source_name!r}: {path.name} holds {dtype} of shape {shape}; expected single "
                    f"frames of uint8, ({len(self.actions)}, height, width), one for each action, of 1 to "
                    f"{_LARGEST_SIDE} pixels a side"
                )
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                while row < start:
                    row += len(_read_frames(file, shape, min(start - row, 1 + _SKIPPED_AT_ONCE // math.prod(frame))))
                yield _read_frames(file, shape, end - start)
                row = end


def _trajectories(
    source_name: str,
    path: Path,
    logs: Path,
    episodes: list[tuple[_Checkpoint, NDArray[np.int64], NDArray[np.int64]]],
    metadata: SourceMetadata,
) -> Trajectories:
    """Read the frames of the episodes into one array, and leave out what stands before their beginnings."""
    observations: NDArray[np.uint8] | None = None
    actions, rewards, offsets = [], [], [0]
    for checkpoint, starts, ends in episodes:
        for start, end, frames in zip(starts, ends, checkpoint.frames(starts, ends), strict=True):
            if observations is None:
                steps = sum(int((ends - starts).sum()) for _, starts, ends in episodes)
                observations = np.empty((steps, *frames.shape[1:]), np.uint8)
            if frames.shape[1:] != observations.shape[1:]:
                raise ValueError(
                    f"data set {source_name!r}: frames of checkpoint {checkpoint.number} are {frames.shape[1:]}, "
                    f"others {observations.shape[1:]}; they are not of one game"
                )
            blank = _blank_frames(frames)
            offsets.append(offsets[-1] + len(frames) - blank)
            observations[offsets[-2] : offsets[-1]] = frames[blank:]
            actions.append(checkpoint.actions[start + blank : end])
            rewards.append(checkpoint.rewards[start + blank : end])
    assert observations is not None
    bounds = np.array(offsets, np.int64)
    terminations = np.zeros(offsets[-1], np.bool_)
    terminations[bounds[1:] - 1] = True
    columns = {
        "observations": observations[: offsets[-1]],
        "actions": np.concatenate(actions),
        "rewards": np.concatenate(rewards),
        "terminations": terminations,
    }
    read = {column: Column(source_name, column, values, bounds) for column, values in columns.items()}
    card = path if (path / "README.md").is_file() else logs
    return assemble(_name(path, logs), read, metadata.over(metadata_of_card(card / "README.md")))


def _name(path: Path, logs: Path) -> str:
    """Return the name of the folder that the user named, where it is not that of a run or of its logs."""
    names_game = logs.name != "replay_logs" or logs.parent.parent == path
    return path.resolve().name if names_game else "-".join(logs.resolve().parts[-3:-1])


def _blank_frames(frames: NDArray[np.uint8]) -> int:
    """Count the blank frames that the replay buffer puts before an episode; one frame at least is the episode."""
    before = frames[: min(_PADDING, len(frames) - 1)]
    return next((place for place, frame in enumerate(before) if frame.any()), len(before))


def _is_frame(shape: tuple[int, ...]) -> bool:
    return all(1 <= side <= _LARGEST_SIDE for side in shape)


def _rows_written(source_name: str, logs: Path, number: int, rows: int) -> int:
    """Return how many rows of the buffer were ever written: all, but while the agent fills it for the first time."""
    path = logs / f"add_count_ckpt.{number}.gz"
    if not path.is_file():
        return rows
    count = _read_array(source_name, path, "iu")
    if count.size != 1 or count.min() < 0:
        raise ValueError(
            f"data set {source_name!r}: {path.name} holds shape {count.shape}; expected one number of rows"
        )
    return min(rows, int(count.item()))


def _invalid_rows(source_name: str, logs: Path, number: int) -> np.ndarray:
    """Return the rows around the buffer's end and beginning, which do not follow on one another, in their order."""
    path = logs / f"invalid_range_ckpt.{number}.gz"
    return np.sort(_read_array(source_name, path, "iuf").ravel()) if path.is_file() else np.empty(0)


def _file(logs: Path, name: str, number: int) -> Path:
    return logs / f"$store$_{name}_ckpt.{number}.gz"


def _read_column(source_name: str, path: Path, kinds: str) -> np.ndarray:
    values = _read_array(source_name, path, kinds)
    if values.ndim != 1:
        raise ValueError(f"data set {source_name!r}: {path.name} holds shape {values.shape}; expected one value a step")
    return values


def _read_array(source_name: str, path: Path, kinds: str) -> np.ndarray:
    """Return the array of a small file."""
    with _reading(source_name, path) as file:
        shape, dtype = _header(source_name, path, file)
        if dtype.kind not in kinds:
            raise ValueError(f"data set {source_name!r}: {path.name} holds values of type {dtype}; get it again")
        if math.prod(shape) > _MOST_ROWS:
            raise ValueError(
                f"data set {source_name!r}: {path.name} holds shape {shape}; expected at most {_MOST_ROWS:,} rows"
            )
        content = file.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(content, dtype).reshape(shape) if content else np.empty(shape, dtype)


def _read_frames(file: BinaryIO, shape: tuple[int, ...], count: int) -> NDArray[np.uint8]:
    """Return the next frames."""
    frames = np.empty((count, *shape[1:]), np.uint8)
    into = memoryview(frames.reshape(-1).data)
    while into:
        read = file.readinto(into)  # type: ignore[attr-defined]
        if not read:
            raise EOFError("it ends before its last frame")
        into = into[read:]
    return frames


def _header(source_name: str, path: Path, file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the header of a .npy file: no Python of it is parsed, and nothing that needs a pickle is accepted."""
    version = np.lib.format.read_magic(file)
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    found = _HEADER.fullmatch(file.read(length)) if length <= _LONGEST_HEADER else None
    if found is None:
        raise ValueError("its header is not one that NumPy writes for an array")
    shape = tuple(int(count.strip(b" L")) for count in found[3].split(b",") if count.strip())
    dtype = np.dtype(found[1].decode())
    if dtype.hasobject or (found[2] == b"True" and len(shape) > 1):
        raise ValueError(
            f"data set {source_name!r}: {path.name} holds values of type {dtype} in an order that is not read"
        )
    size, most = math.prod(shape) * dtype.itemsize, _MOST_DEFLATED * path.stat().st_size
    if size > most:
        raise ValueError(f"its header says {size:,} bytes, but the file can hold at most {most:,}")
    return shape, dtype


@contextmanager
def _reading(source_name: str, path: Path) -> Iterator[BinaryIO]:
    """Open a file, and name it where it cannot be read."""
    if not path.is_file():
        raise ValueError(f"data set {source_name!r}: the file {path} is missing; a checkpoint needs it")
    with reading(source_name, f"the file {path}"), gzip.open(path, "rb") as file:
        yield file  # type: ignore[misc]

"""From Arrow columns with one row per episode to flat arrays, and everything that can be wrong with them.

Columns do not pass through Python lists; frames of bytes go straight into one array that holds each frame once.
Layout: that of the Decision Transformer data sets on the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .facts import SourceFacts
from .rows import Rows, is_binary
from .trajectories import locate

#: The frame of nearly every Atari data set (Mnih et al. 2015): what bytes are taken for when nothing says their shape.
USUAL_FRAME = (84, 84)

_VALUES = ("observations", "actions", "rewards")
_FLAGS = ("terminations", "truncations", "dones")


def read_episodes(rows: Rows, label: str, columns: Mapping[str, str], facts: SourceFacts) -> dict[str, Any] | None:
    """Read the flat columns, the episode offsets and the number of discrete actions that make `Trajectories`.

    Args:
        rows: the opened source.
        label: what errors call it.
        columns: names of its columns by ours, where they differ.
        facts: what else it says about itself.

    Returns:
        The arguments of `Trajectories`; None if there are no rows.

    Raises:
        ValueError: a column is missing, or an episode is not what it should be.
    """
    names = _column_names(label, rows.schema.names, columns)
    image = is_binary(rows.schema.field(names["observations"]).type)
    flat = {ours: theirs for ours, theirs in names.items() if not (image and ours == "observations")}
    table = rows.table(list(dict.fromkeys(flat.values())))
    if table.num_rows == 0:
        return None
    read = {ours: _Column(label, ours, theirs, table.column(theirs)) for ours, theirs in flat.items()}
    _check_lengths(label, read)
    offsets = read["actions"].offsets
    terminations, truncations = _endings({ours: _flag(column) for ours, column in read.items() if column.flag}, offsets)
    episodes: dict[str, Any] = {
        "episode_offsets": offsets,
        "terminations": terminations,
        "truncations": truncations,
        "rewards": read["rewards"].as_type(np.float32),
    }
    discrete = read["actions"].ndim == 1
    episodes["actions"] = read["actions"].as_type(np.int64 if discrete else np.float32)
    episodes["num_actions"] = facts.action_count() if discrete else None
    episodes["observations"] = (
        _read_frames(rows, label, names["observations"], offsets, facts)
        if image
        else read["observations"].as_type(np.float32)
    )
    return episodes


def _column_names(label: str, found: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the source's names of the columns to read, by ours."""
    known = (*_VALUES, *_FLAGS)
    unknown = [ours for ours in columns if ours not in known]
    if unknown:
        raise ValueError(f"columns: {unknown[0]!r} is none of our columns; map from {', '.join(known)}")
    names = {ours: columns.get(ours, ours) for ours in known}
    for ours in known:
        if names[ours] in found or (ours in _FLAGS and ours not in columns):
            continue
        raise ValueError(
            f"data set {label!r} has no column {names[ours]!r} for the {ours}; its columns are {', '.join(found)}. "
            f'Say which one it is with columns={{"{ours}": "..."}}'
        )
    present = {ours: theirs for ours, theirs in names.items() if theirs in found}
    if "terminations" in present or "truncations" in present:
        present.pop("dones", None)
    return present


class _Column:
    """One column in memory: the flat values and the lengths of its episodes, with the checks of its form.

    `values` is (N,), or (N, D) when `ndim` is 2; `lengths` is (E,). Actions of one integer a step, the discrete ones,
    are (N,). Every error names where in the source it was.
    """

    def __init__(self, label: str, ours: str, theirs: str, data: pa.ChunkedArray) -> None:
        self.where = f"data set {label!r}, column {theirs!r}"
        self.label, self.theirs = label, theirs
        self.flag, self.action = ours in _FLAGS, ours == "actions"
        discrete = self.action and _is_one_integer_per_step(data.type)
        self.ndim = 2 if ours in ("observations", "actions") and not discrete else 1
        self._check_type(data.type)
        self.lengths, steps = self._unnest(data)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        self.values = self._flatten(steps)

    def at(self, row: int) -> str:
        """Say where a row of the flat values is."""
        episode, step = locate(self.offsets, row)
        return f"data set {self.label!r}, episode {episode}, step {step}, column {self.theirs!r}"

    def as_type(self, dtype: type[np.generic]) -> np.ndarray:
        """Return the values as this type. What does not fit becomes infinite, which `check_finite` reports."""
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(self.values, dtype=dtype)

    def _check_type(self, found: pa.DataType) -> None:
        """Check that the column is numbers (or true and false) in as many lists as it has dimensions."""
        inner = _storage_type(found)
        for _ in range(self.ndim):
            if not _is_list(inner):
                break
            inner = _storage_type(inner.value_type)
        else:
            numbers = pa.types.is_integer(inner) or pa.types.is_floating(inner)
            if numbers or (self.flag and pa.types.is_boolean(inner)):
                return
        if pa.types.is_null(inner):
            return  # nothing but empty lists or nulls: the checks of lengths and nulls say where
        lists = "a list of numbers, or one integer," if self.action else "a list of numbers"
        what = "true or false" if self.flag else "one number" if self.ndim == 1 else lists
        raise ValueError(
            f"{self.where}: expected one row per episode with {what} for each step, found {found}; "
            "convert the column, or map another one with columns={...}"
        )

    def _unnest(self, data: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[pa.Array]]:
        """Return the length of each episode, and the steps of all episodes in pieces."""
        lengths, steps = [np.empty(0, np.int64)], []
        for chunk in map(_storage, data.chunks):
            if chunk.null_count:
                before = sum(map(len, lengths))
                episode = before + int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])
                raise ValueError(
                    f"data set {self.label!r}, episode {episode}, column {self.theirs!r} is null; remove it"
                )
            lengths.append(pc.list_value_length(chunk).to_numpy(zero_copy_only=False).astype(np.int64))
            steps.append(_storage(chunk.flatten()))
        return np.concatenate(lengths), steps

    def _flatten(self, steps: list[pa.Array]) -> np.ndarray:
        """Return the steps as one array, (N,) or (N, D)."""
        self._refuse_nulls(steps, per_step=1)
        if self.ndim == 1:
            return _join(steps)
        if not self.offsets[-1]:
            return np.empty((0, 1), np.float32)
        widths = np.concatenate([pc.list_value_length(piece) for piece in steps])
        ragged = np.flatnonzero(widths != widths[0])
        if len(ragged):
            raise ValueError(
                f"{self.at(int(ragged[0]))}: {widths[ragged[0]]} numbers, where the first step of the data set has "
                f"{widths[0]}; every step needs the same dimensions"
            )
        if widths[0] == 0:
            raise ValueError(f"{self.at(0)}: the step has no numbers")
        leaves = [piece.flatten() for piece in steps]
        self._refuse_nulls(leaves, per_step=int(widths[0]))
        return _join(leaves).reshape(len(widths), widths[0])

    def _refuse_nulls(self, pieces: list[pa.Array], per_step: int) -> None:
        """Refuse a missing value; `per_step` values make one step."""
        before = 0
        for piece in pieces:
            if piece.null_count:
                place = before + int(np.flatnonzero(piece.is_null().to_numpy(zero_copy_only=False))[0])
                raise ValueError(
                    f"{self.at(place // per_step)}: a value is missing (null); correct or remove this episode"
                )
            before += len(piece)


def _is_list(found: pa.DataType) -> bool:
    return bool(pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found))


def _is_one_integer_per_step(found: pa.DataType) -> bool:
    steps = _storage_type(found)
    return _is_list(steps) and bool(pa.types.is_integer(_storage_type(steps.value_type)))


def _storage_type(found: pa.DataType) -> pa.DataType:
    """Return the plain type of an extension type such as `datasets.Array2D`."""
    return found.storage_type if isinstance(found, pa.BaseExtensionType) else found


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _join(pieces: list[pa.Array]) -> np.ndarray:
    arrays = [piece.to_numpy(zero_copy_only=False) for piece in pieces]
    return np.concatenate(arrays) if arrays else np.empty(0, np.float32)


def _check_lengths(label: str, read: Mapping[str, _Column]) -> None:
    """Check that an episode has as many steps in every column, and at least one."""
    first = read.get("observations", read["actions"])  # frames are not among the columns that are read at once
    for column in read.values():
        different = np.flatnonzero(column.lengths != first.lengths)
        if len(different) == 0:
            continue
        episode, more = different[0], first.lengths - column.lengths
        final_observation = "leave out the observation after the last action of each episode"
        raise ValueError(
            f"data set {label!r}, episode {episode}: the number of steps differs, {first.lengths[episode]} in column "
            f"{first.theirs!r} and {column.lengths[episode]} in column {column.theirs!r}; "
            + (
                final_observation
                if "observations" in read and (more == 1).all()
                else "every step needs a value in each column"
            )
        )
    empty = np.flatnonzero(first.lengths == 0)
    if len(empty):
        raise ValueError(
            f"data set {label!r}, episode {empty[0]} is empty in column {first.theirs!r}; every episode needs "
            "one step or more, so remove it"
        )


def _flag(column: _Column) -> NDArray[np.bool_]:
    """Return true and false (N,), which may only be true at the last step of an episode."""
    values = column.values
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise ValueError(f"{column.at(int(wrong[0]))}: expected true or false (1 or 0), found {values[wrong[0]]}")
    flags = values.astype(np.bool_)
    inside = flags.copy()
    inside[column.offsets[1:] - 1] = False
    early = np.flatnonzero(inside)
    if len(early):
        raise ValueError(
            f"{column.at(int(early[0]))}: the episode ends here, but its row goes on; one row must be one episode, so "
            "split it"
        )
    return flags


def _endings(
    flags: Mapping[str, NDArray[np.bool_]], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (terminations, truncations) from what the source has, by the rules of `load_trajectories`."""
    last = np.zeros(offsets[-1], dtype=np.bool_)
    last[offsets[1:] - 1] = True
    truncations = flags.get("truncations", np.zeros_like(last))
    if "truncations" in flags and "terminations" not in flags:
        return last & ~truncations, truncations
    terminations = flags.get("terminations", flags.get("dones", np.zeros_like(last)))
    return terminations, truncations | (last & ~terminations)


def _read_frames(
    rows: Rows, label: str, column: str, offsets: NDArray[np.int64], facts: SourceFacts
) -> NDArray[np.uint8]:
    """Return the frames (N, H, W) of a column that holds, for each episode, the bytes of one frame after the other."""
    episodes = _episode_bytes(rows, label, column)
    first = next(episodes)
    shape = facts.frame_shape() or _usual_shape(first.size, int(offsets[1]), label, column)
    frames = np.empty((offsets[-1], *shape), np.uint8)
    flat, size = frames.reshape(-1), shape[0] * shape[1]
    for episode, data in enumerate(chain([first], episodes)):
        begin, end = (int(offset) * size for offset in offsets[episode : episode + 2])
        if data.size != end - begin:
            raise ValueError(
                f"data set {label!r}, episode {episode}, column {column!r}: {data.size} bytes, but a grey frame of "
                f"{shape[0]}x{shape[1]} bytes for each of {(end - begin) // size} steps takes {end - begin}; "
                + (
                    "leave out the observation after the last action of each episode"
                    if data.size == end - begin + size
                    else f"correct the episode, or obs_shape{f' in {facts.where}' if facts.obs_shape else ''}"
                )
            )
        flat[begin:end] = data
    return frames


def _episode_bytes(rows: Rows, label: str, column: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of each episode, without copying them."""
    episode = 0
    for piece in rows.pieces(column):
        for value in piece:
            if not value.is_valid:
                raise ValueError(f"data set {label!r}, episode {episode}, column {column!r} is null; remove it")
            yield np.frombuffer(value.as_buffer(), np.uint8)
            episode += 1


def _usual_shape(count: int, steps: int, label: str, column: str) -> tuple[int, int]:
    """Return the usual shape of a frame if the bytes of the first episode fit it."""
    if count == steps * USUAL_FRAME[0] * USUAL_FRAME[1]:
        return USUAL_FRAME
    raise ValueError(
        f"data set {label!r}, episode 0, column {column!r}: {count} bytes for {steps} steps are no frames of "
        f"{USUAL_FRAME[0]}x{USUAL_FRAME[1]}, and nothing says their shape; write obs_shape: [height, width] under "
        "environment: in the front matter of the data set's card (README.md), or into the JSON file beside a single "
        "file"
    )

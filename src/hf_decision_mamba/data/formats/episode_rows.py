"""Tables with one row per episode: the layout of the Decision Transformer data sets on the Hub.

Columns do not pass through Python lists, nor as a whole through memory; frames of bytes are there once each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..columns import FLAGS, Column, assemble, check_lengths, find_columns, without_spare_dones
from ..facts import SourceFacts
from ..storage import GrowingColumn
from ..trajectories import Trajectories
from .arrow import flatten, is_binary, is_list, is_number, item_type, storage, storage_type
from .rows import Rows

#: The frame of nearly every Atari data set (Mnih et al. 2015): what bytes are taken for when nothing says their shape.
USUAL_FRAME = (84, 84)


def read_episode_rows(
    rows: Rows, label: str, name: str, columns: Mapping[str, str], facts: SourceFacts
) -> Trajectories | None:
    """Read the trajectories of a table with one row per episode.

    Args:
        rows: the opened source.
        label: what errors call it.
        name: what cards call it.
        columns: names of its columns by ours, where they differ.
        facts: what else it says about itself.

    Returns:
        None if there are no rows.

    Raises:
        ValueError: a column is missing, or an episode is not what it should be.
    """
    names = without_spare_dones(find_columns(label, rows.schema.names, columns))
    image = is_binary(rows.schema.field(names["observations"]).type)
    flat = {ours: theirs for ours, theirs in names.items() if not (image and ours == "observations")}
    read = {ours: _read_column(rows, label, ours, theirs) for ours, theirs in flat.items()}
    if len(read["actions"].lengths) == 0:
        return None
    if image:
        check_lengths(read)
        offsets = read["actions"].known_offsets
        frames = _read_frames(rows, label, names["observations"], offsets, facts)
        read["observations"] = Column(label, names["observations"], frames, offsets)
    return assemble(name, read, facts)


def _read_column(rows: Rows, label: str, ours: str, theirs: str) -> Column:
    """Read one column of lists, a few episodes at a time: its flat values, and the offsets of its episodes.

    Values are (N,), observations and continuous actions (N, D). Actions of one integer a step are discrete.
    """
    found = rows.schema.field(theirs).type
    nested = ours == "observations" or (ours == "actions" and not _is_one_integer_per_step(found))
    _check_type(label, ours, theirs, found, nested)
    values = GrowingColumn(np.float32 if nested or ours == "rewards" else None)
    lengths, width = np.empty(0, np.int64), None
    for episodes in map(storage, rows.pieces(theirs)):
        _refuse_null(label, theirs, episodes, len(lengths))
        before = int(lengths.sum())
        lengths = np.append(lengths, pc.list_value_length(episodes).to_numpy(zero_copy_only=False))
        where = Column(label, theirs, np.empty(0), _offsets(lengths))
        steps = flatten([storage(episodes.flatten())], nested, where.at, before, width)
        if len(steps):
            width = steps.shape[-1] if nested else None
            values.append(steps)
    return Column(label, theirs, values.finish(), _offsets(lengths))


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _check_type(label: str, ours: str, theirs: str, found: pa.DataType, nested: bool) -> None:
    """Check that the column is numbers (or true and false) in as many lists as it has dimensions."""
    value = item_type(found, 2 if nested else 1)
    if is_number(value, or_flag=ours in FLAGS) or _holds_nothing(found):
        return  # where nothing but empty lists or nulls is, the checks of lengths and nulls say where
    lists = "a list of numbers, or one integer," if ours == "actions" else "a list of numbers"
    what = "true or false" if ours in FLAGS else lists if nested else "one number"
    single_steps = (
        ""
        if not is_number(item_type(found, int(nested)), or_flag=True)
        else ". A table with one row per step needs a column that says each step's episode: "
        'columns={"episodes": "..."} where it is not called episode_index'
    )
    raise ValueError(
        f"data set {label!r}, column {theirs!r}: expected one row per episode with {what} for each step, found "
        f"{found}; convert the column, or map another one with columns={{...}}{single_steps}"
    )


def _refuse_null(label: str, theirs: str, episodes: pa.Array, before: int) -> None:
    """Refuse an episode that is missing; `before` is the number of those before these."""
    if episodes.null_count:
        episode = before + int(np.flatnonzero(episodes.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"data set {label!r}, episode {episode}, column {theirs!r} is null; remove it")


def _is_one_integer_per_step(found: pa.DataType) -> bool:
    step = item_type(found, 1)
    return step is not None and bool(pa.types.is_integer(step))


def _holds_nothing(found: pa.DataType) -> bool:
    while is_list(found):
        found = storage_type(found).value_type
    return bool(pa.types.is_null(storage_type(found)))


def _read_frames(
    rows: Rows, label: str, column: str, offsets: NDArray[np.int64], facts: SourceFacts
) -> NDArray[np.uint8]:
    """Return the frames (N, H, W) of a column that holds, for each episode, the bytes of one frame after the other."""
    episodes = _episode_bytes(rows, label, column)
    first = next(episodes)
    shape = facts.frame_shape() or _usual_shape(first.size, int(offsets[1]), label, column)
    frames, size = GrowingColumn(), shape[0] * shape[1]
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
        frames.append(data.reshape(-1, *shape))
    return frames.finish()


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

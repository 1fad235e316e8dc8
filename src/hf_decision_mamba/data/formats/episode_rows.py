"""Tables with one row per episode: the layout of the Decision Transformer data sets on the Hub.

Columns do not pass through Python lists, nor as a whole through memory; frames of bytes are there once each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..columns import (
    FLAGS,
    VALUES,
    Column,
    assemble,
    check_lengths,
    ends_with_observation,
    find_columns,
    tell_left_out,
    without_spare_dones,
)
from ..metadata import SourceFacts
from ..storage import GrowingColumn
from ..trajectories import Trajectories, offsets_of
from .arrow import depth_of, flatten, is_binary, is_list, is_number, item_type, storage, storage_type
from .frames import decode, grey_frames, is_picture
from .rows import Rows

#: The frame of nearly every Atari data set (Mnih et al. 2015): what bytes are taken for when nothing says their shape.
USUAL_FRAME = (84, 84)


def read_episode_rows(
    rows: Rows, label: str, name: str, columns: Mapping[str, str], facts: SourceFacts, tell: bool = True
) -> Trajectories | None:
    """Read the trajectories of a table with one row per episode.

    Args:
        rows: the opened source.
        label: what errors call it.
        name: what cards call it.
        columns: names of its columns by ours, where they differ.
        facts: what else it says about itself.
        tell: whether to warn of observations that are left out.

    Returns:
        None if there are no rows.

    Raises:
        ValueError: a column is missing, or an episode is not what it should be.
    """
    names = without_spare_dones(find_columns(label, rows.schema.names, columns))
    theirs = names.pop("observations")
    read = {ours: _read_column(rows, label, ours, named) for ours, named in names.items()}
    if len(read["actions"].lengths) == 0:
        return None
    if is_binary(rows.schema.field(theirs).type):
        check_lengths(read)
        offsets = read["actions"].known_offsets
        frames, left_out = _read_frames(rows, label, theirs, offsets, facts)
        read["observations"] = Column(label, theirs, frames, offsets)
    else:
        lengths = [column.lengths for column in read.values()]
        read["observations"], left_out = _read_observations(rows, label, theirs, lengths)
    if tell:
        tell_left_out(label, left_out, len(read["actions"].lengths))
    return assemble(name, read, facts)


def _read_column(rows: Rows, label: str, ours: str, theirs: str) -> Column:
    """Read one column of lists, a few episodes at a time: its flat values, and the offsets of its episodes.

    Values are (N,); where an action is a list of numbers, (N, A). Integers of actions stay what they are.
    """
    found = rows.schema.field(theirs).type
    depth = min(max(depth_of(found) - 1, 0), 1)  # a list of one number is one number
    _check_type(label, ours, theirs, found, depth)
    number = item_type(found, 1 + depth)
    stays = ours in FLAGS or (ours == "actions" and number is not None and not pa.types.is_floating(number))
    values = GrowingColumn(None if stays else np.float32)
    lengths, shape = np.empty(0, np.int64), None
    for pieces, counts, before, at in _pieces(rows, label, theirs):
        lengths = np.append(lengths, counts)
        steps = flatten(pieces, depth, at, before, shape)
        if len(steps):
            shape = steps.shape[1:]
            if depth and ours != "actions" and shape != (1,):
                raise ValueError(f"{at(before)}: expected one value, found a list of {shape[0]}")
            values.append(steps if ours == "actions" else steps.reshape(-1))
    return Column(label, theirs, values.finish(), offsets_of(lengths))


def _read_observations(rows: Rows, label: str, theirs: str, others: list[NDArray[np.int64]]) -> tuple[Column, int]:
    """Read observations, a few episodes at a time: vectors (N, S), or frames (N, H, W).

    An observation is left out that follows the last action of its episode, which has as many steps as the `others` say;
    how often is returned too.
    """
    found = rows.schema.field(theirs).type
    picture = is_picture(item_type(found, 1))
    depth = min(max(depth_of(found) - 1, 1), 3)
    _check_type(label, "observations", theirs, found, depth)
    values = GrowingColumn(np.float32 if depth == 1 and not picture else np.uint8)
    lengths, final, shape = np.empty(0, np.int64), np.empty(0, np.bool_), None
    for pieces, counts, before, at in _pieces(rows, label, theirs):
        episodes = slice(len(lengths), len(lengths) + len(counts))
        last = ends_with_observation(counts, [steps[episodes] for steps in others])
        lengths, final = np.append(lengths, counts), np.append(final, last)
        steps = decode(pieces, at, before, shape) if picture else flatten(pieces, depth, at, before, shape)
        if len(steps) == 0:
            continue
        shape = steps.shape[1:]
        if len(shape) > 1:
            steps = grey_frames(steps, offsets_of(counts)[:-1], at, before)
        if last.any():
            steps = np.delete(steps, np.cumsum(counts)[last] - 1, axis=0)
        values.append(steps)
    return Column(label, theirs, values.finish(), offsets_of(lengths - final)), int(final.sum())


def _pieces(
    rows: Rows, label: str, theirs: str
) -> Iterator[tuple[list[pa.Array], NDArray[np.int64], int, Callable[[int], str]]]:
    """Yield the steps of a few episodes, the steps of each, how many were before, and what says where a step is."""
    lengths = np.empty(0, np.int64)
    for episodes in map(storage, rows.pieces(theirs)):
        _refuse_null(label, theirs, episodes, len(lengths))
        before, counts = int(lengths.sum()), pc.list_value_length(episodes).to_numpy(zero_copy_only=False)
        lengths = np.append(lengths, counts)
        where = Column(label, theirs, np.empty(0), offsets_of(lengths))
        yield [storage(episodes.flatten())], counts.astype(np.int64), before, where.at


def _check_type(label: str, ours: str, theirs: str, found: pa.DataType, depth: int) -> None:
    """Check that the column is numbers (or true and false) in `depth` lists a step, or pictures."""
    value = item_type(found, 1 + depth)
    picture = ours == "observations" and is_picture(item_type(found, 1))
    if picture or is_number(value, or_flag=ours in (*FLAGS, *VALUES[:2])) or _holds_nothing(found):
        return  # where nothing but empty lists or nulls is, the checks of lengths and nulls say where
    lists = "a list of numbers, or one number," if ours == "actions" else "a list of numbers"
    lists += ", or a frame," if ours == "observations" else ""
    what = "true or false" if ours in FLAGS else lists if ours in VALUES[:2] else "one number"
    single_steps = (
        ""
        if not is_number(item_type(found, int(ours in VALUES[:2])), or_flag=True)
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


def _holds_nothing(found: pa.DataType) -> bool:
    while is_list(found):
        found = storage_type(found).value_type
    return bool(pa.types.is_null(storage_type(found)))


def _read_frames(
    rows: Rows, label: str, column: str, offsets: NDArray[np.int64], facts: SourceFacts
) -> tuple[NDArray[np.uint8], int]:
    """Return the frames (N, H, W) of a column that holds, for each episode, the bytes of one frame after the other.

    A frame that follows the last action of its episode is left out; how often is returned too.
    """
    episodes = _episode_bytes(rows, label, column)
    first = next(episodes)
    shape = facts.frame_shape() or _usual_shape(first.size, int(offsets[1]), label, column)
    frames, size, left_out = GrowingColumn(), shape[0] * shape[1], 0
    for episode, data in enumerate(chain([first], episodes)):
        begin, end = (int(offset) * size for offset in offsets[episode : episode + 2])
        if data.size == end - begin + size:  # a frame after the last action
            data, left_out = data[:-size], left_out + 1
        if data.size != end - begin:
            raise ValueError(
                f"data set {label!r}, episode {episode}, column {column!r}: {data.size} bytes, but a grey frame of "
                f"{shape[0]}x{shape[1]} bytes for each of {(end - begin) // size} steps takes {end - begin}; correct "
                f"the episode, or obs_shape{f' in {facts.where}' if facts.obs_shape else ''}"
            )
        frames.append(data.reshape(-1, *shape))
    return frames.finish(), left_out


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
    """Return the usual shape of a frame if the bytes of the first episode fit it, or of one more than it has steps."""
    if divmod(count, USUAL_FRAME[0] * USUAL_FRAME[1]) in ((steps, 0), (steps + 1, 0)):
        return USUAL_FRAME
    raise ValueError(
        f"data set {label!r}, episode 0, column {column!r}: {count} bytes for {steps} steps are no frames of "
        f"{USUAL_FRAME[0]}x{USUAL_FRAME[1]}, and nothing says their shape; write obs_shape: [height, width] under "
        "environment: in the front matter of the data set's card (README.md), or into the JSON file beside a single "
        "file"
    )

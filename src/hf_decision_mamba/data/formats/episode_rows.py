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
    GOALS,
    VALUES,
    Column,
    assemble,
    check_lengths,
    ends_with_observation,
    find_columns,
    warn_left_out,
    warn_of_no_rewards,
    without_spare_dones,
)
from ..metadata import SourceMetadata
from ..storage import GrowingColumn
from ..trajectories import Trajectories, offsets_of
from .arrow import depth_of, flatten, is_binary, is_list, is_number, item_type, storage, storage_type
from .frames import decode, grey_frames, is_picture
from .rows import Rows

#: The frame of nearly every Atari data set (Mnih et al. 2015): what bytes are taken for when nothing says their shape.
USUAL_FRAME = (84, 84)


def read_episode_rows(
    rows: Rows, source_name: str, name: str, columns: Mapping[str, str], metadata: SourceMetadata, warn: bool = True
) -> Trajectories | None:
    """Read the trajectories of a table with one row per episode.

    Args:
        rows: the opened source.
        source_name: what errors call it.
        name: what cards call it.
        columns: names of its columns by our names, where they differ.
        metadata: what else it says about itself.
        warn: whether to warn of observations that are left out, and of rewards that are not there.

    Returns:
        None if there are no rows.

    Raises:
        ValueError: a column is missing, or an episode is not what it should be.
    """
    names = without_spare_dones(find_columns(source_name, rows.schema.names, columns))
    source_column = names.pop("observations")
    goals = {column: names.pop(column) for column in GOALS if column in names}
    read = {column: _read_column(rows, source_name, column, named) for column, named in names.items()}
    if len(read["actions"].lengths) == 0:
        return None
    if is_binary(rows.schema.field(source_column).type):
        check_lengths(read)
        offsets = read["actions"].known_offsets
        frames, left_out = _read_frames(rows, source_name, source_column, offsets, metadata)
        read["observations"] = Column(source_name, source_column, frames, offsets)
    else:
        lengths = [source_column.lengths for source_column in read.values()]
        read["observations"], left_out = _read_observations(rows, source_name, source_column, lengths)
    lengths = [read[column].lengths for column in names]
    read |= {
        column: _read_observations(rows, source_name, named, lengths, column)[0] for column, named in goals.items()
    }
    if warn and "rewards" not in names:
        warn_of_no_rewards(source_name, rows.schema.names)
    if warn:
        warn_left_out(source_name, left_out, len(read["actions"].lengths))
    return assemble(name, read, metadata)


def _read_column(rows: Rows, source_name: str, column: str, source_column: str) -> Column:
    """Read one column of lists, a few episodes at a time: its flat values, and the offsets of its episodes.

    Values are (N,); where an action is a list of numbers, (N, A). Integers of actions stay what they are.
    """
    found = rows.schema.field(source_column).type
    depth = min(max(depth_of(found) - 1, 0), 1)  # a list of one number is one number
    _check_type(source_name, column, source_column, found, depth)
    number = item_type(found, 1 + depth)
    stays = column in FLAGS or (column == "actions" and number is not None and not pa.types.is_floating(number))
    values = GrowingColumn(None if stays else np.float32)
    lengths, shape = np.empty(0, np.int64), None
    for pieces, counts, before, at in _pieces(rows, source_name, source_column):
        lengths = np.append(lengths, counts)
        steps = flatten(pieces, depth, at, before, shape)
        if len(steps):
            shape = steps.shape[1:]
            if depth and column != "actions" and shape != (1,):
                raise ValueError(f"{at(before)}: expected one value, found a list of {shape[0]}")
            values.append(steps if column == "actions" else steps.reshape(-1))
    return Column(source_name, source_column, values.finish(), offsets_of(lengths))


def _read_observations(
    rows: Rows, source_name: str, source_column: str, others: list[NDArray[np.int64]], column: str = "observations"
) -> tuple[Column, int]:
    """Read observations, a few episodes at a time: vectors (N, S), or frames (N, H, W); or goals, which are vectors.

    An observation is left out that follows the last action of its episode, which has as many steps as the `others` say;
    how often is returned too.
    """
    found = rows.schema.field(source_column).type
    picture = column == "observations" and is_picture(item_type(found, 1))
    depth = min(max(depth_of(found) - 1, 1), 3 if column == "observations" else 1)
    _check_type(source_name, column, source_column, found, depth)
    values = GrowingColumn(np.float32 if depth == 1 and not picture else np.uint8)
    lengths, final, shape = np.empty(0, np.int64), np.empty(0, np.bool_), None
    for pieces, counts, before, at in _pieces(rows, source_name, source_column):
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
    return Column(source_name, source_column, values.finish(), offsets_of(lengths - final)), int(final.sum())


def _pieces(
    rows: Rows, source_name: str, source_column: str
) -> Iterator[tuple[list[pa.Array], NDArray[np.int64], int, Callable[[int], str]]]:
    """Yield the steps of a few episodes, the steps of each, how many were before, and what says where a step is."""
    lengths = np.empty(0, np.int64)
    for episodes in map(storage, rows.pieces(source_column)):
        _refuse_null(source_name, source_column, episodes, len(lengths))
        before, counts = int(lengths.sum()), pc.list_value_length(episodes).to_numpy(zero_copy_only=False)
        lengths = np.append(lengths, counts)
        where = Column(source_name, source_column, np.empty(0), offsets_of(lengths))
        yield [storage(episodes.flatten())], counts.astype(np.int64), before, where.at


def _check_type(source_name: str, column: str, source_column: str, found: pa.DataType, depth: int) -> None:
    """Check that the column is numbers (or true and false) in `depth` lists a step, or pictures."""
    value = item_type(found, 1 + depth)
    picture = column == "observations" and is_picture(item_type(found, 1))
    if picture or is_number(value, or_flag=True) or _holds_nothing(found):
        return  # where nothing but empty lists or nulls is, the checks of lengths and nulls say where
    lists = "a list of numbers, or one number," if column == "actions" else "a list of numbers"
    lists += ", or a frame," if column == "observations" else ""
    what = "true or false" if column in FLAGS else lists if column in (*VALUES, *GOALS) else "one number"
    single_steps = (
        ""
        if not is_number(item_type(found, int(column in VALUES)), or_flag=True)
        else ". A table with one row per step needs a column that says each step's episode: "
        'columns={"episodes": "..."} where it is not called episode_index'
    )
    raise ValueError(
        f"data set {source_name!r}, column {source_column!r}: expected one row per episode with {what} for each step, "
        f"found {found}; convert the column, or map another one with columns={{...}}{single_steps}"
    )


def _refuse_null(source_name: str, source_column: str, episodes: pa.Array, before: int) -> None:
    """Refuse an episode that is missing; `before` is the number of those before these."""
    if episodes.null_count:
        episode = before + int(np.flatnonzero(episodes.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"data set {source_name!r}, episode {episode}, column {source_column!r} is null; remove it")


def _holds_nothing(found: pa.DataType) -> bool:
    while is_list(found):
        found = storage_type(found).value_type
    return bool(pa.types.is_null(storage_type(found)))


def _read_frames(
    rows: Rows, source_name: str, source_column: str, offsets: NDArray[np.int64], metadata: SourceMetadata
) -> tuple[NDArray[np.uint8], int]:
    """Return the frames (N, H, W) of a column that holds, for each episode, the bytes of one frame after the other.

    A frame that follows the last action of its episode is left out; how often is returned too.
    """
    episodes = _episode_bytes(rows, source_name, source_column)
    first = next(episodes)
    shape = metadata.frame_shape() or _usual_shape(first.size, int(offsets[1]), source_name, source_column)
    frames, size, left_out = GrowingColumn(), shape[0] * shape[1], 0
    for episode, data in enumerate(chain([first], episodes)):
        begin, end = (int(offset) * size for offset in offsets[episode : episode + 2])
        if data.size == end - begin + size:  # a frame after the last action
            data, left_out = data[:-size], left_out + 1
        if data.size != end - begin:
            raise ValueError(
                f"data set {source_name!r}, episode {episode}, column {source_column!r}: {data.size} bytes, but a "
                f"grey frame of {shape[0]}x{shape[1]} bytes for each of {(end - begin) // size} steps takes "
                f"{end - begin}; correct the episode, or "
                f"obs_shape{f' in {metadata.where}' if metadata.obs_shape else ''}"
            )
        frames.append(data.reshape(-1, *shape))
    return frames.finish(), left_out


def _episode_bytes(rows: Rows, source_name: str, source_column: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of each episode, without copying them."""
    episode = 0
    for piece in rows.pieces(source_column):
        for value in piece:
            if not value.is_valid:
                raise ValueError(
                    f"data set {source_name!r}, episode {episode}, column {source_column!r} is null; remove it"
                )
            yield np.frombuffer(value.as_buffer(), np.uint8)
            episode += 1


def _usual_shape(count: int, steps: int, source_name: str, source_column: str) -> tuple[int, int]:
    """Return the usual shape of a frame if the bytes of the first episode fit it, or of one more than it has steps."""
    if divmod(count, USUAL_FRAME[0] * USUAL_FRAME[1]) in ((steps, 0), (steps + 1, 0)):
        return USUAL_FRAME
    raise ValueError(
        f"data set {source_name!r}, episode 0, column {source_column!r}: {count} bytes for {steps} steps are no "
        f"frames of {USUAL_FRAME[0]}x{USUAL_FRAME[1]}, and nothing says their shape; write obs_shape: [height, width] "
        "under environment: in the front matter of the data set's card (README.md), or into the JSON file beside a "
        "single file"
    )

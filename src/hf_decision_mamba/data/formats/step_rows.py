"""Tables with one row per step and a column that says the episode: the layout of LeRobot's data sets, v2 and v3.

Rows may stand in any order when a column counts the steps of an episode. Videos are left alone, and so are pictures
that no argument asks for.
Source: LeRobot's data set format, https://huggingface.co/docs/lerobot/lerobot-dataset-v3.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..columns import (
    ALIASES,
    FLAGS,
    GOALS,
    VALUES,
    Column,
    assemble,
    find_columns,
    warn_of_no_rewards,
    without_spare_dones,
)
from ..metadata import SourceMetadata
from ..trajectories import Trajectories
from .arrow import (
    depth_of,
    flatten,
    is_binary,
    is_list,
    is_number,
    is_text,
    item_type,
    storage,
    storage_type,
    without_lists_of_one,
)
from .frames import decode, grey_frames, is_picture
from .rows import Rows

logger = logging.getLogger(__name__)

#: Where LeRobot describes a data set.
INFO = "meta/info.json"
#: What LeRobot calls the last step of an episode, whether its data have that column or not.
_LAST_STEP = "next.done"

_ALIASES = {
    **ALIASES,
    "successes": ("successes", "next.success"),
    "episodes": ("episodes", "episode_index"),
    "steps": ("steps", "frame_index", "timestep", "timesteps"),
    "times": ("timestamp",),
}
#: Share by which the time between two steps may be another where a rate is told by it, and the highest one.
_STEADY, _HIGHEST_DERIVED = 0.01, 10_000
#: What says where a row belongs, and is no column of trajectories.
_PLACES = ("episodes", "steps", "times")


@dataclass(frozen=True)
class RobotInfo:
    """What LeRobot's `meta/info.json` says: the names of pictures and videos, how many steps and episodes there are.

    And how many steps a second (`fps`), and by column what its numbers are called (`names`).
    """

    pictures: tuple[str, ...] = ()
    steps: int | None = None
    episodes: int | None = None
    fps: Any = None
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RobotInfo:
        """Read the file.

        Raises:
            ValueError: it is not JSON.
        """
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            features = {name: feature.get("dtype") for name, feature in info.get("features", {}).items()}
            names = {name: _names_of(feature) for name, feature in info.get("features", {}).items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not the description of a LeRobot data set ({error}); get it again") from error
        pictures = tuple(name for name, kind in features.items() if kind in ("video", "image"))
        counts = (info.get(name) for name in ("total_frames", "total_episodes"))
        steps, episodes = (count if isinstance(count, int) else None for count in counts)
        return cls(pictures, steps, episodes, info.get("fps"), {name: known for name, known in names.items() if known})

    def metadata(self, columns: Mapping[str, str]) -> SourceMetadata:
        """Return what it says of the data: their rate, and what the numbers of the observations are called.

        Args:
            columns: the user's names for some columns, by our names.
        """
        asked = columns.get("observations")
        column = next((name for name in _ALIASES["observations"] if asked is None and name in self.names), asked)
        parts = [{"path": [name], "shape": [], "size": 1} for name in self.names.get(column or "", ())]
        return SourceMetadata(where=INFO, fps=self.fps, observation_parts=parts or None)


def _names_of(feature: Mapping[str, Any]) -> list[str]:
    """Return what the numbers of a LeRobot vector are called, as a list or in one of some kind; empty for no names."""
    names, shape = feature.get("names"), feature.get("shape")
    if isinstance(names, Mapping) and len(names) == 1:
        names = next(iter(names.values()))
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return []
    return names if shape == [len(names)] and len({*names}) == len(names) else []


def _steady_rate(times: NDArray[Any], offsets: NDArray[np.int64]) -> float | None:
    """Return the steps a second of times (N,) in seconds, to four digits; None where they are not all within 1%.

    Times of other units, in which there is less than one step, or more than 10,000, have none.
    """
    if times.dtype.kind != "f":
        return None
    within = np.ones(max(len(times) - 1, 0), np.bool_)
    within[offsets[1:-1] - 1] = False
    gaps = np.diff(times.astype(np.float64))[within]
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    if not usual > 0 or not (np.abs(gaps - usual) <= _STEADY * usual).all():
        return None
    rate = float(f"{1 / usual:.4g}")
    return rate if 1 <= rate <= _HIGHEST_DERIVED else None


def has_one_row_per_step(schema: pa.Schema, columns: Mapping[str, str]) -> bool:
    """Return whether a table has a column that says the episode, beside columns with one value a row.

    Args:
        schema: its columns.
        columns: the user's names for some of them, by our names.
    """
    if "episodes" in columns or "steps" in columns:
        return True  # only such a table has them
    types = {field.name: field.type for field in schema}
    if not any(name in types for name in _ALIASES["episodes"]):
        return False

    def present(*names: str) -> list[str]:
        wanted = [name for column in names for name in ([columns[column]] if column in columns else _ALIASES[column])]
        return [name for name in wanted if name in types]

    once = present("rewards", *FLAGS, "successes")
    lists = [name for name in once if is_list(types[name])]
    if once and not lists:
        return True
    seen = [types[name] for name in present("observations")[:1]]
    if any(depth_of(found) > 1 or is_binary(found) or is_picture(item_type(found, 1)) for found in seen):
        return False  # an episode's observations
    # Lists of one value a row, as LeRobot declares some, are those of LeRobot, or stand beside single values.
    return len(lists) < len(once) or all(name.startswith("next.") for name in once) or "frame_index" in types


def read_step_rows(
    rows: Rows,
    source_name: str,
    name: str,
    columns: Mapping[str, str],
    metadata: SourceMetadata,
    info: RobotInfo,
    warn: bool = True,
) -> Trajectories | None:
    """Read the trajectories of a table with one row per step.

    Where there are no rewards, they are made of `next.success`, if that is there: 1 at the first step of an episode
    that has it, 0 at all others. `columns={"rewards": "next.done"}` makes every episode a success: 1 at its last step,
    also where that column is not stored.

    Args:
        rows: the opened source.
        source_name: what errors call it.
        name: what cards call it.
        columns: names of its columns by our names, where they differ.
        metadata: what else it says about itself.
        info: what LeRobot says about it.
        warn: whether to warn of what is not read, or made up.

    Returns:
        None if there are no rows.

    Raises:
        ValueError: a column is missing, or an episode is not what it should be.
    """
    names = step_columns(source_name, rows.schema, columns, info)
    table = rows.table(
        [source_column for source_column in dict.fromkeys(names.values()) if source_column in rows.schema.names]
    )
    if table.num_rows == 0:
        return None
    table = _with_single_values(source_name, names, table)
    order, offsets = _order(source_name, names, table, warn)
    if metadata.fps is None and "times" in names:
        metadata = replace(metadata, fps=_steady_rate(table.column(names["times"]).to_numpy()[order], offsets))
    if warn:
        _warn_of_unread(source_name, rows.schema, names, info, table.num_rows, len(offsets) - 1)
    read = {
        column: Column(
            source_name, source_column, _read_column(source_name, column, source_column, table, names)[order], offsets
        )
        for column, source_column in names.items()
        if column not in _PLACES and source_column in table.column_names
    }
    seen = read["observations"]
    if seen.values.ndim > 2:
        read["observations"] = replace(seen, values=grey_frames(seen.values, offsets[:-1], seen.at))
    if "rewards" not in read and names.keys() & {"rewards", "successes"}:
        read["rewards"] = _sparse_rewards(source_name, names, read, offsets, warn)
    elif warn and "rewards" not in read:
        warn_of_no_rewards(source_name, rows.schema.names)
    read.pop("successes", None)
    return assemble(name, read, metadata)


def step_columns(source_name: str, schema: pa.Schema, columns: Mapping[str, str], info: RobotInfo) -> dict[str, str]:
    """Return the names of the columns that are read, by our names; one of them may stand for rewards that are made up.

    Args, raises: as `read_step_rows`.
    """
    last_step = columns.get("rewards") == _LAST_STEP and _LAST_STEP not in schema.names
    asked = {
        column: source_column for column, source_column in columns.items() if not (last_step and column == "rewards")
    }
    names = find_columns(source_name, schema.names, asked, _ALIASES, needed=("actions", "episodes"))
    if "observations" not in names:
        pictures = _pictures(schema, info)
        raise ValueError(
            f"data set {source_name!r} has no column 'observation.state' for the observations; its columns are "
            f"{', '.join(schema.names)}. "
            + (f"Pictures ({', '.join(pictures)}) are not read. " if pictures else "")
            + 'Say which one it is with columns={"observations": "..."}'
        )
    if last_step:
        names["rewards"] = _LAST_STEP
    if "rewards" in names:
        names.pop("successes", None)
    if "times" not in columns and "times" in names and not is_number(item_type(schema.field(names["times"]).type, 0)):
        del names["times"]  # a date, or text
    return without_spare_dones(names)


def _with_single_values(source_name: str, names: Mapping[str, str], table: pa.Table) -> pa.Table:
    """Return the table with one value a row wherever a step has one, also where it is in a list of its own."""
    for column in sorted(names, key=lambda column: column not in _PLACES):  # these first, as errors name them
        source_column = names[column]
        if column in (*VALUES, *GOALS) or source_column not in table.column_names:
            continue
        data = without_lists_of_one(table.column(source_column), partial(_at, source_name, source_column, table, names))
        table = table.set_column(table.column_names.index(source_column), source_column, data)
    return table


def _at(source_name: str, source_column: str, table: pa.Table, names: Mapping[str, str], row: int) -> str:
    """Say where a value is: in which episode and step, of what is known of them."""
    known = {column: table.column(names[column])[row].as_py() for column in _PLACES[:2] if column in names}
    step = f"step {known['steps']}" if "steps" in known else f"row {row} of the table"
    return f"data set {source_name!r}, episode {known['episodes']}, {step}, column {source_column!r}"


def _sparse_rewards(
    source_name: str, names: Mapping[str, str], read: Mapping[str, Column], offsets: NDArray[np.int64], warn: bool
) -> Column:
    """Return rewards of 1 at the first success of each episode, or at its last step where all of them are successes."""
    rewards = np.zeros(offsets[-1], np.float32)
    if "rewards" in names:
        rewards[offsets[1:] - 1] = 1
        return Column(source_name, names["rewards"], rewards, offsets)
    successes = read["successes"]
    steps = np.flatnonzero(successes.as_flags())
    episodes = np.searchsorted(offsets, steps, side="right")
    rewards[steps[np.unique(episodes, return_index=True)[1]]] = 1
    if warn:
        logger.warning(
            "data set %r has no rewards: they are 1 at the first step of an episode with %r, which %d of %d episodes "
            "have",
            source_name,
            successes.source_column,
            np.count_nonzero(rewards),
            len(offsets) - 1,
        )
    return Column(source_name, successes.source_column, rewards, offsets)


def _order(
    source_name: str, names: Mapping[str, str], table: pa.Table, warn: bool
) -> tuple[slice | NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows in order, episode by episode, and the offsets of the episodes.

    Raises:
        ValueError: a step of an episode is there twice, or not at all, or time goes back in it.
    """
    episodes, called = _episodes(source_name, names["episodes"], table)
    steps = _whole_numbers(source_name, names["steps"], table.column(names["steps"])) if "steps" in names else None
    order: slice | NDArray[np.int64] = slice(None)
    same = episodes[1:] == episodes[:-1]
    if steps is not None and not ((episodes[1:] > episodes[:-1]) | (same & (steps[1:] > steps[:-1]))).all():
        order = np.lexsort((steps, episodes))
        episodes, steps = episodes[order], steps[order]
        same = episodes[1:] == episodes[:-1]
    offsets = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(episodes)]]).astype(np.int64)
    numbers = [called(episode) for episode in episodes[offsets[:-1]].tolist()]
    if steps is None:
        _check_together(source_name, names["episodes"], numbers)
    else:
        _check_no_gaps(source_name, names["steps"], numbers, steps, offsets, warn)
    if "times" in names:
        _check_time(source_name, names["times"], numbers, table.column(names["times"]), order, offsets)
    return order, offsets


def _check_together(source_name: str, source_column: str, numbers: Sequence[object]) -> None:
    """Check that the rows of an episode stand together, where nothing says their order."""
    again = next((number for number, count in Counter(numbers).items() if count > 1), None)
    if again is not None:
        raise ValueError(
            f"data set {source_name!r}, column {source_column!r}: the rows of episode {again} do not stand "
            "together, and no column counts the steps; sort the rows, or say which column does with "
            'columns={"steps": "..."}'
        )


def _check_no_gaps(
    source_name: str,
    source_column: str,
    numbers: Sequence[object],
    steps: NDArray[np.int64],
    offsets: NDArray[np.int64],
    warn: bool,
) -> None:
    """Check that the steps of each episode follow on one another; the first one counts as 0, whatever its number."""
    firsts = steps[offsets[:-1]]
    expected = np.arange(len(steps)) + np.repeat(firsts - offsets[:-1], np.diff(offsets))
    wrong = np.flatnonzero(steps != expected)
    if len(wrong):
        row = int(wrong[0])
        episode = int(np.searchsorted(offsets, row, side="right")) - 1
        where = f"data set {source_name!r}, episode {numbers[episode]}, column {source_column!r}"
        if steps[row] == steps[row - 1]:
            raise ValueError(
                f"{where}: step {steps[row]} is there twice; remove one, number the episodes of different files "
                "differently, or give different recordings as a list"
            )
        raise ValueError(
            f"{where}: step {expected[row]} is missing (the next one is {steps[row]}); the steps of an episode follow "
            "without gaps, so get the missing rows, give what follows an episode number of its own, or remove the "
            "episode"
        )
    later = np.flatnonzero(firsts != 0)
    if warn and len(later):
        logger.warning(
            "data set %r: %d of %d episodes do not begin at step 0 of %r, as if their first steps had been cut off "
            "(episode %s begins at %d); each first step that is there counts as step 0",
            source_name,
            len(later),
            len(firsts),
            source_column,
            numbers[later[0]],
            firsts[later[0]],
        )


def _check_time(
    source_name: str,
    source_column: str,
    numbers: Sequence[object],
    data: pa.ChunkedArray,
    order: slice | NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> None:
    """Check that time does not go back within an episode, as it does where several have one number."""
    times = data.to_numpy()[order]
    back = times[1:] < times[:-1]
    back[offsets[1:-1] - 1] = False
    if back.any():
        row = int(back.argmax()) + 1
        episode = int(np.searchsorted(offsets, row, side="right")) - 1
        raise ValueError(
            f"data set {source_name!r}, episode {numbers[episode]}, step {row - offsets[episode]}, column "
            f"{source_column!r}: time goes back from {times[row - 1]} to {times[row]}, so more than one episode has "
            "this number, or the steps are not in order; number every episode differently"
        )


def _episodes(
    source_name: str, source_column: str, table: pa.Table
) -> tuple[NDArray[np.int64], Callable[[int], object]]:
    """Return a number for the episode of each row, and what it is called; names are numbered as they appear."""
    data = table.column(source_column)
    if pa.types.is_dictionary(data.type):
        data = data.cast(data.type.value_type)
    if not is_text(data.type):
        return _whole_numbers(source_name, source_column, data), lambda number: number
    _refuse_missing(source_name, source_column, data)
    encoded = data.dictionary_encode().combine_chunks()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist().__getitem__


def _read_column(
    source_name: str, column: str, source_column: str, table: pa.Table, names: Mapping[str, str]
) -> np.ndarray:
    """Return the values of a column in the table's order, (N,); observations, and actions that are lists, (N, D).

    Frames are as `grey_frames` takes them.
    """
    data = table.column(source_column)
    found, vector = storage_type(data.type), column in (*VALUES, *GOALS)
    depth = min(depth_of(found), 3 if column == "observations" else 1) if vector else 0
    picture = column == "observations" and is_picture(found)
    # Rewards may be true and false: `next.success`, `next.done`.
    if not (picture or is_number(item_type(found, depth), or_flag=True) or pa.types.is_null(found)):
        what = "a list of numbers, or one number" if vector else "true or false" if column in FLAGS else "one number"
        what += ", or a frame" if column == "observations" else ""
        raise ValueError(
            f"data set {source_name!r}, column {source_column!r}: expected one row per step with {what}, found "
            f"{data.type}; convert the column, or map another one with columns={{...}}"
        )

    at = partial(_at, source_name, source_column, table, names)
    pieces = [storage(chunk) for chunk in data.chunks]
    if picture:
        return decode(pieces, at)
    values = flatten(pieces, depth, at)
    return values[:, None] if column in ("observations", *GOALS) and not depth else values


def _whole_numbers(source_name: str, source_column: str, data: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return a column that counts episodes or steps; pandas makes floats of it where a value was missing once."""
    if not is_number(data.type):
        raise ValueError(
            f"data set {source_name!r}, column {source_column!r}: expected one whole number for each step, found "
            f"{data.type}; convert the column, or map another one with columns={{...}}"
        )
    _refuse_missing(source_name, source_column, data)
    values = data.to_numpy()
    whole = values.astype(np.int64)
    wrong = np.flatnonzero(whole != values)
    if len(wrong):
        raise ValueError(
            f"data set {source_name!r}, row {wrong[0]} of the table, column {source_column!r}: expected a whole "
            f"number, found {values[wrong[0]]}; correct it"
        )
    return whole


def _refuse_missing(source_name: str, source_column: str, data: pa.ChunkedArray) -> None:
    """Refuse a row that nothing says the episode or the step of."""
    missing = np.flatnonzero(pc.is_null(data, nan_is_null=True).to_numpy())
    if len(missing):
        raise ValueError(
            f"data set {source_name!r}, row {missing[0]} of the table, column {source_column!r}: a value is missing; "
            "every step needs one, so correct or remove the row"
        )


def _pictures(schema: pa.Schema, info: RobotInfo) -> list[str]:
    beside = [name for name in schema.names if name.startswith("observation.image")]
    return sorted({*info.pictures, *beside})


def _warn_of_unread(
    source_name: str, schema: pa.Schema, names: Mapping[str, str], info: RobotInfo, steps: int, episodes: int
) -> None:
    """Say what of the data set is not read."""
    read = names["observations"]
    pictures = [name for name in _pictures(schema, info) if name != read]
    if pictures:
        logger.warning("data set %r: pictures are not read (%s)", source_name, ", ".join(pictures))
    others = [name for name in schema.names if name.startswith("observation.") and name not in (*pictures, read)]
    if others:
        logger.warning("data set %r: other observations are not read (%s)", source_name, ", ".join(others))
    for what, counted, here in (("steps", info.steps, steps), ("episodes", info.episodes, episodes)):
        if counted is not None and counted > here:
            logger.warning(
                "data set %r: %d of the %d %s that %s counts are here", source_name, here, counted, what, INFO
            )

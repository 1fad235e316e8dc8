"""Tables with one row per step and a column that says the episode: the layout of LeRobot's data sets, v2 and v3.

Rows may stand in any order when a column counts the steps of an episode. Videos and pictures are left alone.
Source: LeRobot's data set format, https://huggingface.co/docs/lerobot/lerobot-dataset-v3.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..columns import ALIASES, FLAGS, Column, assemble, find_columns, without_spare_dones
from ..facts import SourceFacts
from ..trajectories import Trajectories
from .arrow import flatten, is_list, is_number, item_type, storage, storage_type
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
    "steps": ("steps", "frame_index"),
}


@dataclass(frozen=True)
class RobotInfo:
    """What LeRobot's `meta/info.json` says: the names of pictures and videos, and how many steps there are."""

    pictures: tuple[str, ...] = ()
    steps: int | None = None

    @classmethod
    def read(cls, path: Path) -> RobotInfo:
        """Read the file.

        Raises:
            ValueError: it is not JSON.
        """
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            features = {name: feature.get("dtype") for name, feature in info.get("features", {}).items()}
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not the description of a LeRobot data set ({error}); get it again") from error
        pictures = tuple(name for name, kind in features.items() if kind in ("video", "image"))
        steps = info.get("total_frames")
        return cls(pictures, steps if isinstance(steps, int) else None)


def has_one_row_per_step(schema: pa.Schema, columns: Mapping[str, str]) -> bool:
    """Whether a table has a column that says the episode, beside columns with one value a row.

    Args:
        schema: its columns.
        columns: the user's names for some of them, by ours.
    """
    if "episodes" in columns or "steps" in columns:
        return True  # only such a table has them
    usual = [name for name in _ALIASES["episodes"] if name in schema.names]
    if not usual or is_list(schema.field(usual[0]).type):
        return False
    once = {ours: columns.get(ours) for ours in (*FLAGS, "rewards", "successes", "steps")}
    names = [name for ours, mapped in once.items() for name in ([mapped] if mapped else _ALIASES[ours])]
    if any(name in schema.names and is_list(schema.field(name).type) for name in names):
        return False
    observations = [columns["observations"]] if "observations" in columns else _ALIASES["observations"]
    return not any(name in schema.names and item_type(schema.field(name).type, 2) for name in observations)


def read_step_rows(
    rows: Rows,
    label: str,
    name: str,
    columns: Mapping[str, str],
    facts: SourceFacts,
    info: RobotInfo,
    tell: bool = True,
) -> Trajectories | None:
    """Read the trajectories of a table with one row per step.

    Where there are no rewards, they are made of `next.success`, if that is there: 1 at the first step of an episode
    that has it, 0 at all others. `columns={"rewards": "next.done"}` makes every episode a success: 1 at its last step.

    Args:
        rows: the opened source.
        label: what errors call it.
        name: what cards call it.
        columns: names of its columns by ours, where they differ.
        facts: what else it says about itself.
        info: what LeRobot says about it.
        tell: whether to warn of what is not read, or made up.

    Returns:
        None if there are no rows.

    Raises:
        ValueError: a column is missing, or an episode is not what it should be.
    """
    names = step_columns(label, rows.schema, columns, info)
    table = rows.table([theirs for theirs in dict.fromkeys(names.values()) if theirs in rows.schema.names])
    if table.num_rows == 0:
        return None
    if tell:
        _tell(label, rows.schema, info, table.num_rows)
    order, offsets = _order(label, names, table)
    read = {
        ours: Column(label, theirs, _read_column(label, ours, theirs, table, names)[order], offsets)
        for ours, theirs in names.items()
        if ours not in ("episodes", "steps") and theirs in table.column_names
    }
    if "rewards" not in read:
        read["rewards"] = _sparse_rewards(label, names, read, offsets, tell)
    read.pop("successes", None)
    return assemble(name, read, facts)


def step_columns(label: str, schema: pa.Schema, columns: Mapping[str, str], info: RobotInfo) -> dict[str, str]:
    """Return the names of the columns that are read, by ours; one of them may stand for rewards that are made up.

    Args, raises: as `read_step_rows`.
    """
    last_step = columns.get("rewards") == _LAST_STEP and _LAST_STEP not in schema.names
    asked = {ours: theirs for ours, theirs in columns.items() if not (last_step and ours == "rewards")}
    names = find_columns(label, schema.names, asked, _ALIASES, needed=("actions", "episodes"))
    if "observations" not in names:
        pictures = _pictures(schema, info)
        raise ValueError(
            f"data set {label!r} has no column 'observation.state' for the observations; its columns are "
            f"{', '.join(schema.names)}. "
            + (f"Pictures ({', '.join(pictures)}) are not read. " if pictures else "")
            + 'Say which one it is with columns={"observations": "..."}'
        )
    if last_step:
        names["rewards"] = _LAST_STEP
    if "rewards" not in names and "successes" not in names:
        raise ValueError(
            f"data set {label!r} has no column 'next.reward' for the rewards, and no 'next.success' to make them of; "
            f'its columns are {", ".join(schema.names)}. Say which one it is with columns={{"rewards": "..."}}; '
            f'for demonstrations that all succeeded, columns={{"rewards": "{_LAST_STEP}"}} rewards the last step of '
            "each with 1"
        )
    if "rewards" in names:
        names.pop("successes", None)
    return without_spare_dones(names)


def _sparse_rewards(
    label: str, names: Mapping[str, str], read: Mapping[str, Column], offsets: NDArray[np.int64], tell: bool
) -> Column:
    """Return rewards of 1 at the first success of each episode, or at its last step where all of them are successes."""
    rewards = np.zeros(offsets[-1], np.float32)
    if "rewards" in names:
        rewards[offsets[1:] - 1] = 1
        return Column(label, names["rewards"], rewards, offsets)
    successes = read["successes"]
    steps = np.flatnonzero(successes.as_flags())
    episodes = np.searchsorted(offsets, steps, side="right")
    rewards[steps[np.unique(episodes, return_index=True)[1]]] = 1
    if tell:
        logger.warning(
            "data set %r has no rewards: they are 1 at the first step of an episode with %r, which %d of %d episodes "
            "have",
            label,
            successes.theirs,
            np.count_nonzero(rewards),
            len(offsets) - 1,
        )
    return Column(label, successes.theirs, rewards, offsets)


def _order(
    label: str, names: Mapping[str, str], table: pa.Table
) -> tuple[slice | NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows in order, episode by episode, and the offsets of the episodes.

    Raises:
        ValueError: a step of an episode is there twice, or not at all.
    """
    episodes = _whole_numbers(label, names["episodes"], table)
    steps = _whole_numbers(label, names["steps"], table) if "steps" in names else None
    order: slice | NDArray[np.int64] = slice(None)
    same = episodes[1:] == episodes[:-1]
    if steps is not None and not ((episodes[1:] > episodes[:-1]) | (same & (steps[1:] > steps[:-1]))).all():
        order = np.lexsort((steps, episodes))
        episodes, steps = episodes[order], steps[order]
        same = episodes[1:] == episodes[:-1]
    offsets = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(episodes)]]).astype(np.int64)
    if steps is None:
        _check_together(label, names["episodes"], episodes[offsets[:-1]])
    else:
        _check_no_gaps(label, names["steps"], episodes, steps, offsets)
    return order, offsets


def _check_together(label: str, column: str, episodes: NDArray[np.int64]) -> None:
    """Check that the rows of an episode stand together, where nothing says their order."""
    values, counts = np.unique(episodes, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"data set {label!r}, column {column!r}: the rows of episode {values[counts > 1][0]} do not stand "
            "together, and no column counts the steps; sort the rows, or say which column does with "
            'columns={"steps": "..."}'
        )


def _check_no_gaps(
    label: str, column: str, episodes: NDArray[np.int64], steps: NDArray[np.int64], offsets: NDArray[np.int64]
) -> None:
    """Check that the steps of each episode are 0, 1, 2, ..."""
    expected = np.arange(len(steps)) - np.repeat(offsets[:-1], np.diff(offsets))
    wrong = np.flatnonzero(steps != expected)
    if len(wrong) == 0:
        return
    row = int(wrong[0])
    where = f"data set {label!r}, episode {episodes[row]}, column {column!r}"
    if row not in offsets and steps[row] == steps[row - 1]:
        raise ValueError(
            f"{where}: step {steps[row]} is there twice; remove one, or number the episodes of "
            "different files differently"
        )
    raise ValueError(
        f"{where}: step {expected[row]} is missing (the next one is {steps[row]}); steps count from 0 without gaps, so "
        "get the missing rows or remove the episode"
    )


def _read_column(label: str, ours: str, theirs: str, table: pa.Table, names: Mapping[str, str]) -> np.ndarray:
    """Return the values of a column in the table's order, (N,) or (N, D).

    An action of one whole number is discrete; other actions, and observations, of one number are (N, 1).
    """
    data = table.column(theirs)
    found, vector = storage_type(data.type), ours in ("observations", "actions")
    nested = vector and is_list(found)
    # Rewards may be true and false: `next.success`, `next.done`.
    if not (is_number(item_type(found, int(nested)), or_flag=not vector) or pa.types.is_null(found)):
        what = "a list of numbers, or one number" if vector else "true or false" if ours in FLAGS else "one number"
        raise ValueError(
            f"data set {label!r}, column {theirs!r}: expected one row per step with {what}, found {data.type}; convert "
            "the column, or map another one with columns={...}"
        )

    def at(row: int) -> str:
        known = {ours: table.column(names[ours])[row].as_py() for ours in ("episodes", "steps") if ours in names}
        step = f"step {known['steps']}" if "steps" in known else f"row {row} of the table"
        return f"data set {label!r}, episode {known['episodes']}, {step}, column {theirs!r}"

    values = flatten([storage(chunk) for chunk in data.chunks], nested, at)
    single = vector and not nested and not (ours == "actions" and pa.types.is_integer(found))
    return values[:, None] if single else values


def _whole_numbers(label: str, column: str, table: pa.Table) -> NDArray[np.int64]:
    """Return a column that counts episodes or steps."""
    data = table.column(column)
    if not pa.types.is_integer(data.type) or data.null_count:
        raise ValueError(
            f"data set {label!r}, column {column!r}: expected one whole number for each step, found {data.type} with "
            f"{data.null_count} missing; convert the column, or map another one with columns={{...}}"
        )
    return data.to_numpy().astype(np.int64)


def _pictures(schema: pa.Schema, info: RobotInfo) -> list[str]:
    beside = [name for name in schema.names if name.startswith("observation.image")]
    return sorted({*info.pictures, *beside})


def _tell(label: str, schema: pa.Schema, info: RobotInfo, steps: int) -> None:
    """Say what of the data set is not read."""
    pictures = _pictures(schema, info)
    if pictures:
        logger.warning("data set %r: pictures are not read (%s)", label, ", ".join(pictures))
    if info.steps is not None and info.steps > steps:
        logger.warning("data set %r: %d of the %d steps that %s counts are here", label, steps, info.steps, INFO)

"""The columns that make trajectories: what they are called in every format, and the checks that all formats share.

An adaptor says which of its arrays is which column and where its episodes lie; `assemble` checks them and decides how
every episode ended. Nothing here knows a format.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metadata import SourceMetadata
from .storage import blocks
from .trajectories import Trajectories, locate

logger = logging.getLogger(__name__)

#: Our columns, and the names that they are found under where no `columns` argument says another one: those of the
#: Decision Transformer's data sets and gymnasium, of D4RL, and of LeRobot.
ALIASES: dict[str, tuple[str, ...]] = {
    "observations": ("observations", "observation.state"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward", "next.reward"),
    "terminations": ("terminations", "terminals"),
    "truncations": ("truncations", "timeouts", "next.truncated"),
    "dones": ("dones", "next.done"),
    "goals": ("goals", "desired_goals", "desired_goal"),
    "achieved_goals": ("achieved_goals", "achieved_goal"),
}
VALUES = ("observations", "actions")  # which every source has
GOALS = ("goals", "achieved_goals")  # vectors that come with the observations
FLAGS = ("terminations", "truncations", "dones")
_FLAGS_OF_GYMNASIUM = {"terminated": "terminations", "truncated": "truncations"}

#: Actions of an unknown space are taken for ones in [-1, 1]. Up to here, they were recorded before the environment
#: clipped them (as in D4RL's sources of human demonstrations); beyond, they are in units of their own.
_FARTHEST_CLIPPED = 1.5
_ROUNDING = 1e-5  # actions so little outside the space are clipped without a word
_MOST_ACTIONS = 1 << 16  # a model has an output for each discrete action


@dataclass(frozen=True)
class Column:
    """One column of all episodes: values (N, ...), and what errors call it.

    Args:
        source_name: the data set, as the user called it.
        source_column: the column's name there.
        values: one row a step.
        offsets: (E + 1,) where the episodes begin and end; None while that is not known.
    """

    source_name: str
    source_column: str
    values: np.ndarray
    offsets: NDArray[np.int64] | None = None

    @property
    def known_offsets(self) -> NDArray[np.int64]:
        """The offsets, of which there is one episode until they are known."""
        return np.array([0, len(self.values)]) if self.offsets is None else self.offsets

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Steps of each episode, (E,)."""
        return np.diff(self.known_offsets)

    def at(self, row: int) -> str:
        """Say where a row of the values is."""
        if self.offsets is None:
            return f"data set {self.source_name!r}, step {row}, column {self.source_column!r}"
        episode, step = locate(self.offsets, row)
        return f"data set {self.source_name!r}, episode {episode}, step {step}, column {self.source_column!r}"

    def as_type(self, dtype: type[np.generic]) -> np.ndarray:
        """Return the values as this type. What does not fit becomes infinite, which `check_finite` reports."""
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(self.values, dtype=dtype)

    def one_a_step(self) -> Column:
        """Return the column with one value a step, (N,), which may be a list of one, (N, 1).

        Raises:
            ValueError: there are more.
        """
        if self.values.ndim == 1:
            return self
        if self.values.shape[1:] == (1,):
            return replace(self, values=self.values[:, 0])
        raise ValueError(
            f"data set {self.source_name!r}, column {self.source_column!r}: {self.values.shape[1]} values a step; "
            "expected one"
        )

    def as_flags(self) -> NDArray[np.bool_]:
        """Return the values as true and false.

        Raises:
            ValueError: one of them is neither.
        """
        wrong = np.flatnonzero((self.values != 0) & (self.values != 1))
        if len(wrong):
            found = self.values[wrong[0]]
            raise ValueError(f"{self.at(int(wrong[0]))}: expected true or false (1 or 0), found {found}")
        return self.values.astype(np.bool_)


def find_columns(
    source_name: str,
    found: Iterable[str],
    columns: Mapping[str, str],
    aliases: Mapping[str, tuple[str, ...]] = ALIASES,
    needed: tuple[str, ...] = VALUES,
) -> dict[str, str]:
    """Return the source's names of its columns, by our names.

    Args:
        source_name: what errors call the data set.
        found: the columns that the source has.
        columns: the user's names for some of them, by our names.
        aliases: our columns, and the names to look for.
        needed: those that a source must have.

    Raises:
        ValueError: a needed or mapped column is not there, or what is mapped is none of our columns.
    """
    found = list(found)
    unknown = [column for column in columns if column not in aliases]
    if unknown:
        raise ValueError(f"columns: {unknown[0]!r} is none of our columns; map from {', '.join(aliases)}")
    names = {}
    for column in aliases:
        wanted = _wanted(column, columns, aliases)
        present = [name for name in wanted if name in found]
        if present and found.count(present[0]) > 1:
            raise ValueError(
                f"data set {source_name!r} has more than one column {present[0]!r}; rename or remove the others"
            )
        if present:
            names[column] = present[0]
        elif column in columns or column in needed:
            way = "rewards_from='...' (--rewards_from)" if column == "rewards" else f'columns={{"{column}": "..."}}'
            raise ValueError(
                f"data set {source_name!r} has no column {wanted[0]!r} for the {column}; its columns are "
                f"{', '.join(found)}. Say which one it is with {way}"
            )
    return names


def _wanted(column: str, columns: Mapping[str, str], aliases: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names to look for; of rewards that are a flag, as we or gymnasium call it, also the source's own."""
    if column not in columns:
        return aliases[column]
    name = columns[column]
    flag = _FLAGS_OF_GYMNASIUM.get(name, name)
    return (name, *_wanted(flag, columns, aliases)) if column == "rewards" and flag in FLAGS else (name,)


def warn_of_no_rewards(source_name: str, found: Iterable[str]) -> None:
    """Say that none of the columns that were found holds rewards, and what follows; one may be called otherwise."""
    found = list(found)
    alike = [name for name in found if "reward" in name.lower()]
    logger.warning(
        "data set %r: no rewards: conditioning=none; give --rewards_from COLUMN (such as %s) to have returns; its "
        "columns are %s",
        source_name,
        " or ".join(alike or ("next.success", "terminated")),
        ", ".join(found),
    )


def without_spare_dones(names: Mapping[str, str]) -> dict[str, str]:
    """Leave out `dones` where terminations or truncations say more."""
    spare = "terminations" in names or "truncations" in names
    return {column: source_column for column, source_column in names.items() if not (spare and column == "dones")}


def ends_with_observation(seen: NDArray[np.int64], others: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """Return which episodes (E,) have an observation after their last action, as a rollout in gymnasium ends.

    Args:
        seen: observations of each episode, (E,).
        others: steps of each episode in every other column, (E,) each; more of them decide, where one is wrong.
    """
    more = seen - np.array(others)
    agreed: NDArray[np.bool_] = (more == 1).sum(axis=0) > (more == 0).sum(axis=0)
    return agreed


def warn_left_out(source_name: str, left_out: int, episodes: int) -> None:
    """Say how many episodes had an observation after their last action, where not all or none of them had."""
    if 0 < left_out < episodes:
        logger.warning(
            "data set %r: %d of %d episodes have an observation after their last action, which is left out; the others "
            "have none",
            source_name,
            left_out,
            episodes,
        )


def check_lengths(columns: Mapping[str, Column]) -> None:
    """Check that an episode has as many steps in every column, and at least one.

    Raises:
        ValueError: it has not; names the episode, and the column that differs from the others.
    """
    first = columns.get("observations", columns["actions"])  # some adaptors read frames when the rest is known
    lengths = {name: found.lengths for name, found in columns.items()}
    different = np.flatnonzero(np.any([counts != first.lengths for counts in lengths.values()], axis=0))
    if len(different):
        counts = {columns[name].source_column: int(counts[different[0]]) for name, counts in lengths.items()}
        raise ValueError(
            f"data set {first.source_name!r}, episode {different[0]}: the number of steps differs, {uneven(counts)}; "
            "every step needs a value in each column"
        )
    empty = np.flatnonzero(first.lengths == 0)
    if len(empty):
        raise ValueError(
            f"data set {first.source_name!r}, episode {empty[0]} is empty in column {first.source_column!r}; every "
            "episode needs one step or more, so remove it"
        )


def uneven(counts: Mapping[str, int]) -> str:
    """Say how many steps there are in the columns that differ from most; in all where there is no majority."""
    (usual, agree), *others = Counter(counts.values()).most_common()
    odd = {column: count for column, count in counts.items() if count != usual}
    if others and agree == others[0][1]:
        *first, last = [f"{count} in column {column!r}" for column, count in counts.items()]
        return f"{', '.join(first)} and {last}"
    return f"{', '.join(f'{count} in column {column!r}' for column, count in odd.items())} and {usual} in the others"


def assemble(name: str, columns: Mapping[str, Column], metadata: SourceMetadata) -> Trajectories:
    """Make trajectories of the columns, by the rules of `load_trajectories`.

    Args:
        name: what cards call the data set.
        columns: by our names, with known offsets; rewards may be missing. Vectors are (N, D) numbers, images (N, H, W)
            uint8, goals (N, G) numbers, actions (N,) or (N, A) numbers or true and false, all else (N,) or (N, 1).
        metadata: what else the source says about itself, or the user about it.

    Raises:
        ValueError: an episode is not what it should be.
    """
    check_lengths(columns)
    actions, discrete = _actions(columns["actions"], metadata)
    offsets = actions.known_offsets
    flags = {column: _flags_at_ends(columns[column].one_a_step()) for column in FLAGS if column in columns}
    terminations, truncations = _endings(flags, offsets)
    images = columns["observations"].values.dtype == np.uint8 and columns["observations"].values.ndim == 3
    start = metadata.first_action() if discrete else 0
    goals: dict[str, Any] = {column: columns[column].as_type(np.float32) for column in GOALS if column in columns}
    return Trajectories(
        observations=columns["observations"].as_type(np.uint8 if images else np.float32),
        actions=actions.values - start if discrete else _within_space(actions, metadata),
        rewards=columns["rewards"].one_a_step().as_type(np.float32) if "rewards" in columns else None,
        terminations=terminations,
        truncations=truncations,
        starts=offsets[:-1],
        lengths=np.diff(offsets),
        name=name,
        env_id=metadata.env_id,
        num_actions=_num_actions(columns["actions"], metadata) if discrete else None,
        action_start=start,
        observation_parts=None if images else metadata.parts(columns["observations"].values.shape[1]),
        env_kwargs=metadata.environment_kwargs(),
        fps=metadata.control_rate(),
        **goals,
    )


def _actions(column: Column, metadata: SourceMetadata) -> tuple[Column, bool]:
    """Return the actions as discrete ones, (N,) int64, or as numbers (N, A); and whether they are discrete.

    One integer a step is a discrete action. What else could be one is numbers, as long as nothing says more.
    """
    values, said = column.values, metadata.said_action_type()
    single = values.ndim == 1 or values.shape[1:] == (1,)
    if said == "discrete" or (said is None and single and values.dtype.kind in "iu"):
        return replace(column, values=_discrete(column)), True
    numbers = replace(column, values=values.reshape(len(values), -1))
    kind = None if said else _like_discrete(numbers.values)
    if kind is not None:
        logger.warning(
            "data set %r, column %r: the actions are %s, and nothing says whether they are discrete: they are taken as "
            "continuous. action_type='discrete' (--action_type discrete) makes discrete actions of them, 'continuous' "
            "says that this is right",
            column.source_name,
            column.source_column,
            kind,
        )
    return numbers, False


def _like_discrete(values: np.ndarray) -> str | None:
    """Say what actions (N, A) look like that could be discrete ones; None where they could not."""
    if values.dtype.kind == "b":
        return "true and false"
    if values.shape[1] == 1:
        whole = all(((block >= 0) & (block == np.round(block))).all() for block in blocks(values))
        return "whole numbers, counted from 0" if whole else None
    if all(_is_one_hot(block).all() for block in blocks(values)):
        return f"one-hot, a 1 among {values.shape[1]} numbers"
    return None


def _is_one_hot(values: np.ndarray) -> NDArray[np.bool_]:
    """Return whether each row is a single 1 among zeros, (N,)."""
    return ((values == 0) | (values == 1)).all(axis=1) & (values.sum(axis=1) == 1)


def _discrete(column: Column) -> NDArray[np.int64]:
    """Return actions as integers (N,): whole numbers are what they are, one-hot rows the place of their 1.

    Raises:
        ValueError: a step is neither, or too large to be the number of an action.
    """
    values = column.values.reshape(len(column.values), -1)
    one_hot = values.shape[1] > 1
    found, first = [], 0
    for block in blocks(values):
        if one_hot:
            wrong = np.flatnonzero(~_is_one_hot(block))
        else:
            block = block[:, 0]
            wrong = np.flatnonzero(~((block == np.round(block)) & (np.abs(block) < _MOST_ACTIONS)))
        if len(wrong):
            action = block[wrong[0]].tolist()
            rule = f"whole numbers from 0, below {_MOST_ACTIONS:,}, or one-hot"
            raise ValueError(
                f"{column.at(first + int(wrong[0]))}: the action is {action}, but discrete actions are {rule}; correct "
                "it, or say action_type='continuous' (--action_type continuous)"
            )
        found.append(block.argmax(axis=1) if one_hot else block.astype(np.int64))
        first += len(block)
    return np.concatenate(found)


def _num_actions(column: Column, metadata: SourceMetadata) -> int | None:
    """Return how many discrete actions there are, where metadata or one-hot rows say it."""
    said, width = metadata.action_count(), column.values.shape[1:]
    return width[0] if said is None and width and width[0] > 1 else said


def _flags_at_ends(column: Column) -> NDArray[np.bool_]:
    """Return true and false (N,), which may only be true at the last step of an episode."""
    flags = column.as_flags()
    inside = flags.copy()
    inside[column.known_offsets[1:] - 1] = False
    early = np.flatnonzero(inside)
    if len(early):
        raise ValueError(
            f"{column.at(int(early[0]))}: the episode ends here, but more steps of it follow; split it into two"
        )
    return flags


def _endings(
    flags: Mapping[str, NDArray[np.bool_]], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (terminations, truncations) from what the source has."""
    last = np.zeros(offsets[-1], dtype=np.bool_)
    last[offsets[1:] - 1] = True
    truncations = flags.get("truncations", np.zeros_like(last))
    if "truncations" in flags and "terminations" not in flags:
        return last & ~truncations, truncations
    terminations = flags.get("terminations", flags.get("dones", np.zeros_like(last)))
    return terminations, truncations | (last & ~terminations)


def _within_space(column: Column, metadata: SourceMetadata) -> NDArray[np.float32]:
    """Return continuous actions (N, A) within their space, as the environment would have clipped them."""
    actions = column.as_type(np.float32)
    known = metadata.action_bounds(actions.shape[1])
    low, high = (np.float32(-1), np.float32(1)) if known is None else known
    outside, farthest, most, first = 0, (0, 0), np.float32(0), 0
    for block in blocks(actions):
        if not np.isfinite(block).all():
            return actions  # which is refused later
        excess = np.maximum(low - block, block - high)
        outside += np.count_nonzero((excess > 0).any(axis=1))
        if excess.max() > most:
            row, dimension = np.unravel_index(int(excess.argmax()), excess.shape)
            most, farthest = excess[row, dimension], (first + int(row), int(dimension))
        first += len(block)
    if not outside:
        return actions
    place = f"{column.at(farthest[0])}, dimension {farthest[1]}: the action is {actions[farthest]}"
    if known is None and most > _FARTHEST_CLIPPED - 1:
        logger.warning(
            "%s, and nothing says their space: the actions are taken as they are, and models learn them scaled to "
            "[-1, 1] by the smallest and the largest one in each dimension",
            place,
        )
        return actions
    if most > _ROUNDING:
        logger.warning(
            "%s, outside of its space; it is clipped, as the environment would, like those of %d steps in %d",
            place,
            outside,
            len(actions),
        )
    return np.clip(actions, low, high)

"""NumPy arrays: a list with one dict per episode, as rollouts are kept, or a dict of flat columns, as D4RL keeps them.

What comes out of files as arrays (D4RL, the Decision Transformer's pickle, Minari) ends here too.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..columns import (
    ALIASES,
    FLAGS,
    VALUES,
    Column,
    assemble,
    ends_with_observation,
    find_columns,
    tell_left_out,
    uneven,
    without_spare_dones,
)
from ..metadata import SourceFacts, registered_step_limit
from ..storage import blocks
from ..trajectories import Trajectories, join, offsets_of
from .frames import grey_frames

logger = logging.getLogger(__name__)

_ALIASES = {**ALIASES, "next_observations": ("next_observations",)}
_VECTORS = ("observations", "next_observations", "actions")


def read_arrays(
    source: Sequence[Any] | Mapping[str, Any], label: str, name: str, columns: Mapping[str, str], facts: SourceFacts
) -> Trajectories:
    """Read arrays in either layout.

    Raises:
        ValueError: a column is missing, or an episode is not what it should be.
    """
    if isinstance(source, Mapping):
        return read_flat_arrays(source, label, name, columns, facts)
    return read_episode_arrays(source, label, name, columns, facts)


def read_episode_arrays(
    episodes: Sequence[Mapping[str, Any]], label: str, name: str, columns: Mapping[str, str], facts: SourceFacts
) -> Trajectories:
    """Read a list of episodes: `{"observations": (T, S), "actions": (T, A), "rewards": (T,), "terminations": ...}`.

    Of an episode with T + 1 observations, as a rollout in gymnasium ends with one that no action follows, the last one
    is left out.

    Args:
        episodes: dicts of arrays or lists, with the same columns each.
        label: what errors call the data set.
        name: what cards call it.
        columns: names of its columns by ours, where they differ.
        facts: what else is known about it.

    Raises:
        ValueError: a column is missing, or an episode is not what it should be.
    """
    if len(episodes) == 0:
        raise ValueError(f"data set {label!r} has no episodes; check the source")
    for number, episode in enumerate(episodes):
        if not isinstance(episode, Mapping):
            raise ValueError(
                f"data set {label!r}, episode {number} is of type {type(episode).__name__}; expected a dict of its "
                "columns, such as observations, actions and rewards"
            )
    found = Counter(str(theirs) for episode in episodes for theirs in episode)
    names = without_spare_dones(find_columns(label, found, columns))
    for theirs in names.values():
        _check_everywhere(label, theirs, episodes, found[theirs])
    pieces = {
        ours: [_piece(label, ours, theirs, number, episode) for number, episode in enumerate(episodes)]
        for ours, theirs in names.items()
    }
    lengths = {ours: np.array([len(piece) for piece in pieces[ours]]) for ours in names}
    final = ends_with_observation(lengths.pop("observations"), [*lengths.values()])
    tell_left_out(label, int(final.sum()), len(episodes))
    pieces["observations"] = [
        seen[: len(seen) - last] for seen, last in zip(pieces["observations"], final, strict=True)
    ]
    read = {ours: _joined(label, theirs, pieces[ours]) for ours, theirs in names.items()}
    return assemble(name, _with_grey_frames(read), facts)


def read_flat_arrays(
    arrays: Mapping[str, Any], label: str, name: str, columns: Mapping[str, str], facts: SourceFacts
) -> Trajectories:
    """Read flat columns of all episodes: `{"observations": (N, S), "actions": (N, A), "terminals": (N,), ...}`.

    An episode ends at a step that terminated, was truncated or is done; at one whose `next_observations`, where there
    are such, are not the observations of the step after it; and after `max_episode_steps`, which the facts say, or else
    gymnasium of the environment that they name. The last episode may be cut short: it counts as truncated.

    Args:
        arrays: columns by name; other ones are left alone.
        label: what errors call the data set.
        name: what cards call it.
        columns: names of its columns by ours, where they differ.
        facts: what else is known about it.

    Raises:
        ValueError: a column is missing or wrong, steps are not in their order, or nothing says where episodes end.
    """
    names = flat_columns(label, map(str, arrays), columns)
    read = {}
    for ours, theirs in names.items():
        values = _checked(f"data set {label!r}", ours, theirs, arrays[theirs])
        read[ours] = Column(label, theirs, values)
    counts = {column.theirs: len(column.values) for column in read.values()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"data set {label!r}: the number of steps differs, {uneven(counts)}; every step needs a value in each "
            "column"
        )
    if len(read["actions"].values) == 0:
        raise ValueError(f"data set {label!r} has no steps; check the source")
    terminations, truncations = _flat_flags(label, read, facts)
    offsets = _offsets(terminations | truncations)
    flags = {
        "terminations": Column(label, names.get("terminations", "terminations"), terminations, offsets),
        "truncations": Column(label, names.get("truncations", "truncations"), truncations, offsets),
    }
    cut = {ours: replace(read[ours], offsets=offsets) for ours in VALUES}
    return assemble(name, _with_grey_frames({**cut, **flags}), facts)


def flat_columns(label: str, found: Iterable[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the flat columns that are read, by ours.

    Args, raises: as `find_columns`.
    """
    return find_columns(label, found, columns, _ALIASES)


def _flat_flags(
    label: str, read: Mapping[str, Column], facts: SourceFacts
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (terminations, truncations) of steps that are not yet cut into episodes."""
    flags = {ours: read[ours].as_flags() for ours in FLAGS if ours in read}
    none = np.zeros(len(read["actions"].values), np.bool_)
    dones = flags.get("dones", none)
    terminations = flags.get("terminations", dones & ~flags.get("truncations", none))
    truncations = flags.get("truncations", dones & ~terminations)
    if "next_observations" in read:
        truncations = truncations | _breaks(read["observations"], read["next_observations"], terminations | truncations)
    said = read.keys() & {"truncations", "dones", "next_observations"}
    limit = facts.step_limit() or registered_step_limit(facts.env_id)
    if limit is not None:
        truncations = truncations | _beyond(label, limit, terminations, truncations, facts, bool(said))
    elif not said or not ("next_observations" in said or (terminations | truncations).any()):
        _tell_of_no_limit(label, terminations | truncations, facts)
    truncations = truncations.copy()
    truncations[-1] |= not terminations[-1]
    return terminations, truncations


def _breaks(seen: Column, following: Column, ends: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the steps that end an episode, though no flag says so: what they led to is not what was seen next.

    Raises:
        ValueError: these are most of all steps.
    """
    after, led_to = seen.values[1:], following.values[:-1]
    place = f"data set {seen.label!r}, column {following.theirs!r}"
    if after.shape != led_to.shape:
        raise ValueError(
            f"{place}: shape {following.values.shape}, where the observations have {seen.values.shape}; leave it out"
        )
    breaks, within = np.zeros_like(ends), tuple(range(1, after.ndim))
    same = [
        np.isclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True).all(axis=within)  # one may be kept in float16
        for one, other in zip(blocks(after), blocks(led_to), strict=True)
    ]
    breaks[:-1] = ~np.concatenate([*same, np.empty(0, np.bool_)]) & ~ends[:-1]
    count = np.count_nonzero(breaks)
    if 2 * count > np.count_nonzero(~ends[:-1]):
        raise ValueError(
            f"{place}: what {count} of {len(ends)} steps led to is not the observation of the step after, and no flag "
            "ends an episode there. Rows must be in the order in which they were recorded, one environment after the "
            "other: sort them, or leave the column out if it holds something else"
        )
    if count:
        logger.warning(
            "%s: what %d steps led to, the first of them step %d, is not the observation of the step after, and no "
            "flag ends an episode there: it ends there, as truncated",
            place,
            count,
            int(breaks.argmax()),
        )
    return breaks


def _beyond(
    label: str,
    limit: int,
    terminations: NDArray[np.bool_],
    truncations: NDArray[np.bool_],
    facts: SourceFacts,
    said: bool,
) -> NDArray[np.bool_]:
    """Return the steps at which the time limit ended an episode, though nothing else says that it ended.

    Args:
        limit: in steps.
        terminations, truncations: where episodes end by what else is known.
        facts: of which the limit is one, or the environment whose limit it is in gymnasium's registry.
        said: whether there is a column that could have said these steps.
    """
    ends, cut = terminations | truncations, np.zeros_like(terminations)
    starts = np.concatenate([[0], np.flatnonzero(ends[:-1]) + 1])
    steps = np.arange(len(ends)) - np.repeat(starts, np.diff(starts, append=len(ends))) + 1
    cut[:-1] = (steps % limit == 0)[:-1] & ~ends[:-1]
    given = facts.step_limit() is not None
    if not cut.any() or (given and not said):
        return cut
    name = f"max_episode_steps in {facts.where}" if given else f"of {facts.env_id} in gymnasium"
    what = f"data set {label!r}, step {cut.argmax()}: no flag ends the episode, but its time limit of {limit:,} steps"
    if not given and truncations.any():
        logger.warning("%s (%s) would; the flags are believed. If some are missing, %s", what, name, _advice(facts))
        return np.zeros_like(cut)
    logger.warning(
        "%s (%s) does; episodes that it truncates so: %d. If this is not their time limit, %s",
        what,
        name,
        np.count_nonzero(cut),
        "correct it" if given else _advice(facts),
    )
    return cut


def _tell_of_no_limit(label: str, ends: NDArray[np.bool_], facts: SourceFacts) -> None:
    """Say that a time limit may have ended episodes, which nothing tells.

    Raises:
        ValueError: nothing else ends one.
    """
    if not ends.any():
        raise ValueError(
            f"data set {label!r}: nothing says where its episodes end, as it has no step that terminated, was "
            f"truncated (timeouts) or is done; {_advice(facts)}"
        )
    logger.warning(
        "data set %r has no truncations (timeouts): its episodes end at terminations only; if a time limit ended "
        "others, %s",
        label,
        _advice(facts),
    )


def _advice(facts: SourceFacts) -> str:
    if facts.where is not None:
        return f"write max_episode_steps into {facts.where}"
    return (
        "set truncations (timeouts) at the last step of each such episode, or write max_episode_steps, the "
        "environment's time limit, into a JSON file beside the file"
    )


def _offsets(ends: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the offsets (E + 1,) of episodes that end at these steps."""
    return np.concatenate([[0], np.flatnonzero(ends) + 1]).astype(np.int64)


def _with_grey_frames(columns: dict[str, Column]) -> dict[str, Column]:
    """Return the columns with one grey frame a step, where observations are frames."""
    seen = columns["observations"]
    if seen.values.ndim > 2:
        frames = grey_frames(seen.values, seen.known_offsets[:-1], seen.at)
        columns["observations"] = replace(seen, values=frames)
    return columns


def _check_everywhere(label: str, theirs: str, episodes: Sequence[Mapping[str, Any]], count: int) -> None:
    """Check that a column, which so many episodes have, is in all of them."""
    if count == len(episodes):
        return
    usual = 2 * count >= len(episodes)
    odd = next(number for number, episode in enumerate(episodes) if (theirs in episode) != usual)
    what = "has no column {!r}, which others have" if usual else "has a column {!r}, which others have not"
    raise ValueError(f"data set {label!r}, episode {odd} {what.format(theirs)}; every episode needs the same columns")


def _piece(label: str, ours: str, theirs: str, number: int, episode: Mapping[str, Any]) -> np.ndarray:
    """Return one column of one episode."""
    return _checked(f"data set {label!r}, episode {number}", ours, theirs, episode[theirs])


def _checked(where: str, ours: str, theirs: str, values: Any) -> np.ndarray:
    """Return a column's values with one row a step, of the type that they will have in the end, but for frames.

    (T, S) numbers or frames as `grey_frames` takes them for observations, (T,) or (T, A) of any type for actions, else
    (T,).
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}, column {theirs!r}: steps of different dimensions ({error})") from error
    vector, flag = ours in _VECTORS, ours in FLAGS
    if not vector and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    # Nothing but an empty list says no type; that the episode is empty is reported later.
    kinds = "iufb" if flag or vector or array.size == 0 else "iuf"
    images = vector and ours != "actions" and array.ndim in (3, 4) and array.dtype.kind in "iu"
    dimensions = (1, 2) if ours == "actions" else (array.ndim,) if images else (2,) if vector else (1,)
    fits = array.ndim in dimensions and 0 not in array.shape[1:]
    if array.dtype.kind not in kinds or not (fits or array.shape == (0,)):
        observed = "(steps, dimensions) numbers, or (steps, height, width) uint8 for grey frames"
        shapes = {
            "observations": observed,
            "next_observations": observed,
            "actions": "(steps, dimensions) numbers, or (steps,) integers where actions are discrete",
        }
        expected = shapes.get(ours, "(steps,) true or false" if flag else "(steps,) numbers")
        raise ValueError(
            f"{where}, column {theirs!r}: expected {expected}, found shape {array.shape} of {array.dtype}; convert the "
            "column, or map another one with columns={...}"
        )
    if flag or images or (ours == "actions" and array.dtype.kind != "f"):
        return array
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is reported with its place
        return array.astype(np.float32, copy=False)


def _joined(label: str, theirs: str, pieces: list[np.ndarray]) -> Column:
    """Return the column of these episodes, all of which must have the same dimensions."""
    return Column(label, theirs, join(label, theirs, pieces), offsets_of(np.array([len(piece) for piece in pieces])))

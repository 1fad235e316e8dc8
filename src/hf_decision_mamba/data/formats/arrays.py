"""NumPy arrays: a list with one dict per episode, as rollouts are kept, or a dict of flat columns, as D4RL keeps them.

What comes out of files as arrays (D4RL, the Decision Transformer's pickle, Minari) ends here too.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...model.observations_decision_mamba import describe_parts, flatten_observations
from ..columns import (
    ALIASES,
    FLAGS,
    GOALS,
    VALUES,
    Column,
    assemble,
    ends_with_observation,
    find_columns,
    uneven,
    warn_left_out,
    warn_of_no_rewards,
    without_spare_dones,
)
from ..metadata import SourceMetadata, registered_step_limit
from ..storage import blocks
from ..trajectories import Trajectories, join, offsets_of
from .frames import grey_frames

logger = logging.getLogger(__name__)

_ALIASES = {**ALIASES, "next_observations": ("next_observations",)}
_VECTORS = ("observations", "next_observations", "actions", *GOALS)


def read_arrays(
    source: Sequence[Any] | Mapping[str, Any],
    source_name: str,
    name: str,
    columns: Mapping[str, str],
    metadata: SourceMetadata,
) -> Trajectories:
    """Read arrays in either layout.

    Raises:
        ValueError: a column is missing, or an episode is not what it should be.
    """
    if isinstance(source, Mapping):
        return read_flat_arrays(source, source_name, name, columns, metadata)
    return read_episode_arrays(source, source_name, name, columns, metadata)


def read_episode_arrays(
    episodes: Sequence[Mapping[str, Any]],
    source_name: str,
    name: str,
    columns: Mapping[str, str],
    metadata: SourceMetadata,
) -> Trajectories:
    """Read a list of episodes: `{"observations": (T, S), "actions": (T, A), "rewards": (T,), "terminations": ...}`.

    All of them have rewards, or none. Observations may be a dict of arrays, as gymnasium's environments of goals have
    them: they are concatenated in the order of their names, as FlattenObservation does, and `observation_parts` say so.

    The last observation of an episode with T + 1 of them is left out: a rollout in gymnasium ends with one that no
    action follows.

    Args:
        episodes: dicts of arrays or lists, with the same columns each.
        source_name: what errors call the data set.
        name: what cards call it.
        columns: names of its columns by our names, where they differ.
        metadata: what else is known about it.

    Raises:
        ValueError: a column is missing, or an episode is not what it should be.
    """
    if len(episodes) == 0:
        raise ValueError(f"data set {source_name!r} has no episodes; check the source")
    for number, episode in enumerate(episodes):
        if not isinstance(episode, Mapping):
            raise ValueError(
                f"data set {source_name!r}, episode {number} is of type {type(episode).__name__}; expected a dict of "
                "its columns, such as observations, actions and rewards"
            )
    found = Counter(str(source_column) for episode in episodes for source_column in episode)
    names = without_spare_dones(find_columns(source_name, found, columns))
    seen = names["observations"]
    if any(isinstance(episode.get(seen), Mapping) for episode in episodes):
        flat, parts = zip(
            *(
                _concatenated(f"data set {source_name!r}, episode {number}", seen, episode.get(seen))
                for number, episode in enumerate(episodes)
            ),
            strict=True,
        )
        for number, own in enumerate(parts):
            if own != parts[0]:
                raise ValueError(
                    f"data set {source_name!r}, episode {number}, column {seen!r} is {describe_parts(own)}, and in "
                    f"episode 0 {describe_parts(parts[0])}; every episode needs the same parts"
                )
        episodes = [{**episode, seen: values} for episode, values in zip(episodes, flat, strict=True)]
        metadata = SourceMetadata(observation_parts=parts[0]).over(metadata)
    if "rewards" not in names:
        warn_of_no_rewards(source_name, found)
    for source_column in names.values():
        _check_everywhere(source_name, source_column, episodes, found[source_column])
    pieces = {
        column: [_piece(source_name, column, source_column, number, episode) for number, episode in enumerate(episodes)]
        for column, source_column in names.items()
    }
    lengths = {column: np.array([len(piece) for piece in pieces[column]]) for column in names}
    shown = {column: lengths.pop(column) for column in ("observations", *GOALS) if column in lengths}
    for column, counts in shown.items():
        final = ends_with_observation(counts, [*lengths.values()])
        if column == "observations":
            warn_left_out(source_name, int(final.sum()), len(episodes))
        pieces[column] = [piece[: len(piece) - last] for piece, last in zip(pieces[column], final, strict=True)]
    read = {column: _joined(source_name, source_column, pieces[column]) for column, source_column in names.items()}
    return assemble(name, _with_grey_frames(read), metadata)


def read_flat_arrays(
    arrays: Mapping[str, Any], source_name: str, name: str, columns: Mapping[str, str], metadata: SourceMetadata
) -> Trajectories:
    """Read flat columns of all episodes: `{"observations": (N, S), "actions": (N, A), "terminals": (N,), ...}`.

    An episode ends at a step that terminated, was truncated or is done; at one whose `next_observations`, where there
    are such, are not the observations of the step after it; and after `max_episode_steps`, which the metadata says, or
    else gymnasium of the environment that it names. The last episode may be cut short: it counts as truncated.

    Args:
        arrays: columns by name; other ones are left alone.
        source_name: what errors call the data set.
        name: what cards call it.
        columns: names of its columns by our names, where they differ.
        metadata: what else is known about it.

    Raises:
        ValueError: a column is missing or wrong, steps are not in their order, or nothing says where episodes end.
    """
    names = flat_columns(source_name, map(str, arrays), columns)
    for column in ("observations", "next_observations"):
        if column in names and isinstance(arrays[names[column]], Mapping):
            seen, parts = _concatenated(f"data set {source_name!r}", names[column], arrays[names[column]])
            arrays = {**arrays, names[column]: seen}
            metadata = SourceMetadata(observation_parts=parts).over(metadata) if column == "observations" else metadata
    if "rewards" not in names:
        warn_of_no_rewards(source_name, map(str, arrays))
    read = {}
    for column, source_column in names.items():
        values = _checked(f"data set {source_name!r}", column, source_column, arrays[source_column])
        read[column] = Column(source_name, source_column, values)
    counts = {column.source_column: len(column.values) for column in read.values()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"data set {source_name!r}: the number of steps differs, {uneven(counts)}; every step needs a value in "
            "each column"
        )
    if len(read["actions"].values) == 0:
        raise ValueError(f"data set {source_name!r} has no steps; check the source")
    terminations, truncations = _flat_flags(source_name, read, metadata)
    offsets = _offsets(terminations | truncations)
    flags = {
        "terminations": Column(source_name, names.get("terminations", "terminations"), terminations, offsets),
        "truncations": Column(source_name, names.get("truncations", "truncations"), truncations, offsets),
    }
    kept = (*VALUES, *GOALS, "rewards")
    cut = {column: replace(read[column], offsets=offsets) for column in kept if column in read}
    return assemble(name, _with_grey_frames({**cut, **flags}), metadata)


def flat_columns(source_name: str, found: Iterable[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the flat columns that are read, by our names.

    Args, raises: as `find_columns`.
    """
    return find_columns(source_name, found, columns, _ALIASES)


def _flat_flags(
    source_name: str, read: Mapping[str, Column], metadata: SourceMetadata
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (terminations, truncations) of steps that are not yet cut into episodes."""
    flags = {column: read[column].as_flags() for column in FLAGS if column in read}
    none = np.zeros(len(read["actions"].values), np.bool_)
    dones = flags.get("dones", none)
    terminations = flags.get("terminations", dones & ~flags.get("truncations", none))
    truncations = flags.get("truncations", dones & ~terminations)
    if "next_observations" in read:
        truncations = truncations | _breaks(read["observations"], read["next_observations"], terminations | truncations)
    said = read.keys() & {"truncations", "dones", "next_observations"}
    limit = metadata.step_limit() or registered_step_limit(metadata.env_id)
    if limit is not None:
        truncations = truncations | _beyond(source_name, limit, terminations, truncations, metadata, bool(said))
    elif not said or not ("next_observations" in said or (terminations | truncations).any()):
        _warn_of_no_limit(source_name, terminations | truncations, metadata)
    truncations = truncations.copy()
    truncations[-1] |= not terminations[-1]
    return terminations, truncations


def _breaks(seen: Column, following: Column, ends: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the steps that end an episode, though no flag says so: what they led to is not what was seen next.

    Raises:
        ValueError: these are most of all steps.
    """
    after, led_to = seen.values[1:], following.values[:-1]
    place = f"data set {seen.source_name!r}, column {following.source_column!r}"
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
    source_name: str,
    limit: int,
    terminations: NDArray[np.bool_],
    truncations: NDArray[np.bool_],
    metadata: SourceMetadata,
    said: bool,
) -> NDArray[np.bool_]:
    """Return the steps at which the time limit ended an episode, though nothing else says that it ended.

    Args:
        limit: in steps.
        terminations, truncations: where episodes end by what else is known.
        metadata: says the limit, or the environment whose limit it is in gymnasium's registry.
        said: whether there is a column that could have said these steps.
    """
    ends, cut = terminations | truncations, np.zeros_like(terminations)
    starts = np.concatenate([[0], np.flatnonzero(ends[:-1]) + 1])
    steps = np.arange(len(ends)) - np.repeat(starts, np.diff(starts, append=len(ends))) + 1
    cut[:-1] = (steps % limit == 0)[:-1] & ~ends[:-1]
    given = metadata.step_limit() is not None
    if not cut.any() or (given and not said):
        return cut
    name = f"max_episode_steps in {metadata.where}" if given else f"of {metadata.env_id} in gymnasium"
    what = (
        f"data set {source_name!r}, step {cut.argmax()}: no flag ends the episode, but its time limit of {limit:,} "
        "steps"
    )
    if not given and truncations.any():
        logger.warning("%s (%s) would; the flags are believed. If some are missing, %s", what, name, _advice(metadata))
        return np.zeros_like(cut)
    logger.warning(
        "%s (%s) does; episodes that it truncates so: %d. If this is not their time limit, %s",
        what,
        name,
        np.count_nonzero(cut),
        "correct it" if given else _advice(metadata),
    )
    return cut


def _warn_of_no_limit(source_name: str, ends: NDArray[np.bool_], metadata: SourceMetadata) -> None:
    """Say that a time limit may have ended episodes, which nothing tells.

    Raises:
        ValueError: nothing else ends one.
    """
    if not ends.any():
        raise ValueError(
            f"data set {source_name!r}: nothing says where its episodes end, as it has no step that terminated, was "
            f"truncated (timeouts) or is done; {_advice(metadata)}"
        )
    logger.warning(
        "data set %r has no truncations (timeouts): its episodes end at terminations only; if a time limit ended "
        "others, %s",
        source_name,
        _advice(metadata),
    )


def _advice(metadata: SourceMetadata) -> str:
    if metadata.where is not None:
        return f"write max_episode_steps into {metadata.where}"
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


def _concatenated(where: str, source_column: str, values: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return observations that are a dict of arrays as vectors (T, S), and the parts that they are made of."""
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"{where}, column {source_column!r} is no dict of arrays, as that of others; convert it")
    columns = {  # of vectors, or one number a step, as actions are
        name: _checked(where, "actions", f"{source_column}.{name}", values[name]) for name in sorted(map(str, values))
    }
    counts = {name: len(column) for name, column in columns.items()}
    if len({*counts.values()}) > 1:
        raise ValueError(f"{where}, column {source_column!r}: the number of steps differs, {uneven(counts)}")
    parts: list[dict[str, Any]] = [
        {"path": [name], "shape": list(column.shape[1:]), "size": math.prod(column.shape[1:])}
        for name, column in columns.items()
    ]
    return flatten_observations(columns, parts), parts


def _check_everywhere(source_name: str, source_column: str, episodes: Sequence[Mapping[str, Any]], count: int) -> None:
    """Check that a column, which so many episodes have, is in all of them."""
    if count == len(episodes):
        return
    usual = 2 * count >= len(episodes)
    odd = next(number for number, episode in enumerate(episodes) if (source_column in episode) != usual)
    what = "has no column {!r}, which others have" if usual else "has a column {!r}, which others have not"
    raise ValueError(
        f"data set {source_name!r}, episode {odd} {what.format(source_column)}; every episode needs the same columns"
    )


def _piece(source_name: str, column: str, source_column: str, number: int, episode: Mapping[str, Any]) -> np.ndarray:
    """Return one column of one episode."""
    return _checked(f"data set {source_name!r}, episode {number}", column, source_column, episode[source_column])


def _checked(where: str, column: str, source_column: str, values: Any) -> np.ndarray:
    """Return a column's values with one row a step, of the type that they will have in the end, but for frames.

    (T, S) numbers or frames as `grey_frames` takes them for observations, (T,) or (T, A) of any type for actions, else
    (T,).
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}, column {source_column!r}: steps of different dimensions ({error})") from error
    vector, flag = column in _VECTORS, column in FLAGS
    if not vector and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    images = vector and column not in ("actions", *GOALS) and array.ndim in (3, 4) and array.dtype.kind in "iu"
    dimensions = (1, 2) if column == "actions" else (array.ndim,) if images else (2,) if vector else (1,)
    fits = array.ndim in dimensions and 0 not in array.shape[1:]
    if array.dtype.kind not in "iufb" or not (fits or array.shape == (0,)):
        observed = "(steps, dimensions) numbers, or (steps, height, width) uint8 for grey frames"
        shapes = {
            "observations": observed,
            "next_observations": observed,
            **dict.fromkeys(GOALS, "(steps, dimensions) numbers"),
            "actions": "(steps, dimensions) numbers, or (steps,) integers where actions are discrete",
        }
        expected = shapes.get(column, "(steps,) true or false" if flag else "(steps,) numbers")
        raise ValueError(
            f"{where}, column {source_column!r}: expected {expected}, found shape {array.shape} of {array.dtype}; "
            "convert the column, or map another one with columns={...}"
        )
    if flag or images or (column == "actions" and array.dtype.kind != "f"):
        return array
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is reported with its place
        return array.astype(np.float32, copy=False)


def _joined(source_name: str, source_column: str, pieces: list[np.ndarray]) -> Column:
    """Return the column of these episodes, all of which must have the same dimensions."""
    return Column(
        source_name,
        source_column,
        join(source_name, source_column, pieces),
        offsets_of(np.array([len(piece) for piece in pieces])),
    )

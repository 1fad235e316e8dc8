"""NumPy arrays: a list with one dict per episode, as rollouts are kept, or a dict of flat columns, as D4RL keeps them.

What comes out of files as arrays (D4RL, the Decision Transformer's pickle, Minari) ends here too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..columns import (
    FLAGS,
    Column,
    assemble,
    ends_with_observation,
    find_columns,
    tell_left_out,
    without_spare_dones,
)
from ..facts import SourceFacts
from ..trajectories import Trajectories
from .frames import grey_frames

logger = logging.getLogger(__name__)


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
    names = without_spare_dones(find_columns(label, map(str, episodes[0]), columns))
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
    read = {ours: _joined(label, ours, names[ours], pieces[ours]) for ours in names}
    return assemble(name, _with_grey_frames(read), facts)


def read_flat_arrays(
    arrays: Mapping[str, Any], label: str, name: str, columns: Mapping[str, str], facts: SourceFacts
) -> Trajectories:
    """Read flat columns of all episodes: `{"observations": (N, S), "actions": (N, A), "terminals": (N,), ...}`.

    An episode ends at a step that terminated, was truncated or is done. Where only terminations are known, it also ends
    after `max_episode_steps`, if the facts have that. The last episode may be cut short: it counts as truncated.

    Args:
        arrays: columns by name; other ones are left alone.
        label: what errors call the data set.
        name: what cards call it.
        columns: names of its columns by ours, where they differ.
        facts: what else is known about it.

    Raises:
        ValueError: a column is missing or wrong, or nothing says where episodes end.
    """
    names = find_columns(label, map(str, arrays), columns)
    read = {}
    for ours, theirs in names.items():
        values = _checked(f"data set {label!r}", ours, theirs, arrays[theirs])
        read[ours] = Column(label, theirs, values)
    steps = len(read["actions"].values)
    for column in read.values():
        if len(column.values) != steps:
            raise ValueError(
                f"data set {label!r}: {len(column.values)} steps in column {column.theirs!r} and {steps} in column "
                f"{read['actions'].theirs!r}; every step needs a value in each column"
            )
    if steps == 0:
        raise ValueError(f"data set {label!r} has no steps; check the source")
    terminations, truncations = _flat_flags(label, {ours: read[ours] for ours in FLAGS if ours in read}, steps, facts)
    offsets = _offsets(terminations | truncations)
    flags = {
        "terminations": Column(label, names.get("terminations", "terminations"), terminations, offsets),
        "truncations": Column(label, names.get("truncations", "truncations"), truncations, offsets),
    }
    read = {ours: replace(column, offsets=offsets) for ours, column in read.items() if ours not in FLAGS}
    return assemble(name, _with_grey_frames({**read, **flags}), facts)


def _flat_flags(
    label: str, columns: Mapping[str, Column], steps: int, facts: SourceFacts
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (terminations, truncations) of steps that are not yet cut into episodes."""
    flags = {ours: column.as_flags() for ours, column in columns.items()}
    terminations = flags.get("terminations", np.zeros(steps, np.bool_))
    truncations = flags.get("truncations")
    if truncations is None and "dones" in flags:
        if "terminations" in flags:
            truncations = flags["dones"] & ~terminations
        else:
            terminations, truncations = flags["dones"], np.zeros(steps, np.bool_)
    if truncations is None:
        truncations = _time_limits(label, terminations, facts)
    truncations = truncations.copy()
    truncations[-1] |= not terminations[-1]
    return terminations, truncations


def _time_limits(label: str, terminations: NDArray[np.bool_], facts: SourceFacts) -> NDArray[np.bool_]:
    """Return the steps at which the time limit ended an episode, where the source does not say."""
    limit = facts.step_limit()
    advice = (
        f"write max_episode_steps into {facts.where}"
        if facts.where
        else "write max_episode_steps, the environment's time limit, into a JSON file beside the file"
    )
    truncations = np.zeros_like(terminations)
    if limit is None:
        if not terminations.any():
            raise ValueError(
                f"data set {label!r}: nothing says where its episodes end, as it has no truncations (timeouts) and no "
                f"step that terminated; add them, or {advice}"
            )
        logger.warning(
            "data set %r has no truncations (timeouts): its episodes end at terminations only; if a time limit ended "
            "others, %s",
            label,
            advice,
        )
        return truncations
    starts = np.concatenate([[0], np.flatnonzero(terminations) + 1])
    since_start = np.arange(len(terminations)) - starts[np.cumsum(terminations) - terminations]
    truncations[(since_start + 1) % limit == 0] = True
    return truncations & ~terminations


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


def _piece(label: str, ours: str, theirs: str, number: int, episode: Mapping[str, Any]) -> np.ndarray:
    """Return one column of one episode."""
    where = f"data set {label!r}, episode {number}"
    if theirs not in episode:
        raise ValueError(f"{where} has no column {theirs!r}, which the first one has; every episode needs it")
    return _checked(where, ours, theirs, episode[theirs])


def _checked(where: str, ours: str, theirs: str, values: Any) -> np.ndarray:
    """Return a column's values with one row a step, of the type that they will have in the end, but for frames.

    (T, S) numbers or frames as `grey_frames` takes them for observations, (T, A) numbers or (T,) integers for actions,
    else (T,).
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}, column {theirs!r}: steps of different dimensions ({error})") from error
    vector, flag = ours in ("observations", "actions"), ours in FLAGS
    if not vector and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    # Nothing but an empty list says no type; that the episode is empty is reported later.
    kinds = "iufb" if flag or ours == "observations" or array.size == 0 else "iuf"
    discrete = ours == "actions" and array.ndim == 1 and array.dtype.kind in "iu"
    images = ours == "observations" and array.ndim in (3, 4) and array.dtype.kind in "iu"
    dimensions = 1 if discrete or not vector else array.ndim if images else 2
    if array.dtype.kind not in kinds or (array.ndim != dimensions and array.shape != (0,)):
        shapes = {
            "observations": "(steps, dimensions) numbers, or (steps, height, width) uint8 for grey frames",
            "actions": "(steps, dimensions) numbers, or (steps,) integers where actions are discrete",
        }
        expected = shapes.get(ours, "(steps,) true or false" if flag else "(steps,) numbers")
        raise ValueError(
            f"{where}, column {theirs!r}: expected {expected}, found shape {array.shape} of {array.dtype}; convert the "
            "column, or map another one with columns={...}"
        )
    if flag or images or discrete:
        return array
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is reported with its place
        return array.astype(np.float32, copy=False)


def _joined(label: str, ours: str, theirs: str, pieces: list[np.ndarray]) -> Column:
    """Join the episodes of a column, all of which must have the same dimensions."""
    lengths = np.array([len(piece) for piece in pieces])
    first = next((piece for piece in pieces if len(piece)), pieces[0])
    for number, piece in enumerate(pieces):
        if len(piece) and (piece.shape[1:] != first.shape[1:] or piece.dtype.kind != first.dtype.kind):
            raise ValueError(
                f"data set {label!r}, episode {number}, column {theirs!r}: {piece.dtype} of {piece.shape[1:]} a step, "
                f"where the first step of the data set has {first.dtype} of {first.shape[1:]}; every step needs the "
                "same dimensions"
            )
    filled = [piece for piece in pieces if len(piece)]
    values = np.concatenate(filled) if filled else first
    return Column(label, theirs, values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

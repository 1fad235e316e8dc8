# Copyright 2026
"""Observations that are no vectors, such as dictionaries of goals and sensors, as the vectors that models read.

A description says what an observation is made of, part by part in the order of the vector: JSON that people can read,
which travels from the data to the checkpoint. Source: gymnasium's FlattenObservation, whose order and numbers it gives.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: A part is `{"path": keys and indices that lead to it, "shape": [...], "size": numbers in the vector}`; whole numbers
#: that become one of n have `counts` (each n) and `starts` (the smallest of each) too.
Part = Mapping[str, Any]

#: What gymnasium's environments of goals call the goal to reach, and the one that is reached, in their observations.
DESIRED, ACHIEVED = "desired_goal", "achieved_goal"

_KEYS = {"path", "shape", "size", "counts", "starts"}


def flatten_observations(observation: Any, parts: Sequence[Part]) -> Any:
    """Concatenate what an observation is made of into one vector.

    Args:
        observation: what an environment gives, or n of them as gymnasium's vector environments batch them. Vectors that
            are concatenated already, (size,) or (n, size), are returned as they are.
        parts: what it is made of.

    Returns:
        (size,) or (n, size) float32.

    Raises:
        ValueError: a part is missing, additional, of another shape or no number; the message names it.
    """
    nested = bool(parts[0]["path"])
    if nested and not isinstance(observation, (Mapping, tuple)):
        return observation
    if not nested and _is_vector(observation, parts[0]):
        return observation
    columns = [(_name(part["path"]), _columns(part, value)) for part, value in _leaves(parts, observation)]
    first, rows = columns[0][0], columns[0][1].shape[:-1]
    for name, column in columns:
        if column.shape[:-1] != rows:
            counts = " and ".join(f"{count[0] if count else 'no'} rows" for count in (rows, column.shape[:-1]))
            raise ValueError(f"{first} and {name} have {counts}; every part must be of the same environments.")
    return np.concatenate([column for _, column in columns], axis=-1)


def describe_parts(parts: Sequence[Part]) -> str:
    """Say in words what an observation is made of."""
    if not parts[0]["path"]:
        return _form(parts[0])
    kind = "a dictionary" if isinstance(parts[0]["path"][0], str) else "a tuple"
    return f"{kind} of " + ", ".join(f"{'.'.join(map(str, part['path']))} {_form(part)}" for part in parts)


def part_places(parts: Sequence[Part], name: str) -> list[int]:
    """Return the places in the vector of the part that is called so; empty where there is none."""
    places: list[int] = []
    first = 0
    for part in parts:
        places += range(first, first + part["size"]) if list(part["path"]) == [name] else []
        first += part["size"]
    return places


def leave_achieved_out(parts: Sequence[Part]) -> bool:
    """Tell whether states of these parts have the desired goal without the achieved one.

    gymnasium's achieved goal is a copy of what is in `observation`, so such states are read where it is there too.
    """
    paths = [list(part["path"]) for part in parts]
    return [DESIRED] in paths and [ACHIEVED] not in paths


def check_parts(parts: Any, size: int) -> list[dict[str, Any]]:
    """Return parts as JSON holds them, when they describe vectors of so many numbers.

    Raises:
        ValueError: they do not.
    """
    try:
        checked = [_checked_part(part) for part in parts]
        _check_paths([part["path"] for part in checked])
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            'observation_parts must be a list of {"path": [...], "shape": [...], "size": n}, with "counts" and '
            f'"starts" where whole numbers become one of n ({type(error).__name__}: {error}).'
        ) from error
    described = sum(part["size"] for part in checked)
    if described != size:
        raise ValueError(f"observation_parts describes {described} numbers, but an observation has {size}.")
    return checked


def _form(part: Part) -> str:
    if "counts" in part:
        return f"(one of {', one of '.join(map(str, part['counts']))})"
    return str(tuple(part["shape"]))


def _name(path: Sequence[str | int]) -> str:
    return "observation" + "".join(f"[{key!r}]" for key in path)


def _leaves(parts: Sequence[Part], value: Any, depth: int = 0) -> list[tuple[Part, Any]]:
    """Return each part with its value in a nested observation, when it has these parts and no others."""
    if len(parts[0]["path"]) == depth:
        return [(parts[0], value)]
    name = _name(parts[0]["path"][:depth])
    of_key: dict[str | int, list[Part]] = {}
    for part in parts:
        of_key.setdefault(part["path"][depth], []).append(part)
    if isinstance(parts[0]["path"][depth], str):
        expected = f"it must be a dictionary of {', '.join(map(str, of_key))}."
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is of type {type(value).__name__}; {expected}")
        wrong = [f"no {key!r}" for key in of_key if key not in value]
        wrong += [f"an additional {key!r}" for key in value if key not in of_key]
        if wrong:
            raise ValueError(f"{name} has {' and '.join(wrong)}; {expected}")
    elif not isinstance(value, (tuple, list)) or len(value) != len(of_key):
        length = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise ValueError(f"{name} is a {type(value).__name__}{length}; it must be a tuple of {len(of_key)}.")
    return [leaf for key, below in of_key.items() for leaf in _leaves(below, value[key], depth + 1)]


def _is_vector(observation: Any, part: Part) -> bool:
    """Tell whether one part's observation is concatenated already: of the vector's shape, and not of the part's own."""
    array, shape = np.asarray(observation), tuple(part["shape"])
    if array.shape in (shape, (*array.shape[:1], *shape)) and ("counts" not in part or array.dtype.kind in "biu"):
        return False
    return array.ndim in (1, 2) and array.shape[-1] == part["size"]


def _columns(part: Part, value: Any) -> np.ndarray:
    """Return the numbers of one part, (size,) or (n, size) float32."""
    name, shape, whole = _name(part["path"]), tuple(part["shape"]), "counts" in part
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is no array of numbers ({error}).") from error
    rows = array.shape[: max(array.ndim - len(shape), 0)]
    if len(rows) > 1 or array.shape != (*rows, *shape):
        batched = ", ".join(map(str, ("n", *shape)))
        raise ValueError(f"{name} has shape {array.shape}; it must be {shape}, or ({batched}) of n environments.")
    if array.dtype.kind not in ("biu" if whole else "biuf"):
        kind = type(value).__name__ if array.dtype == object else array.dtype
        raise ValueError(f"{name} is {kind}; it must be {'whole ' if whole else ''}numbers.")
    array = array.reshape(*rows, math.prod(shape))
    if not whole:
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, which the caller refuses
            return array.astype(np.float32)
    starts, counts = part["starts"], part["counts"]
    places = array.astype(np.int64) - np.asarray(starts, np.int64)
    wrong = np.argwhere((places < 0) | (places >= np.asarray(counts)))
    if len(wrong):
        low = starts[wrong[0][-1]]
        high = low + counts[wrong[0][-1]] - 1
        raise ValueError(f"{name} is {array[tuple(wrong[0])]}; it must be a whole number from {low} to {high}.")
    one_of = [places[..., place, None] == np.arange(count) for place, count in enumerate(counts)]
    return np.concatenate(one_of, axis=-1).astype(np.float32)


def _checked_part(part: Part) -> dict[str, Any]:
    if {*part} - _KEYS or not all(isinstance(key, str) or _is_count(key) for key in part["path"]):
        raise ValueError(f"{part} is no part")
    checked: dict[str, Any] = {"path": list(part["path"]), "shape": list(part["shape"]), "size": part["size"]}
    numbers = math.prod(checked["shape"])
    if "counts" in part or "starts" in part:
        checked |= {"counts": list(part["counts"]), "starts": [int(start) for start in part["starts"]]}
        if not len(checked["counts"]) == len(checked["starts"]) == numbers:
            raise ValueError(f"{part} needs a count and a start for each number")
        numbers = sum(checked["counts"])
    sizes = [*checked["shape"], checked["size"], *checked.get("counts", [])]
    if not all(map(_is_count, sizes)) or checked["size"] != numbers:
        raise ValueError(f"{part} has sizes that do not fit")
    return checked


def _check_paths(paths: list[list[str | int]], depth: int = 0) -> None:
    """Check that paths lead to the leaves of nested dictionaries and tuples."""
    if len(paths) == 1 and len(paths[0]) == depth:
        return
    keys = list(dict.fromkeys(path[depth] if len(path) > depth else None for path in paths))
    if not keys or not (all(isinstance(key, str) for key in keys) or keys == list(range(len(keys)))):
        raise ValueError(f"the paths {paths} do not fit each other")
    for key in keys:
        _check_paths([path for path in paths if path[depth] == key], depth + 1)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


__all__ = [
    "ACHIEVED",
    "DESIRED",
    "check_parts",
    "describe_parts",
    "flatten_observations",
    "leave_achieved_out",
    "part_places",
]

"""Arrow columns as NumPy arrays, without passing through Python lists; what is missing or ragged is named.

Shared by the two layouts of tables: one row per episode, and one row per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_list(found: pa.DataType) -> bool:
    """Return whether a value of this type is a list."""
    found = storage_type(found)
    return bool(pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found))


def is_binary(found: pa.DataType) -> bool:
    """Return whether a column of this type holds bytes."""
    return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))


def is_text(found: pa.DataType) -> bool:
    """Return whether a value of this type is text."""
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found))


def depth_of(found: pa.DataType) -> int:
    """Return how many lists a value of this type is inside of one another."""
    depth = 0
    while is_list(found):
        found, depth = storage_type(found).value_type, depth + 1
    return depth


def storage_type(found: pa.DataType) -> pa.DataType:
    """Return the plain type of an extension type such as `datasets.Array2D`."""
    return found.storage_type if isinstance(found, pa.BaseExtensionType) else found


def storage(array: pa.Array) -> pa.Array:
    """Return the plain array of an extension array."""
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def item_type(found: pa.DataType, depth: int) -> pa.DataType | None:
    """Return the type `depth` lists down, None where there are not so many."""
    found = storage_type(found)
    for _ in range(depth):
        if not is_list(found):
            return None
        found = storage_type(found.value_type)
    return found


def is_number(found: pa.DataType | None, or_flag: bool = False) -> bool:
    """Return whether a value of this type is one number; with `or_flag`, also true or false."""
    if found is None:
        return False
    number = pa.types.is_integer(found) or pa.types.is_floating(found)
    return bool(number or (or_flag and pa.types.is_boolean(found)))


def flatten(
    steps: list[pa.Array],
    depth: int,
    at: Callable[[int], str],
    before: int = 0,
    shape: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Return the values of steps as an array: (N,) of numbers, (N, D) of lists of D numbers, and so on.

    Args:
        steps: the steps in pieces.
        depth: how many lists a step is inside of one another: 0 for one number.
        at: says where a step is.
        before: how many steps were read before these.
        shape: of a step, where it is known from them.

    Raises:
        ValueError: a value is missing, or steps have different dimensions.
    """
    _refuse_nulls(steps, at, before, per_step=1)
    count = sum(map(len, steps))
    if not count:
        return np.empty((0, *[1] * depth), np.float32)
    pieces, sizes = steps, [count]
    for level in range(depth):
        sizes.append(_size(pieces, at, before, math.prod(sizes[1:]), None if shape is None else shape[level]))
        pieces = [storage(piece.flatten()) for piece in pieces]
        _refuse_nulls(pieces, at, before, per_step=math.prod(sizes[1:]))
    return _join(pieces).reshape(sizes)


def _size(pieces: list[pa.Array], at: Callable[[int], str], before: int, per_step: int, expected: int | None) -> int:
    """Return the length that all lists have, or most, of which the others are named; `per_step` of them make one step.

    Raises:
        ValueError: one of them has another length, or they hold nothing.
    """
    lengths = np.concatenate([pc.list_value_length(piece) for piece in pieces])
    counted = dict(zip(*np.unique(lengths, return_counts=True), strict=True))
    size = int(max(counted, key=counted.__getitem__)) if expected is None else expected
    ragged = np.flatnonzero(lengths != size)
    if len(ragged):
        raise ValueError(
            f"{at(before + int(ragged[0]) // per_step)}: {lengths[ragged[0]]} numbers, where other steps have {size}; "
            "every step needs the same dimensions"
        )
    if size == 0:
        raise ValueError(f"{at(before)}: the step has no numbers")
    return size


def without_lists_of_one(data: pa.ChunkedArray, at: Callable[[int], str]) -> pa.ChunkedArray:
    """Return a column of one value a row, which some programs put into a list of its own.

    Args:
        data: the column.
        at: says where a row is.

    Raises:
        ValueError: a list has more values, or none.
    """
    while is_list(data.type):
        lengths = pc.fill_null(pc.list_value_length(data), 1).to_numpy()
        wrong = np.flatnonzero(lengths != 1)
        if len(wrong):
            raise ValueError(f"{at(int(wrong[0]))}: expected one value, found a list of {lengths[wrong[0]]}")
        data = pc.list_element(pa.chunked_array([storage(chunk) for chunk in data.chunks], storage_type(data.type)), 0)
    return data


def _refuse_nulls(pieces: list[pa.Array], at: Callable[[int], str], before: int, per_step: int) -> None:
    """Refuse a missing value; `per_step` values make one step."""
    first = before * per_step
    for piece in pieces:
        if piece.null_count:
            place = first + int(np.flatnonzero(piece.is_null().to_numpy(zero_copy_only=False))[0])
            raise ValueError(f"{at(place // per_step)}: a value is missing (null); correct or remove this episode")
        first += len(piece)


def _join(pieces: list[pa.Array]) -> np.ndarray:
    arrays = [piece.to_numpy(zero_copy_only=False) for piece in pieces]
    return np.concatenate(arrays) if arrays else np.empty(0, np.float32)

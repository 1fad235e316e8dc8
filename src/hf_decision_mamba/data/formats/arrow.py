"""Arrow columns as NumPy arrays, without passing through Python lists; what is missing or ragged is named.

Shared by the two layouts of tables: one row per episode, and one row per step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_list(found: pa.DataType) -> bool:
    """Whether a value of this type is a list."""
    found = storage_type(found)
    return bool(pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found))


def is_binary(found: pa.DataType) -> bool:
    """Whether a column of this type holds bytes."""
    return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))


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
    """Whether a value of this type is one number; with `or_flag`, also true or false."""
    if found is None:
        return False
    number = pa.types.is_integer(found) or pa.types.is_floating(found)
    return bool(number or (or_flag and pa.types.is_boolean(found)))


def flatten(
    steps: list[pa.Array], nested: bool, at: Callable[[int], str], before: int = 0, width: int | None = None
) -> np.ndarray:
    """Return one value a step as an array: (N,) of numbers or, nested, (N, D) of lists of D numbers.

    Args:
        steps: the steps in pieces.
        nested: whether a step is a list.
        at: says where a step is.
        before: how many steps were read before these.
        width: D, where it is known from them.

    Raises:
        ValueError: a value is missing, or steps have different dimensions.
    """
    _refuse_nulls(steps, at, before, per_step=1)
    if not nested:
        return _join(steps)
    if not any(map(len, steps)):
        return np.empty((0, 1), np.float32)
    widths = np.concatenate([pc.list_value_length(piece) for piece in steps])
    width = int(widths[0]) if width is None else width
    ragged = np.flatnonzero(widths != width)
    if len(ragged):
        raise ValueError(
            f"{at(before + int(ragged[0]))}: {widths[ragged[0]]} numbers, where the first step of the data set has "
            f"{width}; every step needs the same dimensions"
        )
    if width == 0:
        raise ValueError(f"{at(before)}: the step has no numbers")
    leaves = [storage(piece.flatten()) for piece in steps]
    _refuse_nulls(leaves, at, before, per_step=width)
    return _join(leaves).reshape(len(widths), width)


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

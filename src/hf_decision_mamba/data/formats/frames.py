"""Frames in the shapes that people keep them in become what trajectories hold: one grey frame (H, W) of bytes a step.

Memory holds each frame once, and training stacks them. So an axis for one channel goes, and of a stack the newest frame
stays, when every stack goes on from the one before. Colours are refused: the environment that a model acts in has to
grey its frames in the same way.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow knows others, of which some run programs
_AT_ONCE = 256  # steps that are compared at a time


def is_picture(found: pa.DataType | None) -> bool:
    """Return whether a value of this type is an encoded picture, as `datasets.Image` stores it."""
    return found is not None and pa.types.is_struct(found) and {"bytes", "path"} <= {field.name for field in found}


def decode(
    pieces: list[pa.Array], at: Callable[[int], str], before: int = 0, shape: tuple[int, ...] | None = None
) -> NDArray[np.uint8]:
    """Return the pixels of encoded pictures, (N, H, W) of grey ones or (N, H, W, C).

    Args:
        pieces: structs of `bytes`, or of the `path` of a local file.
        at: says where a step is.
        before: how many steps were read before these.
        shape: of a picture, where it is known from them.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: a picture is missing, cannot be decoded, or has another shape than the first one.
    """
    pictures: list[NDArray[np.uint8]] = []
    for place, value in enumerate((value for piece in pieces for value in piece), before):
        picture = _picture(value.as_py(), at, place)
        shape = picture.shape if shape is None else shape
        if picture.shape != shape:
            raise ValueError(
                f"{at(place)}: a picture of {picture.shape}, where the first one of the data set has {shape}; every "
                "step needs the same dimensions"
            )
        pictures.append(picture)
    return np.stack(pictures) if pictures else np.empty((0, 1, 1), np.uint8)


def _picture(value: Any, at: Callable[[int], str], place: int) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{at(place)}: pictures need Pillow ({error}); install it with: pip install pillow"
        ) from error
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise ValueError(f"{at(place)}: a value is missing (null); correct or remove this episode")
    try:
        content = value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])
        with Image.open(content, formats=_FORMATS) as picture:
            plain = picture.convert({"1": "L", "P": "RGB"}.get(picture.mode, picture.mode))
            pixels = np.asarray(plain)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{at(place)}: the picture cannot be decoded ({error}); correct or remove this episode"
        ) from error
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"{at(place)}: expected a picture of bytes, found {pixels.dtype} (mode {picture.mode}); convert it"
        )
    return pixels


def grey_frames(
    values: np.ndarray, starts: NDArray[np.int64], at: Callable[[int], str], before: int = 0
) -> NDArray[np.uint8]:
    """Return the newest frame of each step, (N, H, W).

    Args:
        values: (N, H, W) whole numbers, or (N, C, H, W) or (N, H, W, C) where C is 1, or the frames of a stack, the
            oldest first.
        starts: the rows of `values` at which episodes begin.
        at: says where a step is.
        before: how many steps were read before these.

    Raises:
        ValueError: they are no bytes, colours, or stacks that do not go on from one step to the next.
    """
    if values.dtype != np.uint8:
        wrong = np.flatnonzero(((values < 0) | (values > 255)).reshape(len(values), -1).any(axis=1))
        if len(wrong) or values.dtype.kind not in "iu":
            raise ValueError(
                f"{at(before + (int(wrong[0]) if len(wrong) else 0))}: frames are whole numbers from 0 to 255, found "
                f"{values.dtype} from {values.min()} to {values.max()}; convert them to uint8, those from 0 to 1 times "
                "255, or flatten what is no frame"
            )
        values = values.astype(np.uint8)
    if values.ndim == 3:
        return values
    stacks = np.moveaxis(values, -1, 1) if values.shape[3] < values.shape[1] else values
    if stacks.shape[1] > 1:
        row = _first_that_goes_on_from_none(stacks, starts)
        if row is not None:
            raise ValueError(f"{at(before + row)}: {_refusal(values.shape[1:], stacks.shape[1])}")
    return np.ascontiguousarray(stacks[:, -1])


def _first_that_goes_on_from_none(stacks: NDArray[np.uint8], starts: NDArray[np.int64]) -> int | None:
    """Return the first row whose stack (C, H, W) is not that of the row before, without its oldest, and one frame."""
    inside = np.ones(len(stacks), np.bool_)
    inside[starts[starts < len(stacks)]] = False  # an episode may be empty, which is reported later
    for first in range(1, len(stacks), _AT_ONCE):
        now = slice(first, min(first + _AT_ONCE, len(stacks)))
        earlier = stacks[first - 1 : now.stop - 1]
        differ = (stacks[now, :-1] != earlier[:, 1:]).any(axis=(1, 2, 3)) & inside[now]
        if differ.any():
            return first + int(differ.argmax())
    return None


def _refusal(shape: tuple[int, ...], channels: int) -> str:
    grey = (
        "models see grey frames: convert them, for example frames @ [0.299, 0.587, 0.114] as uint8, and act in an "
        "environment that does the same"
    )
    if channels == 3:
        return f"frames of {shape} are colours, but {grey}"
    return (
        f"frames of {shape} are no stacks of {channels}, oldest first: this one does not go on from the one before. "
        f"Give one frame a step, which training stacks again (frame_stack); of colours, {grey}"
    )

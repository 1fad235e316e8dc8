"""The Decision Transformer's pickles: a list of dicts of NumPy arrays, read as data. No code of a pickle ever runs.

A pickle is a program for a small stack machine. `pickletools` lists its instructions; the machine here obeys those that
build lists, dicts, numbers and arrays, and knows no other. The only names that it accepts are the few by which NumPy
writes an array, and it does what they would do by itself: nothing is imported, nothing called.
Source: the formats are pickle's (`pickletools`) and `numpy.ndarray.__reduce_ex__`; Chen et al. 2021's data are such.
"""

from __future__ import annotations

import math
import mmap
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ..facts import SourceFacts
from ..trajectories import Trajectories
from .arrays import read_arrays

SUFFIXES = (".pkl", ".pickle")

_MOST_DIMENSIONS = 8
#: Two bytes of a pickle can say again what was said before, a number or an array; of numbers that is no harm.
_MOST_REPEATED = 5


def read_dt_pickle(text: str, path: Path, columns: Mapping[str, str], facts: SourceFacts) -> Trajectories:
    """Read a pickle of episodes, `[{"observations": array, "actions": array, ...}, ...]`, or of flat columns.

    Args:
        text: what errors call it.
        path: where it is.
        columns: names of its columns by ours, where they differ.
        facts: what is known about it.

    Raises:
        ValueError: the pickle holds anything but lists and dicts of NumPy arrays and numbers, or is damaged; or an
            episode is not what it should be.
    """
    content = arrays_of(text, path)
    return read_arrays(content, text, path.stem, columns, facts)


def arrays_of(text: str, path: Path) -> list[Any] | dict[str, Any]:
    """Return the content of a pickle when it is one that this project reads."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            result = _Machine().run(cast(IO[bytes], content))
            allowed = _MOST_REPEATED * len(content)
        episodes = result if isinstance(result, list) else [result]
        for episode in episodes:
            allowed -= _size(episode)
            if allowed < 0:
                raise _Refused("it repeats its arrays over and over")
        columns = [_columns(episode) for episode in episodes]
    except _Refused as refusal:
        raise ValueError(
            f"data set {text!r} is not read: {refusal}. Of pickles, only lists and dicts of NumPy arrays and numbers "
            "are, as others can run any code; save the episodes as parquet, for example with "
            "datasets.Dataset.from_list(episodes).to_parquet(...)"
        ) from None
    except (ValueError, TypeError, LookupError, OverflowError, MemoryError, AttributeError) as error:
        raise ValueError(
            f"data set {text!r} cannot be read: the pickle is corrupted or truncated ({type(error).__name__}: "
            f"{str(error)[:200]}); get it again"
        ) from error
    return columns if isinstance(result, list) else columns[0]


def _size(episode: Any) -> int:
    """Return how many bytes of arrays, and other values, an episode has."""
    if type(episode) is not dict:
        raise _Refused(f"it holds a {type(episode).__name__} where an episode should be, a dict of arrays")
    columns = (column if isinstance(column, list) else [column] for column in episode.values())
    return sum(value.nbytes if isinstance(value, (np.ndarray, _Array)) else 1 for column in columns for value in column)


def _columns(episode: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the columns of an episode: those that are arrays, or lists of numbers or of arrays."""
    columns = {}
    for name, column in episode.items():
        if isinstance(column, list) and all(
            isinstance(item, (bool, int, float, np.ndarray, _Array)) for item in column
        ):
            columns[name] = np.asarray([_array_or_number(item) for item in column])
        elif isinstance(column, (np.ndarray, _Array)):
            columns[name] = _array_or_number(column)
    return columns


def _array_or_number(value: Any) -> Any:
    return value.array if isinstance(value, _Array) else value


class _Refused(ValueError):
    """A pickle says something that this project does not do."""


class _Name:
    """A name that NumPy writes: what stands for the function or class, which is never looked up."""

    def __init__(self, build: Callable[..., Any] | None = None) -> None:
        self.build = build


class _Type:
    """A NumPy type that is being described: its code, then its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def set_state(self, state: Any) -> None:
        """Take the byte order, the second entry; the fields of structured types must be absent."""
        if state[1] in ("<", ">"):
            self.code = state[1] + self.code
        if any(entry is not None for entry in state[2:5]):
            raise _Refused("it holds an array of structured values")

    def dtype(self) -> np.dtype[Any]:
        """The type, when it is one of numbers or of true and false."""
        if not isinstance(self.code, str) or self.code.lstrip("<>|=")[:1] not in set("biuf?"):
            raise _Refused(f"it holds values of type {str(self.code)[:20]!r}, which are no numbers")
        dtype = np.dtype(self.code)
        if dtype.kind not in "biuf":
            raise _Refused(f"it holds values of type {dtype}, which are no numbers")
        return dtype


class _Array:
    """An array that is being described, until its state says what is in it."""

    def __init__(self, *_: Any) -> None:
        self._array: np.ndarray | None = None

    @property
    def array(self) -> np.ndarray:
        """The array, when it was described to the end."""
        if self._array is None:
            raise _Refused("it holds an array without a state")
        return self._array

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.array.nbytes

    def set_state(self, state: Any) -> None:
        """Take (version, shape, type, whether Fortran's order, bytes), of which older ones leave out the version."""
        shape, dtype, fortran, content = state[-4:]
        self._array = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: Any, described: Any, shape: Any, order: Any = "C", axes: Any = None) -> np.ndarray:
    """Return an array of these bytes, where they are as many as its shape says."""
    if not isinstance(described, _Type):
        raise _Refused("it holds an array without a type")
    dtype = described.dtype()
    if isinstance(content, str):
        content = content.encode("latin1")  # as pickles of Python 2 say bytes
    if not isinstance(content, (bytes, bytearray)):
        raise _Refused(f"it holds an array of {type(content).__name__} instead of bytes")
    counts = type(shape) is tuple and len(shape) <= _MOST_DIMENSIONS and all(type(count) is int for count in shape)
    if not counts or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
        raise _Refused(f"it holds an array of {len(content)} bytes that are not what its shape says")
    array = np.frombuffer(content, dtype) if content else np.empty(shape, dtype)
    return (
        array.reshape(shape, order="F" if order == "F" else "C")
        if axes is None
        else array.reshape(shape).transpose(axes)
    )


def _scalar(described: Any, content: Any) -> Any:
    """Return one NumPy number as a plain one."""
    return _array(content, described, ()).item()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Return the bytes that the old protocols write as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("it encodes text")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_CORES = ("numpy.core", "numpy._core")  # of NumPy 1 and of NumPy 2
#: The names that a pickle of arrays contains, and what is done for each.
_NAMES: dict[tuple[str, str], _Name] = {
    **{(f"{core}.multiarray", "_reconstruct"): _Name(_Array) for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _Name(_scalar) for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _Name(_array) for core in _CORES},
    ("numpy", "ndarray"): _Name(),
    ("numpy", "dtype"): _Name(_Type),
    ("_codecs", "encode"): _Name(_encoded),
    ("builtins", "bytes"): _Name(_no_bytes),
    ("__builtin__", "bytes"): _Name(_no_bytes),
}

_MARK = object()
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
#: Instructions that put what follows them on the stack: numbers, text, bytes.
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """A stack machine for the instructions that a pickle of arrays has, of every protocol up to 5."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: IO[bytes]) -> Any:
        """Obey the instructions of a pickle, and return what it describes."""
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                break
            self.obey(opcode.name, argument)
        return self.stack.pop()

    def obey(self, name: str, argument: Any) -> None:
        """Obey one instruction."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _TUPLES:
            self.stack[-_TUPLES[name] :] = [tuple(self.stack[-_TUPLES[name] :])]
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self.since_mark()
            self.stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _dict(items))
        elif name in ("APPEND", "APPENDS"):
            items = [self.stack.pop()] if name == "APPEND" else self.since_mark()
            _checked(self.stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self.stack.pop(), self.stack.pop()][::-1] if name == "SETITEM" else self.since_mark()
            _checked(self.stack[-1], dict).update(_dict(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ", 1) if name == "GLOBAL" else [self.stack.pop(), self.stack.pop()][::-1]
            self.stack.append(_known_name(*words))
        elif name == "REDUCE":
            arguments, function = _checked(self.stack.pop(), tuple), _checked(self.stack.pop(), _Name)
            if function.build is None:
                raise _Refused("it makes an array in another way than NumPy writes one")
            self.stack.append(function.build(*arguments))
        elif name == "BUILD":
            state = _checked(self.stack.pop(), tuple)
            _checked(self.stack[-1], _Type, _Array).set_state(state)
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"it holds the instruction {name}")

    def since_mark(self) -> list[Any]:
        """Take what was put on the stack since the last mark."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


def _known_name(module: Any, name: Any) -> _Name:
    """Return what stands for a name, where it is one that NumPy writes."""
    known = _NAMES.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
    if known is None:
        raise _Refused(f"it asks for {str(module)[:50]}.{str(name)[:50]}")
    return known


def _dict(items: list[Any]) -> dict[str, Any]:
    """Return the dict of keys and values in turn; only text is a key."""
    keys = items[::2]
    if not all(type(key) is str for key in keys):
        raise _Refused("it holds a dict whose keys are no text")
    return dict(zip(keys, items[1::2], strict=True))


def _checked(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise _Refused(f"it does with a {type(value).__name__} what is done with a {kinds[0].__name__.lstrip('_')}")
    return value

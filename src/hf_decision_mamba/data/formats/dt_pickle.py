"""The Decision Transformer's pickles: a list of dicts of NumPy arrays, read as data. No code of a pickle ever runs.

A pickle is a program for a small stack machine. `pickletools` lists its instructions; the machine here obeys those that
build lists, dicts, numbers and arrays, and knows no other. The only names that it accepts are the few by which NumPy
writes an array, and it does what they would do by itself: nothing is imported, nothing called.

A `pickle.Unpickler` whose `find_class` allows these names alone is not enough. It calls what it allows with whatever
the file says: NumPy then takes any size for an array and parses any text for a type, and one text is encoded as often
as a few bytes ask for it. And it obeys all instructions: a tuple of a tuple twice, forty levels deep, takes 200 bytes,
and years to be hashed or shown. So the machine here counts what it makes, shows no value that is not a short text, and
looks into nothing that is deeper than the columns of an episode.
Source: the formats are pickle's (`pickletools`) and `numpy.ndarray.__reduce_ex__`; Chen et al. 2021's data are such.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ..metadata import SourceMetadata
from ..trajectories import Trajectories
from .arrays import read_arrays
from .rows import in_short

SUFFIXES = (".pkl", ".pickle")

_MOST_DIMENSIONS = 8
_LARGEST_DIMENSION = 1 << 40  # keeps products of dimensions small; of an empty array one may be large
#: Two bytes of a pickle can say again what was said before. All that it makes, and all that its columns hold, may have
#: so many bytes for each byte of the file.
_MOST_REPEATED = 5
#: How NumPy writes the types of numbers, and of true and false; `numpy.dtype` would parse a small language.
_CODE = re.compile(r"[<>=|]?(b1|[iu][1248]|f(2|4|8|12|16))")


def read_dt_pickle(source_name: str, path: Path, columns: Mapping[str, str], metadata: SourceMetadata) -> Trajectories:
    """Read a pickle of episodes, `[{"observations": array, "actions": array, ...}, ...]`, or of flat columns.

    Args:
        source_name: what errors call it.
        path: where it is.
        columns: names of its columns by our names, where they differ.
        metadata: what is known about it.

    Raises:
        ValueError: the pickle holds anything but lists and dicts of NumPy arrays and numbers, or is damaged; or an
            episode is not what it should be.
    """
    content = arrays_of(source_name, path)
    return read_arrays(content, source_name, path.stem, columns, metadata)


def arrays_of(source_name: str, path: Path) -> list[Any] | dict[str, Any]:
    """Return the content of a pickle when it is one that this project reads."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            result = PickleMachine(Budget(len(content))).run(cast(IO[bytes], content))
            budget = Budget(len(content))
        episodes = result if isinstance(result, list) else [result]
        columns = [_columns(episode, budget) for episode in episodes]
    except Refused as refusal:
        raise ValueError(
            f"data set {source_name!r} is not read: {refusal}. Of pickles, only lists and dicts of NumPy arrays and "
            "numbers are, as others can run any code; save the episodes as parquet, for example with "
            "datasets.Dataset.from_list(episodes).to_parquet(...)"
        ) from None
    except OSError:
        raise
    except Exception as error:  # `pickletools` and NumPy have many ways to say that bytes are not what they should be
        raise ValueError(
            f"data set {source_name!r} cannot be read: the pickle is corrupted or truncated ({in_short(error)}); get "
            "it again"
        ) from error
    return columns if isinstance(result, list) else columns[0]


class Budget:
    """How many bytes, and values that are no bytes, a file of this size may still make."""

    def __init__(self, size: int) -> None:
        self.left = _MOST_REPEATED * size

    def spend(self, count: int) -> None:
        """Take so many off.

        Raises:
            Refused: there are no more.
        """
        self.left -= count
        if self.left < 0:
            raise Refused("it repeats its arrays or texts over and over")


def _columns(episode: Any, budget: Budget) -> dict[str, np.ndarray]:
    """Return the columns of an episode: those that are arrays, or lists of numbers or of arrays."""
    if type(episode) is not dict:
        raise Refused(f"it holds a {type(episode).__name__} where an episode should be, a dict of arrays")
    columns = {}
    for name, column in episode.items():
        budget.spend(1)
        if isinstance(column, list):
            if all(_is_value(item, budget) for item in column):
                columns[name] = np.asarray([_array_or_number(item) for item in column])
        elif isinstance(column, (np.ndarray, _Array)) and _is_value(column, budget):
            columns[name] = _array_or_number(column)
    return columns


def _is_value(item: Any, budget: Budget) -> bool:
    """Return whether an item is a number or an array, of which the bytes are counted."""
    is_array = isinstance(item, (np.ndarray, _Array))
    budget.spend(max(item.nbytes, 1) if is_array else 1)
    return is_array or isinstance(item, (bool, int, float))


def _array_or_number(value: Any) -> Any:
    return value.array if isinstance(value, _Array) else value


class Refused(ValueError):
    """A pickle says something that this project does not do."""


class Name:
    """A name that NumPy writes: what stands for the function or class, which is never looked up."""

    def __init__(self, build: Callable[..., Any] | None = None) -> None:
        self.build = build


class _Type:
    """A NumPy type that is being described: its code, then its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        if type(code) is not str or _CODE.fullmatch(code) is None:
            said = f" {code!r}" if type(code) is str and len(code) <= 10 else ""
            raise Refused(f"it holds values of a type{said} that are no numbers")
        self._code = code
        self._order = ""

    def set_state(self, state: tuple[Any, ...]) -> None:
        """Take the byte order, the second entry; the fields of structured types must be absent."""
        if any(entry is not None for entry in state[2:5]):
            raise Refused("it holds an array of structured values")
        if type(state[1]) is str and state[1] in ("<", ">"):
            self._order = state[1]

    def dtype(self) -> np.dtype[Any]:
        """Return the type."""
        return np.dtype(self._order + self._code.lstrip("<>=|") if self._order else self._code)


class _Array:
    """An array that is being described, until its state says what is in it."""

    def __init__(self, *_: Any) -> None:
        self._array: np.ndarray | None = None

    @property
    def array(self) -> np.ndarray:
        """The array, when it was described to the end."""
        if self._array is None:
            raise Refused("it holds an array without a state")
        return self._array

    @property
    def nbytes(self) -> int:
        """Bytes of the array, as far as it was described."""
        return 0 if self._array is None else self._array.nbytes

    def set_state(self, state: Any) -> None:
        """Take (version, shape, type, whether Fortran's order, bytes), of which older ones leave out the version."""
        shape, dtype, fortran, content = state[-4:]
        self._array = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: Any, described: Any, shape: Any, order: Any = "C", axes: Any = None) -> np.ndarray:
    """Return an array of these bytes, where they are as many as its shape says."""
    if not isinstance(described, _Type):
        raise Refused("it holds an array without a type")
    dtype = described.dtype()
    if isinstance(content, str):
        content = content.encode("latin1")  # as pickles of Python 2 say bytes
    if not isinstance(content, (bytes, bytearray)):
        raise Refused(f"it holds an array of {type(content).__name__} instead of bytes")
    if not _is_shape(shape) or math.prod(shape) * dtype.itemsize != len(content):
        raise Refused(f"it holds an array of {len(content)} bytes that are not what its shape says")
    array = np.frombuffer(content, dtype) if content else np.empty(shape, dtype)
    if axes is None:
        return array.reshape(shape, order="F" if type(order) is str and order == "F" else "C")
    if not _is_shape(axes):
        raise Refused("it holds an array whose axes are no numbers")
    return array.reshape(shape).transpose(axes)


def _is_shape(shape: Any) -> bool:
    few = type(shape) is tuple and len(shape) <= _MOST_DIMENSIONS
    return few and all(type(count) is int and 0 <= count <= _LARGEST_DIMENSION for count in shape)


def _scalar(described: Any, content: Any) -> Any:
    """Return one NumPy number as a plain one."""
    return _array(content, described, ()).item()


def _encoded(source_name: Any, encoding: Any = "latin1") -> bytes:
    """Return the bytes that the old protocols write as text."""
    if type(source_name) is not str or type(encoding) is not str or encoding != "latin1":
        raise Refused("it encodes text")
    return source_name.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_CORES = ("numpy.core", "numpy._core")  # of NumPy 1 and of NumPy 2
#: The names that a pickle of arrays contains, and what is done for each.
_NAMES: dict[tuple[str, str], Name] = {
    **{(f"{core}.multiarray", "_reconstruct"): Name(_Array) for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): Name(_scalar) for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): Name(_array) for core in _CORES},
    ("numpy", "ndarray"): Name(),
    ("numpy", "dtype"): Name(_Type),
    ("_codecs", "encode"): Name(_encoded),
    ("builtins", "bytes"): Name(_no_bytes),
    ("__builtin__", "bytes"): Name(_no_bytes),
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


class PickleMachine:
    """A stack machine for the instructions that a pickle of arrays has, of every protocol up to 5.

    Args:
        budget: of what it makes.

    Attributes:
        names: those that it accepts, by module and name, and what is done for each.
    """

    names: Mapping[tuple[str, str], Name] = _NAMES

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: IO[bytes]) -> Any:
        """Obey the instructions of a pickle, and return what it describes.

        Raises:
            Refused: it says something that is not done.
            Exception: it is damaged.
        """
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
            checked(self.stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self.stack.pop(), self.stack.pop()][::-1] if name == "SETITEM" else self.since_mark()
            checked(self.stack[-1], dict).update(_dict(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ", 1) if name == "GLOBAL" else [self.stack.pop(), self.stack.pop()][::-1]
            self.stack.append(self.known_name(*words))
        elif name == "REDUCE":
            arguments, function = checked(self.stack.pop(), tuple), checked(self.stack.pop(), Name)
            if function.build is None:
                raise Refused("it makes an array in another way than NumPy writes one")
            self.stack.append(function.build(*arguments))
            self.count(self.stack[-1])
        elif name == "BUILD":
            state = checked(self.stack.pop(), tuple)
            checked(self.stack[-1], _Type, _Array).set_state(state)
            self.count(self.stack[-1])
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"it holds the instruction {name}")

    def known_name(self, module: Any, name: Any) -> Name:
        """Return what stands for a name, where it is one that is accepted."""
        known = self.names.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if known is None:
            asked = (part[:50] if isinstance(part, str) else f"a {type(part).__name__}" for part in (module, name))
            raise Refused(f"it asks for {'.'.join(asked)}")
        return known

    def count(self, made: Any) -> None:
        """Count what was made of other values; literals have as many bytes in the file."""
        size = len(made) if isinstance(made, bytes) else getattr(made, "nbytes", 0)
        self.budget.spend(max(size, 1))

    def since_mark(self) -> list[Any]:
        """Take what was put on the stack since the last mark."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


def _dict(items: list[Any]) -> dict[str, Any]:
    """Return the dict of keys and values in turn; only text is a key."""
    keys = items[::2]
    if not all(type(key) is str for key in keys):
        raise Refused("it holds a dict whose keys are no text")
    return dict(zip(keys, items[1::2], strict=True))


def checked(value: Any, *kinds: type) -> Any:
    """Return a value that is of one of these types.

    Raises:
        Refused: it is not.
    """
    if type(value) not in kinds:
        raise Refused(f"it does with a {type(value).__name__} what is done with a {kinds[0].__name__.lstrip('_')}")
    return value

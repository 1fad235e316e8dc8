"""What a parquet file's footer says of its columns: how many values there are, and how many bytes they take.

pyarrow says it too, one column of one row group at a time, but where a footer is damaged its library ends the process
instead of raising an error. So the footer is read here, as far as that: it is in Thrift's compact protocol.
Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md, and parquet.thrift of
https://github.com/apache/parquet-format for the numbers of the fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

#: Bytes of a value unpacked, by the number of its type; of texts and bytes, which have any length, none are known.
_WIDTHS = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8}
#: Kinds of values in the protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_NUMBERS = (4, 5, 6)
_LENGTHS = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}  # bytes, in lists
_DEEPEST = 20  # levels of a footer, which has half as many


@dataclass(frozen=True)
class Chunk:
    """The values of one column in one row group.

    Args:
        packed: bytes in the file.
        unpacked: bytes in memory at the least; a text that is said again and again is counted once.
    """

    packed: int
    unpacked: int


def chunks(found: pq.FileMetaData) -> Iterator[Chunk]:
    """Yield what a file says of each column in each row group.

    Raises:
        LookupError, TypeError, ValueError: it is damaged.
    """
    written = pa.BufferOutputStream()
    found.write_metadata_file(written)
    footer = Footer(written.getvalue().to_pybytes()[4:-8]).struct()
    for group in footer[4]:
        for column in group[1]:
            about = column[3]
            values = about[5] * _WIDTHS.get(about[1], 0)
            yield Chunk(packed=max(about[7], 0), unpacked=max(about[6], values, 0))


class Footer:
    """Reads structs as dicts of values by the numbers of their fields; texts are passed over, and stand as None."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.place = 0
        self.depth = 0

    def struct(self) -> dict[int, Any]:
        """Read one struct."""
        fields: dict[int, Any] = {}
        number, self.depth = 0, self.depth + 1
        if self.depth > _DEEPEST:
            raise ValueError("a footer has too many levels")
        while (head := self.byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self.number()
            kind = head & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self.value(kind)
        self.depth -= 1
        return fields

    def value(self, kind: int) -> Any:
        """Read one value of this kind."""
        if kind in _NUMBERS:
            return self.number()
        if kind == _STRUCT:
            return self.struct()
        if kind in (_LIST, _SET):
            head = self.byte()
            count = head >> 4 if head >> 4 < 15 else self.size()
            return [self.value(head & 15) for _ in range(count)]
        length = self.size() if kind == _BINARY else _LENGTHS[kind]  # before it is passed over: `size` moves on too
        self.place += length
        return None

    def number(self) -> int:
        """Read a number that may be negative."""
        size = self.size()
        return size >> 1 ^ -(size & 1)

    def size(self) -> int:
        """Read a number of seven bits a byte, the lowest first."""
        size = shift = 0
        while (byte := self.byte()) > 127:
            size |= (byte & 127) << shift
            shift += 7
        return size | byte << shift

    def byte(self) -> int:
        """Read one byte."""
        self.place += 1
        return self.content[self.place - 1]

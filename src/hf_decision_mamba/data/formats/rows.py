"""The rows of an opened table: what `datasets` has loaded, or parquet files that are read as they are.

`datasets` finds parquet files but does not read them: its copy on the disk would hold frames uncompressed, pictures of
a robot that are not needed, and everything else a second time, beside our own cache.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import hf_hub_download
from tqdm.contrib.concurrent import thread_map

from .arrow import depth_of, is_binary, is_number, item_type
from .footers import chunks

_ON_THE_HUB = re.compile(r"hf://datasets/(?P<id>[^@]+)@[^/]+/(?P<path>.*)")
#: What `datasets` reads without following a file to others, or running code: it knows many more kinds of files.
_TABLE = re.compile(r"\.(parquet|jsonl?|ndjson|arrow|csv|tsv)(\.(gz|bz2|xz|zst|lz4))?$", re.IGNORECASE)
BYTES_AT_ONCE = 1 << 24  # bounds the memory for what is being unpacked
_LONGEST_REASON = 300
#: What columns may take unpacked: so many bytes always, as flags are packed to nearly nothing; and of a table, so many
#: times what it takes in its file: Arrow repeats a value as often as a few bytes say. Frames of Breakout take 280.
ALWAYS_UNPACKED = 1 << 28
MOST_UNPACKED = 2000

#: What the libraries that read formats raise where a file is damaged, or made up: of memory and recursion too.
DAMAGE: tuple[type[Exception], ...] = (
    *(pa.ArrowException, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, SystemError, TypeError, ValueError, struct.error, zlib.error),
)


class Rows(Protocol):
    """Columns by name, as Arrow gives them."""

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""

    def table(self, columns: list[str]) -> pa.Table:
        """Return these columns of all rows."""

    def pieces(self, column: str) -> Iterator[pa.Array]:
        """Yield one column in order, few rows at a time."""


@dataclass(frozen=True)
class LoadedRows:
    """The rows of a `datasets.Dataset`."""

    dataset: datasets.Dataset

    @property
    def schema(self) -> pa.Schema:
        return self.dataset.features.arrow_schema

    def table(self, columns: list[str]) -> pa.Table:
        return self.dataset.select_columns(columns).with_format("arrow")[:]

    def pieces(self, column: str) -> Iterator[pa.Array]:
        rows = _rows_at_once(self.dataset.data.nbytes, len(self.dataset.data))
        for batch in self.dataset.select_columns([column]).with_format("arrow").iter(rows):
            yield from batch.column(0).chunks


def shown_rows(source_name: str, dataset: datasets.Dataset) -> LoadedRows:
    """Return the rows of a data set as its user sees them.

    Args:
        source_name: what errors call it.
        dataset: of which a format may hide columns (`set_format`).

    Raises:
        ValueError: what its user sees is made of what is stored whenever somebody looks: only that can be read.
    """
    shown = dataset.format
    changed = {
        "a transform (set_transform, with_transform)": shown["type"] == "custom",
        "a format with a dtype (set_format, with_format)": "dtype" in shown["format_kwargs"],
    }
    for what, is_so in changed.items():
        if is_so:
            raise ValueError(
                f"data set {source_name!r} has {what}, which changes what is seen and not what is stored: keep the "
                "change with .map(..., batched=True) or .cast(...), or read what is stored with .with_format(None)"
            )
    seen = [name for name in dataset.column_names if name in shown["columns"] or shown["output_all_columns"]]
    return LoadedRows(dataset.select_columns(seen))


@dataclass(frozen=True)
class TableRows:
    """The rows of a table in memory."""

    content: pa.Table

    @property
    def schema(self) -> pa.Schema:
        return self.content.schema

    def table(self, columns: list[str]) -> pa.Table:
        return self.content.select(columns)

    def pieces(self, column: str) -> Iterator[pa.Array]:
        yield from self.content.column(column).chunks


@dataclass(frozen=True)
class ParquetRows:
    """Rows of parquet files: (file, first row, row after the last) in order."""

    source_name: str
    schema: pa.Schema
    parts: tuple[tuple[Path, int, int], ...]

    def table(self, columns: list[str]) -> pa.Table:
        tables = [self.schema.empty_table().select(columns)]
        for path, start, stop in self.parts:
            with reading(self.source_name, f"the file {path}"):
                table = pq.ParquetFile(path).read(columns=columns).select(columns).slice(start, stop - start)
                tables.append(table.cast(tables[0].schema))
        return pa.concat_tables(tables)

    def pieces(self, column: str) -> Iterator[pa.Array]:
        for path, start, stop in self.parts:
            with reading(self.source_name, f"the file {path}"):
                file, wanted = pq.ParquetFile(path), self.schema.field(column).type
                said = [*chunks(file.metadata)]
                rows, row, taken = _rows_at_once(sum(one.unpacked for one in said), file.metadata.num_rows), 0, 0
                if is_binary(wanted):  # of which every row may be the longest one, said again
                    rows = min(rows, max(BYTES_AT_ONCE // max(1, *(one.unpacked for one in said)), 1))
                for batch in file.iter_batches(rows, columns=[column], use_threads=False):
                    first, row, taken = row, row + len(batch), taken + batch.nbytes
                    check_taken(self.source_name, str(path), taken, path.stat().st_size)
                    piece = batch.column(0)[max(start - first, 0) : max(stop - first, 0)]
                    yield piece if piece.type == wanted else piece.cast(wanted)


def check_unpacked(source_name: str, file: str, found: pq.FileMetaData) -> None:
    """Check that a parquet file, here or on the Hub, is as large as what it declares.

    Raises:
        ValueError: it is not.
    """
    said = [*chunks(found)]
    held = sum(one.packed for one in said)
    size = min(held, os.path.getsize(file)) if os.path.isfile(file) else held
    check_taken(source_name, file, sum(one.unpacked for one in said), size)


def check_taken(source_name: str, file: str, taken: int, size: int) -> None:
    """Check that a file of so many bytes can hold what takes so many when it is unpacked.

    Raises:
        ValueError: it cannot.
    """
    if taken > ALWAYS_UNPACKED + MOST_UNPACKED * size:
        raise ValueError(
            f"data set {source_name!r}: {file} unpacks to {taken:,} bytes or more, which is over {MOST_UNPACKED} "
            f"times its {size:,} bytes; get it again, or save it without compression"
        )


def _rows_at_once(size: int, rows: int) -> int:
    """Return how many of so many rows, which take so many bytes, are unpacked at a time."""
    return int(min(max(BYTES_AT_ONCE * rows // max(size, 1), 1), 1 << 20))


@contextmanager
def reading(source_name: str, what: str) -> Iterator[None]:
    """Name what is damaged, in whichever way the library that reads its format says so.

    Args:
        source_name: the data set, as the user called it; errors that name it pass as they are.
        what: what is being read, such as "the file a.parquet".

    Raises:
        OSError: the disk is full or the file may not be opened: the data are not to blame.
        ValueError: anything else went wrong.
    """
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if isinstance(error, ValueError) and f"data set {source_name!r}" in str(error):
            raise
        raise unreadable(source_name, what, error) from error


def parquet_rows(source_name: str, path: str, split: str, options: Mapping[str, Any]) -> ParquetRows | None:
    """Find the parquet files of a split, as `datasets.load_dataset` would.

    Args:
        source_name: what errors call the data set.
        path: what to load: a Hub repository, a folder or a builder.
        split: names of splits, with slices such as "train[:10%]".
        options: of `datasets.load_dataset_builder`.

    Returns:
        None if the data are not parquet files, or cannot be read.

    Raises:
        ValueError: the split is none of the data set's, its files differ in their columns, are elsewhere, or declare
            more than they can hold.
    """
    found = datasets.load_dataset_builder(path, **options).config.data_files or {}
    files = {str(name): [file for file in paths if not is_about_data(file)] for name, paths in found.items()}
    check_inside(path, files)
    files = {name: paths for name, paths in files.items() if name in split}
    first = next((paths[0] for paths in files.values() if paths), "")
    if not first.endswith(".parquet"):
        return None
    local = {name: _local(paths, options.get("revision")) for name, paths in files.items()}
    try:
        schemas = {file: pq.read_schema(file) for paths in local.values() for file in paths}
        said = {file: pq.read_metadata(file) for file in schemas}
    except (pa.ArrowException, OSError):
        return None  # `datasets` reads it next, and what it says is reported
    schema = next(iter(schemas.values()))
    for file, other in schemas.items():
        different = _different_columns(schema, other)
        if different:
            raise ValueError(
                f"the columns of {file.name} are not those of {Path(first).name}: they differ in "
                f"{', '.join(different)}; make them alike, or give the files as a list"
            )
    for file, about in said.items():
        with reading(source_name, f"the file {file}"):
            check_unpacked(source_name, str(file), about)
    counts = {file: about.num_rows for file, about in said.items()}
    lengths = {name: sum(counts[file] for file in local.get(name, ())) for name in found}
    parts: list[tuple[Path, int, int]] = []
    for piece in datasets.ReadInstruction.from_spec(split).to_absolute(lengths):
        before = 0
        for file in local[piece.splitname]:
            start, stop = max(piece.from_ - before, 0), min(piece.to - before, counts[file])
            before += counts[file]
            if start < stop:
                parts.append((file, start, stop))
    return ParquetRows(source_name, schema, tuple(parts))


def check_inside(path: str, files: Mapping[str, list[str]]) -> None:
    """Check that the files of a folder, or of a repository, are tables in it: its card may name any others.

    Args:
        path: the folder, the repository, or what reads a single file.
        files: of each split.

    Raises:
        ValueError: one is not.
    """
    roots = [os.path.abspath(path), os.path.realpath(path)]
    for file in (file for paths in files.values() for file in paths):
        if os.path.isdir(path):
            inside = any(Path(os.path.abspath(file)).is_relative_to(root) for root in roots)
        else:
            inside = "/" not in path or file.startswith("hf://")
        if not inside or _TABLE.search(file) is None:
            what = "no table" if inside else "elsewhere"
            raise ValueError(
                f"its card (README.md) says that {file} is part of it, which is {what}; only tables that are in the "
                "data set are read"
            )


def _different_columns(one: pa.Schema, other: pa.Schema) -> list[str]:
    """Return the columns that two files do not share, but for how many bits numbers have, and how lists are kept."""

    def plain(found: pa.DataType) -> tuple[int, object]:
        depth = depth_of(found)
        inner = item_type(found, depth)
        return depth, pa.types.is_integer(inner) if is_number(inner) else inner

    one_types, other_types = ({field.name: plain(field.type) for field in schema} for schema in (one, other))
    return sorted(name for name in {*one_types, *other_types} if one_types.get(name) != other_types.get(name))


def _local(files: list[str], revision: str | None) -> list[Path]:
    """Download files of one repository of the Hub, into the cache of the Hub; others are here already."""

    def local(file: str) -> Path:
        found = _ON_THE_HUB.match(file)
        if found is None:
            return Path(file)
        return Path(hf_hub_download(found["id"], found["path"], repo_type="dataset", revision=revision))

    # Not `snapshot_download`: after it, the cache counts as incomplete without the files that were not asked for.
    few = len(files) < 2 or _ON_THE_HUB.match(files[0]) is None
    paths: list[Path] = thread_map(local, files, max_workers=8, desc="downloading", unit="file", disable=few)
    return paths


def is_about_data(file: str) -> bool:
    """Return whether a file of the Hub is one of LeRobot's tables about the data, not of the data."""
    found = _ON_THE_HUB.match(file)
    return found is not None and found["path"].startswith("meta/")


def unreadable(source_name: str, what: str, cause: BaseException) -> ValueError:
    """Return the error for data that are damaged."""
    return ValueError(
        f"data set {source_name!r} cannot be read: {what} is corrupted, truncated or not what its ending says "
        f"({in_short(cause)}); get it again"
    )


def in_short(error: BaseException) -> str:
    """Return the kind of an error and what it says, on one line of bounded length that any terminal can show."""
    try:
        said = str(error)
    except ValueError:  # a number that is too long to be shown
        said = ""
    return f"{type(error).__name__}: {shown(' '.join(said.split()), _LONGEST_REASON)}"


def shown(text: str, most: int) -> str:
    """Return a text of at most so many letters, its beginning and its end, as any terminal can show it."""
    text = text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[-most // 3 :]}"
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)

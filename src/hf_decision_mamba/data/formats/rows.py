"""The rows of an opened table: what `datasets` has loaded, or parquet files that are read as they are.

Frames of bytes and rows of single steps are read without `datasets`: its cache on the disk would hold the frames
uncompressed, hundreds of times the size of their parquet file, and all pictures of a robot that are not needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

_EPISODES_AT_ONCE = 8  # bounds the memory for the frames that are being unpacked


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
        for batch in self.dataset.select_columns([column]).with_format("arrow").iter(_EPISODES_AT_ONCE):
            yield from batch.column(0).chunks


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

    label: str
    schema: pa.Schema
    parts: tuple[tuple[Path, int, int], ...]

    def table(self, columns: list[str]) -> pa.Table:
        tables = [self.schema.empty_table().select(columns)]
        for path, start, stop in self.parts:
            with reading(self.label, path):
                tables.append(pq.ParquetFile(path).read(columns=columns).select(columns).slice(start, stop - start))
        return pa.concat_tables(tables)

    def pieces(self, column: str) -> Iterator[pa.Array]:
        for path, start, stop in self.parts:
            with reading(self.label, path):
                file = pq.ParquetFile(path, pre_buffer=True)
                row = 0
                for batch in file.iter_batches(_EPISODES_AT_ONCE, columns=[column], use_threads=False):
                    first, row = row, row + len(batch)
                    yield batch.column(0)[max(start - first, 0) : max(stop - first, 0)]


@contextmanager
def reading(label: str, path: Path | str) -> Iterator[None]:
    """Name a parquet file that is damaged."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is full or the file may not be opened: the data are not to blame
        raise unreadable(label, f"the file {path}", error) from error


def parquet_rows(
    label: str, path: str, split: str, options: Mapping[str, Any], as_they_are: Callable[[pa.Schema], bool]
) -> ParquetRows | None:
    """Find the parquet files of a split, as `datasets.load_dataset` would, when they are to be read as they are.

    Args:
        label: what errors call the data set.
        path: what to load: a Hub repository, a folder or a builder.
        split: names of splits, with slices such as "train[:10%]".
        options: of `datasets.load_dataset_builder`.
        as_they_are: whether files with this schema are.

    Returns:
        None if the data are not parquet files, are to be read by `datasets`, or cannot be read.

    Raises:
        ValueError: the split is none of the data set's, or its files differ in their columns.
    """
    found = datasets.load_dataset_builder(path, **options).config.data_files or {}
    files = {str(name): [file for file in paths if not _is_about_data(file)] for name, paths in found.items()}
    first = next((paths[0] for paths in files.values() if paths), "")
    if not first.endswith(".parquet"):
        return None
    download = datasets.DownloadManager().download  # what is local already stays where it is
    try:
        schema = pq.read_schema(download(first))
        if not as_they_are(schema):
            return None
        local = {name: list(map(Path, download(paths))) for name, paths in files.items() if name in split}
        footers = {file: pq.read_metadata(file) for paths in local.values() for file in paths}
    except (pa.ArrowException, OSError):
        return None  # `datasets` reads it next, and what it says is reported
    for file, footer in footers.items():
        if not footer.schema.to_arrow_schema().equals(schema):
            raise ValueError(f"the columns of {file.name} are not those of {Path(first).name}")
    lengths = {name: sum(footers[file].num_rows for file in local.get(name, ())) for name in files}
    parts: list[tuple[Path, int, int]] = []
    for piece in datasets.ReadInstruction.from_spec(split).to_absolute(lengths):
        before = 0
        for file in local[piece.splitname]:
            count = footers[file].num_rows
            start, stop = max(piece.from_ - before, 0), min(piece.to - before, count)
            before += count
            if start < stop:
                parts.append((file, start, stop))
    return ParquetRows(label, schema, tuple(parts))


def _is_about_data(file: str) -> bool:
    """Whether a file of the Hub is one of LeRobot's tables about the data, not of the data."""
    return re.match(r"hf://datasets/[^@]+@[^/]+/meta/", file) is not None


def unreadable(label: str, what: str, cause: BaseException) -> ValueError:
    """Return the error for data that are damaged."""
    return ValueError(
        f"data set {label!r} cannot be read: {what} is corrupted, truncated or not what its ending says "
        f"({type(cause).__name__}: {cause}); get it again"
    )

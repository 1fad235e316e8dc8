"""The rows of an opened source, one row per episode: what `datasets` has loaded, or parquet files that are read as is.

Frames of bytes are read without `datasets`: its cache on the disk would hold them uncompressed, hundreds of times the
size of their parquet file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
class ParquetRows:
    """Rows of parquet files: (file, first row, row after the last) in order."""

    label: str
    schema: pa.Schema
    parts: tuple[tuple[Path, int, int], ...]

    def table(self, columns: list[str]) -> pa.Table:
        tables = [self.schema.empty_table().select(columns)]
        for path, start, stop in self.parts:
            with self._reading(path):
                tables.append(pq.ParquetFile(path).read(columns=columns).select(columns).slice(start, stop - start))
        return pa.concat_tables(tables)

    def pieces(self, column: str) -> Iterator[pa.Array]:
        for path, start, stop in self.parts:
            with self._reading(path):
                file = pq.ParquetFile(path, pre_buffer=True)
                row = 0
                for batch in file.iter_batches(_EPISODES_AT_ONCE, columns=[column], use_threads=False):
                    first, row = row, row + len(batch)
                    yield batch.column(0)[max(start - first, 0) : max(stop - first, 0)]

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk is full or the file may not be opened: the data are not to blame
            raise unreadable(self.label, f"the file {path}", error) from error


def binary_rows(label: str, path: str, split: str, options: Mapping[str, Any]) -> ParquetRows | None:
    """Find the parquet files of a split, as `datasets.load_dataset` would, when one of their columns is bytes.

    Args:
        label: what errors call the data set.
        path: what to load: a Hub repository, a folder or a builder.
        split: names of splits, with slices such as "train[:10%]".
        options: of `datasets.load_dataset_builder`.

    Returns:
        None if the data are not parquet files, have no column of bytes, or cannot be read.

    Raises:
        ValueError: the split is none of the data set's, or its files differ in their columns.
    """
    found = datasets.load_dataset_builder(path, **options).config.data_files or {}
    files = {str(name): list(paths) for name, paths in found.items()}
    first = next((paths[0] for paths in files.values() if paths), "")
    if not first.endswith(".parquet"):
        return None
    download = datasets.DownloadManager().download  # what is local already stays where it is
    try:
        schema = pq.read_schema(download(first))
        if not any(map(is_binary, schema.types)):
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


def is_binary(found: pa.DataType) -> bool:
    """Whether a column of this type holds bytes."""
    return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))


def unreadable(label: str, what: str, cause: BaseException) -> ValueError:
    """Return the error for data that are damaged."""
    return ValueError(
        f"data set {label!r} cannot be read: {what} is corrupted, truncated or not what its ending says "
        f"({type(cause).__name__}: {cause}); get it again"
    )

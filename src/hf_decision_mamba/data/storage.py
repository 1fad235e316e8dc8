"""Columns on the disk: a folder with one .npy file each, and a small JSON file with what else is known of them.

Opening it reads no column: they are memory-mapped, and come from the disk as windows and statistics ask for them.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .statistics import TrajectoryStatistics

_METADATA = "trajectories.json"
_AT_ONCE = 1 << 24  # bytes that are read or written at a time
IN_MEMORY = 1 << 26  # bytes of a column that may be in memory while it is made; a longer one is made on the disk


def save_columns(folder: Path, columns: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write columns and metadata into an empty folder.

    Raises:
        OSError: something cannot be written; what is in the folder is then of no use.
    """
    for name, values in columns.items():
        with (folder / f"{name}.npy").open("wb") as file:
            npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(values))
            for block in blocks(values):
                file.write(np.ascontiguousarray(block).data)  # `tofile` does not notice a disk that is nearly full
    forms = {name: [values.dtype.str, list(values.shape)] for name, values in columns.items()}
    _write_json(folder / _METADATA, {"columns": forms, "metadata": dict(metadata)})


def open_columns(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the memory-mapped columns and the metadata that `save_columns` wrote.

    Raises:
        OSError, ValueError, KeyError, TypeError, RecursionError: a file is missing or damaged.
    """
    said = _read_json(folder / _METADATA)
    columns = {}
    for name, form in said["columns"].items():
        # A file that is cut short is refused here: it is shorter than its header says.
        values = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if [values.dtype.str, list(values.shape)] != form:
            raise ValueError(f"{name}.npy holds {values.dtype} of shape {values.shape}")
        columns[name] = values
    return columns, said["metadata"]


def kept_statistics(
    folder: Path, episodes: NDArray[np.int64], compute: Callable[[], TrajectoryStatistics]
) -> TrajectoryStatistics:
    """Return the statistics of some of the episodes in a folder, which are computed only once.

    Args:
        folder: where the columns are.
        episodes: which of their episodes, in numbers that say it.
        compute: makes the statistics.
    """
    path = folder / f"statistics-{hashlib.sha256(episodes.tobytes()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return TrajectoryStatistics.from_dict(_read_json(path))
    statistics = compute()
    with suppress(OSError):  # a disk that is full or may not be written to costs time, nothing else
        unfinished = folder / f"{path.name}.{os.getpid()}"
        _write_json(unfinished, statistics.to_dict())
        unfinished.replace(path)
    return statistics


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values with their checksum: a changed digit is still JSON."""
    path.write_text(json.dumps({"checksum": _checksum(values), "values": values}, indent=1), encoding="utf-8")


def _read_json(path: Path) -> Any:
    """Return what `_write_json` wrote.

    Raises:
        OSError, ValueError, KeyError, TypeError, RecursionError: the file is missing or damaged.
    """
    said = json.loads(path.read_text(encoding="utf-8"))
    if said["checksum"] != _checksum(said["values"]):
        raise ValueError(f"{path.name} is not as it was written")
    return said["values"]


def _checksum(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class GrowingColumn:
    """A column that is made piece by piece, of which a long one is never in memory as a whole.

    Args:
        dtype: its type; what does not fit into a float becomes infinite. Default that of the first piece.
    """

    def __init__(self, dtype: type[np.generic] | None = None) -> None:
        self._dtype = dtype
        self._pieces: list[np.ndarray] = []
        self._length = 0
        self._file: Any = None

    def append(self, values: np.ndarray) -> None:
        """Add rows (n, ...), of which a copy is kept.

        Raises:
            OSError: there is no room on the disk.
        """
        with np.errstate(over="ignore"):
            self._pieces.append(np.array(values, self._dtype))
        self._length += len(values)
        if sum(piece.nbytes for piece in self._pieces) > IN_MEMORY:
            self._write()

    def finish(self) -> np.ndarray:
        """Return the column (N, ...); float32 (0,) where nothing came."""
        if self._file is None:
            return np.concatenate(self._pieces) if self._pieces else np.empty(0, np.float32)
        self._write()
        none = self._pieces[0]
        return np.memmap(self._file, none.dtype, "r", shape=(self._length, *none.shape[1:])).view(np.ndarray)

    def _write(self) -> None:
        folder = Path(datasets.config.HF_DATASETS_CACHE)  # the temporary folder of the system may be in memory
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it goes with the column
                weakref.finalize(self, self._file.close)
            for piece in self._pieces:
                self._file.write(piece)
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"no room for a column of more than {IN_MEMORY >> 20} MiB in {folder} ({error}): free some, or set "
                "HF_DATASETS_CACHE to a folder that has it"
            ) from error
        self._pieces = [np.empty_like(self._pieces[0][:0])]


def blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of a column, few at a time."""
    rows = max(_AT_ONCE // max(values[:1].nbytes, 1), 1)
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def mapping(values: np.ndarray) -> mmap.mmap | None:
    """Return the memory map that an array is a view of, if it is."""
    base: Any = values
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def release(values: np.ndarray) -> None:
    """Take a memory-mapped array out of this process's memory; the system keeps it in its page cache while it can."""
    mapped = mapping(values)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)

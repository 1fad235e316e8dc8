"""Columns on the disk: a folder with one .npy file each, and a small JSON file with what else is known of them.

Opening it reads no column: they are memory-mapped, and come from the disk as windows and statistics ask for them.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .statistics import TrajectoryStatistics

_FACTS = "trajectories.json"


def save_columns(folder: Path, columns: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write columns and facts into an empty folder.

    Raises:
        OSError: something cannot be written; what is in the folder is then of no use.
    """
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)
    forms = {name: [values.dtype.str, list(values.shape)] for name, values in columns.items()}
    (folder / _FACTS).write_text(json.dumps({"columns": forms, "facts": dict(facts)}, indent=1), encoding="utf-8")


def open_columns(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the memory-mapped columns and the facts that `save_columns` wrote.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is missing or damaged.
    """
    said = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    columns = {}
    for name, form in said["columns"].items():
        # A file that is cut short is refused here: it is shorter than its header says.
        values = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if [values.dtype.str, list(values.shape)] != form:
            raise ValueError(f"{name}.npy holds {values.dtype} of shape {values.shape}")
        columns[name] = values
    return columns, said["facts"]


def kept_statistics(
    folder: Path, episodes: NDArray[np.int64] | None, compute: Callable[[], TrajectoryStatistics]
) -> TrajectoryStatistics:
    """Return the statistics of some of the episodes in a folder, which are computed only once.

    Args:
        folder: where the columns are.
        episodes: which of their episodes; None for all.
        compute: makes the statistics.
    """
    which = "" if episodes is None else "-" + hashlib.sha256(episodes.tobytes()).hexdigest()[:16]
    path = folder / f"statistics{which}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return TrajectoryStatistics.from_dict(json.loads(path.read_text(encoding="utf-8")))
    statistics = compute()
    with suppress(OSError):  # a disk that is full or may not be written to costs time, nothing else
        unfinished = folder / f"{path.name}.{os.getpid()}"
        unfinished.write_text(json.dumps(statistics.to_dict()), encoding="utf-8")
        unfinished.replace(path)
    return statistics


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

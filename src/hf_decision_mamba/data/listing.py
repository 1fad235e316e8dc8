"""What a source holds, whether or not it is trajectories: files, columns, types and the shapes of a first row.

For people whose data could not be read: it shows what is there beside the error that says what was expected. Nothing
is checked here, and nothing is loaded but a first row where the format allows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi

from .formats import dt_pickle, hub, minari
from .formats.rows import check_inside, check_unpacked, shown
from .metadata import check_card
from .sources import named_sources, source_type

_LONGEST_LINE = 300
_FILES_SHOWN = 20
_COLUMNS_SHOWN = 100


def listing(source: object, *, config: str | None = None, revision: str | None = None) -> list[str]:
    """Describe what a source holds, one line each.

    Args:
        source: as for `load_trajectories`.
        config: the data set's configuration, where it has several.
        revision: branch, tag or commit of a Hub repository.

    Returns:
        Never nothing, and no error: what cannot be opened is one more line, which says why. No line is very long.
    """
    return [shown(line, _LONGEST_LINE) for line in _lines(source, config, revision)]


def _lines(source: object, config: str | None, revision: str | None) -> list[str]:
    if isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        splits = source if isinstance(source, datasets.DatasetDict) else {"rows": source}
        return [line for name, rows in splits.items() for line in _rows(name, rows, len(rows))]
    try:
        names = named_sources(source)
    except (OSError, ValueError) as error:
        return [_unopened(error)]
    if names is None:
        return _values(source)
    found = {str(name): _named(name, config, revision) for name in names}
    if len(found) == 1:
        return next(iter(found.values()))
    return [line for name, lines in found.items() for line in (f"{name}:", *(f"  {line}" for line in lines))]


def _named(source: str | Path, config: str | None, revision: str | None) -> list[str]:
    """Describe what a name stands for."""
    path = Path(source).expanduser()
    try:
        found = source_type(source)
        if found is None:
            return [f"there is no file or folder {path.absolute()}"]
        return _LISTINGS[found](str(source), path, config, revision)
    except Exception as error:  # every format has errors of its own, and all of them are answers here
        return [_unopened(error)]


def _unopened(error: Exception) -> str:
    return f"it cannot be opened: {type(error).__name__}: {_one_line(error)}"


def _folder(source_name: str, path: Path, config: str | None, revision: str | None) -> list[str]:
    found = sorted(file for file in path.rglob("*") if file.is_file())
    lines = _listed([f"{file.relative_to(path).as_posix()}  {_size(file.stat().st_size)}" for file in found])
    if hub.is_saved(path):
        return [*lines, *listing(hub.open_saved(source_name, path))]
    tables = any(map(hub.builder_of, found))
    return [*lines, *(_table(source_name, name=config) if tables else [])]


def _repository(source_name: str, path: Path, config: str | None, revision: str | None) -> list[str]:
    files = HfApi().list_repo_files(source_name, repo_type="dataset", revision=revision)
    return [*_listed(files), *_table(source_name, name=config, revision=revision)]


def _listed(files: Sequence[str]) -> list[str]:
    more = len(files) - _FILES_SHOWN
    return [f"{len(files):,} files:", *(f"  {file}" for file in files[:_FILES_SHOWN])] + (
        [f"  and {more:,} more"] if more > 0 else []
    )


def _table(path: str, **options: Any) -> list[str]:
    """Describe the columns of every split of a table, and its first row; it is read as a stream, as far as that."""
    try:
        check_card(Path(path) / "README.md")
        files: dict[Any, list[str]] = datasets.load_dataset_builder(path, **options).config.data_files or {}
        check_inside(path, files)
        for file in (str(file) for paths in files.values() for file in paths):
            if file.endswith(".parquet") and Path(file).is_file():
                check_unpacked(path, file, pq.read_metadata(file))
        splits = datasets.load_dataset(path, streaming=True, **options)
        return [line for name, rows in splits.items() for line in _rows(str(name), rows, None)]
    except Exception as error:
        return [f"its table cannot be opened: {type(error).__name__}: {_one_line(error)}"]


def _rows(name: str, rows: datasets.Dataset | datasets.IterableDataset, count: int | None) -> list[str]:
    title = f"split {name!r}" if count is None else f"{name!r}, {count:,} rows"
    try:
        first: pa.Table = next(iter(rows.with_format("arrow").iter(batch_size=1)))
    except StopIteration:
        return [f"{title}: no rows"]
    names = first.column_names[:_COLUMNS_SHOWN]
    cells = [(name, _type(first.schema.field(name).type), _shape(first.column(name)[0].as_py())) for name in names]
    widths = [max(len(cell[place]) for cell in cells) for place in range(2)]
    lines = [f"  {name:{widths[0]}}  {kind:{widths[1]}}  first row: {shape}" for name, kind, shape in cells]
    left = len(first.column_names) - len(names)
    return [f"{title}, columns:", *lines, *([f"  and {left:,} more"] if left else [])]


def _type(found: pa.DataType) -> str:
    return re.sub(r"(list|large_list|fixed_size_list)<(element|item): ", r"\1<", str(found))


def _shape(value: Any) -> str:
    """Describe a value in few words: how many of what."""
    if isinstance(value, np.ndarray):
        return f"{' x '.join(map(str, value.shape)) or 'one'} of {value.dtype}"
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value):,} bytes"
    if isinstance(value, Mapping):
        return "{" + ", ".join(map(str, list(value)[:10])) + "}"
    if isinstance(value, (list, tuple)):
        sizes = []
        while isinstance(value, (list, tuple)):
            sizes.append(len(value))
            value = value[0] if value else None
        return " x ".join(f"{size:,}" for size in sizes)
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _values(source: object) -> list[str]:
    """Describe arrays in memory: a list of episodes, or flat columns."""
    if isinstance(source, Mapping):
        return ["columns:", *(f"  {name}  {_shape(value)}" for name, value in list(source.items())[:_COLUMNS_SHOWN])]
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        lines = [f"a list of {len(source):,}"]
        return [*lines, "the first one:", *_values(source[0])] if len(source) else lines
    return [f"one {type(source).__name__}: {_shape(source)}"]


def _hdf5(path: Path) -> list[str]:
    import h5py

    lines: list[str] = []

    def visit(name: str, item: Any) -> None:
        shape = "/"
        if isinstance(item, h5py.Dataset):  # of one that is made of other files, to ask for the shape opens them
            shape = "  in other files" if item.is_virtual else f"  {item.shape} of {item.dtype}"
        lines.append(f"  {name}{shape}")

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    more = len(lines) - _COLUMNS_SHOWN
    return ["arrays:", *lines[:_COLUMNS_SHOWN], *([f"  and {more:,} more"] if more > 0 else [])]


def _minari(source_name: str) -> list[str]:
    data = minari.open_minari(source_name, source_name.removeprefix(minari.PREFIX))
    return [
        f"{data.total_episodes:,} episodes, {data.total_steps:,} steps",
        f"observations: {data.observation_space}",
        f"actions: {data.action_space}",
        f"environment: {None if data.env_spec is None else data.env_spec.id}",
    ]


def _beginning(path: Path) -> str:
    with open(path, "rb") as file:
        return repr(file.read(16))


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


#: What describes each of `SOURCE_TYPES`, of a name, the path that it is, a configuration and a revision.
_LISTINGS: dict[str, Callable[[str, Path, str | None, str | None], list[str]]] = {
    **dict.fromkeys(("replay", "saved", "folder"), _folder),
    "table": lambda name, path, *_: [
        _size(path.stat().st_size),
        *_table(str(hub.builder_of(path)), data_files=str(path)),
    ],
    "hdf5": lambda name, path, *_: _hdf5(path),
    "pickle": lambda name, path, *_: _values(dt_pickle.arrays_of(name, path)),
    "other file": lambda name, path, *_: [
        f"a file of {_size(path.stat().st_size)}, which begins with {_beginning(path)}"
    ],
    "minari": lambda name, *_: _minari(name),
    "repository": _repository,
}

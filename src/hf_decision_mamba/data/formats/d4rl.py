"""D4RL's HDF5 files: flat columns of all episodes, `terminals` where the task was over, `timeouts` at the time limit.

Nothing of a file is read but the columns, and what it says about its environment, as attributes or below `metadata`.

HDF5 would follow what a file says to any other file of the machine, load code to unpack it, and take memory for any
size that it declares. Here only values are read that are in the file itself, as they are or as HDF5 alone packs them.
Source: D4RL (Fu et al. 2020, arXiv 2004.07219), https://github.com/Farama-Foundation/D4RL.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..metadata import FIELDS, SourceMetadata, metadata_of
from ..trajectories import Trajectories
from .arrays import flat_columns, read_flat_arrays
from .rows import ALWAYS_UNPACKED, reading

SUFFIXES = (".hdf5", ".h5")

_DEFLATE = 1
#: The filters that HDF5 and h5py bring with them; others are code that is looked for on the machine.
_FILTERS = {_DEFLATE: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 32000: "lzf"}
_PACKING = {_DEFLATE, 4, 32000}
#: Columns may take so many times as much memory as they take in the file; all zeros, packed by gzip, would take 1000.
_MOST_UNPACKED = 500
_HARMLESS = ALWAYS_UNPACKED // 1032  # bytes that deflate cannot have made of more than are always unpacked
_LONGEST_FACT = 1 << 16  # bytes of what a file says about its environment
_CHECKSUM = 4  # bytes that fletcher32 adds to a chunk


def read_d4rl(source_name: str, path: Path, columns: Mapping[str, str], metadata: SourceMetadata) -> Trajectories:
    """Read a D4RL file.

    Args:
        source_name: what errors call it.
        path: where it is.
        columns: names of its columns by our names, where they differ.
        metadata: what is known about it; the file is asked for the rest.

    Raises:
        ImportError: h5py is not installed.
        ValueError: the file is damaged, a column is missing or wrong, or nothing says where episodes end.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f'{source_name}: HDF5 files need h5py ({error}); install it with: pip install "hf_decision_mamba[hdf5]"'
        ) from error
    with reading(source_name, "the file"), h5py.File(path, "r") as file:
        # What is linked from elsewhere is not looked at.
        names = [name for name in file if isinstance(name, str)]  # h5py gives bytes where a name is no text
        found: dict[str, Any] = {name: file[name] if _is_inside(file, name) else None for name in names}
        columns_found = [name for name, item in found.items() if not isinstance(item, h5py.Group)]
        groups = [f"{name}/" for name in found if name not in columns_found]
        if not columns_found and groups:
            raise ValueError(
                f"data set {source_name!r} has no columns, only groups: {', '.join(groups[:5])}; D4RL's files have "
                "observations, actions, rewards, terminals at the top (a Minari data set is read by its id, "
                "minari:NAME)"
            )
        wanted = {
            source_column: found[source_column]
            for source_column in flat_columns(source_name, columns_found, columns).values()
        }
        _check_stored(source_name, wanted.items(), path.stat().st_size)
        # Of the columns that are left alone nothing but the name is known.
        arrays: dict[str, Any] = dict.fromkeys(columns_found)
        arrays |= {source_column: values[()] for source_column, values in wanted.items()}
        said = _stored_metadata(source_name, file)
        metadata = metadata.over(metadata_of(f"the metadata of {source_name}", said)) if said else metadata
    return read_flat_arrays(arrays, source_name, path.stem, columns, metadata)


def _stored_metadata(source_name: str, file: Any) -> dict[str, Any]:
    """Return what a file says about its environment."""
    import h5py

    group = file["metadata"] if "metadata" in file and _is_inside(file, "metadata") else None
    said = {}
    for name in ("env_id", *FIELDS):
        kept = None
        if isinstance(group, h5py.Group) and name in group and _is_inside(group, name):
            kept = group[name]
        if isinstance(kept, h5py.Dataset) and kept.shape == () and kept.dtype.itemsize <= _LONGEST_FACT:
            _check_place(f"data set {source_name!r}, 'metadata/{name}'", kept)
            value = kept[()]
        else:
            value = file.attrs.get(name)
        if value is not None:
            value = np.asarray(value).tolist()
            said[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return said


def check_all_stored(source_name: str, path: Path) -> None:
    """Check all that an HDF5 file holds, which another package will read, as the columns of a D4RL file are checked.

    Args:
        source_name: what errors call the data set.
        path: the file.

    Raises:
        ValueError: something in it is a link or there twice, is stored elsewhere, needs code to be unpacked, or is more
            than the file can hold.
    """
    import h5py

    with reading(source_name, f"the file {path}"), h5py.File(path, "r") as file:
        _check_stored(source_name, _everything(source_name, file), path.stat().st_size, texts=True)


def _everything(source_name: str, file: Any) -> Iterator[tuple[str, Any]]:
    """Yield all values of a file with their names; None for links to something else."""
    import h5py

    groups, seen = [("", file)], set()
    for within, group in groups:
        for name in group:
            full = f"{within}{name}"
            if not _is_inside(group, name):
                yield full, None
                continue
            item = group[name]
            place = h5py.h5o.get_info(item.id).addr
            if place in seen:
                raise ValueError(f"data set {source_name!r}: {full!r} is in the file under two names; keep one")
            seen.add(place)
            if isinstance(item, h5py.Group):
                groups.append((f"{full}/", item))
            else:
                yield full, item


def _check_stored(source_name: str, columns: Iterable[tuple[str, Any]], size: int, texts: bool = False) -> None:
    """Check that columns are numbers which are in their file of so many bytes, before any of them is read.

    Args:
        source_name: what errors call the data set.
        columns: names, and each an `h5py.Dataset`; None for a link to something else.
        size: of the file.
        texts: whether there may be texts, and other values of any length.

    Raises:
        ValueError: one is a link, is stored elsewhere, needs code to be unpacked, or is more than the file can hold.
    """
    stored = taken = 0
    for name, values in columns:
        where = f"data set {source_name!r}, column {name!r}"
        deflated = _check_place(where, values)
        shape, dtype = values.shape, values.dtype
        if dtype.kind not in ("biufSO" if texts else "biuf") or shape is None:
            raise ValueError(
                f"{where}: expected numbers, or true and false, found shape {shape} of {dtype}; convert the column, or "
                "map another one with columns={...}"
            )
        held = values.id.get_storage_size()
        chunk = math.prod(values.chunks or ()) * dtype.itemsize
        stored, taken = stored + held, taken + math.prod(shape) * dtype.itemsize
        if held > size or max(taken, chunk) > ALWAYS_UNPACKED + _MOST_UNPACKED * stored:
            raise ValueError(
                f"{where}: {math.prod(shape):,} values of shape {shape} cannot be right, as the file holds {held:,} "
                "bytes of them; get it again"
            )
        if deflated is not None and held > _HARMLESS:
            _check_chunks(where, values, chunk, deflated)
        if dtype.kind == "O":
            _check_lengths(where, values, size)


def _is_inside(group: Any, name: str | bytes) -> bool:
    """Return whether a name of a group, as h5py gives it, stands for something in the file itself."""
    import h5py

    encoded = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    return bool(group.id.links.get_info(encoded).type == h5py.h5l.TYPE_HARD)


def _check_place(where: str, values: Any) -> int | None:
    """Check that the values are in the file, and are unpacked without code that is not HDF5's own.

    Returns:
        Which of their filters, counted from 0, is deflate; None where none is.
    """
    import h5py

    if values is None:
        raise ValueError(f"{where} is a link, which is not followed; store its values in the file itself")
    if not isinstance(values, h5py.Dataset):
        raise ValueError(f"{where} is a type, no values; map another one with columns={{...}}")
    stored = values.id.get_create_plist()
    if stored.get_external_count() or stored.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(f"{where}: its values are in another file, which is not read; store them in the file itself")
    filters = [stored.get_filter(number)[0] for number in range(stored.get_nfilters())]
    if {*filters} - {*_FILTERS} or len(_PACKING.intersection(filters)) > 1 or len({*filters}) < len(filters):
        raise ValueError(
            f"{where}: it is packed with the filters {filters[:10]}; only {', '.join(_FILTERS.values())} are read, one "
            "of each kind. Store it again with compression='gzip'"
        )
    return filters.index(_DEFLATE) if _DEFLATE in filters else None


def _check_chunks(where: str, values: Any, chunk: int, deflated: int) -> None:
    """Check that large packed chunks unpack to so many bytes; HDF5 would take memory for as many as there are."""
    places: list[tuple[int, ...]] = []

    def visit(info: Any) -> None:
        if info.size > _HARMLESS:
            places.append(info.chunk_offset)

    values.id.chunk_iter(visit)
    for place in places:
        skipped, packed = values.id.read_direct_chunk(place)
        most = chunk + _CHECKSUM
        if not skipped & (1 << deflated) and len(zlib.decompressobj().decompress(packed, most + 1)) > most:
            raise ValueError(f"{where}: the chunk at {place} unpacks to more than {chunk:,} bytes; get the file again")


def _check_lengths(where: str, values: Any, size: int) -> None:
    """Check values of any length, such as texts: of a few bytes each, all can be the longest one."""
    taken, at_once = 0, max(ALWAYS_UNPACKED // size, 1)
    for first in range(0, len(values), at_once):
        taken += sum(len(value) for value in np.ravel(values[first : first + at_once]))
        if taken > ALWAYS_UNPACKED + size:
            raise ValueError(f"{where}: its values are longer than the file can hold; get it again")

"""Tables that `datasets` opens: of the Hub, of a folder laid out like a repository, a file, or already loaded.

How a table is opened is known here; what its rows are, one episode or one step, its columns say.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from ..metadata import COMPRESSED, SourceMetadata, agreed, beside, check_card, metadata_beside, metadata_of_card
from ..request import PARQUET_REVISION, Request
from ..splits import choose_episodes, whole_split
from ..trajectories import Trajectories
from .episode_rows import read_episode_rows
from .rows import LoadedRows, Rows, check_inside, is_about_data, parquet_rows, shown, shown_rows, unreadable
from .step_rows import INFO, RobotInfo, has_one_row_per_step, read_step_rows

#: What `datasets` reads, by ending.
BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
#: What `save_to_disk` of a `Dataset` or a `DatasetDict` leaves in its folder.
_SAVED = ("state.json", "dataset_dict.json")

#: What the modules that unpack compressed files say of damaged ones; bz2 has none of its own.
_UNPACKING_ERRORS = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)


def builder_of(file: Path) -> str | None:
    """Return which builder of `datasets` reads a file, by its ending; JSON may be compressed."""
    ending = file.suffix.lower()
    if ending not in COMPRESSED:
        return BUILDERS.get(ending)
    return "json" if BUILDERS.get(file.with_suffix("").suffix.lower()) == "json" else None


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` of `datasets` wrote this folder."""
    return any((folder / name).is_file() for name in _SAVED)


@dataclass(frozen=True)
class _Table:
    """The rows of a table, and whether one of them is one step, or one episode."""

    rows: Rows
    one_row_per_step: bool


def read_loaded(source: datasets.Dataset | datasets.DatasetDict, request: Request) -> Trajectories:
    """Read a data set that is already loaded."""
    request.refuse("a data set that is already loaded", "config", "revision")
    rows = next(iter(source.values()), None) if isinstance(source, datasets.DatasetDict) else source
    name = (rows is not None and rows.info.dataset_name) or "data set in memory"
    return _read(_table_of(source, request, "the loaded data set"), name, name, request, SourceMetadata())


def open_saved(source_name: str, path: Path) -> datasets.Dataset | datasets.DatasetDict:
    """Open a folder that `save_to_disk` wrote.

    Raises:
        ValueError: a file of it is missing or damaged.
    """
    try:
        saved = datasets.load_from_disk(str(path))
        for rows in saved.values() if isinstance(saved, datasets.DatasetDict) else [saved]:
            rows.data.table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise  # the disk or the rights to the file are to blame, not the data
        raise unreadable(source_name, "a file that save_to_disk wrote", error) from error
    return saved


def read_saved(source_name: str, path: Path, request: Request) -> Trajectories:
    """Read a folder that `save_to_disk` wrote."""
    request.refuse(f"the folder {source_name}, which save_to_disk wrote,", "config", "revision")
    table = _table_of(open_saved(source_name, path), request, f"the folder {source_name}")
    return _read(table, source_name, path.resolve().name, request, metadata_of_card(path / "README.md"))


def read_folder(source_name: str, path: Path, request: Request) -> Trajectories:
    """Read a local folder that is laid out like a data set of the Hub."""
    request.refuse(f"the local folder {source_name}", "revision")
    try:
        place, options = _place(path)
        table = _load(source_name, place, request, name=request.config, **options)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the folder {source_name} holds no data files; looked for {', '.join(BUILDERS)} and the "
            f"$store$_*_ckpt.N.gz of a DQN replay in {path.absolute()} ({shown(str(error), 300)}); files of other "
            "formats are named one by one"
        ) from error
    info = RobotInfo.read(path / INFO) if (path / INFO).is_file() else None
    return _read(table, source_name, path.resolve().name, request, _metadata_of_folder(path, info, request), info)


def read_file(source_name: str, path: Path, request: Request) -> Trajectories:
    """Read one local file that `builder_of` knows."""
    request.refuse(f"the local file {source_name}", "config", "revision")
    table = _load(source_name, str(builder_of(path)), request, data_files=str(path))
    return _read(table, source_name, beside(path).stem, request, metadata_beside(path))


def read_repository(repo_id: str, request: Request) -> Trajectories:
    """Read a data set of the Hub."""
    with _found_on_the_hub(repo_id):
        table = _load_repository(repo_id, request, **_chosen(repo_id, request))
    file = _file_of_repository(repo_id, INFO, request) if table.one_row_per_step else None
    info = None if file is None else RobotInfo.read(file)
    return _read(table, repo_id, repo_id, request, _metadata_of_repository(repo_id, info, request), info)


def find_parquet(source_name: str, path: Path, request: Request) -> tuple[list[str], str, SourceMetadata]:
    """Find the parquet files of a source without reading or downloading them.

    Returns:
        Where they are (paths, or hf:// on the Hub), what cards call the data set, and the metadata of its card.

    Raises:
        FileNotFoundError, ConnectionError: as `load_trajectories`.
        ValueError: there is no such split, or its files are no parquet files.
    """
    if path.is_file():
        request.refuse(f"the local file {source_name}", "config", "revision")
        files, name, metadata = {"train": [str(path)]}, beside(path).stem, metadata_beside(path)
    elif path.is_dir():
        request.refuse(f"the local folder {source_name}", "revision")
        place, options = _place(path)
        files = _files(source_name, place, name=request.config, **options)
        info = RobotInfo.read(path / INFO) if (path / INFO).is_file() else None
        name, metadata = path.resolve().name, _metadata_of_folder(path, info, request)
    else:
        with _found_on_the_hub(source_name):
            files = _files(source_name, source_name, revision=request.revision, **_chosen(source_name, request))
        of_robot = any("/data/chunk-" in file for found in files.values() for file in found)
        described = _file_of_repository(source_name, INFO, request) if of_robot else None
        info = None if described is None else RobotInfo.read(described)
        name, metadata = source_name, _metadata_of_repository(source_name, info, request)
    found = files.get(request.split)
    if found is None:
        raise ValueError(
            f"data set {source_name!r} has no split {request.split!r} to stream; it has {', '.join(files)}"
        )
    others = [file for file in found if not file.endswith(".parquet")]
    if others:
        raise ValueError(
            f"data set {source_name!r} cannot be streamed: only parquet files can, and it holds {others[0]}; load it "
            "without streaming"
        )
    return found, name, metadata


def _files(source_name: str, path: str, **options: Any) -> dict[str, list[str]]:
    """Return the data files of each split."""
    with _explained(source_name, options):
        found = datasets.load_dataset_builder(path, **options).config.data_files or {}
        chosen = {
            str(split): [str(file) for file in files if not is_about_data(file)] for split, files in found.items()
        }
        check_inside(path, chosen)
    return chosen


def _place(folder: Path) -> tuple[str, dict[str, str]]:
    """Return what `datasets` is to load a folder with, and options; by its files alone if its card cannot be read."""
    try:
        check_card(folder / "README.md")
    except ValueError:  # `metadata_of_card` warns of it
        endings = (file.suffix for file in sorted(folder.rglob("*")))
        builder = next((BUILDERS[ending] for ending in endings if ending in BUILDERS), "parquet")
        return builder, {"data_dir": str(folder), **_data_files(folder)}
    return str(folder), _data_files(folder)


def _data_files(folder: Path) -> dict[str, Any]:
    """Return the option of `datasets` that leaves out what lies beside the data: LeRobot's tables, and JSON files."""
    if (folder / INFO).is_file():
        return {"data_files": "data/**/*.parquet"}
    endings = Counter(file.suffix.lower() for file in folder.rglob("*"))
    if endings[".json"] <= endings[".parquet"] or not endings[".parquet"] or (folder / "README.md").is_file():
        return {}
    # `datasets` would take the most frequent kind of file for the data.
    patterns = get_data_patterns(str(folder))
    return {"data_files": DataFilesDict.from_patterns(patterns, str(folder), allowed_extensions=[".parquet"])}


def _metadata_of_folder(folder: Path, info: RobotInfo | None, request: Request) -> SourceMetadata:
    """Return what a folder's card, and the JSON files beside its data, say together; else what LeRobot does.

    Raises:
        ValueError: two of them say different things, or one is not JSON.
    """
    files = [] if (folder / INFO).is_file() else filter(builder_of, sorted(folder.rglob("*")))
    one_by_one = ", or name the files that belong together as a list, of which each keeps what is said of it"
    said = agreed([metadata_of_card(folder / "README.md"), *map(metadata_beside, files)], one_by_one)
    return said if info is None else said.over(info.metadata(request.columns))


def _chosen(repo_id: str, request: Request) -> dict[str, str | None]:
    """Return the options of `datasets` that choose a configuration."""
    exported = request.revision == PARQUET_REVISION
    if exported and request.config is None:
        raise ValueError(
            f"data set {repo_id!r}: at revision {PARQUET_REVISION!r} every configuration is a folder, and reading all "
            'would mix them; name one with config=... ("default" where there is only one)'
        )
    return {"data_dir": request.config} if exported else {"name": request.config}


@contextmanager
def _found_on_the_hub(repo_id: str) -> Iterator[None]:
    """Say where a repository was looked for."""
    tried = f"there is no file or folder {Path(repo_id).absolute()}"
    try:
        yield
    except (FileNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(f"no data set {repo_id!r}: {tried}, and on the Hub: {error}") from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise ConnectionError(
            f"no data set {repo_id!r}: {tried}, and the Hub cannot be reached or is switched off (HF_HUB_OFFLINE); "
            f"check the connection or give a local path ({error})"
        ) from error


def _metadata_of_repository(repo_id: str, info: RobotInfo | None, request: Request) -> SourceMetadata:
    """Return what a repository's card says; else what LeRobot does."""
    card = _file_of_repository(repo_id, "README.md", request)
    said = SourceMetadata() if card is None else metadata_of_card(card)
    return said if info is None else said.over(info.metadata(request.columns))


def _read(
    table: _Table,
    source_name: str,
    name: str,
    request: Request,
    metadata: SourceMetadata,
    info: RobotInfo | None = None,
) -> Trajectories:
    """Read the rows of a table.

    Args:
        table: the rows.
        source_name: what errors call the data set, as its user did.
        name: what cards call it.
        request: what to read of it.
        metadata: what it says about itself.
        info: what LeRobot says about it.
    """
    arguments = table.rows, source_name, name, request.columns, request.metadata(metadata)
    if table.one_row_per_step:
        steps = read_step_rows(*arguments, info or RobotInfo())
        trajectories = None if steps is None else choose_episodes(steps, request.split, source_name)
    else:
        trajectories = read_episode_rows(*arguments)
    if trajectories is None:
        raise ValueError(
            f"data set {source_name!r} has no episodes in split {request.split!r}; choose another split or source"
        )
    return trajectories


def _file_of_repository(repo_id: str, name: str, request: Request) -> Path | None:
    """Return a file that the trajectories can do without, None where there is none."""
    revision = None if request.revision == PARQUET_REVISION else request.revision
    try:
        return Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=revision))
    except (EntryNotFoundError, HfHubHTTPError):
        return None


def _load_repository(repo_id: str, request: Request, **options: Any) -> _Table:
    """Load rows from the Hub; without a connection, from what an earlier call has downloaded."""
    revision = request.revision
    try:
        return _load(repo_id, repo_id, request, revision=revision, **options)
    except (ConnectionError, HfHubHTTPError):
        # `datasets` finds what it has prepared itself, but other files are only among those that came from the Hub.
        with suppress(FileNotFoundError):
            folder = snapshot_download(repo_id, repo_type="dataset", revision=revision, local_files_only=True)
            return _load(repo_id, folder, request, **options)
        raise


def _load(source_name: str, path: str, request: Request, **options: Any) -> _Table:
    """Open the rows of a split; all rows, where they are single steps: slices are taken by whole episodes."""

    def load(split: str) -> Rows:
        rows = parquet_rows(source_name, path, split, options)
        return LoadedRows(_one_split(source_name, path, split, options)) if rows is None else rows

    with _explained(source_name, {**options, "split": request.split}):
        rows = load(request.split)
        by_step = has_one_row_per_step(rows.schema, request.columns)
        whole = whole_split(request.split)
        return _Table(load(whole) if by_step and whole != request.split else rows, by_step)


def _one_split(source_name: str, path: str, split: str, options: Mapping[str, Any]) -> datasets.Dataset:
    loaded = datasets.load_dataset(path, split=split, **options)
    if not isinstance(loaded, datasets.Dataset):
        raise ValueError(f"data set {source_name!r}: split={split!r} does not name one split")
    return loaded


@contextmanager
def _explained(source_name: str, chosen: Mapping[str, Any]) -> Iterator[None]:
    """Turn what `datasets` says about unreadable data into one error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"data set {source_name!r} is made by a script, which `datasets` no longer runs; for a Hub repository "
            f"load its parquet copy with revision={PARQUET_REVISION!r} and config=..."
        ) from error
    except StopIteration as error:
        raise unreadable(source_name, _bad_file(Path(source_name).expanduser()), ValueError("it is empty")) from error
    except (DatasetGenerationError, pa.ArrowException, *_UNPACKING_ERRORS) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise cause from None  # the disk is full or a file may not be opened: the data are not to blame
        file = _bad_file(Path(source_name).expanduser())
        raise unreadable(source_name, file, cause) from error
    except OSError as error:
        if str(error) == "Invalid data stream":
            raise unreadable(source_name, _bad_file(Path(source_name).expanduser()), error) from error
        raise
    except HFValidationError:
        raise
    except ValueError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in chosen.items() if value is not None)
        raise ValueError(f"data set {source_name!r} cannot be loaded with {given}: {error}") from error


def _bad_file(source: Path) -> str:
    """Name the file that cannot be read; of a folder, the first such parquet file, as `datasets` does not say which."""
    for file in [source] if source.is_file() else sorted(source.rglob("*.parquet")):
        try:
            for _ in pq.ParquetFile(file).iter_batches():
                pass
        except (pa.ArrowException, OSError):
            return f"the file {file}"
    return "a file"


def _table_of(source: datasets.Dataset | datasets.DatasetDict, request: Request, what: str) -> _Table:
    """Return the rows of a split of what is loaded; all rows, where they are single steps, as `_load` does."""
    whole = whole_split(request.split)
    if isinstance(source, datasets.DatasetDict):
        splits = {str(name): rows for name, rows in source.items()}
    else:
        splits = {whole if whole == str(source.split) else "train": source}
    schema = next((rows.features.arrow_schema for rows in splits.values()), pa.schema([]))
    by_step = has_one_row_per_step(schema, request.columns)
    split = whole if by_step else request.split
    try:
        lengths = {name: len(rows) for name, rows in splits.items()}
        pieces = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{what} has no split {split!r}; it has {', '.join(map(repr, splits))} ({error})") from error
    chosen = [splits[piece.splitname].select(range(piece.from_, piece.to)) for piece in pieces]
    shown = [shown_rows(what, piece) for piece in chosen]
    rows = shown[0] if len(shown) == 1 else LoadedRows(datasets.concatenate_datasets([one.dataset for one in shown]))
    return _Table(rows, by_step)

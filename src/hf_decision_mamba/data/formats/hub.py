"""Tables that `datasets` opens: of the Hub, of a folder laid out like a repository, a file, or already loaded.

How a table is opened is known here; what its rows are, one episode or one step, its columns say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from ..facts import SourceFacts, facts_beside, facts_of_card
from ..splits import choose_episodes, whole_split
from ..trajectories import Trajectories
from .episode_rows import read_episode_rows
from .rows import LoadedRows, Rows, is_about_data, parquet_rows, unreadable
from .step_rows import INFO, RobotInfo, has_one_row_per_step, read_step_rows

#: The Hub keeps a parquet copy of many data sets, also of those made by a script, at this revision.
PARQUET_REVISION = "refs/convert/parquet"
#: What `datasets` reads, by ending.
BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}

_SECONDS_TO_ANSWER = 10.0
_REPOSITORY_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_repository_id(source: str) -> bool:
    """Whether this could be a repository of the Hub, `organisation/name`."""
    return _REPOSITORY_ID.fullmatch(source) is not None


def resolved_commit(repo_id: str, revision: str | None) -> str | None:
    """Return the commit that a revision is; without a connection, that of what has been downloaded.

    Returns:
        None if it cannot be found out.
    """
    with suppress(OSError, HFValidationError):
        if not datasets.config.HF_HUB_OFFLINE:
            return HfApi().dataset_info(repo_id, revision=revision, timeout=_SECONDS_TO_ANSWER).sha
    with suppress(OSError, HFValidationError):
        folder = snapshot_download(repo_id, repo_type="dataset", revision=revision, local_files_only=True)
        return Path(folder).name
    return None


@dataclass(frozen=True)
class Request:
    """What to read of a source: the arguments of `load_trajectories`."""

    split: str = "train"
    config: str | None = None
    revision: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def refuse(self, what: str, *names: str) -> None:
        """Refuse options that would silently do nothing.

        Raises:
            ValueError: one of these options was given.
        """
        for name in names:
            value = getattr(self, name)
            if value:
                raise ValueError(f"{name}={value!r} has no meaning for {what}; leave it out")


@dataclass(frozen=True)
class _Opened:
    """A table that could be opened: its rows, what errors call it (as the user did), what cards call it, its facts."""

    rows: Rows
    label: str
    name: str
    facts: SourceFacts = field(default_factory=SourceFacts)
    info: RobotInfo = field(default_factory=RobotInfo)


def read_loaded(source: datasets.Dataset | datasets.DatasetDict, request: Request) -> Trajectories:
    """Read a data set that is already loaded."""
    request.refuse("a data set that is already loaded", "config", "revision")
    rows = _choose_split(source, request.split) if isinstance(source, datasets.DatasetDict) else source
    name = rows.info.dataset_name or "data set in memory"
    return _read(_Opened(LoadedRows(rows), label=name, name=name), request)


def read_folder(text: str, path: Path, request: Request) -> Trajectories:
    """Read a local folder that is laid out like a data set of the Hub."""
    request.refuse(f"the local folder {text}", "revision")
    try:
        rows = _load(text, str(path), request, name=request.config, **_data_files(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the folder {text} holds no data files; looked for {', '.join(BUILDERS)} and the $store$_*_ckpt.N.gz of a "
            f"DQN replay in {path.absolute()} ({error}); files of other formats are named one by one"
        ) from error
    info = RobotInfo.read(path / INFO) if (path / INFO).is_file() else RobotInfo()
    facts = facts_of_card(path / "README.md")
    return _read(_Opened(rows, label=text, name=path.resolve().name, facts=facts, info=info), request)


def read_file(text: str, path: Path, request: Request) -> Trajectories:
    """Read one local file by its ending, which is one of `BUILDERS`."""
    request.refuse(f"the local file {text}", "config", "revision")
    rows = _load(text, BUILDERS[path.suffix.lower()], request, data_files=str(path))
    return _read(_Opened(rows, label=text, name=path.stem, facts=facts_beside(path)), request)


def read_repository(repo_id: str, request: Request) -> Trajectories:
    """Read a data set of the Hub."""
    with _found_on_the_hub(repo_id):
        rows = _load_repository(repo_id, request, **_chosen(repo_id, request))
    info = None
    if has_one_row_per_step(rows.schema, request.columns):
        info = _file_of_repository(repo_id, INFO, request)
    opened = _Opened(
        rows,
        label=repo_id,
        name=repo_id,
        facts=_facts_of_repository(repo_id, request),
        info=RobotInfo() if info is None else RobotInfo.read(info),
    )
    return _read(opened, request)


def find_parquet(text: str, path: Path, request: Request) -> tuple[list[str], str, SourceFacts]:
    """Find the parquet files of a source without reading or downloading them.

    Returns:
        Where they are (paths, or hf:// on the Hub), what cards call the data set, and the facts of its card.

    Raises:
        FileNotFoundError, ConnectionError: as `load_trajectories`.
        ValueError: there is no such split, or its files are no parquet files.
    """
    if path.is_file():
        request.refuse(f"the local file {text}", "config", "revision")
        files, name, facts = {"train": [str(path)]}, path.stem, facts_beside(path)
    elif path.is_dir():
        request.refuse(f"the local folder {text}", "revision")
        files = _files(text, str(path), name=request.config, **_data_files(path))
        name, facts = path.resolve().name, facts_of_card(path / "README.md")
    else:
        with _found_on_the_hub(text):
            files = _files(text, text, revision=request.revision, **_chosen(text, request))
        name, facts = text, _facts_of_repository(text, request)
    found = files.get(request.split)
    if found is None:
        raise ValueError(f"data set {text!r} has no split {request.split!r} to stream; it has {', '.join(files)}")
    others = [file for file in found if not file.endswith(".parquet")]
    if others:
        raise ValueError(
            f"data set {text!r} cannot be streamed: only parquet files can, and it holds {others[0]}; load it without "
            "streaming"
        )
    return found, name, facts


def _files(label: str, path: str, **options: Any) -> dict[str, list[str]]:
    """Return the data files of each split."""
    with _explained(label, options):
        found = datasets.load_dataset_builder(path, **options).config.data_files or {}
    return {str(split): [str(file) for file in files if not is_about_data(file)] for split, files in found.items()}


def _data_files(folder: Path) -> dict[str, str]:
    """Return the option of `datasets` that leaves out LeRobot's tables about the data, which lie beside the data."""
    return {"data_files": "data/**/*.parquet"} if (folder / INFO).is_file() else {}


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


def _facts_of_repository(repo_id: str, request: Request) -> SourceFacts:
    card = _file_of_repository(repo_id, "README.md", request)
    return SourceFacts() if card is None else facts_of_card(card)


def _read(opened: _Opened, request: Request) -> Trajectories:
    """Read the rows for what their columns say that they are."""
    arguments = opened.rows, opened.label, opened.name, request.columns, opened.facts
    if has_one_row_per_step(opened.rows.schema, request.columns):
        steps = read_step_rows(*arguments, opened.info)
        trajectories = None if steps is None else choose_episodes(steps, request.split, opened.label)
    else:
        trajectories = read_episode_rows(*arguments)
    if trajectories is None:
        raise ValueError(
            f"data set {opened.label!r} has no episodes in split {request.split!r}; choose another split or source"
        )
    return trajectories


def _file_of_repository(repo_id: str, name: str, request: Request) -> Path | None:
    """Return a file that the trajectories can do without, None where there is none."""
    revision = None if request.revision == PARQUET_REVISION else request.revision
    try:
        return Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=revision))
    except (EntryNotFoundError, HfHubHTTPError):
        return None


def _load_repository(repo_id: str, request: Request, **options: Any) -> Rows:
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


def _load(label: str, path: str, request: Request, **options: Any) -> Rows:
    """Open the rows of a split. Of rows that are single steps, open all: slices are taken by whole episodes."""

    def load(split: str) -> Rows:
        rows = parquet_rows(label, path, split, options)
        return LoadedRows(_one_split(label, path, split, options)) if rows is None else rows

    with _explained(label, {**options, "split": request.split}):
        rows = load(request.split)
        whole = whole_split(request.split)
        return load(whole) if whole != request.split and has_one_row_per_step(rows.schema, request.columns) else rows


def _one_split(label: str, path: str, split: str, options: Mapping[str, Any]) -> datasets.Dataset:
    loaded = datasets.load_dataset(path, split=split, **options)
    if not isinstance(loaded, datasets.Dataset):
        raise ValueError(f"data set {label!r}: split={split!r} does not name one split")
    return loaded


@contextmanager
def _explained(label: str, chosen: Mapping[str, Any]) -> Iterator[None]:
    """Turn what `datasets` says about unreadable data into one error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"data set {label!r} is made by a script, which `datasets` no longer runs; for a Hub repository load its "
            f"parquet copy with revision={PARQUET_REVISION!r} and config=..."
        ) from error
    except (DatasetGenerationError, pa.ArrowException) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise cause from None  # the disk is full or a file may not be opened: the data are not to blame
        file = _bad_file(Path(label).expanduser())
        raise unreadable(label, file, cause) from error
    except HFValidationError:
        raise
    except ValueError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in chosen.items() if value is not None)
        raise ValueError(f"data set {label!r} cannot be loaded with {given}: {error}") from error


def _bad_file(source: Path) -> str:
    """Name the file that cannot be read; of a folder, the first such parquet file, as `datasets` does not say which."""
    for file in [source] if source.is_file() else sorted(source.rglob("*.parquet")):
        try:
            for _ in pq.ParquetFile(file).iter_batches():
                pass
        except (pa.ArrowException, OSError):
            return f"the file {file}"
    return "a file"


def _choose_split(splits: datasets.DatasetDict, split: str) -> datasets.Dataset:
    if split not in splits:
        raise ValueError(f"the loaded data set has no split {split!r}; it has {', '.join(map(repr, splits))}")
    return splits[split]

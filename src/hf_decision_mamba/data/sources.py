"""From where people keep trajectories to `Trajectories`: data sets of the Hub, of a folder, a file or memory.

What a source is and how it is opened is known here alone; `rows` gives its columns, `episode_rows` flattens them.
Layout: one row per episode, the layout of the Decision Transformer data sets on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from .episode_rows import read_episodes
from .facts import SourceFacts, facts_beside, facts_of_card
from .rows import LoadedRows, Rows, binary_rows, unreadable
from .trajectories import Trajectories

Source: TypeAlias = str | Path | datasets.Dataset | datasets.DatasetDict

#: The Hub keeps a parquet copy of many data sets, also of those made by a script, at this revision.
PARQUET_REVISION = "refs/convert/parquet"

_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_REPOSITORY_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_PICKLES = {".pkl", ".pickle"}


def load_trajectories(
    source: Source,
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> Trajectories:
    """Load and check trajectories from wherever `datasets` can read them.

    One row is one episode of T steps, with the columns `observations` (T, S), `actions` (T, A) and `rewards` (T,), and
    with `terminations` and `truncations`, or `dones`, (T,). Other columns are left alone.

    - Actions that are one integer a step, (T,), are discrete.
    - Observations that are bytes are images: T grey frames of H times W pixels, one after the other, with none after
      the last action. Parquet files of them are read as they are: the cache of `datasets` would hold them unpacked.

    How an episode ends:

    - `terminations` or `truncations` present: they say it, and `dones` is not read. Where only `truncations` is there,
      an episode that was not truncated terminated.
    - only `dones`: one flag cannot tell the two apart, so an episode that ends with it counts as terminated.
    - an episode that ends without a flag, or a source that has none of them: truncated, as its recording stopped.

    The environment id, the shape of a frame (84 by 84 where nothing says it) and the number of discrete actions (the
    largest one taken + 1 where nothing says it) are read from the card, `environment: {id: ..., obs_shape: [H, W],
    num_actions: ...}` in the front matter of README.md; for a single file, from the JSON file of the same name beside
    it, `{"env_id": ..., "obs_shape": [H, W], "num_actions": ...}`.

    Args:
        source: a Hub repository id (`org/name`), a folder laid out like one, a .parquet, .json, .jsonl or .arrow file,
            or a `Dataset` or `DatasetDict` that is already loaded. What exists locally is not looked for on the Hub.
        config: the data set's configuration, where it has several; always with the revision of parquet copies.
        revision: branch, tag or commit of a Hub repository.
        split: which split to read; slices such as "train[:10%]" work, but for a loaded data set.
        columns: names of the source's columns by ours, for example `{"observations": "obs"}`.

    Raises:
        FileNotFoundError: nothing is at the source; says what was looked for.
        ConnectionError: the Hub cannot be reached.
        TypeError: the source is not one of the kinds above.
        ValueError: the source cannot be read, or an episode is not what it should be; names data set, episode, step and
            column where there are such.
    """
    opened = _open(source, config, revision, split)
    episodes = read_episodes(opened.rows, opened.label, columns or {}, opened.facts)
    if episodes is None:
        raise ValueError(
            f"data set {opened.label!r} has no episodes in split {split!r}; choose another split or source"
        )
    trajectories = Trajectories(**episodes, name=opened.name, env_id=opened.facts.env_id)
    trajectories.check_finite()
    return trajectories


@dataclass(frozen=True)
class _Opened:
    """A source that could be opened: its rows, what errors call it (as the user did), what cards call it, its facts."""

    rows: Rows
    label: str
    name: str
    facts: SourceFacts = field(default_factory=SourceFacts)


def _open(source: Source, config: str | None, revision: str | None, split: str) -> _Opened:
    """Find out what the source is and open it."""
    if isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        _refuse_options("a data set that is already loaded", config=config, revision=revision)
        rows = _choose_split(source, split) if isinstance(source, datasets.DatasetDict) else source
        name = rows.info.dataset_name or "data set in memory"
        return _Opened(LoadedRows(rows), label=name, name=name)
    if not isinstance(source, (str, Path)):
        raise TypeError(
            f"trajectories come from a Hub repository id, a path, or a loaded Dataset or DatasetDict, not from "
            f"{type(source).__name__}"
        )
    text, path = str(source), Path(source).expanduser()
    if path.suffix.lower() in _PICKLES:
        raise ValueError(
            f"{text}: pickle files are not read, because unpickling can run any code; save the episodes as parquet, "
            "for example with datasets.Dataset.from_list(episodes).to_parquet(...)"
        )
    if path.is_dir():
        return _open_folder(text, path, config, revision, split)
    if path.is_file():
        return _open_file(text, path, config, revision, split)
    if isinstance(source, Path) or path.suffix.lower() in _BUILDERS or not _REPOSITORY_ID.fullmatch(text):
        raise FileNotFoundError(
            f"no data set at {text!r}: there is no file or folder {path.absolute()}, and it is not a repository id of "
            "the Hub (organisation/name)"
        )
    return _open_hub(text, config, revision, split)


def _open_folder(text: str, path: Path, config: str | None, revision: str | None, split: str) -> _Opened:
    """Open a local folder that is laid out like a data set of the Hub."""
    _refuse_options(f"the local folder {text}", revision=revision)
    try:
        rows = _load(text, str(path), name=config, split=split)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the folder {text} holds no data files; looked for {', '.join(_BUILDERS)} in {path.absolute()} ({error})"
        ) from error
    return _Opened(rows, label=text, name=path.resolve().name, facts=facts_of_card(path / "README.md"))


def _open_file(text: str, path: Path, config: str | None, revision: str | None, split: str) -> _Opened:
    """Open one local file by its ending."""
    _refuse_options(f"the local file {text}", config=config, revision=revision)
    builder = _BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise ValueError(f"{text}: cannot read a file of this kind; known endings: {', '.join(_BUILDERS)}")
    rows = _load(text, builder, data_files=str(path), split=split)
    return _Opened(rows, label=text, name=path.stem, facts=facts_beside(path))


def _open_hub(repo_id: str, config: str | None, revision: str | None, split: str) -> _Opened:
    """Open a data set of the Hub."""
    exported = revision == PARQUET_REVISION
    if exported and config is None:
        raise ValueError(
            f"data set {repo_id!r}: at revision {PARQUET_REVISION!r} every configuration is a folder, and reading all "
            'would mix them; name one with config=... ("default" where there is only one)'
        )
    chosen = {"data_dir": config} if exported else {"name": config}
    tried = f"there is no file or folder {Path(repo_id).absolute()}"
    try:
        rows = _load_hub(repo_id, split, revision, **chosen)
    except (FileNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(f"no data set {repo_id!r}: {tried}, and on the Hub: {error}") from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise ConnectionError(
            f"no data set {repo_id!r}: {tried}, and the Hub cannot be reached or is switched off (HF_HUB_OFFLINE); "
            f"check the connection or give a local path ({error})"
        ) from error
    try:
        card = hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=None if exported else revision)
    except (EntryNotFoundError, HfHubHTTPError):
        return _Opened(rows, label=repo_id, name=repo_id)  # the trajectories do not need the card
    return _Opened(rows, label=repo_id, name=repo_id, facts=facts_of_card(Path(card)))


def _load_hub(repo_id: str, split: str, revision: str | None, **options: Any) -> Rows:
    """Load rows from the Hub; without a connection, from what an earlier call has downloaded."""
    try:
        return _load(repo_id, repo_id, split, revision=revision, **options)
    except (ConnectionError, HfHubHTTPError):
        # `datasets` finds what it has prepared itself, but frames are only among the files that came from the Hub.
        with suppress(FileNotFoundError):
            folder = snapshot_download(repo_id, repo_type="dataset", revision=revision, local_files_only=True)
            return _load(repo_id, folder, split, **options)
        raise


def _load(label: str, path: str, split: str, **options: Any) -> Rows:
    """Open rows by `datasets`, and turn what it says about unreadable data into one error that says what to do."""
    try:
        frames = binary_rows(label, path, split, options)
        if frames is not None:
            return frames
        loaded = datasets.load_dataset(path, split=split, **options)
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
        chosen = {**options, "split": split}
        given = ", ".join(f"{name}={value!r}" for name, value in chosen.items() if value is not None)
        raise ValueError(f"data set {label!r} cannot be loaded with {given}: {error}") from error
    if not isinstance(loaded, datasets.Dataset):
        raise ValueError(f"data set {label!r}: split={split!r} does not name one split")
    return LoadedRows(loaded)


def _bad_file(source: Path) -> str:
    """Name the file that cannot be read; of a folder, the first such parquet file, as `datasets` does not say which."""
    for file in [source] if source.is_file() else sorted(source.rglob("*.parquet")):
        try:
            for _ in pq.ParquetFile(file).iter_batches():
                pass
        except (pa.ArrowException, OSError):
            return f"the file {file}"
    return "a file"


def _refuse_options(what: str, **options: str | None) -> None:
    """Refuse options that would silently do nothing."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} has no meaning for {what}; leave it out")


def _choose_split(splits: datasets.DatasetDict, split: str) -> datasets.Dataset:
    if split not in splits:
        raise ValueError(f"the loaded data set has no split {split!r}; it has {', '.join(map(repr, splits))}")
    return splits[split]

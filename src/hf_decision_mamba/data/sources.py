"""From where people keep trajectories to `Trajectories`: data sets of the Hub, of a folder, a file or memory.

All knowledge of formats is here. Arrow columns become flat arrays without passing through Python lists.
Layout: one row per episode, the layout of the Decision Transformer data sets on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import DatasetCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from numpy.typing import NDArray

from .trajectories import Trajectories, locate

Source: TypeAlias = str | Path | datasets.Dataset | datasets.DatasetDict

#: The Hub keeps a parquet copy of many data sets, also of those made by a script, at this revision.
PARQUET_REVISION = "refs/convert/parquet"

_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_REPOSITORY_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_PICKLES = {".pkl", ".pickle"}
_VALUES = ("observations", "actions", "rewards")
_FLAGS = ("terminations", "truncations", "dones")


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
    with `terminations` and `truncations`, or `dones`, (T,). Other columns are left alone. How an episode ends:

    - `terminations` or `truncations` present: they say it, and `dones` is not read. Where only `truncations` is there,
      an episode that was not truncated terminated.
    - only `dones`: one flag cannot tell the two apart, so an episode that ends with it counts as terminated.
    - an episode that ends without a flag, or a source that has none of them: truncated, as its recording stopped.

    The environment id is read from the data set's card: `environment: {id: ...}` in the front matter of README.md.

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
    names = _column_names(opened.label, opened.rows.column_names, columns or {})
    table = opened.rows.select_columns(list(names.values())).with_format("arrow")[:]
    if table.num_rows == 0:
        raise ValueError(
            f"data set {opened.label!r} has no episodes in split {split!r}; choose another split or source"
        )
    trajectories = _from_table(table, names, opened)
    trajectories.check_finite()
    return trajectories


@dataclass(frozen=True)
class _Opened:
    """A source that could be opened: its rows, what errors call it (as the user did), what cards call it, its task."""

    rows: datasets.Dataset
    label: str
    name: str
    env_id: str | None = None


def _open(source: Source, config: str | None, revision: str | None, split: str) -> _Opened:
    """Find out what the source is and open it."""
    if isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        _refuse_options("a data set that is already loaded", config=config, revision=revision)
        rows = _choose_split(source, split) if isinstance(source, datasets.DatasetDict) else source
        name = rows.info.dataset_name or "data set in memory"
        return _Opened(rows, label=name, name=name)
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
    return _Opened(rows, label=text, name=path.resolve().name, env_id=_environment_id(path / "README.md"))


def _open_file(text: str, path: Path, config: str | None, revision: str | None, split: str) -> _Opened:
    """Open one local file by its ending."""
    _refuse_options(f"the local file {text}", config=config, revision=revision)
    builder = _BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise ValueError(f"{text}: cannot read a file of this kind; known endings: {', '.join(_BUILDERS)}")
    rows = _load(text, builder, data_files=str(path), split=split)
    return _Opened(rows, label=text, name=path.stem)


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
        rows = _load(repo_id, repo_id, revision=revision, split=split, **chosen)
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
    return _Opened(rows, label=repo_id, name=repo_id, env_id=_environment_id(Path(card)))


def _load(label: str, path: str, **options: Any) -> datasets.Dataset:
    """Call `datasets.load_dataset`, and turn what it says about unreadable data into one error that says what to do."""
    try:
        loaded = datasets.load_dataset(path, **options)
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
        raise ValueError(
            f"data set {label!r} cannot be read: {file} is corrupted, truncated or not what its ending says "
            f"({type(cause).__name__}: {cause}); get it again"
        ) from error
    except HFValidationError:
        raise
    except ValueError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)
        raise ValueError(f"data set {label!r} cannot be loaded with {given}: {error}") from error
    if not isinstance(loaded, datasets.Dataset):
        raise ValueError(f"data set {label!r}: split={options['split']!r} does not name one split")
    return loaded


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


def _environment_id(card: Path) -> str | None:
    """Read the environment id from the front matter of a data set card, if there is one."""
    if not card.is_file():
        return None
    environment = DatasetCard.load(card, ignore_metadata_errors=True).data.get("environment")
    env_id = environment.get("id") if isinstance(environment, Mapping) else None
    return env_id if isinstance(env_id, str) else None


def _column_names(label: str, found: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the source's names of the columns to read, by ours."""
    known = (*_VALUES, *_FLAGS)
    unknown = [ours for ours in columns if ours not in known]
    if unknown:
        raise ValueError(f"columns: {unknown[0]!r} is none of our columns; map from {', '.join(known)}")
    names = {ours: columns.get(ours, ours) for ours in known}
    for ours in known:
        if names[ours] in found or (ours in _FLAGS and ours not in columns):
            continue
        raise ValueError(
            f"data set {label!r} has no column {names[ours]!r} for the {ours}; its columns are {', '.join(found)}. "
            f'Say which one it is with columns={{"{ours}": "..."}}'
        )
    present = {ours: theirs for ours, theirs in names.items() if theirs in found}
    if "terminations" in present or "truncations" in present:
        present.pop("dones", None)
    return present


class _Column:
    """One column in memory: the flat values and the lengths of its episodes, with the checks of its form.

    `values` is (N,), or (N, D) when `ndim` is 2; `lengths` is (E,). Every error names where in the source it was.
    """

    def __init__(self, label: str, ours: str, theirs: str, data: pa.ChunkedArray) -> None:
        self.where = f"data set {label!r}, column {theirs!r}"
        self.label, self.theirs = label, theirs
        self.flag = ours in _FLAGS
        self.ndim = 2 if ours in ("observations", "actions") else 1
        self._check_type(data.type)
        self.lengths, steps = self._unnest(data)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        self.values = self._flatten(steps)

    def at(self, row: int) -> str:
        """Say where a row of the flat values is."""
        episode, step = locate(self.offsets, row)
        return f"data set {self.label!r}, episode {episode}, step {step}, column {self.theirs!r}"

    def _check_type(self, found: pa.DataType) -> None:
        """Check that the column is numbers (or true and false) in as many lists as it has dimensions."""
        inner = _storage_type(found)
        for _ in range(self.ndim):
            if not _is_list(inner):
                break
            inner = _storage_type(inner.value_type)
        else:
            numbers = pa.types.is_integer(inner) or pa.types.is_floating(inner)
            if numbers or (self.flag and pa.types.is_boolean(inner)):
                return
        if pa.types.is_null(inner):
            return  # nothing but empty lists or nulls: the checks of lengths and nulls say where
        what = "true or false" if self.flag else "one number" if self.ndim == 1 else "a list of numbers"
        raise ValueError(
            f"{self.where}: expected one row per episode with {what} for each step, found {found}; "
            "convert the column, or map another one with columns={...}"
        )

    def _unnest(self, data: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[pa.Array]]:
        """Return the length of each episode, and the steps of all episodes in pieces."""
        lengths, steps = [np.empty(0, np.int64)], []
        for chunk in map(_storage, data.chunks):
            if chunk.null_count:
                before = sum(map(len, lengths))
                episode = before + int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])
                raise ValueError(
                    f"data set {self.label!r}, episode {episode}, column {self.theirs!r} is null; remove it"
                )
            lengths.append(pc.list_value_length(chunk).to_numpy(zero_copy_only=False).astype(np.int64))
            steps.append(_storage(chunk.flatten()))
        return np.concatenate(lengths), steps

    def _flatten(self, steps: list[pa.Array]) -> np.ndarray:
        """Return the steps as one array, (N,) or (N, D)."""
        self._refuse_nulls(steps, per_step=1)
        if self.ndim == 1:
            return _join(steps)
        if not self.offsets[-1]:
            return np.empty((0, 1), np.float32)
        widths = np.concatenate([pc.list_value_length(piece) for piece in steps])
        ragged = np.flatnonzero(widths != widths[0])
        if len(ragged):
            raise ValueError(
                f"{self.at(int(ragged[0]))}: {widths[ragged[0]]} numbers, where the first step of the data set has "
                f"{widths[0]}; every step needs the same dimensions"
            )
        if widths[0] == 0:
            raise ValueError(f"{self.at(0)}: the step has no numbers")
        leaves = [piece.flatten() for piece in steps]
        self._refuse_nulls(leaves, per_step=int(widths[0]))
        return _join(leaves).reshape(len(widths), widths[0])

    def _refuse_nulls(self, pieces: list[pa.Array], per_step: int) -> None:
        """Refuse a missing value; `per_step` values make one step."""
        before = 0
        for piece in pieces:
            if piece.null_count:
                place = before + int(np.flatnonzero(piece.is_null().to_numpy(zero_copy_only=False))[0])
                raise ValueError(
                    f"{self.at(place // per_step)}: a value is missing (null); correct or remove this episode"
                )
            before += len(piece)


def _is_list(found: pa.DataType) -> bool:
    return bool(pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found))


def _storage_type(found: pa.DataType) -> pa.DataType:
    """Return the plain type of an extension type such as `datasets.Array2D`."""
    return found.storage_type if isinstance(found, pa.BaseExtensionType) else found


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _join(pieces: list[pa.Array]) -> np.ndarray:
    arrays = [piece.to_numpy(zero_copy_only=False) for piece in pieces]
    return np.concatenate(arrays) if arrays else np.empty(0, np.float32)


def _from_table(table: pa.Table, names: Mapping[str, str], opened: _Opened) -> Trajectories:
    """Turn an Arrow table with one row per episode into flat columns."""
    read = {ours: _Column(opened.label, ours, theirs, table.column(theirs)) for ours, theirs in names.items()}
    _check_lengths(opened.label, read)
    offsets = read["observations"].offsets
    terminations, truncations = _endings({ours: _flag(column) for ours, column in read.items() if column.flag}, offsets)
    with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite, and the next check reports it
        values = {ours: np.ascontiguousarray(read[ours].values, dtype=np.float32) for ours in _VALUES}
    return Trajectories(
        **values,
        terminations=terminations,
        truncations=truncations,
        episode_offsets=offsets,
        name=opened.name,
        env_id=opened.env_id,
    )


def _check_lengths(label: str, read: Mapping[str, _Column]) -> None:
    """Check that an episode has as many steps in every column, and at least one."""
    observations = read["observations"]
    for column in read.values():
        different = np.flatnonzero(column.lengths != observations.lengths)
        if len(different) == 0:
            continue
        episode, more = different[0], observations.lengths - column.lengths
        final_observation = "leave out the observation after the last action of each episode"
        raise ValueError(
            f"data set {label!r}, episode {episode}: the number of steps differs, {observations.lengths[episode]} in "
            f"column {observations.theirs!r} and {column.lengths[episode]} in column {column.theirs!r}; "
            + (final_observation if (more == 1).all() else "every step needs a value in each column")
        )
    empty = np.flatnonzero(observations.lengths == 0)
    if len(empty):
        raise ValueError(
            f"data set {label!r}, episode {empty[0]} is empty in column {observations.theirs!r}; every episode needs "
            "one step or more, so remove it"
        )


def _flag(column: _Column) -> NDArray[np.bool_]:
    """Return true and false (N,), which may only be true at the last step of an episode."""
    values = column.values
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise ValueError(f"{column.at(int(wrong[0]))}: expected true or false (1 or 0), found {values[wrong[0]]}")
    flags = values.astype(np.bool_)
    inside = flags.copy()
    inside[column.offsets[1:] - 1] = False
    early = np.flatnonzero(inside)
    if len(early):
        raise ValueError(
            f"{column.at(int(early[0]))}: the episode ends here, but its row goes on; one row must be one episode, so "
            "split it"
        )
    return flags


def _endings(
    flags: Mapping[str, NDArray[np.bool_]], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (terminations, truncations) from what the source has, by the rules of `load_trajectories`."""
    last = np.zeros(offsets[-1], dtype=np.bool_)
    last[offsets[1:] - 1] = True
    truncations = flags.get("truncations", np.zeros_like(last))
    if "truncations" in flags and "terminations" not in flags:
        return last & ~truncations, truncations
    terminations = flags.get("terminations", flags.get("dones", np.zeros_like(last)))
    return terminations, truncations | (last & ~terminations)

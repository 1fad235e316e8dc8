"""From where people keep trajectories to `Trajectories`: what a source is decides which adaptor reads it.

The formats themselves are in `formats`, a file for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from .cache import cached, files_of
from .formats import arrays, d4rl, dqn_replay, dt_pickle, hub, minari
from .formats.rows import DAMAGE, in_short, shown
from .metadata import COMPRESSED, SourceFacts, facts_beside
from .request import PARQUET_REVISION, Request, is_repository_id, resolved_commit
from .splits import choose_episodes, only_train
from .trajectories import Trajectories, concatenate

#: What has a name: a path, a repository of the Hub, a Minari id; or several of them, or a pattern such as `runs/*.pkl`.
Named: TypeAlias = str | Path | Sequence[str | Path]
Source: TypeAlias = Named | datasets.Dataset | datasets.DatasetDict | Sequence[Mapping[str, Any]] | Mapping[str, Any]

_FILES: dict[str, Callable[[str, Path, Mapping[str, str], SourceFacts], Trajectories]] = {
    **dict.fromkeys(d4rl.SUFFIXES, d4rl.read_d4rl),
    **dict.fromkeys(dt_pickle.SUFFIXES, dt_pickle.read_dt_pickle),
}
_LONGEST_MESSAGE = 1500
_ENDINGS = (*hub.BUILDERS, *_FILES)
_NAMES_SHOWN = 4  # of several sources, in the name of what they are together


def load_trajectories(
    source: Source,
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    action_type: str | None = None,
) -> Trajectories:
    """Load and check trajectories from wherever people keep them; `docs/data.md` shows each format.

    A table with one row per episode of T steps has the columns `observations` (T, S), `actions` (T, A) and `rewards`
    (T,), and `terminations` and `truncations`, or `dones`, (T,). A table with one row per step (LeRobot) has one value
    of each a row, and a column that says the episode. Other columns are left alone.

    - Actions that are one integer a step, (T,) or (T, 1), are discrete. Others are continuous, unless the source or
      `action_type` says more: whole numbers, true and false and one-hot rows are so with a warning. They are clipped to
      their space: [-1, 1] where nothing says it; with a value beyond 1.5 they are then in units of their own, and stay
      as they are.
    - Observations that are bytes are images: T grey frames of H times W pixels, one after the other. So are arrays
      (T, H, W) of bytes, also with an axis for one channel or for a stack of frames, of which the newest, the last, is
      kept; and pictures, the `Image` of `datasets`. Colours are refused. Parquet files of bytes are read as they are:
      the cache of `datasets` would hold them unpacked.
    - An observation after the last action of an episode, T + 1 in all, is left out.

    How an episode ends:

    - `terminations` or `truncations` present: they say it, and `dones` is not read. Where only `truncations` is there,
      an episode that was not truncated terminated.
    - only `dones`: one flag cannot tell the two apart, so an episode that ends with it counts as terminated.
    - an episode that ends without a flag, or a source that has none of them: truncated, as its recording stopped.

    The environment id, the shape of a frame (84 by 84 where nothing says it), the number of discrete actions (the
    largest one taken + 1 where nothing says it) and the space of continuous ones are read from the card, `environment:
    {id: ..., obs_shape: [H, W], num_actions: ..., action_low: ..., action_high: ...}` in the front matter of README.md;
    for a single file, from the JSON file of the same name beside it, `{"env_id": ..., "obs_shape": [H, W], ...}`. In a
    folder of such files, what they and the card say has to agree.

    Args:
        source: one of

            - a Hub repository id (`org/name`), a folder laid out like one or written by `save_to_disk`, a .parquet,
              .json, .jsonl (also .gz) or .arrow file, or a `Dataset` or `DatasetDict` that is already loaded. What
              exists locally is not looked for on the Hub.
            - `minari:` and the id of a Minari data set.
            - a D4RL file (.hdf5, .h5), or a pickle (.pkl, .pickle) of dicts of NumPy arrays, of which no code runs.
            - a folder of the DQN replay data set: a game, a run of it, or its `replay_logs`.
            - a list of dicts of arrays, one an episode, or a dict of flat arrays of all episodes.
            - a list of any of the above that have a name, or a pattern of paths such as "runs/*.parquet": their
              episodes together, one source after the other. Each is read by its own rules and facts; their columns must
              have the same dimensions, and their environments, where they say them, must be one.
        config: the data set's configuration, where it has several; always with the revision of parquet copies. For a
            DQN replay, the number of transitions to take, or "all".
        revision: branch, tag or commit of a Hub repository.
        split: which split to read; slices such as "train[:10%]" are taken by whole episodes, of each source.
        columns: names of the source's columns by ours, for example `{"observations": "obs"}`.
        action_type: what the actions are, where their numbers do not say it: "discrete" makes integers of whole
            numbers, true and false, and one-hot rows; "continuous" leaves integers the numbers that they are.

    Raises:
        FileNotFoundError: nothing is at the source; says what was looked for.
        ConnectionError: the Hub cannot be reached.
        ImportError: the package that reads this format is not installed; says which extra to install.
        TypeError: the source is not one of the kinds above.
        ValueError: the source cannot be read, or an episode is not what it should be; names data set, episode, step and
            column where there are such.
    """
    request = Request(split, config, revision, columns or {}, action_type)
    names = named_sources(source)
    if names is None:
        return _checked(source, request)
    label = " ".join(map(str, names))

    def read() -> Trajectories:
        try:
            parts = [_checked(name, request) for name in names]
            return parts[0] if len(parts) == 1 else _together(parts)
        except DAMAGE as error:
            if _is_of_the_machine(error):
                raise
            said = str(error) if isinstance(error, ValueError) else _unreadable(label, error)
            raise ValueError(
                f"{shown(said, _LONGEST_MESSAGE)}\n`hf-decision-mamba inspect-data {label}` shows what is there"
            ) from error

    identities = [_identity(name, request) for name in names]
    return read() if None in identities else cached(label, [*identities], read)


def named_sources(source: object) -> list[str | Path] | None:
    """Return the sources that are named, one by one; None where what is given is no name, but the data themselves.

    Raises:
        FileNotFoundError: no file is of the pattern.
        ValueError: a source is there twice.
    """
    several = isinstance(source, Sequence) and not isinstance(source, (str, bytes)) and len(source) > 0
    given = [*source] if isinstance(source, Sequence) and several else [source]
    names: dict[str, str | Path] = {}
    for pattern in given:
        if not isinstance(pattern, (str, Path)):
            return None
        for name in _matching(pattern):
            path = Path(name).expanduser()
            place = str(path.resolve()) if path.exists() else str(name)
            if place in names:
                raise ValueError(f"the data set {name} is there twice; leave one out, or its episodes are there twice")
            names[place] = name
    return [*names.values()]


def joined_names(names: Sequence[str]) -> str:
    """Return what cards call several data sets together."""
    more = len(names) - _NAMES_SHOWN
    return " + ".join([*names[:_NAMES_SHOWN], *([f"{more} more"] if more > 0 else [])])


def _matching(pattern: str | Path) -> list[str | Path]:
    """Return the paths of a pattern, or what is none as it is."""
    path = Path(pattern).expanduser()
    if not has_magic(str(pattern)) or path.exists():
        return [pattern]
    found: list[str | Path] = [*sorted(glob(str(path), recursive=True))]
    if not found:
        raise FileNotFoundError(f"no data set at {str(pattern)!r}: no file or folder has a name of this pattern")
    return found


def _checked(source: Source, request: Request) -> Trajectories:
    trajectories = _read(source, request)
    trajectories.check_finite()
    return trajectories


def _together(parts: list[Trajectories]) -> Trajectories:
    """Return the episodes of several data sets, which have to be of one environment.

    Raises:
        ValueError: they are not, or their columns differ in type or dimensions.
    """
    known = [part for part in parts if part.env_id is not None]
    for part in known:
        if part.env_id != known[0].env_id:
            raise ValueError(
                f"data set {known[0].name!r} is of the environment {known[0].env_id}, and {part.name!r} of "
                f"{part.env_id}; only data of one environment are read together"
            )
    env_id = known[0].env_id if known else None
    return replace(concatenate(parts), name=joined_names([part.name for part in parts]), env_id=env_id)


def _is_of_the_machine(error: Exception) -> bool:
    """Whether files, the disk or the network are to blame; Arrow and HDF5 say so too where it is what is in a file."""
    said_by_us = isinstance(error.__cause__, OSError)
    return isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError or said_by_us)


def _unreadable(source: str, error: Exception) -> str:
    return f"data set {source!r} cannot be read ({in_short(error)}); get it again"


def _identity(source: str | Path, request: Request) -> list[object] | None:
    """Return all that decides what is read, or None where that cannot be told."""
    text, path = str(source), Path(source).expanduser()
    asked = [request.config, request.split, sorted(request.columns.items()), request.action_type]
    if path.exists():
        return [str(path.absolute()), files_of(path), request.revision, *asked]
    if text.startswith(minari.PREFIX):
        return [text, files_of(minari.find_minari(text)), request.revision, *asked]
    if is_repository_id(text):
        commit = resolved_commit(text, request.revision)
        return None if commit is None else [text, commit, request.revision == PARQUET_REVISION, *asked]
    return None


def _read(source: Source, request: Request) -> Trajectories:
    """Find out what the source is and read it."""
    if isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        return hub.read_loaded(source, request)
    if isinstance(source, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise TypeError(
            f"trajectories are not read from a stream ({type(source).__name__}): load it without streaming=True, or "
            "train on its name or folder with --streaming true (open_stream)"
        )
    if isinstance(source, (str, Path)):
        return _read_named(str(source), Path(source).expanduser(), request, anywhere=isinstance(source, str))
    if isinstance(source, (Sequence, Mapping)) and not isinstance(source, bytes):
        label = "arrays in memory"
        return _by_episodes(
            label,
            request,
            lambda: arrays.read_arrays(source, label, label, request.columns, request.facts(SourceFacts())),
            refused=("config", "revision"),
        )
    raise TypeError(
        "trajectories come from a Hub repository id, a path, a Minari id, a list of such names, a loaded Dataset or "
        "DatasetDict, a list with a dict of arrays for each episode, or a dict of flat arrays, not from "
        f"{type(source).__name__}"
    )


def _read_named(text: str, path: Path, request: Request, anywhere: bool) -> Trajectories:
    """Read a source that a text names; a `Path` is not looked for `anywhere` but on this machine."""
    ending = path.suffix.lower()
    if path.is_dir():
        logs = dqn_replay.find_logs(path)
        if logs is None and hub.is_saved(path):
            return hub.read_saved(text, path, request)
        if logs is None:
            _refuse_folder_of_files(text, path)
            return hub.read_folder(text, path, request)
        replay = partial(dqn_replay.read_dqn_replay, text, path, logs, request.config, request.facts(SourceFacts()))
        return _by_episodes(text, request, replay, refused=("revision", "columns"))
    if path.is_file():
        builder = hub.builder_of(path)
        if builder is not None:
            return hub.read_file(text, path, builder, request)
        if ending not in _FILES:
            raise ValueError(f"{text}: cannot read a file of this kind; {_advice(ending)}")
        file = partial(_FILES[ending], text, path, request.columns, request.facts(facts_beside(path)))
        return _by_episodes(text, request, file, refused=("config", "revision"))
    if anywhere and text.startswith(minari.PREFIX):
        by_id = partial(minari.read_minari, text, request.facts(SourceFacts()))
        return _by_episodes(text, request, by_id, refused=("config", "revision", "columns"))
    if anywhere and is_repository_id(text) and ending not in _ENDINGS:
        return hub.read_repository(text, request)
    raise FileNotFoundError(
        f"no data set at {text!r}: there is no file or folder {path.absolute()}, and it is not a repository id of the "
        f"Hub (organisation/name) nor a Minari id ({minari.PREFIX}name)"
    )


def _advice(ending: str) -> str:
    """Say what to do with a file that is not read."""
    if ending in (*COMPRESSED, ".zip"):
        return "of compressed files only JSON is read, so unpack it first"
    if ending in (".csv", ".tsv"):
        return (
            "a cell of it holds one number, so no vector of observations or actions; with pandas, make lists of the "
            "columns that belong together and save them with to_parquet"
        )
    return f"known endings: {', '.join(_ENDINGS)}"


def _refuse_folder_of_files(text: str, path: Path) -> None:
    """Refuse a folder of files that are each a data set, unless there are tables too (.json may be beside a file)."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _FILES)
    if files and not any(file.suffix.lower() in {*hub.BUILDERS} - {".json"} for file in path.rglob("*")):
        raise ValueError(
            f"the folder {text} holds files that are each a data set; name one of them, such as {files[0]}, or several"
        )


def _by_episodes(
    label: str, request: Request, read: Callable[[], Trajectories], refused: tuple[str, ...]
) -> Trajectories:
    """Read a source that knows no splits; slices are taken by whole episodes."""
    request.refuse(f"the data set {label}", *refused)
    only_train(request.split, label)
    return choose_episodes(read(), request.split, label)

"""Sources become `Trajectories`: the type of a source decides which adaptor reads it.

The formats themselves are in `formats`, a file for each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets

from ..model.observations_decision_mamba import describe_parts
from ..views import described_views, split_views
from .cache import cached, files_of
from .formats import arrays, d4rl, dqn_replay, dt_pickle, hub, minari
from .formats.rows import DAMAGE, in_short, shown
from .goals import GoalsFrom
from .metadata import COMPRESSED, SourceMetadata, metadata_beside
from .request import PARQUET_REVISION, Request, is_repository_id, resolved_commit
from .splits import choose_episodes, only_train
from .trajectories import Trajectories, concatenate
from .views import views_to_add

logger = logging.getLogger(__name__)

#: What has a name: a path, a repository of the Hub, a Minari id; or several of them, or a pattern such as `runs/*.pkl`.
Named: TypeAlias = str | Path | Sequence[str | Path]
Source: TypeAlias = Named | datasets.Dataset | datasets.DatasetDict | Sequence[Mapping[str, Any]] | Mapping[str, Any]

_LONGEST_MESSAGE = 1500
_SINGLE_FILES = (*d4rl.SUFFIXES, *dt_pickle.SUFFIXES)  # each a data set
_ENDINGS = (*hub.BUILDERS, *_SINGLE_FILES)
_NAMES_SHOWN = 4  # of several sources, in the name of what they are together


def load_trajectories(
    source: Source,
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    action_type: str | None = None,
    rewards_from: str | None = None,
    observation_parts: Mapping[str, int] | None = None,
    positions_only: bool = False,
    delayed_reward: bool = False,
    goals_from: Sequence[int] | None = None,
    achieved_goals_from: Sequence[int] | Literal["observations"] | None = None,
) -> Trajectories:
    """Load and check trajectories from wherever people keep them; `docs/data.md` shows each format.

    A table with one row per episode of T steps has the columns `observations` (T, S) and `actions` (T, A), `rewards`
    (T,) where there are some, and `terminations` and `truncations`, or `dones`, (T,). A table with one row per step
    (LeRobot) has one value of each a row, and a column that says the episode. Other columns are left alone. Data
    without rewards have `has_rewards` False, with a warning that names the columns that there are.

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
              episodes together, one source after the other. Each is read by its own rules and metadata; their columns
              must have the same dimensions, and their environments, where they say them, must be one.
        config: the data set's configuration, where it has several; always with the revision of parquet copies. For a
            DQN replay, the number of transitions to take, or "all".
        revision: branch, tag or commit of a Hub repository.
        split: which split to read; slices such as "train[:10%]" are taken by whole episodes, of each source.
        columns: names of the source's columns by our names, for example `{"observations": "obs"}`.
        action_type: what the actions are, where their numbers do not say it: "discrete" makes integers of whole
            numbers, true and false, and one-hot rows; "continuous" leaves integers the numbers that they are.
        rewards_from: the source's column whose values are the rewards, one number or true or false (1 or 0) a step;
            "terminations", "truncations" and "dones" are these flags, whatever they are called there. The same as
            `columns={"rewards": ...}`.
        observation_parts: what the vectors were concatenated from, names of the environment's dict observation in their
            order, with how many numbers each has, where the data do not say it: `{"observation": 4, "desired_goal":
            2}`. Policies that learn from them then know which parts to read.
        positions_only: leave out the velocities, of data of a MuJoCo environment that observes positions and velocities
            alone; it is made once, to say which is which.
        delayed_reward: put all reward of an episode at its last step.
        goals_from: which numbers of an observation, counted from 0, are the goal that it was recorded with; they become
            the column `goals`, and are no part of the observation any more.
        achieved_goals_from: which are the goal that was achieved, such as a position; "observations" for all of them,
            where a goal is a whole observation. They become `achieved_goals`, and stay in the observation. With one of
            the two, parts of dict observations that gymnasium calls `desired_goal` and `achieved_goal` become these
            columns too, and are left out of the observation.

    Returns:
        Trajectories; where they are seen in one of these two views, their `env_kwargs` say so, so that policies that
        learn from them act in an environment that shows the same.

    Raises:
        FileNotFoundError: nothing is at the source; says what was looked for.
        ConnectionError: the Hub cannot be reached.
        ImportError: the package that reads this format is not installed; says which extra to install.
        TypeError: the source is not one of the types above.
        ValueError: the source cannot be read, or an episode is not what it should be; names data set, episode, step and
            column where there are such.
    """
    request = Request(split, config, revision, columns or {}, action_type, rewards_from, observation_parts)
    trajectories = _loaded(source, request)
    if trajectories.state_type == "image":
        request.refuse("images", "observation_parts")
    views = [
        name for name, wanted in (("positions_only", positions_only), ("delayed_reward", delayed_reward)) if wanted
    ]
    what, known = f"data set {trajectories.name!r}", trajectories.env_kwargs
    trajectories = views_to_add(what, views, known, trajectories.env_id, known).of(trajectories)
    if goals_from is None and achieved_goals_from is None:
        return trajectories
    return GoalsFrom(goals_from, achieved_goals_from).of(trajectories)


def _loaded(source: Source, request: Request) -> Trajectories:
    """Load and check a source, one or several, as it is."""
    names = named_sources(source)
    if names is None:
        return _checked(source, request)
    source_name = " ".join(map(str, names))

    def read() -> Trajectories:
        try:
            parts = [_checked(name, request) for name in names]
            return parts[0] if len(parts) == 1 else _together(parts)
        except DAMAGE as error:
            if _is_of_the_machine(error):
                raise
            said = str(error) if isinstance(error, ValueError) else _unreadable(source_name, error)
            raise ValueError(
                f"{shown(said, _LONGEST_MESSAGE)}\n`hf-decision-mamba inspect-data {source_name}` shows what is there"
            ) from error

    identities = [_identity(name, request) for name in names]
    return read() if None in identities else cached(source_name, [*identities], read)


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
    trajectories = read_source(source, request)
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
    seen = [split_views(part.env_kwargs)[0] for part in parts]
    for part, views in zip(parts, seen, strict=True):
        if views != seen[0]:
            raise ValueError(
                f"data set {parts[0].name!r} shows {described_views(seen[0])}, and {part.name!r} "
                f"{described_views(views)}; only data that show the same are read together"
            )
    env_id = known[0].env_id if known else None
    rates = {part.fps: part.name for part in parts}
    if len(rates.keys() - {None}) > 1:
        at = " and ".join(f"{name!r} at {rate:g}" for rate, name in rates.items() if rate is not None)
        logger.warning(
            "the data sets were recorded at different rates, %s steps a second: to a model, a step is a step", at
        )
    fps = parts[0].fps if len(rates) == 1 else None
    described = [part for part in parts if part.observation_parts]
    for part in described:
        if part.observation_parts != described[0].observation_parts:
            logger.warning(
                "data set %r observes %s, and %r %s: they are taken for the same numbers in the same order",
                *(described[0].name, describe_parts(described[0].observation_parts or [])),
                *(part.name, describe_parts(part.observation_parts or [])),
            )
    return replace(concatenate(parts), name=joined_names([part.name for part in parts]), env_id=env_id, fps=fps)


def _is_of_the_machine(error: Exception) -> bool:
    """Return whether files, disk or network are to blame; Arrow and HDF5 say so too where it is what is in a file."""
    said_by_us = isinstance(error.__cause__, OSError)
    return isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError or said_by_us)


def _unreadable(source: str, error: Exception) -> str:
    return f"data set {source!r} cannot be read ({in_short(error)}); get it again"


def _identity(source: str | Path, request: Request) -> list[object] | None:
    """Return all that decides what is read, or None where that cannot be told."""
    name, path = str(source), Path(source).expanduser()
    found = source_type(source)
    state = None if found is None else SOURCE_TYPES[found].state(name, path, request)
    parts = None if request.observation_parts is None else [*request.observation_parts.items()]
    asked = [request.config, request.split, sorted(request.columns.items()), request.action_type, parts]
    return None if state is None else [*state, *asked]


def read_source(source: Source, request: Request) -> Trajectories:
    """Find out what the source is and read it."""
    if isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        return hub.read_loaded(source, request)
    if isinstance(source, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise TypeError(
            f"trajectories are not read from a stream ({type(source).__name__}): load it without streaming=True, or "
            "train on its name or folder with --streaming true (open_stream)"
        )
    if isinstance(source, (str, Path)):
        found, name, path = source_type(source), str(source), Path(source).expanduser()
        if found is None:
            raise FileNotFoundError(
                f"no data set at {name!r}: there is no file or folder {path.absolute()}, and it is not a repository id "
                f"of the Hub (organisation/name) nor a Minari id ({minari.PREFIX}name)"
            )
        return SOURCE_TYPES[found].read(name, path, request)
    if isinstance(source, (Sequence, Mapping)) and not isinstance(source, bytes):
        source_name = "arrays in memory"
        return _by_episodes(
            source_name,
            request,
            lambda: arrays.read_arrays(
                source, source_name, source_name, request.columns, request.metadata(SourceMetadata())
            ),
            refused=("config", "revision"),
        )
    raise TypeError(
        "trajectories come from a Hub repository id, a path, a Minari id, a list of such names, a loaded Dataset or "
        "DatasetDict, a list with a dict of arrays for each episode, or a dict of flat arrays, not from "
        f"{type(source).__name__}"
    )


def _read_replay(source_name: str, path: Path, request: Request) -> Trajectories:
    metadata = request.metadata(SourceMetadata())
    read = partial(dqn_replay.read_dqn_replay, source_name, path, request.config, metadata)
    return _by_episodes(source_name, request, read, refused=("revision", "rewards_from", "columns"))


def _read_folder(source_name: str, path: Path, request: Request) -> Trajectories:
    _refuse_folder_of_files(source_name, path)
    return hub.read_folder(source_name, path, request)


def _read_single(
    reader: Callable[[str, Path, Mapping[str, str], SourceMetadata], Trajectories],
    source_name: str,
    path: Path,
    request: Request,
) -> Trajectories:
    read = partial(reader, source_name, path, request.columns, request.metadata(metadata_beside(path)))
    return _by_episodes(source_name, request, read, refused=("config", "revision"))


def _refuse_file(source_name: str, path: Path, request: Request) -> Trajectories:
    raise ValueError(f"{source_name}: cannot read a file of this kind; {_advice(path.suffix.lower())}")


def _read_minari(source_name: str, path: Path, request: Request) -> Trajectories:
    read = partial(minari.read_minari, source_name, request.metadata(SourceMetadata()))
    return _by_episodes(source_name, request, read, refused=("config", "revision", "rewards_from", "columns"))


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


def _refuse_folder_of_files(source_name: str, path: Path) -> None:
    """Refuse a folder of files that are each a data set, unless there are tables too (.json may be beside a file)."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SINGLE_FILES)
    if files and not any(file.suffix.lower() in {*hub.BUILDERS} - {".json"} for file in path.rglob("*")):
        raise ValueError(
            f"the folder {source_name} holds files that are each a data set; name one of them, such as {files[0]}, or "
            "several"
        )


def _by_episodes(
    source_name: str, request: Request, read: Callable[[], Trajectories], refused: tuple[str, ...]
) -> Trajectories:
    """Read a source that knows no splits; slices are taken by whole episodes."""
    request.refuse(f"the data set {source_name}", *refused)
    only_train(request.split, source_name)
    return choose_episodes(read(), request.split, source_name)


def _state_of_files(source_name: str, path: Path, request: Request) -> list[object] | None:
    return [str(path.absolute()), files_of(path), request.revision]


def _state_of_minari(source_name: str, path: Path, request: Request) -> list[object] | None:
    return [source_name, files_of(minari.find_minari(source_name)), request.revision]


def _state_of_repository(source_name: str, path: Path, request: Request) -> list[object] | None:
    commit = resolved_commit(source_name, request.revision)
    return None if commit is None else [source_name, commit, request.revision == PARQUET_REVISION]


@dataclass(frozen=True)
class SourceType:
    """One type of what a name can stand for. Its functions take the name, and the path that it would be.

    Args:
        matches: whether it is of this type, which is asked in the order of `SOURCE_TYPES`.
        read: reads it.
        state: returns what says that it is as it was when it was read before; None where nothing does.
    """

    matches: Callable[[str, Path], bool]
    read: Callable[[str, Path, Request], Trajectories]
    state: Callable[[str, Path, Request], list[object] | None] = _state_of_files


def _file(*suffixes: str) -> Callable[[str, Path], bool]:
    return lambda name, path: path.is_file() and path.suffix.lower() in suffixes


#: The types of named sources; the first one that matches is what is there.
SOURCE_TYPES = {
    "replay": SourceType(lambda name, path: path.is_dir() and dqn_replay.find_logs(path) is not None, _read_replay),
    "saved": SourceType(lambda name, path: path.is_dir() and hub.is_saved(path), hub.read_saved),
    "folder": SourceType(lambda name, path: path.is_dir(), _read_folder),
    "table": SourceType(lambda name, path: path.is_file() and hub.builder_of(path) is not None, hub.read_file),
    "hdf5": SourceType(_file(*d4rl.SUFFIXES), partial(_read_single, d4rl.read_d4rl)),
    "pickle": SourceType(_file(*dt_pickle.SUFFIXES), partial(_read_single, dt_pickle.read_dt_pickle)),
    "other file": SourceType(lambda name, path: path.is_file(), _refuse_file),
    "minari": SourceType(
        lambda name, path: name.startswith(minari.PREFIX),
        _read_minari,
        _state_of_minari,
    ),
    "repository": SourceType(
        lambda name, path: is_repository_id(name) and path.suffix.lower() not in _ENDINGS,
        lambda name, path, request: hub.read_repository(name, request),
        _state_of_repository,
    ),
}


def source_type(source: str | Path) -> str | None:
    """Return which of `SOURCE_TYPES` a name stands for; a `Path` is looked for on this machine alone.

    Returns:
        None where there is nothing of that name.
    """
    name, path = str(source), Path(source).expanduser()
    elsewhere = () if isinstance(source, str) else ("minari", "repository")
    types = (found for found, one in SOURCE_TYPES.items() if found not in elsewhere and one.matches(name, path))
    return next(types, None)

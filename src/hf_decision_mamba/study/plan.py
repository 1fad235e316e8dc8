"""What a study consists of: its YAML file, checked whole before anything starts, as runs and evaluations.

A run's settings are those of `base`, of its data set, of its model and of its point of the grid; later ones win.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..data.sources import named_sources, source_type
from ..model import PRESETS
from ..reporting.checks import wrong_type
from ..training.arguments import arguments_from
from ..training.factory import checked_overrides
from ..training.run import check_arguments

#: Share of a training's steps between two checkpoints, so that the last five are of its last tenth.
SAVE_STEPS = 0.02
#: In the folder of each run: what it is, and the CPU time that it took.
PLAN_FILE, COST_FILE = "plan.json", "cost.json"
SCORES = ("normalized_score", "return", "success_rate")
_MODES = ("window", "recurrent")
#: Settings that a study makes itself, or that exclude what it does, and what to say instead.
_RESERVED = {
    "output_dir": "each run has a folder of its own; --output names the study's",
    "overwrite_output_dir": "--overwrite asks for it",
    "resume_from_checkpoint": "each run goes on where it was interrupted",
    "seed": "say `seeds`",
    "cpu_threads": "the cores are shared out among --jobs",
    "eval_episodes": "say `evaluations`",
    "save_total_limit": "the `last` checkpoints of `evaluations` are kept",
    "save_strategy": "say `save_steps`",
    "save_only_model": "a run must be resumable",
    "load_best_model_at_end": "a run is scored by its last checkpoints",
    "disable_tqdm": "the study shows the progress",
    "run_name": "it is made of study, data set, model and seed",
    "project": "it is the study's name",
    "push_to_hub": "push the checkpoints that you choose, when the study has ended",
}
_KEYS = ("name", "base", "data", "models", "grid", "seeds", "evaluations")
_NAME = re.compile(r"[^\s/\\:*?\"<>|.][^/\\:*?\"<>|\n]{0,79}")


@dataclass(frozen=True)
class Condition:
    """One way to play: an evaluation at one value of its sweep, and for one target return.

    Attributes:
        label: what tells it from the others of its evaluation; empty where it is the only one.
        target_return: None for the checkpoint's.
        value: of the sweep; None without one.
    """

    label: str
    target_return: float | None
    value: Any = None


@dataclass(frozen=True)
class Evaluation:
    """How the last checkpoints of every run are scored.

    Args:
        name: its key in the file.
        mode: of the policy, `"window"` or `"recurrent"`; `eval_mode` of the run's settings if not given.
        target_returns: returns to ask for, each on its own; the checkpoint's if not given.
        env_kwargs: for `gymnasium.make`; the checkpoint's if not given.
        sweep: one of the environment's arguments and the values that it takes, one after the other.
        stop_below: score at which a sweep ends: later values are not played.
        episodes: for each checkpoint.
        last: how many checkpoints, the end of the training being the last of them.
        score: what counts, one of `SCORES`; if not given the normalised score, or the return where there is none.
        max_episode_steps: ends episodes earlier than the environment does.
    """

    name: str
    mode: str | None = None
    target_returns: list[float] | None = None
    env_kwargs: dict[str, Any] | None = None
    sweep: dict[str, list[Any]] | None = None
    stop_below: float | None = None
    episodes: int = 4
    last: int = 5
    score: str | None = None
    max_episode_steps: int | None = None

    def conditions(self) -> list[list[Condition]]:
        """Return the ways to play: for each target return those of the sweep, in order."""
        targets: Sequence[float | None] = self.target_returns or [None]
        rows = []
        for target in targets:
            asked = [f"target return {target:g}"] if target is not None and len(targets) > 1 else []
            ((swept, values),) = (self.sweep or {"": [None]}).items()
            labels = [", ".join([*asked, *([f"{swept} {value}"] if swept else [])]) for value in values]
            rows.append([Condition(label, target, value) for label, value in zip(labels, values, strict=True)])
        return rows

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Evaluation:
        """Return what `asdict` made a dictionary of."""
        return cls(**content)


@dataclass(frozen=True)
class PlannedRun:
    """One training.

    Attributes:
        data, model: their names in the file.
        grid: its point of the grid, by setting; empty without one.
        seed: of the training.
        settings: all that differ from train.py's defaults, the seed included.
    """

    data: str
    model: str
    grid: dict[str, Any]
    seed: int
    settings: dict[str, Any]

    @property
    def variant(self) -> str:
        """What is compared: the model, and its point of the grid."""
        return ", ".join([self.model, *(f"{name} {_short(value)}" for name, value in self.grid.items())])

    @property
    def folder(self) -> str:
        """Its folder in the study's, with slashes."""
        point = ["-".join(f"{name}={_short(value)}" for name, value in self.grid.items())] if self.grid else []
        return "/".join([*map(slug, (self.data, self.model, *point)), f"seed{self.seed}"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Study:
    """A study that is fit to run.

    Attributes:
        name: of its folder and of its runs' group in trackers.
        content: its file.
        runs: the trainings, seed by seed, so that what is done first answers everything a little.
        evaluations: how each is scored.
    """

    name: str
    content: dict[str, Any]
    runs: list[PlannedRun]
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def last(self) -> int:
        """How many checkpoints a run has to keep."""
        return max(evaluation.last for evaluation in self.evaluations)

    def check_sources(self) -> None:
        """Refuse data sets that are nowhere, as far as that can be told without a connection.

        Raises:
            FileNotFoundError: there is no file or folder, and the name is none of a repository either.
        """
        for run in {run.data: run for run in self.runs}.values():
            for name in named_sources(run.settings["dataset_name"]) or []:
                if source_type(name) is None:
                    raise FileNotFoundError(
                        f"{self.name}: data: {run.data}: there is no file or folder {name}, and it is no repository "
                        "of the Hub (organisation/name) nor a Minari id (minari:name). Relative paths are relative to "
                        "the working directory, ./ and ../ to the file."
                    )


def slug(name: str) -> str:
    """Return a name as a folder's."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-") or "-"


def load_study(source: str | os.PathLike[str] | Mapping[str, Any]) -> Study:
    """Read a study from a YAML file, or from what such a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `source` is neither a path nor a mapping.
        ValueError: a key, name or value that cannot be right, with what is allowed.
    """
    if isinstance(source, Mapping):
        return _study(dict(source), Path(), "study")
    if not isinstance(source, (str, os.PathLike)):
        raise wrong_type("study", source, "the path of a YAML file, or what such a file holds as a dictionary")
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no study file {path}.")
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold the keys {', '.join(_KEYS)}, not a {type(content).__name__}.")
    return _study(content, path.parent, path.name)


class _Loader(yaml.SafeLoader):
    """Refuses what is said twice, and takes `no` and `off` for texts, as the settings that are spelled so need."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; a merged one (`<<`) may be written over."""
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = [name for name in names if isinstance(name, str) and names.count(name) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is there twice", node.start_mark)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != _BOOL]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|false)$", re.IGNORECASE), list("tTfF"))


def _study(content: dict[str, Any], folder: Path, where: str) -> Study:
    _known_keys(where, content, _KEYS)
    name = content.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where}: name={name!r} must be a text that can be a folder's name.")
    base = _settings(f"{where}: base", content.get("base") or {}, folder)
    data, models = (
        {
            str(key): _settings(f"{where}: {group}: {key}", settings or {}, folder)
            for key, settings in _named(where, group, content.get(group)).items()
        }
        for group in ("data", "models")
    )
    for key, settings in data.items():
        if "dataset_name" not in {**base, **settings}:
            raise ValueError(f"{where}: data: {key} says no dataset_name.")
    grid, seeds = _grid(where, content.get("grid") or {}, folder), _seeds(where, content.get("seeds", 1))
    evaluations = _evaluations(where, content.get("evaluations"))
    runs = []
    for seed, dataset, model, point in itertools.product(seeds, data, models, grid):
        settings = {"save_steps": SAVE_STEPS, **base, **data[dataset], **models[model], **point, "seed": seed}
        with _told(f"{where}: {dataset}, {model}{', ' * bool(point)}{json.dumps(point) if point else ''}"):
            runs.append(PlannedRun(dataset, model, point, seed, _checked(settings)))
    _distinct_folders(where, runs)
    return Study(name, content, runs, evaluations)


def _known_keys(where: str, content: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
            raise ValueError(f"{where}: unknown key {key!r}; {meant}")


def _named(where: str, group: str, content: Any) -> dict[str, Any]:
    """Return what is listed under names, one or more."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where}: {group} must name one or more, as `{group}: {{a name: {{setting: value}}}}`.")
    for name, settings in content.items():
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"{where}: {group}: {name!r} must be a text that can be a folder's name.")
        if settings is not None and not isinstance(settings, Mapping):
            raise ValueError(f"{where}: {group}: {name} must hold settings, not {settings!r}.")
    return dict(content)


def _settings(where: str, settings: Any, folder: Path) -> dict[str, Any]:
    """Return settings of train.py when their names and values are some; `./` and `../` begin in the file's folder."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where} must hold settings of train.py, as `setting: value`, not {settings!r}.")
    for name in settings:
        if name in _RESERVED:
            raise ValueError(f"{where}: {name} is not for a study to set: {_RESERVED[name]}.")
    found = {str(name): _from_file(value, folder) for name, value in settings.items()}
    with _told(where):
        arguments_from(found)
    return found


def _from_file(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_from_file(item, folder) for item in value]
    is_path = isinstance(value, str) and value.startswith(("./", "../"))
    return os.path.relpath(folder / value) if is_path else value


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Say where in the study a wrong setting stands."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        kind = next(kind for kind in (ValueError, TypeError, ImportError) if isinstance(error, kind))
        raise kind(f"{where}: {error}") from error


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from train.py's defaults, when they fit each other."""
    arguments = arguments_from({**settings, "output_dir": "-"})
    model_args, data_args, eval_args, args = arguments
    check_arguments(data_args, eval_args, args)
    if model_args.model_name_or_path is None:
        checked_overrides(model_args)
        if model_args.builds_a_preset and model_args.preset not in PRESETS:
            raise ValueError(f"preset={model_args.preset} is none of {', '.join(PRESETS)}.")
    given = {name: value for name, value in arguments.given.items() if name != "output_dir"}
    return {**json.loads(json.dumps(given)), "seed": settings["seed"]}


def _grid(where: str, content: Any, folder: Path) -> list[dict[str, Any]]:
    """Return the points of a grid; one without settings where there is none."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: grid must hold settings with lists of values, not {content!r}.")
    for name, values in content.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}: grid: {name}={values!r} must be a list of one value or more.")
        if len({json.dumps(value, default=str) for value in values}) < len(values):
            raise ValueError(f"{where}: grid: {name}={values!r} has a value twice.")
        for value in values:
            _settings(f"{where}: grid", {name: value}, folder)
    values = [[_from_file(value, folder) for value in values] for values in content.values()]
    return [dict(zip(content, point, strict=True)) for point in itertools.product(*values)]


def _seeds(where: str, content: Any) -> list[int]:
    whole = type(content) is int  # neither true nor false
    seeds = list(range(content)) if whole else content
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ValueError(f"{where}: seeds={content!r} must be a number of 1 or more, or a list of them (0 or more).")
    if len({*seeds}) < len(seeds):
        raise ValueError(f"{where}: seeds={content!r} has a seed twice.")
    return seeds


def _evaluations(where: str, content: Any) -> list[Evaluation]:
    if content is None:
        return [Evaluation("default")]
    return [
        _evaluation(f"{where}: evaluations: {name}", str(name), settings or {})
        for name, settings in _named(where, "evaluations", content).items()
    ]


def _evaluation(where: str, name: str, content: Mapping[str, Any]) -> Evaluation:
    _known_keys(where, content, [entry.name for entry in fields(Evaluation) if entry.name != "name"])
    given = {key: value for key, value in content.items() if value is not None}
    if _is_number(given.get("target_returns")):
        given["target_returns"] = [given["target_returns"]]
    for key, (fits, what) in _CHECKS.items():
        if key in given and not fits(given[key]):
            raise ValueError(f"{where}: {key}={given[key]!r} must be {what}.")
    if "stop_below" in given and "sweep" not in given:
        raise ValueError(f"{where}: stop_below={given['stop_below']!r} ends a sweep, and there is none.")
    if {*given.get("sweep", {})} & {*given.get("env_kwargs", {})}:
        raise ValueError(f"{where}: {next(iter(given['sweep']))} is in sweep and in env_kwargs; leave one of them out.")
    return Evaluation(name, **given)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_sweep(value: Any) -> bool:
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    ((name, values),) = value.items()
    labels = [str(item) for item in values] if isinstance(values, list) else []
    return isinstance(name, str) and len({*labels}) == len(labels) > 0


#: Whether a value of an evaluation makes sense, and what to say it must be.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "mode": (lambda value: value in _MODES, " or ".join(_MODES)),
    "score": (lambda value: value in SCORES, f"one of {', '.join(SCORES)}"),
    "target_returns": (
        lambda value: isinstance(value, list) and bool(value) and all(map(_is_number, value)),
        "a number, or a list of them",
    ),
    "env_kwargs": (lambda value: isinstance(value, Mapping), "arguments by name, as {reset_noise_scale: 0.1}"),
    "sweep": (_is_sweep, "one argument of the environment with a list of values, as {length: [30, 100, 300]}"),
    "stop_below": (_is_number, "a number"),
    **dict.fromkeys(("episodes", "last", "max_episode_steps"), (_is_count, "a whole number of 1 or more")),
}


def _distinct_folders(where: str, runs: Sequence[PlannedRun]) -> None:
    """Refuse names that would be the same folder's."""
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        other = seen.setdefault(run.folder.casefold(), run)
        if other is not run:
            raise ValueError(
                f"{where}: {other.data}, {other.variant} and {run.data}, {run.variant} would have one folder, "
                f"{run.folder}; give them names that differ in more than signs."
            )


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def words_of(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield settings as train.py takes them on a command line."""
    for name, value in settings.items():
        items = [
            str(item).lower() if isinstance(item, bool) else json.dumps(item) if isinstance(item, dict) else str(item)
            for item in (value if isinstance(value, list) else [value])
        ]
        if len(items) == 1:
            yield f"--{name}={items[0]}"
        else:
            yield from (f"--{name}", *items)

"""What a run leaves beside its weights so that others can repeat and judge it: train.yaml and the learning curve.

And what it keeps with its checkpoints, to know it when it is resumed: the settings of each stretch of it so far.
"""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..reporting.checks import wrong_type
from ..reporting.figures import BLUE, RED, drawing, new_figure, save_figure, tidy
from ..reporting.files import RUN_FILE, portable, read_json, replacing
from ..reporting.stretches import changes
from .arguments import Arguments, DataArguments, ModelArguments

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: What a run keeps to its end: what its windows are, which of them are drawn, how many a step takes, and what the
#: optimizer's state means. All other settings may change where it is resumed: they are used from that step on.
FIXED = (
    *("architecture", "preset", "model_name_or_path", "seed", "data_seed"),
    *(entry.name for entry in fields(DataArguments)),
    *("optim", "optim_args"),
)
_A_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
#: How it is learned, which may change: named even where it is the default, which another version may change.
RECIPE = (
    *("max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay"),
    *("max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
)
_OF_DATA_AND_MODEL = {entry.name for group in (ModelArguments, DataArguments) for entry in fields(group)} - {
    "scan_backend"
}

# Where this run was written, logged and pushed: other people's runs have places of their own.
_PLACES = re.compile(r"output_dir|resume|hub|token|report_to|run_name|project|trackio|log_level|tqdm|local_rank")
# What the curves are of, as the Trainer logs it.
_CURVES = ("loss", "eval_loss", "eval_return_mean", "eval_normalized_score", "eval_success_rate")
# Of the scores the one that is drawn: the first that there is.
_SCORES = {
    "eval_normalized_score": "normalised score",
    "eval_success_rate": "success rate",
    "eval_return_mean": "mean return",
}


def settings_to_repeat(
    arguments: Arguments, resolved: Mapping[str, Any], left_out: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Collect every setting that makes a run what it is, by group, and nothing about this machine's folders.

    Args:
        arguments: the four groups of the run.
        resolved: what followed from data or model where nothing was given; None where it does not apply.
        left_out: settings that nothing can repeat.
    """
    recipe = {name: getattr(arguments[-1], name) for name in (*RECIPE, "per_device_train_batch_size", "seed")}
    chosen = {name: value for name, value in {**recipe, **resolved}.items() if value is not None}
    chosen = {name: value for name, value in {**arguments.given, **chosen}.items() if name not in left_out}
    groups = {}
    for group in arguments:
        names = [entry.name for entry in fields(group) if entry.name in chosen and not _PLACES.search(entry.name)]
        groups[str(group._argument_group_name)] = {name: _plain(chosen[name]) for name in names}
    return {name: settings for name, settings in groups.items() if settings}


def write_settings(path: Path, groups: Mapping[str, Mapping[str, Any]], remarks: Iterable[str]) -> None:
    """Write settings as a YAML file that `train.py` takes, with `remarks` as its first comments."""
    lines = [f"# {line}" for remark in remarks for line in textwrap.wrap(remark, 110)]
    for name, settings in groups.items():
        lines += ["", f"# {name}", yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True).rstrip()]
    with replacing(path) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")


def kept_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings that a run keeps to its end, unset ones included, for `other_settings`."""
    return {name: settings.get(name) for name in (*FIXED, *_A_STEP, "dataloader_num_workers")}


def other_settings(held: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Find what makes two runs of one, by name: the values that a run has, and those that are asked for instead.

    Args:
        held: the settings of the run, as training.json has them (`arguments`); what they do not name is unset.
        asked: the settings to compare with them; what they do not name is not compared.
    """
    held, asked = _comparable(held), _comparable(asked)
    others = {name: (held.get(name), value) for name, value in asked.items() if held.get(name) != value}
    if None in others.get("dataset_revision", ()):
        del others["dataset_revision"]  # which cannot be found out without a connection
    if "seed" in others:
        others.pop("data_seed", None)
    return others


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bring settings into one form: paths as names, the data's seed even where it is the run's, a step's windows."""
    same = {**settings, **{name: settings.get(name) or 1 for name in _A_STEP}}
    if same.get("model_name_or_path"):
        same["model_name_or_path"] = Path(same["model_name_or_path"]).name
    if same.get("data_seed") is None:
        same["data_seed"] = same.get("seed")
    workers = same.pop("dataloader_num_workers", None) or 0
    if same.get("streaming"):  # each process and worker reads its own part
        return {**same, "dataloader_num_workers": workers}
    windows = math.prod(same.pop(name) for name in _A_STEP)
    return {**same, "per_device_train_batch_size × gradient_accumulation_steps × processes": windows}


def with_held(settings: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that goes on, with data and model as it `held` them, however they were given."""
    kept = {name: value for name, value in held.items() if name in _OF_DATA_AND_MODEL}
    return {**kept, **{name: value for name, value in settings.items() if name not in _OF_DATA_AND_MODEL}}


def read_run(checkpoint: Path) -> dict[str, Any] | None:
    """Read what a checkpoint keeps of its run: its `stretches`, and its data's `episodes` and `transitions`.

    Returns:
        None if an earlier version wrote the checkpoint.

    Raises:
        ValueError: the file cannot be read.
    """
    path = checkpoint / RUN_FILE
    if not path.is_file():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        known = [part for part in run["stretches"] if part["settings"] is not None]
        if not [changes(part, part) for part in known] or None in (run["episodes"], run["transitions"]):
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} cannot be read ({type(error).__name__})") from error
    return run


def write_run(checkpoint: Path, run: Mapping[str, Any]) -> None:
    """Keep with a checkpoint what `read_run` reads."""
    (checkpoint / RUN_FILE).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def learning_history(log: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Collect losses and scores by step, from a Trainer's `log_history`; what was never logged is left out."""
    history = {name: {int(row["step"]): float(row[name]) for row in log if name in row} for name in _CURVES}
    return {name: values for name, values in history.items() if values}


def draw_learning_curve(path: Path, history: Mapping[str, Mapping[int, float]], loss_function: str) -> bool:
    """Write a picture of losses, and scores if rollouts were played, over the steps of training.

    Args:
        path: of the picture.
        history: what `learning_history` gives.
        loss_function: its name.

    Returns:
        Whether it was drawn: not where nothing was logged twice, or, with a warning, where matplotlib is missing.
    """
    if not _curves(history):
        return False
    with drawing(path.name, "pip install matplotlib"):
        figure = _plot_curves(history, loss_function)
        with replacing(path) as draft:
            save_figure(figure, draft)
        return True
    return False


def plot_learning_curve(run: str | os.PathLike[str] | Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw losses, and scores if rollouts were played, over the steps of training.

    Args:
        run: the folder of a run, or its history: values by step, under `loss`, `eval_loss`, `eval_return_mean` or
            `eval_normalized_score`, as training.json holds them.

    Raises:
        ImportError: matplotlib is not installed.
        FileNotFoundError: the folder holds no training.json.
        TypeError: neither a folder nor a history.
        ValueError: nothing was logged twice, so that there is no curve.
    """
    loss_function = "loss"
    if isinstance(run, (str, os.PathLike)):
        path = Path(run).expanduser() / "training.json"
        if not path.is_file():
            raise FileNotFoundError(f"{Path(run)} is no folder of a finished run: it has no training.json.")
        record = read_json(path)
        run, loss_function = record.get("history") or {}, str(record.get("loss_function") or loss_function)
    if not isinstance(run, Mapping) or not all(isinstance(values, Mapping) for values in run.values()):
        raise wrong_type("run", run, "the folder of a run, or a history {'loss': {step: value, ...}, ...}")
    history = {name: {int(step): float(value) for step, value in run[name].items()} for name in _CURVES if name in run}
    if not _curves(history):
        raise ValueError(f"No curve: none of {', '.join(_CURVES)} was logged twice.")
    return _plot_curves(history, loss_function)


def _curves(history: Mapping[str, Mapping[int, float]]) -> dict[str, Mapping[int, float]]:
    """Select the curves of a history that have two points or more."""
    return {name: history[name] for name in _CURVES if len(history.get(name, ())) > 1}


def _plot_curves(history: Mapping[str, Mapping[int, float]], loss_function: str) -> Figure:
    curves = _curves(history)
    score = next((name for name in _SCORES if name in curves), None)
    losses = [name for name in ("loss", "eval_loss") if name in curves]
    count = bool(losses) + (score is not None)
    figure = new_figure(7.2 if count == 1 else 9.6, 3.4)
    panels = iter(figure.subplots(1, count, squeeze=False)[0])
    if losses:
        axes = next(panels)
        looks: dict[str, dict[str, Any]] = {
            "loss": {"color": BLUE, "linewidth": 1.2, "label": "training"},
            "eval_loss": {"color": RED, "marker": "o", "markersize": 4, "label": "held-out episodes"},
        }
        for name in losses:
            axes.plot(list(curves[name]), list(curves[name].values()), **looks[name])
        axes.legend(frameon=False, fontsize=8)
        _finish(axes, loss_function)
    if score is not None:
        axes = next(panels)
        axes.plot(list(curves[score]), list(curves[score].values()), color=RED, marker="o", markersize=4)
        _finish(axes, _SCORES[score])
    return figure


def _finish(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_title(label, loc="left", fontsize=10)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    tidy(axes)


def _plain(value: Any) -> Any:
    """Write a setting as YAML has it: enumerations by their values, `portable` paths, no list of one text."""
    value = getattr(value, "value", value)
    if isinstance(value, str):
        return portable(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return portable(value[0]) if len(value) == 1 else [portable(item) for item in value]
    return value

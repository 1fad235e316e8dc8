"""What a run leaves beside its weights so that others can repeat and judge it: train.yaml and the learning curve."""

import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .figures import tidy
from .files import replacing
from .training_arguments import Arguments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SETTINGS_FILE, CURVE_FILE = "train.yaml", "learning_curve.png"

# Where this run was written, logged and pushed: other people's runs have places of their own.
_PLACES = re.compile(r"output_dir|resume|hub|token|report_to|run_name|project|trackio|log_level|tqdm|local_rank")
# The recipe: named even where it is the default, which another version may change.
_RECIPE = (
    *("max_steps", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("weight_decay", "max_grad_norm", "seed"),
)
# What the curves are of, as the Trainer logs it.
_CURVES = ("loss", "eval_loss", "eval_return_mean", "eval_normalized_score")


def settings_to_repeat(arguments: Arguments, resolved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every setting that makes a run what it is, by group, and nothing about this machine's folders.

    Args:
        arguments: the four groups of the run.
        resolved: what followed from data or model where nothing was given; None where it does not apply.
    """
    recipe = {name: getattr(arguments[-1], name) for name in _RECIPE}
    chosen = {**recipe, **arguments.given, **{name: value for name, value in resolved.items() if value is not None}}
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


def portable(value: str) -> str:
    """A path that means something elsewhere: relative to the working directory, of a path outside only its name."""
    path = Path(value).expanduser()
    if not path.is_absolute() and ".." not in path.parts:
        return os.path.normpath(value) if value.startswith("./") else value
    inside = os.path.relpath(path)
    return path.name if inside.startswith("..") else inside


def learning_history(log: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Losses and scores by step, from a Trainer's `log_history`; what was never logged is left out."""
    history = {name: {int(row["step"]): float(row[name]) for row in log if name in row} for name in _CURVES}
    return {name: values for name, values in history.items() if values}


def draw_learning_curve(path: Path, history: Mapping[str, Mapping[int, float]], loss_function: str) -> bool:
    """Draw losses, and scores if rollouts were played, over the steps of training.

    Args:
        path: of the picture.
        history: what `learning_history` gives.
        loss_function: its name.

    Returns:
        Whether it was drawn: not where nothing was logged twice.

    Raises:
        ImportError: matplotlib is not installed.
    """
    curves = {name: values for name, values in history.items() if len(values) > 1}
    score = next((name for name in ("eval_normalized_score", "eval_return_mean") if name in curves), None)
    losses = [name for name in ("loss", "eval_loss") if name in curves]
    if not losses and score is None:
        return False

    from matplotlib.figure import Figure  # draws without a display and leaves pyplot's state alone

    count = bool(losses) + (score is not None)
    figure = Figure(figsize=(7.2, 3.4) if count == 1 else (9.6, 3.4), dpi=150, layout="constrained")
    panels = iter(figure.subplots(1, count, squeeze=False)[0])
    if losses:
        axes = next(panels)
        looks: dict[str, dict[str, Any]] = {
            "loss": {"color": "#4c78a8", "linewidth": 1.2, "label": "training"},
            "eval_loss": {"color": "#e4572e", "marker": "o", "markersize": 4, "label": "held-out episodes"},
        }
        for name in losses:
            axes.plot(list(curves[name]), list(curves[name].values()), **looks[name])
        axes.legend(frameon=False, fontsize=8)
        _finish(axes, loss_function)
    if score is not None:
        axes = next(panels)
        axes.plot(list(curves[score]), list(curves[score].values()), color="#e4572e", marker="o", markersize=4)
        _finish(axes, {"eval_normalized_score": "normalised score"}.get(score, "mean return"))
    with replacing(path) as draft:
        figure.savefig(draft, metadata={"Software": None})
    return True


def _finish(axes: "Axes", label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_title(label, loc="left", fontsize=10)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    tidy(axes)


def _plain(value: Any) -> Any:
    """A setting as YAML has it: enumerations by their values, paths as `portable` makes them, no list of one text."""
    value = getattr(value, "value", value)
    if isinstance(value, str):
        return portable(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return portable(value[0]) if len(value) == 1 else [portable(item) for item in value]
    return value

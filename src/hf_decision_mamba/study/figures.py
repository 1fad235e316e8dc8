"""Pictures of a study: every seed is a point, and intervals are over seeds.

Source of the kinds: Agarwal et al. 2021 (arXiv 2108.13264).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..reporting.figures import DARK, GREY, legend_below, new_figure, tidy
from .plan import slug
from .results import StudyResult
from .statistics import share_above, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Of variants, in their order; they begin again after the last one.
COLORS = (
    *("#4c78a8", "#e4572e", "#54a24b", "#b279a2", "#eeca3b", "#9d755d", "#72b7b2", "#5b616b"),
    *("#ff9da6", "#2b2f36"),
)
_PANEL, _HEIGHT = 3.4, 3.2  # inches
_PANELS_A_ROW = 3
_LABELS = {"normalized_score": "normalised score", "return": "return", "success_rate": "success rate"}
_CURVES = {
    "eval_normalized_score": "normalised score",
    "eval_return_mean": "return",
    "eval_loss": "held-out loss",
    "loss": "loss",
}


def figures_of(result: StudyResult) -> Iterator[tuple[str, Figure]]:
    """Yield every picture that the scores allow, with the name of its file: KIND-EVALUATION.png."""
    for evaluation in result.names("evaluation"):
        rows = [row for row in result.rows if row["evaluation"] == evaluation]
        if not any(row["score"] is not None for row in rows):
            continue
        if rows[0]["swept"]:
            yield f"sweep-{slug(evaluation)}.png", plot_sweep(result, evaluation)
            continue
        conditions = list(dict.fromkeys(row["condition"] for row in rows))
        for condition in conditions:
            name = f"{'' if len(conditions) == 1 else f'-{slug(condition)}'}-{slug(evaluation)}.png"
            yield f"scores{name}", plot_scores(result, evaluation, condition)
            yield f"cost{name}", plot_cost(result, evaluation, condition)
            if len(result.names("variant")) > 1 and result.shared_data(evaluation, condition):
                yield f"aggregate{name}", plot_aggregate(result, evaluation, condition)
                yield f"profile{name}", plot_profile(result, evaluation, condition)
                yield f"improvement{name}", plot_improvement(result, evaluation, condition)
    if any(result.histories.values()):
        yield "learning_curves.png", plot_learning_curves(result)


def plot_scores(result: StudyResult, evaluation: str, condition: str = "") -> Figure:
    """Draw the scores on each data set: every seed as a point, mean and 95 % t-interval beside them."""
    summary = [row for row in result.summary() if (row["evaluation"], row["condition"]) == (evaluation, condition)]
    names = [data for data in result.names("data") if any(row["data"] == data for row in summary)]
    figure, panels = _panels(len(names))
    variants = result.names("variant")
    for axes, data in zip(panels, names, strict=True):
        for place, variant in enumerate(variants):
            entry = next((row for row in summary if (row["data"], row["variant"]) == (data, variant)), None)
            if entry is not None:
                spread = np.linspace(-0.15, 0.15, len(entry["scores"])) if len(entry["scores"]) > 1 else [0.0]
                style: dict[str, Any] = {"color": _color(place), "markersize": 4.5, "alpha": 0.6}
                axes.plot(place + np.array(spread), entry["scores"], "o", label="one seed", **style)
                _mark(axes, place + 0.3, entry["mean"], entry["ci95"], DARK)
        axes.set_xticks(range(len(variants)), variants, rotation=30, ha="right", fontsize=8)
        axes.set_ylabel(_LABELS[next(row["score_kind"] for row in summary if row["data"] == data)])
        axes.set_title(data, loc="left", fontsize=10)
        tidy(axes)
    return figure


def plot_sweep(result: StudyResult, evaluation: str) -> Figure:
    """Draw the score against the value that was swept: every seed as a point, a line through the means."""
    rows = [row for row in result.rows if row["evaluation"] == evaluation and row["score"] is not None]
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure, panels = _panels(len(names))
    values = list(dict.fromkeys(row["swept_value"] for row in result.rows if row["evaluation"] == evaluation))
    numbers = [json.loads(value) for value in values]
    numeric = all(isinstance(value, (int, float)) for value in numbers)
    places = dict(zip(values, numbers if numeric else range(len(values)), strict=True))
    for axes, data in zip(panels, names, strict=True):
        for place, variant in enumerate(result.names("variant")):
            ours = [row for row in rows if (row["data"], row["variant"]) == (data, variant)]
            reached = [value for value in values if any(row["swept_value"] == value for row in ours)]
            means = [float(np.mean([r["score"] for r in ours if r["swept_value"] == value])) for value in reached]
            color = _color(place)
            xs = [places[row["swept_value"]] for row in ours]
            axes.plot(xs, [row["score"] for row in ours], "o", color=color, alpha=0.4, markersize=4)
            axes.plot([places[value] for value in reached], means, color=color, label=variant)
        if numeric and min(numbers) > 0 and max(numbers) > 20 * min(numbers):
            axes.set_xscale("log")
        elif not numeric:
            axes.set_xticks(range(len(values)), [str(value) for value in numbers])
        axes.set_xlabel(rows[0]["swept"])
        axes.set_ylabel(_LABELS[rows[0]["score_kind"]])
        axes.set_title(data, loc="left", fontsize=10)
        tidy(axes)
    legend_below(figure, panels[0], 4)
    return figure


def plot_aggregate(result: StudyResult, evaluation: str, condition: str = "") -> Figure:
    """Draw the interquartile mean of each variant over all data sets, with its 95 % interval over seeds."""
    found = result.aggregate(evaluation, condition)
    figure, axes = _rows(len(found))
    for place, entry in enumerate(found):
        _bar(axes, place, entry["iqm"], entry["iqm_ci95"], _color(place))
    _name_rows(axes, [entry["variant"] for entry in found])
    axes.set_xlabel("interquartile mean of the scores")
    axes.set_title(_over(found[0]["data"]), loc="left", fontsize=10)
    return figure


def plot_profile(result: StudyResult, evaluation: str, condition: str = "") -> Figure:
    """Draw the share of models that score higher than each threshold, with pointwise 95 % intervals."""
    data, variants = result.shared_data(evaluation, condition), result.names("variant")
    scores = {variant: [result.scores(name, variant, evaluation, condition) for name in data] for variant in variants}
    every = [score for of_variant in scores.values() for of_data in of_variant for score in of_data]
    margin = 0.05 * (max(every) - min(every)) or 1.0
    thresholds = np.linspace(min(every) - margin, max(every) + margin, 101)
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    for place, variant in enumerate(variants):
        share, low, high = with_interval(share_above, scores[variant], thresholds=thresholds)
        axes.step(thresholds, share, where="post", color=_color(place), label=variant)
        if low is not None:
            axes.fill_between(thresholds, low, high, step="post", color=_color(place), alpha=0.15, linewidth=0)
    axes.set_xlabel("score")
    axes.set_ylabel("share of models above")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(_over(data), loc="left", fontsize=10)
    tidy(axes)
    legend_below(figure, axes, 4)
    return figure


def plot_improvement(result: StudyResult, evaluation: str, condition: str = "") -> Figure:
    """Draw how probable it is that a model of one variant scores higher than one of another."""
    found = result.improvement(evaluation, condition)
    figure, axes = _rows(len(found))
    for place, entry in enumerate(found):
        _bar(axes, place, entry["probability"], entry["ci95"], _color(0))
    _name_rows(axes, [f"{entry['variant']} > {entry['over']}" for entry in found])
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("probability of improvement")
    axes.set_title(_over(result.shared_data(evaluation, condition)), loc="left", fontsize=10)
    return figure


def plot_cost(result: StudyResult, evaluation: str, condition: str = "") -> Figure:
    """Draw the score against parameters and against CPU minutes.

    Over all data sets together where the scores may be put together, else of each by itself.
    """
    summary = [row for row in result.summary() if (row["evaluation"], row["condition"]) == (evaluation, condition)]
    shared = result.shared_data(evaluation, condition)
    groups = [shared] if shared else [[name] for name in dict.fromkeys(row["data"] for row in summary)]
    figure = new_figure(2.3 * _PANEL, _HEIGHT * len(groups))
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for data, (left, right) in zip(groups, panels, strict=True):
        for place, variant in enumerate(result.names("variant")):
            ours = [row for row in summary if row["data"] in data and row["variant"] == variant]
            if ours:
                mean = float(np.mean([row["mean"] for row in ours]))
                for axes, column in ((left, "num_parameters"), (right, "cpu_minutes")):
                    cost = float(np.mean([row[column] for row in ours]))
                    axes.plot([cost], [mean], "o", color=_color(place), label=variant)
        for axes, label in ((left, "parameters"), (right, "CPU minutes of training")):
            axes.set_xlabel(label)
            axes.set_title(_over(data), loc="left", fontsize=10)
            _spread(axes)
            tidy(axes, "both")
        left.set_ylabel("mean score")
    legend_below(figure, panels[0][0], 4)
    return figure


def plot_learning_curves(result: StudyResult) -> Figure:
    """Draw what was logged on the way, held-out loss or scores: a thin line a seed, a thick one their mean."""
    curve = next(name for name in _CURVES if any(name in history for history in result.histories.values()))
    place_of = {row["folder"]: (row["data"], row["variant"]) for row in result.rows}
    variants = result.names("variant")
    names = result.names("data")
    figure, panels = _panels(len(names))
    for axes, data in zip(panels, names, strict=True):
        for place, variant in enumerate(variants):
            curves = [
                {int(step): float(value) for step, value in history[curve].items()}
                for folder, history in result.histories.items()
                if place_of[folder] == (data, variant) and curve in history
            ]
            for seed in curves:
                axes.plot([*seed], [*seed.values()], color=_color(place), alpha=0.3, linewidth=0.8)
            steps = [step for step in (curves[0] if curves else {}) if all(step in seed for seed in curves)]
            means = [float(np.mean([seed[step] for seed in curves])) for step in steps]
            marker = "o" if len(steps) == 1 else None
            axes.plot(steps, means, color=_color(place), linewidth=1.8, marker=marker, label=variant)
        axes.set_xlabel("step")
        axes.set_ylabel(_CURVES[curve])
        axes.set_title(data, loc="left", fontsize=10)
        tidy(axes)
    legend_below(figure, panels[0], 4)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels."""
    columns = min(count, _PANELS_A_ROW)
    lines = math.ceil(count / columns)
    figure = new_figure(max(_PANEL * columns, 4.8), _HEIGHT * lines)
    panels = [*figure.subplots(lines, columns, squeeze=False).flat]
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _rows(count: int) -> tuple[Figure, Axes]:
    """Return a figure for so many rows, with its axes."""
    figure = new_figure(6.4, 1.2 + 0.32 * count)
    return figure, figure.add_subplot()


def _bar(axes: Axes, place: int, value: float, interval: Sequence[float | None], color: str) -> None:
    low, high = interval
    if low is not None and high is not None:
        axes.barh(place, high - low, left=low, height=0.6, color=color, alpha=0.35)
    axes.plot([value, value], [place - 0.3, place + 0.3], color=color, linewidth=2)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    tidy(axes, "x")


def _mark(axes: Axes, place: float, mean: float, interval: Sequence[float | None], color: str) -> None:
    low, high = interval
    errors = None if low is None or high is None else [[mean - low], [high - mean]]
    axes.errorbar([place], [mean], yerr=errors, fmt="_", color=color, capsize=3, label="mean, 95% interval")


def _spread(axes: Axes) -> None:
    """Choose the scale of costs: logarithmic where they differ by much."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    costs = [float(cost) for line in axes.lines for cost in np.asarray(line.get_xdata())]
    if costs and max(costs) > 5 * min(costs) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:,g}")


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _over(data: Sequence[str]) -> str:
    return data[0] if len(data) == 1 else f"over {len(data)} data sets"

"""What `inspection` measured, as pictures, one page that needs nothing else, and a file of numbers."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from ..evaluation.scores import score_reference
from ..evaluation.statistics import interval_text
from ..reporting.checks import wrong_type
from ..reporting.figures import BLUE, DARK, GREY, RED, new_figure, number, save_figure, tidy
from ..reporting.files import replacing_together, write_json
from .hidden_attention import Decay
from .inspection import ModelInspection, mean_of_present

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PAGE, NUMBERS = "inspection.html", "inspection.json"
_DPI = 110
_TEMPLATE = Path(__file__).with_name("page.html")
#: What R² of the fitted line says about decay, from its lowest value.
_VERDICTS = ((0.95, "exponential"), (0.8, "not quite exponential"), (-math.inf, "not exponential"))

_TOKEN_TYPES = {
    "return": "returns-to-go",
    "goal": "goals",
    "state": "states",
    "action": "actions",
    "previous_action": "previous actions",
    "step": "whole steps",
}


def write_inspection(found: ModelInspection, folder: str | os.PathLike[str]) -> list[Path]:
    """Write inspection.html, its pictures (also as PNG files) and inspection.json.

    Args:
        folder: made if it does not exist; pictures of an earlier inspection that this one lacks are removed.

    Returns:
        The files written, the page first.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib  # noqa: F401  # before anything is written

    folder = Path(folder)
    with replacing_together(folder, NUMBERS, [PAGE, *(f"{name}.png" for name in _SECTIONS)]) as draft:
        sections, pictures = [], []
        for name, (heading, how_to_read, _, table) in _SECTIONS.items():
            if name == "memory" and found.memory is None:  # nobody has asked for it
                continue
            section: dict[str, Any] = {"heading": heading, "left_out": found.left_out.get(name)}
            if section["left_out"] is None:
                path = draft / f"{name}.png"
                save_figure(plot_inspection(found, name), path)
                pictures.append(folder / path.name)
                picture = base64.b64encode(path.read_bytes()).decode("ascii")
                section.update(how_to_read=how_to_read, picture=picture, table=table(found))
            sections.append(section)
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
            checkpoint=found.protocol["checkpoint"], protocol=_protocol(found), sections=sections
        )
        (draft / PAGE).write_text(page, encoding="utf-8")
        write_json(draft / NUMBERS, found.to_dict(), indent=None, allow_nan=False)
    return [folder / PAGE, *pictures, folder / NUMBERS]


# -------------------------------------------------------------------------------------------------------- pictures


def plot_inspection(found: ModelInspection, name: str) -> Figure:
    """Draw one picture of an inspection.

    Args:
        found: what `inspect_checkpoint` returned.
        name: `"attention"`, `"decay"`, `"effective_context"`, `"return_conditioning"`, `"time_constants"`, `"memory"`.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `found` is something else.
        ValueError: there is no such picture, or it was left out; says why.
    """
    if not isinstance(found, ModelInspection):
        raise wrong_type("found", found, "what inspect_checkpoint(policy, checkpoint) returned")
    if name not in _SECTIONS:
        raise ValueError(f"name={name!r} is no picture of an inspection; there are {', '.join(_SECTIONS)}.")
    if name in found.left_out:
        raise ValueError(f"There is no picture {name!r}: {found.left_out[name]}")
    if name == "memory" and found.memory is None:
        raise ValueError("There is no picture 'memory': the inspection was not asked for it (memory=True).")
    figure: Figure = _SECTIONS[name][2](found)
    return figure


def _attention(found: ModelInspection) -> Figure:
    from matplotlib.colors import LogNorm

    assert found.surface is not None and found.timesteps is not None
    surface = found.surface.mean(0)  # (n, k, token types)
    first, last, context = int(found.timesteps[0]), int(found.timesteps[-1]), surface.shape[1]
    figure = new_figure(9.2, 1.1 + 1.75 * len(found.token_types), _DPI)
    episode = found.protocol["episodes"][found.protocol["surface_episode"]]
    place = (
        f"episode {episode['number']}"
        if found.protocol["data"]
        else f"{found.protocol['env_id']}, seed {episode['number']}"
    )
    figure.suptitle(f"Hidden attention that each decision pays to what it reads ({place})", x=0.01, ha="left")
    panels = figure.subplots(len(found.token_types), 1, sharex=True, squeeze=False)[:, 0]
    positive = surface[surface > 0]
    low, high = (np.quantile(positive, 0.01), positive.max()) if positive.size else (0.1, 1.0)
    norm = LogNorm(min(low, high / 10), high, clip=True)
    for axes, token_type, values in zip(panels, found.token_types, np.moveaxis(surface, 2, 0), strict=True):
        image = axes.imshow(
            np.where(values > 0, values, np.nan).T,
            origin="lower",
            aspect="auto",
            norm=norm,
            cmap="magma",
            interpolation="nearest",
            extent=(first - 0.5, last + 0.5, -0.5, context - 0.5),
        )
        axes.set_title(f"to {_TOKEN_TYPES[token_type]}", loc="left", fontsize=10)
        axes.set_ylabel("steps ago")
        axes.yaxis.get_major_locator().set_params(integer=True, nbins=5)
    panels[-1].set_xlabel("time step of the decision")
    bar = figure.colorbar(image, ax=panels, pad=0.015, aspect=35)
    _label(bar.ax.yaxis, np.array([norm.vmin, norm.vmax]))
    bar.set_label("mean |α| (log scale)")
    return figure


def _decay(found: ModelInspection) -> Figure:
    assert found.curves is not None
    count, steps = len(found.curves), np.arange(found.curves.shape[1])
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    figure = new_figure(max(1.2 + 2.7 * columns, 5.8), 0.9 + 2.6 * rows, _DPI)
    figure.suptitle("Hidden attention by distance, and the exponential fitted to it", x=0.01, ha="left", fontsize=11)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[count:]:
        axes.remove()
    for layer, (axes, curve, fit) in enumerate(zip(panels.flat, found.curves, found.decays, strict=False)):
        axes.plot(steps, np.where(curve > 0, curve, np.nan), "o", color=BLUE, markersize=4.5, label="measured")
        if fit is not None:
            axes.plot(steps, fit.scale * np.exp(-fit.rate * steps), color=RED, label="fitted exponential")
        axes.set_title(f"layer {layer}\n{_fit_text(fit)}", loc="left", fontsize=9)
        axes.set_yscale("log")
        _label(axes.yaxis, found.curves)
        axes.xaxis.get_major_locator().set_params(integer=True)
        tidy(axes)
    for axes in panels[:, 0]:
        axes.set_ylabel("mean |α| (log scale)")
    for axes in panels.flat[max(0, count - columns) : count]:
        axes.set_xlabel("steps ago")
        axes.tick_params(labelbottom=True)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    return figure


def _context(found: ModelInspection) -> Figure:
    assert found.context is not None
    context = found.context
    ago, beside = context.steps_ago, found.curves is not None
    figure = new_figure(7.6, 5.6 if beside else 3.8, _DPI)
    panels = figure.subplots(
        2 if beside else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 2] if beside else None
    )
    top = panels[0, 0]
    for changes, colour, label in (
        (context.older_removed, RED, "this step and all older ones removed"),
        (context.step_removed, BLUE, "this step alone removed"),
    ):
        middle = mean_of_present(changes, axis=0)
        with np.errstate(all="ignore"):
            low, high = _quartiles(changes)
        top.fill_between(ago, low, high, color=colour, alpha=0.15, linewidth=0)
        top.plot(ago, middle, "o-", color=colour, markersize=4, label=label)
    top.set_title(
        "How much the action changes without past steps (line: mean, band: middle half)", loc="left", fontsize=10
    )
    discrete = found.protocol["action_type"] == "discrete"
    top.set_ylabel("total variation distance" if discrete else "mean |change of the action|")
    top.set_ylim(bottom=0)
    top.legend(frameon=False, fontsize=8)
    spread = found.action_spread
    if spread:
        shares = top.secondary_yaxis("right", functions=(lambda x: 100 * x / spread, lambda x: x * spread / 100))
        shares.set_ylabel("% of the actions' standard deviation")
        shares.spines["right"].set_visible(False)
        shares.tick_params(length=0)
    if beside:
        shares = _attention_shares(found)
        panels[1, 0].bar(ago, shares[1:], color=GREY, width=0.7)
        panels[1, 0].set_title(
            f"Share of hidden attention (mean over layers; the own step has {shares[0]:.0f} %)", loc="left", fontsize=10
        )
        panels[1, 0].set_ylabel("% of the window's")
    for axes in panels[:, 0]:
        tidy(axes)
    panels[-1, 0].set_xlabel("steps ago")
    panels[-1, 0].xaxis.get_major_locator().set_params(integer=True, nbins=10)
    return figure


def _conditioning(found: ModelInspection) -> Figure:
    assert found.conditioning is not None
    results = found.conditioning.summary()
    targets = np.array([row["target_return"] for row in results])
    means = np.array([row["return_mean"] for row in results])
    bounds = np.array([row["return_ci95"] for row in results], dtype=np.float64).T
    figure = new_figure(6.4, 4.6, _DPI)
    axes = figure.subplots()
    axes.plot(
        [row["target_return"] for row in found.conditioning.episodes],
        [row["return"] for row in found.conditioning.episodes],
        "o",
        color=BLUE,
        alpha=0.5,
        markersize=5,
        markeredgewidth=0,
        label="one episode",
    )
    axes.errorbar(
        targets,
        means,
        yerr=None if np.isnan(bounds).any() else np.abs(bounds - means),
        fmt="o-",
        color=RED,
        capsize=4,
        label="mean" if np.isnan(bounds).any() else "mean, 95% interval",
    )
    ends = axes.get_xlim()
    axes.plot(ends, ends, color=DARK, linestyle=":", linewidth=1, label="what was asked for")
    axes.set_xlim(ends)
    count = found.conditioning.to_dict()["episodes_per_target"]
    axes.set_title(
        f"{found.conditioning.env_id}: the return asked for and the return achieved ({count} episodes each)",
        loc="left",
        fontsize=10,
    )
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("target return")
    axes.set_ylabel("achieved return")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    return figure


def _time_constants(found: ModelInspection) -> Figure:
    assert found.time_constants is not None
    constants = found.time_constants
    layers = len(constants.step_sizes)
    figure = new_figure(9.2, 1.7 + 0.45 * layers, _DPI)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, values in ((left, constants.step_sizes), (right, constants.steps)):
        for layer, (low, q25, median, q75, high) in enumerate(np.where(np.isfinite(values), values, np.nan)):
            axes.plot([low, high], [layer, layer], color=BLUE, linewidth=1.5)
            axes.plot([q25, q75], [layer, layer], color=BLUE, linewidth=7, solid_capstyle="butt")
            axes.plot([median], [layer], "o", color="white", markeredgecolor=DARK, markersize=6, zorder=3)
        axes.set_xscale("log")
        _label(axes.xaxis, values)
        tidy(axes, grid="x")
    for layer, (low, _, median, _, high) in enumerate(constants.learned):
        left.plot([low, high], [layer + 0.25] * 2, color=GREY, linewidth=1.5)
        left.plot([median], [layer + 0.25], "|", color=GREY, markersize=8)
    left.set_yticks(range(layers), [f"layer {layer}" for layer in range(layers)])
    left.set_ylim(layers - 0.5, -0.5)
    left.set_title("Step sizes Δ", loc="left", fontsize=10)
    left.set_xlabel("Δ (log scale)")
    right.set_title("How long states remember", loc="left", fontsize=10)
    right.set_xlabel("environment steps until 37 % is left (log scale)")
    context = found.protocol["context_length"]
    right.axvline(context, color=RED, linestyle=":", label=f"context length: {context} steps")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", frameon=False, fontsize=8)
    legend = "dot: median, bar: middle half, line: 5 % to 95 %; grey: what the learned biases alone make of Δ"
    figure.text(0.01, 0.01, legend, fontsize=8, color=GREY)
    return figure


def _memory(found: ModelInspection) -> Figure:
    assert found.memory is not None
    memory, layers = found.memory, len(found.memory.signal)
    figure = new_figure(9.2, 6.6, _DPI)
    panels = figure.subplots(3, 1, sharex=True)
    shades = [layer / max(layers - 1, 1) for layer in range(layers)]
    for axes, values, title in (
        (panels[0], memory.signal, "Signal: distance between the states of two episodes that begin differently"),
        (panels[1], memory.drift, "Drift: how far both states have moved together since the first decision"),
    ):
        for layer, shade in enumerate(shades):
            shown = np.where(values[layer] > 0, values[layer], np.nan)
            axes.plot(memory.steps, shown, color=_between(BLUE, RED, shade), label=f"layer {layer}")
        axes.set_yscale("log")
        _label(axes.yaxis, values)
        axes.set_title(title, loc="left", fontsize=10)
    panels[2].plot(memory.steps, memory.difference, color=DARK, label="as the episode goes")
    panels[2].plot(memory.steps, memory.asked, color=RED, linestyle="--", label="had its last observation come next")
    panels[2].legend(frameon=False, fontsize=8)
    panels[2].set_title(f"Largest difference of {_answers(found)}", loc="left", fontsize=10)
    panels[2].set_ylim(bottom=0)
    for axes in panels:
        axes.set_xscale("log")
        tidy(axes)
    _label(panels[2].xaxis, memory.steps)
    panels[2].set_xlabel("decisions since the beginning (log scale)")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(layers, 8), frameon=False, fontsize=8)
    return figure


def _between(first: str, second: str, share: float) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple((1 - share) * a + share * b for a, b in zip(to_rgb(first), to_rgb(second), strict=True))


def _answers(found: ModelInspection) -> str:
    discrete = found.protocol["action_type"] == "discrete"
    return "the logits" if discrete else "the action (in the model's units)"


def _label(axis: Axis, values: NDArray[Any]) -> None:
    """Return plain numbers at the ticks of a logarithmic axis of such values: 1, 2, 5, 10, or powers of ten alone."""
    from matplotlib.ticker import LogLocator, NullLocator

    there = values[np.isfinite(values) & (values > 0)]
    span = there.max() / there.min() if there.size else 1.0
    axis.set_major_locator(LogLocator(subs=range(1, 10) if span < 4 else (1, 2, 5) if span < 100 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,g}")


# ---------------------------------------------------------------------------------------------------------- tables

Table = list[list[str]]  # rows of cells, the heads first


def _attention_table(found: ModelInspection) -> Table:
    assert found.surface is not None
    shares = mean_of_present(found.surface, axis=1).sum(1)  # (layers, token types)
    shares = 100 * shares / shares.sum(1, keepdims=True)
    heads = ["share of attention", *(f"to {_TOKEN_TYPES[token_type]}" for token_type in found.token_types)]
    return [heads, *([f"layer {layer}", *(f"{x:.0f} %" for x in row)] for layer, row in enumerate(shares))]


def _decay_table(found: ModelInspection) -> Table:
    table = [["", "rate per step", "95% interval", "half-life (steps)", "95% interval", "R²", "decay"]]
    for layer, fit in enumerate(found.decays):
        if fit is None:
            table.append([f"layer {layer}", "attends to one step at most", *[""] * 5])
            continue
        table.append(
            [
                f"layer {layer}",
                f"{fit.rate:.3f}",
                interval_text(fit.rate_interval, "{:.3f}".format),
                "none" if math.isinf(fit.half_life) else f"{fit.half_life:.2f}",
                interval_text(fit.half_life_interval, "{:.2f}".format),
                f"{fit.r_squared:.3f}",
                _verdict(fit),
            ]
        )
    return table


def _context_table(found: ModelInspection) -> Table:
    assert found.context is not None
    alone, older = (mean_of_present(x, axis=0) for x in (found.context.step_removed, found.context.older_removed))
    shares = None if found.curves is None else _attention_shares(found)
    table = [
        [
            "steps ago",
            "this step removed",
            "this and older removed",
            *(["share of attention"] if shares is not None else []),
        ]
    ]
    chosen = [ago for ago in found.context.steps_ago.tolist() if ago <= 10 or ago % 10 == 0 or ago == len(alone)]
    for ago in chosen:
        row = [str(ago), f"{alone[ago - 1]:.3g}", f"{older[ago - 1]:.3g}"]
        table.append(row if shares is None else [*row, f"{shares[ago]:.1f} %"])
    return table


def _conditioning_table(found: ModelInspection) -> Table:
    assert found.conditioning is not None
    scored = score_reference(found.conditioning.env_id)
    table = [
        ["target return", "achieved, mean", "95% interval", *(["normalised score"] if scored else []), "mean length"]
    ]
    for row in found.conditioning.summary():
        score = [f"{row['normalized_score_mean']:.1f}"] if scored else []
        interval = row["return_ci95"]
        table.append(
            [
                f"{row['target_return']:,g}",
                number(row["return_mean"], 1),
                interval_text(interval, partial(number, decimals=1)),
                *score,
                f"{row['length_mean']:.0f}",
            ]
        )
    return table


def _time_constants_table(found: ModelInspection) -> Table:
    assert found.time_constants is not None
    constants = found.time_constants
    names = [f"{100 * q:g} %" for q in constants.quantiles]
    table = [["", *(f"{what}, {name}" for what in ("Δ", "steps", "learned Δ") for name in names)]]
    for layer, rows in enumerate(zip(constants.step_sizes, constants.steps, constants.learned, strict=True)):
        table.append([f"layer {layer}", *(f"{x:.3g}" for row in rows for x in row)])
    return table


def _memory_table(found: ModelInspection) -> Table:
    assert found.memory is not None
    memory = found.memory
    layers = range(len(memory.signal))
    heads = [f"{what}, layer {layer}" for what in ("signal", "drift") for layer in layers]
    table = [["decisions", *heads, f"difference of {_answers(found)}", "asked for the end"]]
    powers = np.concatenate([10.0 ** np.arange(8), memory.steps[-1:]])
    for place in np.unique(np.searchsorted(memory.steps, powers).clip(max=len(memory.steps) - 1)):
        numbers = [*memory.signal[:, place], *memory.drift[:, place], memory.difference[place], memory.asked[place]]
        table.append([f"{memory.steps[place]:,}", *(f"{x:.3g}" for x in numbers)])
    return table


def _protocol(found: ModelInspection) -> Table:
    protocol = found.protocol
    episodes = protocol["episodes"]
    lengths = [row["length"] for row in episodes]
    numbers = ", ".join(str(row["number"]) for row in episodes)
    table = [["made by", protocol["command"]], ["model", protocol["model"]]]
    if protocol["data"]:
        table.append(["episodes looked into", f"{len(episodes)} of the data set {protocol['data']}, numbers {numbers}"])
        if episodes[0]["return"] is not None:
            table.append(["returns-to-go", "those of the episodes themselves"])
    else:
        target = protocol["target_return"]
        asked_for = "" if target is None else f", target return {target:,g}"
        table += [
            ["environment", protocol["env_id"]],
            ["episodes looked into", f"{len(episodes)}{asked_for}, seeds {numbers}"],
        ]
    table.append(["their length", _range(lengths, "{:,d}".format) + " steps"])
    if episodes[0]["return"] is not None:
        table.append(["their return", _range([row["return"] for row in episodes], partial(number, decimals=1))])
    table += [
        ["mode", f"window, context length {protocol['context_length']}"],
        ["windows for curves and tables", f"{protocol['windows']}, which do not overlap"],
    ]
    if found.memory is not None:
        followed, other = found.memory.episodes
        what = f"episode {followed} for {found.memory.steps[-1]:,} decisions, and with the beginning of {other}"
        table.append(["two beginnings", what])
    if found.conditioning is not None:
        rows = found.conditioning.to_dict()
        asked = ", ".join(f"{row['target_return']:,g}" for row in rows["results"])
        table.append(
            ["played per target return", f"{rows['episodes_per_target']} episodes, seeds from {rows['seed']}; {asked}"]
        )
    return [*table, ["versions", ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())]]


def _attention_shares(found: ModelInspection) -> NDArray[Any]:
    """Return share of attention in % by steps ago (k,), the mean over layers of each layer's own shares."""
    assert found.curves is not None
    curves = np.nan_to_num(found.curves)
    shares: NDArray[Any] = (100 * curves / np.maximum(curves.sum(1, keepdims=True), np.finfo(np.float32).tiny)).mean(0)
    return shares


def _quartiles(changes: NDArray[Any]) -> NDArray[Any]:
    """Return first and third quartile over windows (2, k - 1) of changes (b, k - 1)."""
    quartiles = [
        np.quantile(x[np.isfinite(x)], [0.25, 0.75]) if np.isfinite(x).any() else [np.nan] * 2 for x in changes.T
    ]
    return np.array(quartiles).T


def _fit_text(fit: Decay | None) -> str:
    if fit is None:
        return "attends to one step at most"
    rate = f"rate per step {fit.rate:.3f} (95%: {interval_text(fit.rate_interval, '{:.3f}'.format)})"
    half_life = "no decay" if math.isinf(fit.half_life) else f"half-life {fit.half_life:.1f} steps"
    return f"{rate}\n{half_life}\nR² = {fit.r_squared:.2f}: {_verdict(fit)}"


def _range(values: list[Any], text: Callable[[Any], str]) -> str:
    low, high = min(values), max(values)
    return text(low) if low == high else f"{text(low)} to {text(high)}"


def _verdict(fit: Decay) -> str:
    """Return whether a line describes the logarithm of attention."""
    return next(words for least, words in _VERDICTS if fit.r_squared >= least)


# ------------------------------------------------------------------------------------------------------------ page

_Section = tuple[str, str, Callable[[ModelInspection], Any], Callable[[ModelInspection], Table]]
_SECTIONS: dict[str, _Section] = {
    "attention": (
        "What decisions attend to",
        "Each column is one decision: the brighter a cell, the more the scan takes from that token (bottom row: the "
        "step of the decision itself; white: no such token is read; mean over layers and channels).",
        _attention,
        _attention_table,
    ),
    "decay": (
        "How fast attention decays",
        "Points on the line mean that attention halves every half-life; where they bend away from it, the decay is not "
        "exponential and the rate is only a summary. Intervals are the bootstrap over windows, and so are about these "
        "episodes.",
        _decay,
        _decay_table,
    ),
    "effective_context": (
        "How far back the action depends on the past",
        "The red line says how far the action is off when the policy sees only the steps more recent than this one: "
        "where it is near zero, a longer context changes nothing.",
        _context,
        _context_table,
    ),
    "return_conditioning": (
        "What comes of asking for a return",
        "On the dotted line the policy achieves exactly what it is asked for; a flat stretch means that asking for "
        "more does not help.",
        _conditioning,
        _conditioning_table,
    ),
    "time_constants": (
        "Step sizes and memory",
        "The further right, the longer (right) the states of a layer remember, and the larger (left) the steps Δ with "
        "which they move; beyond the red line memory outlasts the context.",
        _time_constants,
        _time_constants_table,
    ),
    "memory": (
        "What is left of a beginning",
        "One episode is followed twice, the second time with another episode's first observation; all that is seen and "
        "done later is the same. The model still knows the beginning where the signal is not small against the drift "
        "and the answers differ; a signal that falls is forgotten, and a drift that rises is what the read-out was "
        "never trained on. Answers that are due at the end of the episode are asked for earlier by the dashed line.",
        _memory,
        _memory_table,
    ),
}

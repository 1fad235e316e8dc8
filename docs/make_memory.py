"""Write docs/memory.md and its pictures from the results of a study and a benchmark: `python docs/make_memory.py`."""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from hf_decision_mamba.reporting.figures import tidy
from hf_decision_mamba.reporting.tables import markdown_lines

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "memory" / "results.json"
CLUES = ROOT / "benchmarks" / "results" / "clues" / "results.json"
BEGINNINGS = ROOT / "benchmarks" / "results" / "memory_of_beginning.json"
PATH, PICTURE = Path(__file__).with_name("memory.md"), Path(__file__).with_name("memory.svg")
STATES = Path(__file__).with_name("memory_states.svg")
NAMES = {"dema-b3ld": "DeMa, B3LD", "dmm": "DMM"}
DILATED, PLAIN, OTHERS = "time dilated in training", "the same, not dilated", "what they are compared with"
COLORS = ("#4c78a8", "#72b7b2", "#e4572e", "#9d755d", "#b279a2", "#eeca3b")
PAGE = """# Memory

Where the past decides beyond a window, a model that carries a state can do what no window can, at a cost per decision
that does not grow. This page is about how to train one, and how far it was seen to reach.

![Share of right turns against the length of the corridor](memory.svg)

*The passive T-Maze (arXiv 2307.03864): a clue, one of two, at the first step; a corridor in which nothing tells them
apart; a junction at its end where the clue is asked for. Trained on corridors of 3 to 20 steps of the environment's
own expert, asked in longer ones, last checkpoint. A guess is right half of the time. Each line is one trained model;
where several do the same, they are drawn a little above each other.*

## How

```bash
hf-decision-mamba collect hf_decision_mamba/TMaze-v0 --env-kwargs '{{"length": [3, 20]}}' --policy expert \\
    --episodes 2000 --output runs/maze
accelerate launch train.py --dataset_name runs/maze --preset dema-b3ld --state_size 16 --train_mode sequences \\
    --context_length 24 --per_device_train_batch_size 32 --max_steps 1500 --warmup_steps 50 --eval_mode recurrent \\
    --time_dilation 0.1 --time_step_min 1e-6 --time_step_max 1e-4 --output_dir runs/maze-dema
hf-decision-mamba evaluate runs/maze-dema --mode recurrent --env-kwargs '{{"length": 10000}}'
```

[dema-b3ld-t-maze](../model_cards/dema-b3ld-t-maze/README.md) and [dmm-t-maze](../model_cards/dmm-t-maze/README.md)
are two such models, ready to load.

* `--train_mode sequences`: each row of a batch walks through whole episodes in chunks of `context_length` steps, and
  its states go from one chunk to the next (truncated backpropagation through time). Windows that begin anywhere hide
  the clue from nearly all of their junctions.
* `--time_dilation 0.1`: one step in ten passes for up to `--time_dilation_max` steps (a million, if unset): in every
  layer its step size Δ is multiplied by a factor drawn log-uniformly. Stretches in which nothing happens are so met
  at every length. The convolution and DMM's local mixers do not see it; nothing is dilated when the model acts.
* `--time_step_min`, `--time_step_max`: the step sizes at initialisation. A channel of step size Δ forgets within about
  1/Δ tokens.
* **Short episodes.** As dilation brings the length, the corridors can be short: what is to be learned is then one
  decision in some ten instead of one in thirty or more.

## What was measured

[memory.yaml](../configs/studies/memory.yaml), one setting for all that are dilated, and the same without the dilation
and with the usual initial step sizes; the processor's minutes of a training are the mean over the seeds that had one
thread, all of them or all but one. The share of right turns by the length of the corridor, one number a seed, of
{episodes} episodes each, the same for all: who always turns the same way is right in {guesses} of them. A dash: not
played, because the model is at chance in a shorter one already.

{table}{more}
## More than one bit

[clues.yaml](../configs/studies/clues.yaml): the clue is one of 16 or of 256; 4 clues of two kinds, or 16, are told and
asked for in their order; or three in ten steps of the corridor show a clue, one of two, that does not count. All begin
with the usual step sizes and take {steps:,} steps of training, on corridors of at most 20 steps (32 where 16 are told;
windows have {context}). The share of episodes in which all junctions were answered rightly, one number a seed, of
{clue_episodes} episodes each; among lures, too, who always answers the same is right in {guesses}. A dash: not played,
because of fewer than {least} in a shorter corridor.

{clues}{clues_more}
## What keeps a clue, and what loses it

![The two clues' answers, and the signal and drift of the states, against the step of a corridor](memory_states.svg)

*Two episodes that differ in their clue alone, carried through one corridor of {corridor} steps
([results](../benchmarks/results/memory_of_beginning.json) of `python benchmarks/memory_of_beginning.py`, of any
checkpoint by `hf-decision-mamba inspect RUN --memory`): had the junction come next, the logit of the right turn less
that of the wrong one, a line for each clue; how far apart the states of the two are (signal), and how far both have
moved together since the first decision (drift).*

{kept_and_lost}
"""


def main() -> None:
    """Write page and pictures."""
    matplotlib.rcParams["svg.hashsalt"] = "memory"  # the same bytes from the same numbers
    PATH.write_text(render(), encoding="utf-8")
    _draw(_models())
    _draw_states(_beginnings())


def render() -> str:
    """Write the page as text."""
    models, beginnings = _models(), _beginnings()
    lines = []
    for name, rows in models.items():
        cost = statistics.mean({row["seed"]: row["cpu_minutes"] for row in rows if row["cpu_threads"] == 1}.values())
        lines.append([name, f"{rows[0]['num_parameters']:,}", f"{cost:.1f}", *_shares(rows, _lengths(models))])
    study, clues = _read(RESULTS), _read(CLUES)
    of_clues = clues["study"]["evaluations"]["corridors"]
    guess = models["BC"][0]["score"]  # who cannot know the clue
    return PAGE.format(
        guesses=f"{max(guess, 1 - guess):.2f} or {min(guess, 1 - guess):.2f}",
        episodes=study["study"]["evaluations"]["corridors"]["episodes"],
        table=_table(["model", "parameters", "minutes"], _lengths(models), lines),
        more=_unfinished(study),
        steps=clues["study"]["base"]["max_steps"],
        context=clues["study"]["base"]["context_length"],
        clue_episodes=of_clues["episodes"],
        least=of_clues["stop_below"],
        clues=_table_of_clues(clues),
        clues_more=_unfinished(clues),
        kept_and_lost=fill(_kept_and_lost(beginnings), 120),
        corridor=f"{beginnings[0]['steps'][-1] - 1:,}",
    )


def _models() -> dict[str, list[dict[str, Any]]]:
    """Read the rows of each model."""
    models: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _read(RESULTS)["runs"]:
        models[row["variant"]].append(row)
    return models


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _table_of_clues(study: dict[str, Any]) -> str:
    """Return a row for what is to be held and each model."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in study["runs"]:
        found[row["data"], row["variant"]].append(row)
    lengths = study["study"]["evaluations"]["corridors"]["sweep"]["length"]
    lines = [[*names, f"{rows[0]['num_parameters']:,}", *_shares(rows, lengths)] for names, rows in found.items()]
    return _table(["what is held", "model", "parameters"], lengths, lines)


def _table(names: Sequence[str], lengths: Sequence[int], lines: Sequence[Sequence[str]]) -> str:
    head = [*names, *(f"{length:,}" for length in lengths)]
    return "".join(f"{line}\n" for line in markdown_lines(head, lines, left=names.index("parameters")))


def _shares(rows: Sequence[dict[str, Any]], lengths: Sequence[int]) -> list[str]:
    """Return a cell for each length: the share of every seed."""
    shares = {(row["seed"], int(row["swept_value"])): row["score"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    return [" ".join(_share(shares[seed, length]) for seed in seeds) for length in lengths]


def _unfinished(study: dict[str, Any]) -> str:
    number = len(study["unfinished"])
    return f"\n{number} of the study's runs are not finished; what stands here is what is.\n" if number else ""


def _lengths(models: dict[str, list[dict[str, Any]]]) -> list[int]:
    return sorted({int(row["swept_value"]) for rows in models.values() for row in rows})


def _beginnings() -> list[dict[str, Any]]:
    """Read what two beginnings left behind in each model."""
    return _read(BEGINNINGS)["results"]


def _label(row: dict[str, Any]) -> str:
    return NAMES[row["preset"]] + (", dilated" if row["time_dilation"] else "")


def _kept_and_lost(rows: list[dict[str, Any]]) -> str:
    """Say in words what the picture of the two beginnings shows."""
    first = 3  # the shortest corridor of training
    held, lost, why = [], [], []
    for row in rows:
        steps = np.array(row["steps"])
        margins, signal, drift = (np.array(row[name])[..., steps >= first] for name in ("margins", "signal", "drift"))
        steps = steps[steps >= first]
        if row["time_dilation"]:
            held.append(np.ptp(margins, axis=1).max())
            continue
        wrong = steps[(margins < 0).any(0)]
        lost.append(f"from step {wrong[0]:,} on in {_label(row)}")
        why.append(
            f"the states of {_label(row)} are {signal[0]:.0f} apart at step {first} and {signal[-1]:.0e} at the end, "
            f"and both have moved by {drift[-1]:.0f} by then"
        )
    return (
        f"Dilated, no margin moves by more than {max(held):.2g} between step {first} and the end. Not dilated, with "
        f"the usual step sizes, both clues get the same answer {' and '.join(lost)}: {'; '.join(why)}."
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _panel(name: str, models: dict[str, list[dict[str, Any]]]) -> str:
    """Return in which panel a model belongs."""
    if name.endswith(", dilated"):
        return DILATED
    return PLAIN if f"{name}, dilated" in models else OTHERS


def _draw(models: dict[str, list[dict[str, Any]]]) -> None:
    """Draw a panel for each kind of model; what does the same lies a little above each other."""
    names = list(dict.fromkeys(_panel(name, models) for name in models))
    figure = Figure(figsize=(3.3 * len(names), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for axes, panel in zip(panels, names, strict=True):
        axes.axhline(0.5, color="#9aa0a6", linewidth=1, linestyle=":")
        axes.axvspan(3, 20, color="#f1f3f4")
        for place, name in enumerate(name for name in models if _panel(name, models) == panel):
            for seed in sorted({row["seed"] for row in models[name]}):
                rows = [row for row in models[name] if row["seed"] == seed and row["score"] is not None]
                points = sorted((int(row["swept_value"]), row["score"] + 0.015 * place) for row in rows)
                style = {"marker": "o", "markersize": 4, "alpha": 0.7, "color": COLORS[place]}
                axes.plot(*zip(*points, strict=True), label=name.removesuffix(", dilated"), **style)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(handles.values(), handles.keys(), frameon=False, fontsize=7, loc="lower right")
        axes.set(xscale="log", xlabel="length of the corridor, steps", ylim=(-0.05, 1.1))
        axes.set_title(panel, fontsize=10, loc="left")
        tidy(axes)
    panels[0].set_ylabel("share of right turns")
    figure.savefig(PICTURE, metadata={"Date": None})


def _draw_states(rows: list[dict[str, Any]]) -> None:
    """Draw margins, signal and drift of each model against the step."""
    figure = Figure(figsize=(9.9, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True)
    for place, row in enumerate(rows):
        steps = np.array(row["steps"])
        style = {
            "color": COLORS[2 * (place // 2)],
            "linestyle": "-" if row["time_dilation"] else "--",
            "linewidth": 1.3,
        }
        for margin in row["margins"]:
            panels[0].plot(steps[:-1], margin[:-1], **style)
        panels[1].plot(steps, row["signal"], label=_label(row), **style)
        panels[2].plot(steps[1:], row["drift"][1:], **style)
    panels[0].axhline(0, color="#9aa0a6", linewidth=1, linestyle=":")
    titles = "right less wrong turn, logits", "signal: distance of the states", "drift of both states"
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xscale="log", xlabel="steps in the corridor")
        axes.set_title(title, fontsize=10, loc="left")
        tidy(axes)
    for axes in panels[1:]:
        axes.set_yscale("log")
    panels[1].legend(frameon=False, fontsize=7, loc="lower left")
    figure.savefig(STATES, metadata={"Date": None})


if __name__ == "__main__":
    main()

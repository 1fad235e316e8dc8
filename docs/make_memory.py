"""Write docs/memory.md and its picture from benchmarks/results/memory.json: `python docs/make_memory.py`."""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from hf_decision_mamba.reporting.figures import tidy

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "memory.json"
PATH, PICTURE = Path(__file__).with_name("memory.md"), Path(__file__).with_name("memory.svg")
COLORS = {"DeMa, BL3D": "#4c78a8", "DeMa, B3LD": "#72b7b2", "DMM": "#e4572e", "GRU": "#9d755d"}
HEADER = """# Memory

Where the past decides beyond a window, a model that carries a state can do what no window can, at a cost per decision
that does not grow. This page is about how to train one, and how far it was seen to reach.

![Share of right turns against the length of the corridor](memory.svg)

*The passive T-Maze (arXiv 2307.03864): a clue, one of two, at the first step; a corridor in which nothing tells them
apart; a junction at its end where the clue is asked for. Trained on corridors of 3 to 60 steps of the environment's
own expert, asked in longer ones, acting in recurrent mode, last checkpoint. A guess is right half of the time. Each
line is one trained model; where several do the same, they are drawn a little above each other.*

## How

```bash
hf-decision-mamba collect hf_decision_mamba/TMaze-v0 --env-kwargs '{"length": [3, 60]}' --policy expert \\
    --episodes 2000 --output runs/maze
accelerate launch train.py --dataset_name runs/maze --preset dema-bl3d --state_size 16 --train_mode sequences \\
    --context_length 64 --per_device_train_batch_size 32 --max_steps 2500 --warmup_steps 100 --eval_mode recurrent \\
    --time_dilation 0.1 --time_step_min 1e-8 --time_step_max 1e-5 --output_dir runs/maze-dema
hf-decision-mamba evaluate runs/maze-dema --mode recurrent --env-kwargs '{"length": 10000}'
```

* `--train_mode sequences`: each row of a batch walks through whole episodes in chunks of `context_length` steps, and
  its states go from one chunk to the next (truncated backpropagation through time). Windows that begin anywhere hide
  the clue from nearly all of their junctions.
* `--time_dilation 0.1`: one step in ten passes for up to `--time_dilation_max` steps (a million, if unset): in every
  layer its step size Δ is multiplied by a factor drawn log-uniformly. Stretches in which nothing happens are so met
  at every length. The convolution and DMM's local mixers do not see it; nothing is dilated when the model acts.
* `--time_step_min`, `--time_step_max`: the step sizes at initialisation, from 1e-8 on; the table has three upper ends,
  and which of them a model learns with differs. A channel of step size Δ forgets within about 1/Δ tokens.

## What was measured

`python benchmarks/memory.py`: every run is one command of the above, on one thread; the processor's minutes of its
training are the median over seeds. The share of right turns by the length of the corridor, one number a seed: 24
episodes, of 100,000 steps 16, of a million 8. A dash: not played, because the model is at chance in a shorter one
already.

"""
FOOTER = """
The study goes on where it was interrupted; what stands here is what has finished so far: few seeds, so a first answer
and no more. The machine was busy with other work, which makes the processor's minutes longer.
"""


def main() -> None:
    """Write page and picture."""
    PATH.write_text(render(), encoding="utf-8")
    _draw(_runs())


def render() -> str:
    """Write the page as text."""
    rows, runs = [], _runs()
    lengths = _lengths(runs)
    for (condition, model), found in sorted(runs.items()):
        cells = [" ".join(_share(run["success"].get(str(length))) for run in found) for length in lengths]
        minutes = [run["cpu_minutes"] for run in found if "cpu_minutes" in run]
        cost = f"{statistics.median(minutes):.1f}" if minutes else "not measured"
        rows.append([f"{model}, {condition}", f"{found[0]['parameters']:,}", cost, *cells])
    head = ["model, Δ in training", "parameters", "minutes", *(f"{length:,}" for length in lengths)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return HEADER + "".join(f"| {' | '.join(line)} |\n" for line in lines) + FOOTER


def _runs() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Read the runs, by condition and model."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]:
        runs[run["condition"], run["model"]].append(run)
    return runs


def _lengths(runs: dict[tuple[str, str], list[dict[str, Any]]]) -> list[int]:
    return sorted({int(length) for found in runs.values() for run in found for length in run["success"]})


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _draw(runs: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Draw a panel for each condition; models that do the same lie a little above each other."""
    lengths, conditions = _lengths(runs), sorted({condition for condition, _ in runs})
    matplotlib.rcParams["svg.hashsalt"] = "memory"  # the same bytes from the same numbers
    figure = Figure(figsize=(3.1 * len(conditions), 3.4), layout="constrained")
    panels = figure.subplots(1, len(conditions), sharex=True, sharey=True, squeeze=False)[0]
    for axes, condition in zip(panels, conditions, strict=True):
        axes.axhline(0.5, color="#9aa0a6", linewidth=1, linestyle=":", label="a guess")
        axes.axvspan(3, 60, color="#f1f3f4", label="trained on")
        for place, (model, color) in enumerate(COLORS.items()):
            for run in runs.get((condition, model), []):
                shown = {length: run["success"].get(str(length)) for length in lengths}
                points = [(length, share + 0.015 * place) for length, share in shown.items() if share is not None]
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, alpha=0.8, color=color, label=model)
        axes.set(xscale="log", xlabel="length of the corridor, steps", ylim=(0.28, 1.07))
        axes.set_title(condition, fontsize=10, loc="left")
        tidy(axes)
    panels[0].set_ylabel("share of right turns")
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()

"""Train every architecture on one data set by one protocol and score it: `python benchmarks/compare_architectures.py`.

Each run is one `train.py` in a process of its own on one thread, `--jobs` of them at a time; the command goes on where
it was interrupted. With the first seed every learning rate is tried; the one with the lowest held-out loss at the end
is then trained with the other seeds. No score decides anything. Writes results/comparison.json and docs/comparison.md.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm
from training_runs import ROOT, train

RESULTS = ROOT / "benchmarks" / "results" / "comparison.json"
PAGE = ROOT / "docs" / "comparison.md"

MODELS = {
    "Decision Transformer": "--architecture decision_transformer",
    "DeMa": "--preset dema-b3ld --state_size 64",  # the preset's own; the settings file of the default run says 16
    "Decision MetaMamba": "--preset dmm",
    "Decision Mamba": "--preset decision-mamba",
    "RvS-R": "--architecture rvs",
}
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
SEEDS = (0, 1)

HEADER = """# A first comparison

{dataset}, {steps:,} steps of {batch} windows of {context} time steps, AdamW with cosine decay after {warmup} warm-up
steps. Every model learns from the same windows with the same loss in the same trainer, and is scored by its last
checkpoint in window mode: {episodes} episodes in {env} at a target return of {target:g}. Scores are D4RL's normalised
returns.

The learning rate of each model is the one of {rates} with the lowest loss on held-out episodes (5%) after
training with seed {first}; no score was looked at. A row gives the mean score of {seeds} seeds at that rate, and each
seed's beside it.

| model | parameters | learning rate | held-out loss | score | each seed |
|---|---|---|---|---|---|
"""
ALL_RUNS = """
Every run, so that another rule of choice can be tried:

| model | learning rate | seed | held-out loss | score (95% interval over episodes) |
|---|---|---|---|---|
"""
FOOTER = """
What this does not say: two seeds tell large differences from small ones and no more; the papers train for 100,000
steps; the context of {context} steps is the one that suited DeMa in the default run, where Decision Transformer and
Decision Mamba published with 20. The intervals are over the episodes of one trained model, not over seeds. RvS-R, the
floor, sees one state and one return-to-go at a time: where it keeps up with the others, this data set asks for no
memory. The held-out loss ranks neither the models nor the seeds as the scores do.

Written by `{command}`; the numbers are in
[comparison.json](../benchmarks/results/comparison.json).
"""


class Comparison:
    """The runs of a comparison in one folder, each trained once."""

    def __init__(self, folder: Path, settings: list[str], progress: tqdm) -> None:
        self.folder, self.settings, self.progress = folder, settings, progress

    def run(self, model: str, learning_rate: float, seed: int) -> dict[str, Any]:
        """Train and score one model, unless that was done; what its results files say."""
        output_dir = self.folder / f"{model.lower().replace(' ', '-')}-lr{learning_rate:g}-seed{seed}"
        arguments = [*shlex.split(MODELS[model]), *self.settings, f"--learning_rate={learning_rate}", f"--seed={seed}"]
        training, evaluation = train(output_dir, arguments)
        self.progress.update()
        return {
            "model": model,
            "learning_rate": learning_rate,
            "seed": seed,
            "num_parameters": training["num_parameters"],
            "eval_loss": training["eval_loss"],
            **evaluation["results"][0],
            "arguments": shlex.join(arguments),
            "train_runtime_seconds": training["train_runtime_seconds"],
            "training": training,
            "evaluation": evaluation,
        }


def chosen(runs: list[dict[str, Any]], model: str) -> float:
    """The learning rate of the lowest held-out loss with the first seed."""
    tried = [run for run in runs if run["model"] == model and run["seed"] == SEEDS[0]]
    return min(tried, key=lambda run: run["eval_loss"])["learning_rate"]


def render(report: dict[str, Any]) -> str:
    """The page as text."""
    runs, protocol = report["runs"], report["protocol"]
    rows = []
    for model in dict.fromkeys(run["model"] for run in runs):
        rate = chosen(runs, model)
        ours = [run for run in runs if (run["model"], run["learning_rate"]) == (model, rate)]
        scores = [run["normalized_score_mean"] for run in ours]
        loss = statistics.mean(run["eval_loss"] for run in ours)
        each = ", ".join(f"{score:.1f}" for score in scores)
        cells = (f"{ours[0]['num_parameters']:,}", f"{rate:g}", f"{loss:.4f}", f"{statistics.mean(scores):.1f}", each)
        rows.append((statistics.mean(scores), f"| {model} | {' | '.join(cells)} |\n"))
    page = HEADER.format(**protocol) + "".join(row for _, row in sorted(rows, reverse=True)) + ALL_RUNS
    for run in runs:
        low, high = run["normalized_score_ci95"]
        score = f"{run['normalized_score_mean']:.1f} ({low:.1f} to {high:.1f})"
        page += f"| {run['model']} | {run['learning_rate']:g} | {run['seed']} | {run['eval_loss']:.4f} | {score} |\n"
    return page + FOOTER.format(**protocol, command=report["command"])


def protocol_of(run: dict[str, Any]) -> dict[str, Any]:
    """What all runs share, read from the files of one of them."""
    arguments, evaluation = run["training"]["arguments"], run["evaluation"]
    return {
        "dataset": run["training"]["dataset"]["name"],
        "steps": run["training"]["global_step"],
        "batch": arguments["per_device_train_batch_size"],
        "context": arguments["context_length"],
        "warmup": int(arguments["warmup_steps"]),
        "episodes": run["episodes"],
        "env": evaluation["env_id"],
        "target": run["target_return"],
        "rates": ", ".join(f"{rate:g}" for rate in LEARNING_RATES),
        "first": SEEDS[0],
        "seeds": len(SEEDS),
    }


def main() -> None:
    """Train what is missing, then write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "comparison", help="where the runs are kept")
    parser.add_argument("--max_steps", type=int, default=4000)
    parser.add_argument("--context_length", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, each on one thread")
    arguments = parser.parse_args()
    settings = [f"--max_steps={arguments.max_steps}", f"--warmup_steps={arguments.max_steps // 10}"]
    settings += [f"--context_length={arguments.context_length}", "--eval_episodes=20"]
    total = len(MODELS) * (len(LEARNING_RATES) + len(SEEDS) - 1)
    with tqdm(total=total, unit="run") as progress, ThreadPoolExecutor(arguments.jobs) as pool:
        comparison = Comparison(arguments.runs.resolve(), settings, progress)
        grid = [(model, rate, SEEDS[0]) for rate in LEARNING_RATES for model in MODELS]
        runs = list(pool.map(lambda choice: comparison.run(*choice), grid))
        rest = [(model, chosen(runs, model), seed) for seed in SEEDS[1:] for model in MODELS]
        runs += pool.map(lambda choice: comparison.run(*choice), rest)
    runs.sort(key=lambda run: (list(MODELS).index(run["model"]), run["learning_rate"], run["seed"]))
    report = {
        "command": shlex.join(["python", "benchmarks/compare_architectures.py", *sys.argv[1:]]),
        "protocol": protocol_of(runs[0]),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "jobs": arguments.jobs},
        "versions": {**runs[0]["training"]["versions"], **runs[0]["evaluation"]["versions"]},
        "runs": [{name: run[name] for name in run if name not in ("training", "evaluation")} for run in runs],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(render(report), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

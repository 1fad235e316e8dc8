"""Time one decision: `python benchmarks/decision.py`; results/decision.json, docs/benchmarks.md.

A decision is `policy.act(observation, reward)` with everything in it: normalise, one forward pass, clip, remember. One
environment, then 64 at once; beside ours, transformers' Decision Transformer in the same policy, and its forward alone.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measuring import (
    DT,
    DT_NOTE,
    Actor,
    decision_mamba,
    decision_transformer,
    milliseconds,
    save,
    spread,
    target,
    windows,
)
from transformers import PreTrainedModel

STEPS, ROWS, CALLS = 20, 64, 20
DT_FORWARD = f"{DT}, forward pass alone"
DEFAULT_RUN = "dema-b3ld, width 64, N 16"
AGES = (10, 100, 900)  # decisions before the timed ones
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    DEFAULT_RUN: lambda: decision_mamba("dema-b3ld", state_size=16),
    "dema-b3ld, paper's size (N 64)": lambda: decision_mamba("dema-b3ld"),
    "dema-bl3d, paper's size (N 64)": lambda: decision_mamba("dema-bl3d"),
    "dmm, paper's size (N 16)": lambda: decision_mamba("dmm"),
    DT: decision_transformer,
}


def latency(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of one decision in one environment, by what decides."""
    dt, inputs = decision_transformer().eval(), windows(1, STEPS)
    del inputs["labels"], inputs["previous_actions"]
    passes: dict[str, Callable[[], object]] = {DT_FORWARD: torch.inference_mode()(lambda: dt(**inputs))}
    restarts: dict[str, Callable[[], None]] = {}

    def add(name: str, actor: Actor, age: int) -> None:
        passes[name], restarts[name] = actor, lambda: actor.restart(age)

    for name, make in MODELS.items():
        add(f"{name}, window", Actor(make(), "window"), STEPS)
        if name != DT:
            for age in AGES if name == DEFAULT_RUN else AGES[1:2]:
                add(f"{name}, recurrent, after {age} decisions", Actor(make(), "recurrent"), age)
    return milliseconds(passes, rounds, CALLS, before=restarts)


def batches(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of 64 decisions, one in each of 64 environments."""
    actors = {}
    for name, make in MODELS.items():
        for mode in ("window", "recurrent") if name != DT else ("window",):
            actors[f"{name}, {mode}"] = Actor(make(), mode, ROWS)
    for actor in actors.values():
        actor.restart(STEPS)
    return milliseconds(actors, rounds, calls=2)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    by_default = torch.get_num_threads()
    one, many = {}, {}
    for threads in (by_default, 1):
        torch.set_num_threads(threads)
        one[threads], many[threads] = latency(arguments.rounds), batches(arguments.rounds)
    torch.set_num_threads(by_default)

    results: list[dict[str, Any]] = [
        {"name": name, "threads": threads, "rows": 1, **spread(values)}
        for threads in one
        for name, values in one[threads].items()
    ] + [
        {"name": name, "threads": threads, "rows": ROWS, **spread(values), "per_second": 1e3 * ROWS / np.median(values)}
        for threads in many
        for name, values in many[threads].items()
    ]
    for row in results:
        speed = f"{row['per_second']:10,.0f} decisions/s" if "per_second" in row else ""
        print(f"{row['name']:60} {row['rows']:3} rows {row['threads']} threads {row['median']:8.3f} ms {speed}")

    # The policy leaves torch's number of threads alone, so the targets are held against that one.
    median = {row["name"]: row["median"] for row in results if row["threads"] == by_default and row["rows"] == 1}
    together = {
        row["name"]: row["per_second"] for row in results if row["threads"] == by_default and row["rows"] == ROWS
    }
    early, middle, late = (median[f"{DEFAULT_RUN}, recurrent, after {age} decisions"] for age in AGES)
    window, dt_window = median[f"{DEFAULT_RUN}, window"], median[f"{DT}, window"]
    speedup = together[f"{DEFAULT_RUN}, recurrent"] / together[f"{DT}, window"]
    save(
        "milliseconds of one decision",
        {
            DT: f"{DT_NOTE}; in our policy, window of {STEPS} steps",
            DT_FORWARD: "the model alone in inference mode, on tensors that are ready",
        },
        size={"steps": STEPS, "rows": ROWS},
        default_threads=by_default,
        results=results,
        targets=[
            target(f"{DEFAULT_RUN}: a recurrent decision", middle, 0.5, unit="ms"),
            target(f"the same after {AGES[2]} decisions / after {AGES[0]}", late / early, 1.1),
            target(f"{DEFAULT_RUN}: a decision over a window of {STEPS}", window, 1.5, unit="ms"),
            target(f"{DT}, window / {DEFAULT_RUN}, recurrent", dt_window / middle, 10, at_least=True),
            target(f"{ROWS} rows, decisions per second: {DEFAULT_RUN}, recurrent / {DT}", speedup, 1, at_least=True),
        ],
    )


if __name__ == "__main__":
    main()

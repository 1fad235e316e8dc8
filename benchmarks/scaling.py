"""Cost against the context length K: `python benchmarks/scaling.py`; results/scaling.json, docs/benchmarks.md.

Training step, its memory, and one decision, for transformers' Decision Transformer and ours of the same width. A step's
memory is the growth of the resident set at its peak over what the process held before, in a fresh process per point
that has taken a step before: activations, without weights, gradients, optimiser state and libraries. Linux only.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from measuring import (
    DT,
    DT_NOTE,
    WIDE,
    Actor,
    decision_mamba,
    decision_transformer,
    in_a_process,
    milliseconds,
    peak_growth,
    save,
    spread,
    target,
    training_step,
    windows,
)
from tqdm import tqdm
from transformers import PreTrainedModel

BATCH = 2
CONTEXTS = (5, 10, 20, 50, 100, 200, 500, 1000)
IN_A_ROW = 200
WARM_UP = 50  # long enough for several threads
TOKENS = 3  # of one time step, in both models
OURS = "dema-b3ld, width 128, N 16"
RECURRENT = f"{OURS}, recurrent"
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    OURS: lambda: decision_mamba("dema-b3ld", **WIDE),
    DT: lambda: decision_transformer(max_ep_len=2000),
}


def memory_of_a_step(name: str, steps: int) -> int:
    """Bytes by which one training step grows this process, beyond what an earlier one has left."""
    model = MODELS[name]()
    training_step(model, windows(BATCH, WARM_UP))()  # loads kernels, makes gradients and optimiser state
    return peak_growth(training_step(model, windows(BATCH, steps)))


def rounds_for(steps: int, rounds: int) -> int:
    """Fewer repetitions of what takes long; of three, the median leaves out a first one that had to warm up."""
    return max(3, min(rounds, rounds * 50 // steps))


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row for each model and context length; the memory first, two processes at a time, as it needs no quiet."""
    points = [(name, steps) for steps in CONTEXTS for name in MODELS]
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda point: in_a_process(__file__, "--memory_of", point[0], str(point[1])), points)
        memory = dict(zip(points, map(int, tqdm(runs, total=len(points), unit="process")), strict=True))
    torch.manual_seed(0)
    models = {name: make() for name, make in MODELS.items()}
    acting = {name: make() for name, make in MODELS.items()}
    rows = []
    for steps in tqdm(CONTEXTS, unit="context length"):
        repeat = rounds_for(steps, rounds)
        batch, warm_up = windows(BATCH, steps), repeat > 3
        passes = {name: training_step(model, batch) for name, model in models.items()}
        training = milliseconds(passes, repeat, warm_up=warm_up)
        actors = {name: Actor(model, "window", steps=steps) for name, model in acting.items()}
        for actor in actors.values():
            actor.restart(steps, blindly=True)
        recurrent = Actor(acting[OURS], "recurrent")
        recurrent.restart(steps)
        decisions = milliseconds(actors, repeat, warm_up=warm_up) | milliseconds({RECURRENT: recurrent}, 1, IN_A_ROW)
        for name in models:
            rows.append(
                {
                    "name": name,
                    "steps": steps,
                    "training_step_ms": spread(training[name]),
                    "memory_bytes": memory[name, steps],
                    "decision_ms": spread(decisions[name]),
                }
            )
        rows.append({"name": RECURRENT, "steps": steps, "decision_ms": spread(decisions[RECURRENT])})
    for row in rows:
        row["memory_bytes_per_token"] = row.get("memory_bytes", 0) / (BATCH * TOKENS * row["steps"]) or None
    return rows


def exponent(rows: list[dict[str, Any]], name: str, value: Callable[[dict[str, Any]], float]) -> float:
    """Slope in the log-log plot over the three longest contexts: 1 is linear, 2 quadratic, 0 constant."""
    chosen = [row for row in rows if row["name"] == name][-3:]
    return float(np.polyfit(np.log([row["steps"] for row in chosen]), np.log([value(row) for row in chosen]), 1)[0])


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="repetitions up to K 50, in proportion fewer beyond")
    parser.add_argument("--memory_of", nargs=2, metavar=("MODEL", "K"), help="print the bytes of one point, no more")
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(memory_of_a_step(arguments.memory_of[0], int(arguments.memory_of[1])))
        return

    rows = measure(arguments.rounds)
    for row in rows:
        step = f"step {row['training_step_ms']['median']:9.1f} ms" if "training_step_ms" in row else ""
        memory = f"{row['memory_bytes_per_token'] / 1024:8.1f} KiB a token" if row["memory_bytes_per_token"] else ""
        print(f"{row['name']:40} K {row['steps']:5} decision {row['decision_ms']['median']:9.2f} ms {step:20} {memory}")

    def of(name: str, steps: int) -> dict[str, Any]:
        return next(row for row in rows if (row["name"], row["steps"]) == (name, steps))

    worst = max(of(OURS, k)["memory_bytes"] / of(DT, k)["memory_bytes"] for k in CONTEXTS if k >= 50)
    save(
        "cost against the context length K",
        {
            DT: DT_NOTE,
            OURS: "the same width and number of layers",
            RECURRENT: f"after K decisions; {IN_A_ROW} in a row; decision.py compares early with late",
            "memory": "growth of the resident set at the step's peak, a fresh process per point",
        },
        size={"batch": BATCH, "contexts": CONTEXTS, "tokens_per_step": TOKENS},
        results=rows,
        targets=[
            target(
                f"{OURS}: exponent of the training step's time, K 200 to 1000",
                exponent(rows, OURS, lambda row: row["training_step_ms"]["median"]),
                1.1,
            ),
            target(f"memory of a step, K 50 and more, at worst: {OURS} / {DT}", worst, 1.0),
        ],
    )


if __name__ == "__main__":
    main()

"""Act at a robot's rate: `taskset -c 0 python benchmarks/control_loop.py`; docs/benchmarks.md.

A control loop calls `policy.act` at every tick of a clock. A mean says little there: what counts is the slowest
decision, and how far from its tick a decision begins. Each checkpoint acts `--decisions` times on observations that are
drawn beforehand, after `warm_up`, as one episode; between two ticks the loop sleeps, or with `--rate 0` it never does.
No environment is stepped. In the results (results/control_loop.json):

* `decision_ms`: how long `policy.act` takes.
* `processor_ms`: how long of this it computes: what else passes is other processes' time on its core.
* `jitter_ms`: how long after its tick a decision begins. The clock of the system and other processes are in it. A
  decision that takes longer than a period makes the next ones late; no tick is left out.
* `missed`: decisions that were not made when the next tick came.

Another rate or number: `--rate 100 --decisions 2000`; your own: `--checkpoints runs/mine`. `--output` writes elsewhere.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, save
from numpy.typing import NDArray

from hf_decision_mamba import DecisionMambaPolicy

CARDS = Path(__file__).parents[1] / "model_cards"
CHECKPOINTS = [f"{preset}-hopper-medium-replay" for preset in ("dema-b3ld", "dmm")]
PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
DRAWN = 1000  # observations that come again and again


def percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    """Those of times (n,) in seconds, as milliseconds."""
    return {name: float(1e3 * np.percentile(seconds, place)) for name, place in PERCENTILES.items()}


def control_loop(policy: DecisionMambaPolicy, decisions: int, rate: float) -> dict[str, Any]:
    """Act so many times, `rate` times a second (0: as often as possible), and say what the ticks were like.

    Args:
        policy: of vector states.
    """
    processor = policy.processor
    drawn = np.random.default_rng(0).normal(size=(DRAWN, *policy.observation_shape))
    observations = (drawn * np.array(processor.state_std) + np.array(processor.state_mean)).astype(np.float32)
    began, ended, computed = np.empty(decisions), np.empty(decisions), np.empty(decisions)
    policy.reset(num_envs=1)
    policy.warm_up()
    period = 1 / rate if rate else 0.0
    start = time.perf_counter() + period
    for tick in range(decisions):
        if rate:
            time.sleep(max(0.0, start + tick * period - time.perf_counter()))
        observation, before = observations[tick % DRAWN], time.thread_time()
        began[tick] = time.perf_counter()
        policy.act(observation, 1.0)
        ended[tick] = time.perf_counter()
        computed[tick] = time.thread_time() - before
    ticks = start + period * np.arange(decisions)
    measured: dict[str, Any] = {"first_decision_ms": 1e3 * (ended[0] - began[0])}
    measured["decision_ms"] = percentiles(ended - began)
    measured["processor_ms"] = percentiles(computed)
    if rate:
        measured["jitter_ms"] = percentiles(began - ticks)
        measured["missed"] = int(np.count_nonzero(ended > ticks + period))
    return measured


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=50.0, help="Decisions a second; 0 for as many as there can be.")
    parser.add_argument("--mode", nargs="+", default=["window", "recurrent"])
    parser.add_argument("--checkpoints", nargs="+", default=[str(CARDS / name) for name in CHECKPOINTS])
    parser.add_argument("--output", type=Path, default=RESULTS / "control_loop.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # taskset's
    results: list[dict[str, Any]] = []
    for path in arguments.checkpoints:
        for mode in arguments.mode:
            policy = DecisionMambaPolicy.from_pretrained(path, mode)
            measured = control_loop(policy, arguments.decisions, arguments.rate)
            results.append({"name": Path(path).resolve().name, "mode": mode, **measured})
            for name in ("decision_ms", "processor_ms", "jitter_ms"):
                if name in measured:
                    found = ", ".join(f"{place} {value:.3f}" for place, value in measured[name].items())
                    print(f"{results[-1]['name']}, {mode}: {name} {found}", flush=True)
    save(
        "milliseconds of the decisions of a control loop, and how late they began",
        {"a decision": "`policy.act` in one environment, one thread, after `policy.warm_up()`"},
        path=arguments.output,
        size={"decisions": arguments.decisions, "rate_hz": arguments.rate, "cores": cores},
        results=results,
        targets=[],
    )


if __name__ == "__main__":
    main()

"""How far a memory reaches: T-Mazes, trained on short corridors, asked in long ones: `python benchmarks/memory.py`.

Each run is one `train.py` in a process of its own on one thread, `--jobs` of them at a time; the command goes on where
it was interrupted, and scores what is finished. A corridor of L steps lies between the clue, one of two, and the
junction where it is asked for: whoever guesses is right half of the time. Writes results/memory.json,
docs/memory.md's table and its picture.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from training_runs import ROOT, train

from hf_decision_mamba import DecisionMambaPolicy
from hf_decision_mamba.evaluation import evaluate_policy

RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
ENV_ID, SHORTEST, LONGEST = "hf_decision_mamba/TMaze-v0", 3, 60
COMMON = (
    "--train_mode=sequences --context_length=64 --per_device_train_batch_size=32 --max_steps=2500 --learning_rate=1e-3 "
    "--warmup_steps=100 --eval_mode=recurrent --eval_episodes=0 --save_steps=500 --eval_steps=500"
)
MODELS = {
    "DeMa, BL3D": "--preset=dema-bl3d --state_size=16",
    "DeMa, B3LD": "--preset=dema-b3ld --state_size=16",
    "DMM": "--preset=dmm",
    "GRU": "--architecture=gru",
}
CONDITIONS = {
    "dilated, Δ to 1e-5": "--time_dilation=0.1 --time_dilation_max=1e6 --time_step_min=1e-8 --time_step_max=1e-5",
    "dilated, Δ to 1e-3": "--time_dilation=0.1 --time_dilation_max=1e6 --time_step_min=1e-8 --time_step_max=1e-3",
    "dilated, Δ to 1e-1": "--time_dilation=0.1 --time_dilation_max=1e6 --time_step_min=1e-8 --time_step_max=1e-1",
    "plain": "",
}
LENGTHS = (30, 100, 300, 1_000, 10_000, 100_000, 1_000_000)
EPISODES = {1_000_000: 8, 100_000: 16}  # 24 of the shorter corridors
Job = tuple[str, str, int]


def main() -> None:
    """Train what is missing, score what is finished, and keep the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/memory"), help="of the data set and the runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--models", nargs="*", default=[*MODELS], choices=MODELS)
    parser.add_argument("--conditions", nargs="*", default=[*CONDITIONS], choices=CONDITIONS)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="corridor that is asked for")
    options = parser.parse_args()
    folder = options.folder.absolute()
    data = folder / "data"
    if not data.is_dir():
        walk = ["--env-kwargs", json.dumps({"length": [SHORTEST, LONGEST]}), "--episodes", "2000", "--policy", "expert"]
        command = [sys.executable, "-m", "hf_decision_mamba.cli", "collect", ENV_ID, *walk, "--output", str(data)]
        subprocess.run(command, check=True, cwd=ROOT)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": []}
    results["command"] = shlex.join(["python", "benchmarks/memory.py"])
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, one thread a run; torch {torch.__version__}"
    done = {(run["model"], run["condition"], run["seed"]): run for run in results["runs"]}
    every = [(m, c, seed) for seed in range(options.seeds) for c in options.conditions for m in options.models]
    jobs = [job for job in every if job[0] != "GRU" or job[1] == "plain"]  # which has no step sizes
    missing = [job for job in jobs if job not in done or max(map(int, done[job]["success"])) < options.longest]

    def finish(job: Job) -> None:
        done[job] = run_one(job, folder, data, options.longest, done.get(job))
        results["runs"] = [done[key] for key in sorted(done)]
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    with ThreadPoolExecutor(options.jobs) as pool:
        for _ in tqdm(pool.map(finish, missing), total=len(missing), desc="T-Maze", unit="run"):
            pass


def run_one(job: Job, folder: Path, data: Path, longest: int, before: dict[str, Any] | None) -> dict[str, Any]:
    """Train one model, and count how often it turns right at the end of each corridor."""
    model, condition, seed = job
    output = folder / "-".join([*f"{model} {condition}".lower().replace(",", "").split(), str(seed)])
    arguments = [
        f"--dataset_name={data}",
        *f"{COMMON} {MODELS[model]} {CONDITIONS[condition]}".split(),
        f"--seed={seed}",
    ]
    record, _ = train(output, arguments, scored=False)
    policy = DecisionMambaPolicy.from_pretrained(output, mode="recurrent")
    success = {} if before is None else before["success"]
    for length in LENGTHS:
        if length > longest or str(length) in success:
            continue
        begun, episodes = time.perf_counter(), EPISODES.get(length, 24)
        result = evaluate_policy(
            policy,
            ENV_ID,
            episodes=episodes,
            target_returns=[1.0],
            env_kwargs={"length": length},
            progress=False,
            seed=7,
        )
        right = [row["return"] > 0.99 for row in result.episodes]
        success[str(length)] = sum(right) / len(right)
        seconds = time.perf_counter() - begun
        print(f"{model}, {condition}, seed {seed}, {length} steps: {success[str(length)]:.2f} ({seconds:.0f} s)")
        if success[str(length)] < 0.7 and length >= 1_000:
            success |= {str(longer): None for longer in LENGTHS if length < longer <= longest}  # at chance: not played
            break
    return {
        "model": model,
        "condition": condition,
        "seed": seed,
        "parameters": record["num_parameters"],
        "loss": record["loss"],
        "cpu_minutes": float((output / "processor_seconds.txt").read_text()) / 60,
        "command": record["command"],
        "success": success,
    }


if __name__ == "__main__":
    main()

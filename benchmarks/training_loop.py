"""What stands around a training step: `python benchmarks/training_loop.py`; results/training_loop.json.

The default run's loop against its bare step, in one process: after every 25 steps of `train.py` the clock stops, and 25
bare steps of the same model on one fixed batch are timed. Then the drawing of windows, the memory of ten million
transitions, and processes of their own: imports, and a `train.py` whose training is a single step. Linux only.
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import ACT_DIM, STATE_DIM, in_a_process, milliseconds, peak_growth, save, spread, target, training_step
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from hf_decision_mamba.data import Trajectories, WindowDataset, WindowSampler, load_trajectories
from hf_decision_mamba.training.arguments import parse_arguments
from hf_decision_mamba.training.factory import build
from hf_decision_mamba.training.run import main as train

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "hopper-medium-replay.yaml"  # the default run
BLOCK = 25  # steps between two stops of the clock
SAVE_STEPS, EVAL_STEPS = 60, 80  # here, to see some of each; the block's clock leaves them out
BATCH, CONTEXT, EPISODE = 64, 20, 1000  # of the synthetic transitions
ROW_BYTES = 4 * (STATE_DIM + ACT_DIM + 1)  # a transition as float32: state, action, reward

# ------------------------------------------------------------------------------------------------------- the loop


class Clock(TrainerCallback):
    """Times the loop in blocks of steps, and `others` between two blocks; all times in milliseconds."""

    def __init__(self, others: dict[str, Callable[[], object]]) -> None:
        self.others = others
        self.times: dict[str, list[float]] = {"loop": [], "save": [], "evaluate": [], **{name: [] for name in others}}
        self.started = self.stopped = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close a block, time the others, and open the next one."""
        if state.global_step % BLOCK == 0:
            if state.global_step > BLOCK:  # the first block fills caches
                self.times["loop"].append(1e3 * (time.perf_counter() - self.started) / BLOCK)
                for name, values in milliseconds(self.others, 1, warm_up=False).items():
                    self.times[name] += values
            self.started = time.perf_counter()
        self.stopped = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a checkpoint or an evaluation: note it, and take it off the block."""
        for name, steps in (("save", SAVE_STEPS), ("evaluate", EVAL_STEPS)):
            if state.global_step and state.global_step % steps == 0:
                gap = time.perf_counter() - self.stopped
                self.times[name].append(1e3 * gap)
                self.started += gap


def loop(steps: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Milliseconds of a step in the loop, of a bare one, of drawing its batch, of a checkpoint and an evaluation."""
    model_args, data_args, _, args = parse_arguments([str(CONFIG)])
    trajectories = load_trajectories(data_args.dataset_name or [])
    model, processor, context = build(model_args, data_args, trajectories)
    windows = WindowDataset(
        trajectories, context, state_mean=processor.state_mean, state_std=processor.state_std, return_scale=1000
    )
    draws, batch = iter(WindowSampler(len(windows))), args.per_device_train_batch_size

    def draw() -> dict[str, Any]:
        return windows.__getitems__(list(islice(draws, batch)))

    step = training_step(model, draw())

    def bare() -> None:
        for _ in range(BLOCK):
            step()

    clock = Clock({"bare": bare, "draw": draw})
    DEFAULT_CALLBACKS.append(clock)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = {"max_steps": steps, "save_steps": SAVE_STEPS, "eval_steps": EVAL_STEPS, "eval_episodes": 0}
        words = [f"--{name}={value}" for name, value in settings.items()]
        train([str(CONFIG), f"--output_dir={folder}/run", "--disable_tqdm=true", *words])
    clock.times["bare"] = [value / BLOCK for value in clock.times["bare"]]
    facts = {"model": "dema-b3ld, default run", "parameters": model.num_parameters(), "batch": batch, "steps": context}
    return clock.times, {**facts, "save_steps": int(args.save_steps), "eval_steps": int(args.eval_steps or 0)}


# ------------------------------------------------------------------------------------------------------- the memory


def synthetic(count: int) -> Trajectories:
    """So many random transitions, in episodes of 1000 steps."""
    generator = np.random.default_rng(0)
    ends = np.arange(1, count + 1) % EPISODE == 0
    return Trajectories(
        observations=generator.standard_normal((count, STATE_DIM), dtype=np.float32),
        actions=generator.random((count, ACT_DIM), dtype=np.float32),
        rewards=generator.random(count, dtype=np.float32),
        terminations=np.zeros(count, np.bool_),
        truncations=ends,
        starts=np.arange(0, count, EPISODE),
        lengths=np.full(count // EPISODE, EPISODE),
    )


def write_parquet(path: Path, count: int) -> None:
    """The same as a file of one row per episode, written a hundred episodes at a time."""
    writer = None
    for _ in range(0, count, 100 * EPISODE):
        part = synthetic(100 * EPISODE)
        columns = {
            name: pa.array(list(getattr(part, name).reshape(100, EPISODE, -1)[..., 0]))
            for name in ("rewards", "terminations", "truncations")
        }
        for name in ("observations", "actions"):
            flat = getattr(part, name)
            steps = pa.FixedSizeListArray.from_arrays(flat.ravel(), flat.shape[1])
            columns[name] = pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, EPISODE, dtype=np.int32), steps)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def sample(trajectories: Trajectories) -> None:
    """What a run does with its training set before and in the loop: 1000 batches of windows."""
    statistics_ = trajectories.statistics()
    dataset = WindowDataset(
        trajectories, CONTEXT, state_mean=statistics_.state_mean, state_std=statistics_.state_std, return_scale=1000
    )
    draws = iter(WindowSampler(len(dataset)))
    for _ in range(1000):
        dataset.__getitems__(list(islice(draws, BATCH)))


def memory_of(what: str, source: str) -> int:
    """Bytes by which this process grows at its peak: transitions made `in memory`, of a `file`, and `split`."""
    sample(synthetic(EPISODE))  # loads what is loaded at first use
    if what == "in memory":
        return peak_growth(lambda: sample(synthetic(int(source))))
    load_trajectories(str(ROOT / "datasets" / "hopper-medium-replay"))
    if what == "file":
        return peak_growth(lambda: sample(load_trajectories(source)))
    return peak_growth(lambda: sample(load_trajectories(source).split(0.05, seed=0)[0]))


def memory(count: int) -> dict[str, float]:
    """Peak growth as a multiple of the transitions' float32 size, each in a process of its own."""
    results = {"in memory": in_a_process(__file__, "--memory_of", "in memory", str(count))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transitions.parquet"
        write_parquet(path, count)
        for what in ("file", "split"):
            results[what] = in_a_process(__file__, "--memory_of", what, str(path), HF_DATASETS_CACHE=folder)
    return {what: int(value) / (count * ROW_BYTES) for what, value in results.items()}


# ------------------------------------------------------------------------------------------------------- processes


def processes(rounds: int) -> dict[str, list[float]]:
    """Seconds of whole processes, interleaved: imports, and a training of one step from the settings to the card."""
    with tempfile.TemporaryDirectory() as folder:
        one_step = [str(ROOT / "train.py"), f"--output_dir={folder}", "--overwrite_output_dir=true", "--max_steps=1"]
        commands = {
            "interpreter alone": ["-c", "pass"],
            "import torch": ["-c", "import torch"],
            "import transformers' Decision Transformer": ["-c", "from transformers import DecisionTransformerModel"],
            "import hf_decision_mamba": ["-c", "import hf_decision_mamba"],
            "train.py of one step": [*one_step, "--held_out_fraction=0", "--eval_episodes=0", "--disable_tqdm=true"],
        }

        def runner(command: list[str]) -> Callable[[], object]:
            return lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)

        times = milliseconds({name: runner(command) for name, command in commands.items()}, rounds)
    return {name: [value / 1e3 for value in values] for name, values in times.items()}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="length of the training run")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--transitions", type=int, default=10_000_000)
    parser.add_argument("--memory_of", nargs=2, metavar=("WHAT", "SOURCE"), help="print the bytes of one, no more")
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(memory_of(*arguments.memory_of))
        return

    times, size = loop(arguments.steps)
    seconds = processes(arguments.rounds)
    sizes = memory(arguments.transitions)

    median = {name: statistics.median(values) for name, values in {**times, **seconds}.items()}
    rare = median["save"] / size["save_steps"] + median["evaluate"] / size["eval_steps"]
    imports = "import hf_decision_mamba", "import transformers' Decision Transformer"
    for name, value in median.items():
        print(f"{name:50} {value:10.3f} {'ms' if name in times else 's'}")
    for name, value in sizes.items():
        print(f"{'memory, ' + name:50} {value:10.3f} × float32 size")
    ratio = statistics.median(a / b for a, b in zip(times["loop"], times["bare"], strict=True))
    save(
        "milliseconds of a step of train.py, seconds of processes, memory of transitions",
        {
            "loop": f"train.py's default run, mean over blocks of {BLOCK} steps: data, logging, Trainer",
            "bare": "zero_grad, forward, loss, backward, clip, update on one fixed batch, between the blocks",
            "draw": "sampler and gather of one batch",
            "memory": "growth of the resident set at its peak over the float32 size of states, actions and rewards",
        },
        size=size,
        milliseconds={name: {**spread(values), "milliseconds": values} for name, values in times.items()},
        seconds={name: {**spread(values), "seconds": values} for name, values in seconds.items()},
        transitions=arguments.transitions,
        memory=sizes,
        targets=[
            target("a step of train.py's loop / the bare step", ratio, 1.15),
            target("the same with checkpoints and evaluations of held-out loss", ratio + rare / median["bare"], 1.15),
            target("drawing a batch of windows / the bare step", median["draw"] / median["bare"], 0.03),
            *(
                target(f"{arguments.transitions:,} transitions, {where}: peak memory / float32 size", sizes[what], 1.2)
                for what, where in (
                    ("in memory", "made in memory and sampled"),
                    ("file", "loaded from Parquet and sampled"),
                    ("split", "loaded, split and sampled"),
                )
            ),
            target("train.py of one step, whole process", median["train.py of one step"], 10, unit="s"),
            target(" / ".join(imports), median[imports[0]] / median[imports[1]], 1.5),
        ],
    )


if __name__ == "__main__":
    main()

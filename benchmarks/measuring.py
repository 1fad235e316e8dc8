"""What the benchmarks share: the models that are compared, interleaved timing, and the file of results.

Every benchmark is one command that times all of its peers in one process, round by round, so that whatever else the
machine does falls on all of them alike.
"""

import ctypes
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DecisionTransformerConfig, DecisionTransformerModel, PreTrainedModel

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaPolicy, DecisionMambaProcessor
from hf_decision_mamba.training.arguments import DecisionMambaTrainingArguments
from hf_decision_mamba.training.trainer import DecisionMambaTrainer, action_loss

RESULTS = Path(__file__).parent / "results"
STATE_DIM, ACT_DIM = 11, 3  # Hopper
DT = "Decision Transformer"
DT_NOTE = "transformers' DecisionTransformerModel: 3 layers, width 128, 1 head, sdpa attention, the paper's setting"
WIDE = {"hidden_size": 128, "embedding_size": 128, "state_size": 16}  # Decision Transformer's width

Passes = Mapping[str, Callable[[], object]]


def decision_mamba(preset: str, **overrides: Any) -> DecisionMambaModel:
    """One of our models for Hopper, with fresh weights."""
    config = DecisionMambaConfig.from_preset(preset, state_dim=STATE_DIM, act_dim=ACT_DIM, **overrides)
    return DecisionMambaModel(config)


def decision_transformer(max_ep_len: int = 1000) -> DecisionTransformerModel:
    """transformers' Decision Transformer for Hopper; its defaults are the paper's sizes and dropout."""
    return DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=STATE_DIM, act_dim=ACT_DIM, max_ep_len=max_ep_len, bos_token_id=None, eos_token_id=None
        )
    )


def windows(batch: int, steps: int) -> dict[str, Tensor]:
    """A batch of full windows as `WindowDataset` makes them, of random numbers."""
    actions = torch.rand(batch, steps, ACT_DIM) * 2 - 1
    return {
        "states": torch.randn(batch, steps, STATE_DIM),
        "actions": actions,
        "rewards": torch.randn(batch, steps, 1),
        "returns_to_go": torch.rand(batch, steps, 1),
        "timesteps": torch.arange(steps).expand(batch, -1),
        "attention_mask": torch.ones(batch, steps, dtype=torch.int64),
        "previous_actions": torch.rand(batch, steps, ACT_DIM) * 2 - 1,
        "labels": actions.clone(),
    }


def training_step(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Callable[[], None]:
    """A whole optimiser step on one batch: zero_grad, forward, loss, backward, clip at 0.25, update.

    Optimiser and loss are those of `DecisionMambaTrainer` (AdamW, fused; mean squared error), for every model.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = DecisionMambaTrainingArguments(output_dir=folder, eval_strategy="no")
        trainer = DecisionMambaTrainer(model, arguments)
    optimizer = trainer.create_optimizer()
    parameters = list(model.parameters())
    taken = {name: values for name, values in batch.items() if name in trainer._forward_arguments}
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        output = model(**taken)
        loss = output.loss if "labels" in taken else action_loss(output, batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, arguments.max_grad_norm)
        optimizer.step()

    return step


class Actor:
    """A policy in an environment that costs nothing: each call is one decision."""

    def __init__(self, model: PreTrainedModel, mode: Any, rows: int | None = None, steps: int = 20):
        processor = DecisionMambaProcessor(
            state_mean=[0.1] * STATE_DIM,
            state_std=[1.5] * STATE_DIM,
            return_scale=1000.0,
            target_return=3600.0,
            context_length=steps,
            action_low=[-1.0] * ACT_DIM,
            action_high=[1.0] * ACT_DIM,
        )
        self.policy = DecisionMambaPolicy(model, processor, mode)
        shape = (STATE_DIM,) if rows is None else (rows, STATE_DIM)
        self.observations = np.random.default_rng(0).normal(size=(50, *shape))
        self.reward = 1.0 if rows is None else np.ones(rows)
        self.decisions = 0

    def __call__(self) -> None:
        self.policy.act(self.observations[self.decisions % 50], self.reward)
        self.decisions += 1

    def restart(self, decisions: int, blindly: bool = False) -> None:
        """Begin an episode and take so many decisions; `blindly` without the model, which a window cannot tell."""
        self.policy.reset(num_envs=np.size(self.reward))
        history: Any = self.policy._history
        name = "fused" if hasattr(history, "fused") else "model"
        network = getattr(history, name)
        if blindly:
            setattr(history, name, Nobody())
        for _ in range(decisions):
            self()
        setattr(history, name, network)


class Nobody:
    """Stands for a network while a history is filled."""

    def __call__(self, **inputs: Tensor) -> SimpleNamespace:
        """As a model's forward."""
        return SimpleNamespace(action_preds=inputs["actions"])

    def predict(self, states: Any, returns_to_go: Any, previous_actions: Any, *unused: Any) -> Any:
        """As a fused model's."""
        return previous_actions[:, -1]


def milliseconds(
    passes: Passes,
    rounds: int,
    calls: int = 1,
    slow: Mapping[str, int] | None = None,
    before: Passes | None = None,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Milliseconds of every call of every pass, `calls` in a row, interleaved round by round.

    Args:
        slow: passes that run once in that many of the last rounds only, and are not warmed up.
        before: what is done, untimed, before the calls of a pass in every round.
        warm_up: run each pass once first, untimed: compiles the kernels, fills the caches.
    """
    slow, before = slow or {}, before or {}
    times: dict[str, list[float]] = {name: [] for name in passes}
    for name, run in passes.items():
        if warm_up and name not in slow:
            run()
    for left in tqdm(range(rounds, 0, -1), unit="round", leave=False, disable=rounds == 1):
        for name, run in passes.items():
            if left > slow.get(name, left):
                continue
            before.get(name, _nothing)()
            for _ in range(1 if name in slow else calls):
                start = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def peak_growth(run: Callable[[], object]) -> int:
    """Bytes by which the resident set grows at its peak while `run` runs, over what is held before. Linux only."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free but resident would be taken without growth
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes of a kind of memory that this process has, by its name in /proc/self/status, as RssAnon. Linux only."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{name}:")[1].split()[0])


def in_a_process(program: str, *arguments: str, **environment: str) -> str:
    """The last line that a benchmark prints when it is run with these arguments in a process of its own."""
    command = [sys.executable, program, *arguments]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    return run.stdout.splitlines()[-1]


def _nothing() -> None:
    pass


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, extremes and quartiles of repeated measurements."""
    values = sorted(values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"median": middle, "q1": low, "q3": high, "min": values[0], "max": values[-1], "n": len(values)}


def target(what: str, value: float, limit: float, at_least: bool = False, unit: str = "") -> dict[str, Any]:
    """One line of a table of targets; `what` names both sides of a ratio."""
    met = value >= limit if at_least else value <= limit
    return {"what": what, "value": float(value), "limit": limit, "at_least": at_least, "unit": unit, "met": bool(met)}


def machine() -> dict[str, Any]:
    """Where the numbers were taken."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_before": LOAD_BEFORE,  # near zero, or the numbers tell of the machine's other work
    }


def save(what: str, notes: Mapping[str, str] | None = None, path: Path | None = None, **report: Any) -> Path:
    """Print the targets, and write results/<program>.json with the command, the machine and the versions.

    Args:
        path: what is written instead.
    """
    program = Path(sys.argv[0])
    for line in report.get("targets", []):
        met = "met" if line["met"] else "not met"
        print(f"{line['what']:90} {line['value']:8.3g} (target {line['limit']:g}: {met})")
    head = {
        "command": shlex.join(["python", f"benchmarks/{program.name}", *sys.argv[1:]]),
        "what": what,
        "notes": dict(notes or {}),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numba", "numpy")},
        },
    }
    path = path or RESULTS / f"{program.stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, **report}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


LOAD_BEFORE = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

"""Time one forward and backward pass of the Mamba backbone on a CPU, beside its peers in the same process.

Peers: the layers of transformers' MambaModel of the same size, and a whole Decision Transformer of the same width and
context. Run `python benchmarks/backbone_step.py`; it prints a table and writes benchmarks/results/backbone_step.json.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DecisionTransformerConfig, DecisionTransformerModel, MambaConfig, MambaModel
from transformers.utils import logging

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel
from hf_decision_mamba.model.mixers_decision_mamba import TokenStream

BATCH, STEPS, WIDTH, STATES, LAYERS = 64, 20, 128, 16, 3
STATE_DIM, ACT_DIM = 11, 3  # Hopper
RESULTS = Path(__file__).parent / "results" / "backbone_step.json"
OURS, OURS_WHOLE = "hf_decision_mamba, layers", "hf_decision_mamba, whole model"
MAMBA, DT = "transformers MambaModel, layers", "transformers DecisionTransformerModel, whole model"


def decision_mamba() -> DecisionMambaModel:
    """DeMa with the Decision Transformer's width."""
    return DecisionMambaModel(
        DecisionMambaConfig.from_preset(
            "dema-b3ld",
            state_dim=STATE_DIM,
            act_dim=ACT_DIM,
            hidden_size=WIDTH,
            embedding_size=WIDTH,
            n_layer=LAYERS,
            state_size=STATES,
        )
    )


def backbone_pass(layers: Callable[[Tensor], Tensor], module: nn.Module) -> Callable[[], None]:
    """Forward and backward of `layers` over (64, 60, 128) hidden states that need a gradient."""
    hidden_states = torch.randn(BATCH, 3 * STEPS, WIDTH).requires_grad_()
    gradient = torch.randn(BATCH, 3 * STEPS, WIDTH)

    def run() -> None:
        module.zero_grad()
        hidden_states.grad = None
        layers(hidden_states).backward(gradient)

    return run


def model_pass(model: nn.Module) -> Callable[[], None]:
    """Forward, loss and backward of a whole model on one batch of windows."""
    inputs = {
        "states": torch.randn(BATCH, STEPS, STATE_DIM),
        "actions": torch.rand(BATCH, STEPS, ACT_DIM) * 2 - 1,
        "rewards": torch.randn(BATCH, STEPS, 1),
        "returns_to_go": torch.rand(BATCH, STEPS, 1),
        "timesteps": torch.arange(STEPS).expand(BATCH, -1),
        "attention_mask": torch.ones(BATCH, STEPS),
    }

    def run() -> None:
        model.zero_grad()
        predictions = model(**inputs).action_preds
        ((predictions - inputs["actions"]) ** 2).mean().backward()

    return run


def contenders() -> dict[str, Callable[[], None]]:
    """What is timed, by name; all in training mode, in float32."""
    torch.manual_seed(0)
    ours = decision_mamba().train()
    tokens = TokenStream(ours.config.token_kinds)

    def our_layers(hidden_states: Tensor) -> Tensor:
        for layer in ours.layers:
            hidden_states = layer(hidden_states, tokens, ours.shared)
        return ours.norm_f(hidden_states)

    mamba = MambaModel(
        MambaConfig(vocab_size=2, hidden_size=WIDTH, state_size=STATES, num_hidden_layers=LAYERS, use_cache=False)
    ).train()
    dt = DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=STATE_DIM, act_dim=ACT_DIM, hidden_size=WIDTH, n_layer=LAYERS, n_head=1, max_ep_len=1000
        )
    ).train()
    return {
        OURS: backbone_pass(our_layers, ours),
        OURS_WHOLE: model_pass(decision_mamba().train()),
        DT: model_pass(dt),
        MAMBA: backbone_pass(lambda x: mamba(inputs_embeds=x).last_hidden_state, mamba),
    }


def measure(passes: dict[str, Callable[[], None]], rounds: int, slow_rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every pass, interleaved round by round; the slow MambaModel only in the last rounds."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    for name, run in passes.items():
        if name != MAMBA:
            run()  # compiles the kernels, fills the caches
    for done in range(rounds):
        for name, run in passes.items():
            if name == MAMBA and done < rounds - slow_rounds:
                continue
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="repetitions of the fast passes")
    parser.add_argument("--slow_rounds", type=int, default=3, help="repetitions of transformers' MambaModel")
    parser.add_argument("--threads", type=int, help="threads of torch and of the kernels; torch's choice by default")
    arguments = parser.parse_args()
    if not 0 < arguments.slow_rounds <= arguments.rounds:
        parser.error("--slow_rounds must be between 1 and --rounds")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()  # MambaModel's advice to install CUDA kernels

    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    times = measure(contenders(), arguments.rounds, arguments.slow_rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        "MambaModel layers / ours": medians[MAMBA] / medians[OURS],
        "ours / Decision Transformer": medians[OURS] / medians[DT],
        "our whole model / Decision Transformer": medians[OURS_WHOLE] / medians[DT],
    }
    for name, values in times.items():
        print(f"{name:55} {medians[name]:9.1f} ms  (min {min(values):.1f}, max {max(values):.1f}, n {len(values)})")
    for name, ratio in ratios.items():
        print(f"{name:55} {ratio:9.2f}")

    report = {
        "command": " ".join(["python", "benchmarks/backbone_step.py", *sys.argv[1:]]),
        "what": "milliseconds of one forward and backward pass",
        "size": {"batch": BATCH, "steps": STEPS, "tokens": 3 * STEPS, "width": WIDTH, "N": STATES, "layers": LAYERS},
        "machine": {
            "processor": processor(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average_before": load_before,  # near zero, or the numbers tell of the machine's other work
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numba", "numpy")},
        },
        "results": {
            name: {"median": medians[name], "min": min(values), "max": max(values), "milliseconds": values}
            for name, values in times.items()
        },
        "ratios": ratios,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Time one training step: `python benchmarks/training_step.py`; results/training_step.json, docs/benchmarks.md.

A step is zero_grad, forward, loss, backward, clipping and the optimiser's update, on 64 windows. Beside our models:
transformers' Decision Transformer, our model with transformers' Mamba blocks in place of ours, and the floor, which is
nothing but the matrix products of our model's linear layers, forward and backward.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measuring import (
    DT,
    DT_NOTE,
    WIDE,
    decision_mamba,
    decision_transformer,
    milliseconds,
    save,
    spread,
    target,
    training_step,
    windows,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaBlock
from transformers.utils import logging

from hf_decision_mamba import DecisionMambaModel

BATCH, STEPS, SHORT = 64, 20, 8
DT_SHORT = f"{DT}, K {SHORT}"
PAPER, PAPER_16 = "dema-b3ld, paper's size (width 64, N 64)", "dema-b3ld, width 64, N 16"
WIDE_16, BL3D = "dema-b3ld, width 128, N 16", "dema-bl3d, width 128, N 16"
DMM = f"dmm, paper's size (width 64, N 16), K {SHORT}"
MAMBA = "dema-b3ld, width 128, N 16, with transformers' MambaBlock"
LAYERS = "layers of dema-b3ld alone, width 128, N 16"
MAMBA_LAYERS = "layers of transformers' MambaModel, width 128, N 16"
FLOOR = "matrix products of dema-b3ld, width 128, N 16"


class TheirBlock(nn.Module):
    """transformers' MambaBlock behind the signature of ours."""

    def __init__(self, config: MambaConfig, layer_idx: int):
        super().__init__()
        self.block = MambaBlock(config, layer_idx)

    def forward(self, hidden_states: Tensor, *unused: Any) -> Tensor:
        return self.block(hidden_states)


def with_transformers_mamba() -> DecisionMambaModel:
    """Our model of width 128 with transformers' blocks: embeddings, head and loss are the same."""
    model = decision_mamba("dema-b3ld", **WIDE)
    ours = model.config
    theirs = MambaConfig(hidden_size=ours.hidden_size, state_size=ours.state_size, expand=ours.expand, use_cache=False)
    model.layers = nn.ModuleList([TheirBlock(theirs, index) for index in range(ours.n_layer)])
    return model


def layers_alone(model: DecisionMambaModel, batch: dict[str, Tensor]) -> Callable[[], None]:
    """A model's layers, forward and backward, on what its embeddings make of a batch."""
    given: list[tuple[Any, ...]] = []
    hook = model.layers[0].register_forward_pre_hook(lambda layer, arguments: given.append(arguments))
    model(**batch)
    hook.remove()
    tokens, *others = given[0]
    tokens = tokens.detach().requires_grad_()
    gradient = torch.randn_like(tokens)

    def run() -> None:
        model.zero_grad()
        hidden_states = tokens
        for layer in model.layers:
            hidden_states = layer(hidden_states, *others)
        hidden_states.backward(gradient)

    return run


class LinearCalls(TorchFunctionMode):
    """Notes every call of F.linear: rows, inputs, outputs, and whether the input needs a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int, int, bool]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.linear:
            x, weight = args[:2]
            self.calls.append((x.numel() // x.shape[-1], x.shape[-1], weight.shape[0], x.requires_grad))
        return function(*args, **(kwargs or {}))


def matrix_products(model: DecisionMambaModel, batch: dict[str, Tensor]) -> tuple[Callable[[], None], float]:
    """The products of a model's linear layers alone, forward and backward, into ready memory; and their GFLOP."""
    with LinearCalls() as linear:
        model(**batch)
    products = []
    for rows, inputs, outputs, needs_gradient in linear.calls:
        x, w, dy = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
        products.append((x, w.t(), torch.empty_like(dy)))
        products.append((dy.t(), x, torch.empty_like(w)))
        if needs_gradient:
            products.append((dy, w, torch.empty_like(x)))

    def run() -> None:
        for left, right, out in products:
            torch.mm(left, right, out=out)

    return run, sum(2e-9 * left.shape[0] * left.shape[1] * right.shape[1] for left, right, _ in products)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--slow_rounds", type=int, default=3, help="rounds of transformers' Mamba blocks, at their end")
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # transformers' advice to install CUDA kernels
    torch.manual_seed(0)

    batch, short = windows(BATCH, STEPS), windows(BATCH, SHORT)
    wide, theirs = decision_mamba("dema-b3ld", **WIDE), with_transformers_mamba()
    floor, gflop = matrix_products(wide, batch)
    models = {
        DT: (decision_transformer(), batch),
        PAPER: (decision_mamba("dema-b3ld"), batch),
        PAPER_16: (decision_mamba("dema-b3ld", state_size=16), batch),
        WIDE_16: (wide, batch),
        BL3D: (decision_mamba("dema-bl3d", **WIDE), batch),
        DT_SHORT: (decision_transformer(), short),
        DMM: (decision_mamba("dmm"), short),
        MAMBA: (theirs, batch),
    }
    passes: dict[str, Callable[[], None]] = {name: training_step(*of) for name, of in models.items()}
    passes |= {LAYERS: layers_alone(wide, batch), MAMBA_LAYERS: layers_alone(theirs, batch), FLOOR: floor}
    times = milliseconds(passes, arguments.rounds, slow=dict.fromkeys((MAMBA, MAMBA_LAYERS), arguments.slow_rounds))

    results: dict[str, dict[str, Any]] = {
        name: {**spread(values), "milliseconds": values} for name, values in times.items()
    }
    for name, (model, _) in models.items():
        results[name]["parameters"] = model.num_parameters()
    for name, values in results.items():
        print(f"{name:65} {values['median']:9.1f} ms  (quartiles {values['q1']:.1f}, {values['q3']:.1f})")

    def ratio(above: str, below: str, limit: float, at_least: bool = False) -> dict[str, Any]:
        value = results[above]["median"] / results[below]["median"]
        return target(f"{above} / {below}", value, limit, at_least)

    save(
        "milliseconds of one training step",
        {
            DT: DT_NOTE,
            LAYERS: "forward and backward on the same tokens, as they come from the embeddings; no optimiser",
            MAMBA_LAYERS: "the same; the pure torch path that runs without CUDA kernels",
            MAMBA: "the same embeddings, head, loss and optimiser; the pure torch path that runs without CUDA kernels",
            FLOOR: f"{gflop:.2f} GFLOP, every call of F.linear: forward, gradient of the weight, and of the input "
            "where it has one; no biases, into memory that is already there",
        },
        size={"batch": BATCH, "steps": STEPS, "steps_short": SHORT},
        results=results,
        targets=[
            ratio(PAPER, DT, 1.0),
            ratio(PAPER_16, DT, 0.6),
            ratio(WIDE_16, DT, 1.0),
            ratio(MAMBA_LAYERS, LAYERS, 80, at_least=True),
            ratio(WIDE_16, FLOOR, 2.0),
            ratio(BL3D, DT, 0.45),
            ratio(DMM, DT_SHORT, 0.5),
        ],
    )


if __name__ == "__main__":
    main()

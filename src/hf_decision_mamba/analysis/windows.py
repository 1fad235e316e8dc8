"""What every analysis does first: check a batch of windows, and record what the mixers compute for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model import DecisionMambaConfig
from ..model.hidden_attention import ScanTerms, scan_terms
from ..model.mixers_decision_mamba import DecisionMamba2Mixer, DecisionMambaMixer, take_steps
from ..reporting.checks import wrong_type

Model = TypeVar("Model", bound=PreTrainedModel)
Floats = NDArray[np.floating[Any]]

INPUTS = ("states", "actions", "returns_to_go", "goals", "timesteps", "attention_mask", "previous_actions")
IGNORED = ("labels", "rewards")


def mixers_of(model: PreTrainedModel) -> list[DecisionMambaMixer | DecisionMamba2Mixer]:
    """Return the model's Mamba mixers, one a layer."""
    _check_model(model)
    mixers = [module for module in model.modules() if isinstance(module, (DecisionMambaMixer, DecisionMamba2Mixer))]
    if not mixers and getattr(model.config, "ssm", None) == "gru":
        raise ValueError("This model is a GRU (ssm='gru'): it has no scan, so no hidden attention and no step sizes.")
    if not mixers:
        raise ValueError(
            f"{type(model).__name__} has no Mamba mixers, so no hidden attention; give a DecisionMambaModel."
        )
    return mixers


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise wrong_type("model", model, "the model itself (of a policy, policy.model)")


def checked_window(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch's inputs on the model's device, always with a mask."""
    _check_model(model)
    if not isinstance(batch, Mapping):
        raise wrong_type("batch", batch, "windows as a dict of tensors, such as those of a WindowDataset")
    given = {name for name, tensor in batch.items() if tensor is not None}
    if "states" not in given or not given <= {*INPUTS, *IGNORED}:
        raise ValueError(f"batch holds {', '.join(sorted(given))}; give windows of {', '.join(INPUTS)}.")
    window = {name: batch[name].to(model.device) for name in INPUTS if name in given}
    if "attention_mask" not in window:
        window["attention_mask"] = torch.ones(window["states"].shape[:2], dtype=torch.long, device=model.device)
    if not window["attention_mask"].any():
        raise ValueError("batch holds no real step: attention_mask is zero everywhere.")
    return window


def scan_terms_of(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[list[ScanTerms], Tensor]:
    """Return what each layer's hidden attention is made of, and the mask (b, k) of real steps, as in the batch."""
    mixers, window = mixers_of(model), checked_window(model, batch)
    mask = window["attention_mask"].bool()
    scans: list[dict[str, Any]] = []

    def record(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_states, tokens = args
        return hidden_states, tokens._replace(scans=scans)

    hooks = [mixer.register_forward_pre_hook(record) for mixer in mixers]
    try:
        with evaluation_mode(model):
            model(**window, use_cache=False)
            order = torch.argsort(mask.int(), dim=1, descending=True, stable=True)  # in which the model reads the steps
            inverse = torch.argsort(order, dim=1)
            real = take_steps(mask, order).repeat_interleave(len(model.config.token_types), dim=1)
            config = cast(DecisionMambaConfig, model.config)
            return [scan_terms(scan, config, real).at_steps(inverse) for scan in scans], mask
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout and gradients off; the model's mode comes back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)

"""How far back a decision depends on the past: exactly, by leaving out past steps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..acting.shapes import state_and_action_types
from ..model.cache_decision_mamba import NO_ACTION
from ..model.mixers_decision_mamba import take_steps
from .windows import Floats, checked_window, evaluation_mode


@dataclass(frozen=True)
class EffectiveContext:
    """How much the past of a window changes the action of its last real step.

    A change is the mean of |difference| over the dimensions of the predicted action; of discrete actions it is the
    total variation distance of the two distributions, from 0 to 1. NaN where a window has no such step, so that
    `numpy.nanmean(step_removed, axis=0)` is the curve.

    Attributes:
        steps_ago: (k - 1,) from 1 to k - 1; the decision's own step cannot be left out.
        step_removed: (batch, k - 1) the change when this step alone is absent.
        older_removed: (batch, k - 1) the change when this step and all before it are absent: a context of `steps_ago`
            steps.
    """

    steps_ago: NDArray[np.int64]
    step_removed: Floats
    older_removed: Floats


def effective_context(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> EffectiveContext:
    """Remove each past step of a window, and all older ones, and measure how far the last action moves; exact.

    A step is removed by `attention_mask`, so all of its tokens are absent, and the steps around it close up. Where a
    step's tokens are (R, previous action, state), its own action still stands in the step behind it, as at the edge of
    a shorter window. Works for every model with `DecisionTransformerModel`'s forward. Costs 2 k - 1 forward passes.

    Raises:
        ValueError: a batch that is no window, or of a single step.
    """
    window = _newest_last(model, checked_window(model, batch))
    mask = window["attention_mask"].bool()
    lengths, length = mask.sum(1), mask.shape[1]
    if length < 2:
        raise ValueError("batch holds windows of one step; there is no past to remove.")
    discrete = state_and_action_types(model.config)[1] == "discrete"
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def decide(seen: Tensor) -> Tensor:
        prediction = model(**{**window, "attention_mask": seen.long()}, **options).action_preds[:, -1].float()
        return prediction.softmax(-1) if discrete else prediction

    def change(seen: Tensor, exists: Tensor) -> Tensor:
        difference = (decide(seen) - reference).abs()
        difference = difference.sum(-1) / 2 if discrete else difference.mean(-1)
        return difference.masked_fill(~exists, torch.nan)

    step_removed, older_removed = [], []
    places = torch.arange(length, device=mask.device)
    with evaluation_mode(model):
        reference = decide(mask)
        for ago in range(1, length):
            place, exists = length - 1 - ago, lengths > ago
            step_removed.append(change(mask & (places != place), exists))
            older_removed.append(change(mask & (places > place), exists))
    curves = (torch.stack(changes, dim=1).cpu().numpy() for changes in (step_removed, older_removed))
    return EffectiveContext(np.arange(1, length), *curves)


def _newest_last(model: PreTrainedModel, window: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the window with absent steps first, and the previous actions that its steps show before any is removed."""
    mask = window["attention_mask"].bool()
    order = torch.argsort(mask.int(), dim=1, stable=True)
    window = {name: take_steps(tensor, order) for name, tensor in window.items()}
    reads_them = "previous_actions" in inspect.signature(model.forward).parameters
    if reads_them and "previous_actions" not in window and "actions" in window:
        actions = window["actions"]
        nothing = NO_ACTION if state_and_action_types(model.config)[1] == "discrete" else 0
        previous = torch.cat([torch.full_like(actions[:, :1], nothing), actions[:, :-1]], dim=1)
        first = take_steps(mask, order).cumsum(1) == 1
        window["previous_actions"] = previous.masked_fill(
            first.reshape(*first.shape, *[1] * (actions.dim() - 2)), nothing
        )
    return window

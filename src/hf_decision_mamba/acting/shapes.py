"""What a state and an action of a model are, and room for them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.cache_decision_mamba import NO_ACTION


def state_and_action_types(config: Any) -> tuple[str, str]:
    """Return state type and action type of a model; DecisionTransformer's config has no such fields."""
    return getattr(config, "state_type", "vector"), getattr(config, "action_type", "continuous")


def condition_of(config: Any) -> tuple[str | None, int]:
    """Return which input says what a model is asked for, and how many numbers that are; None and 0 for imitation.

    Decision Transformer, whose config does not say it, is asked for a return.
    """
    return getattr(config, "condition_input", "returns_to_go"), getattr(config, "condition_dim", 1)


def carries_state(model: PreTrainedModel) -> bool:
    """Tell whether a model can act with a recurrent state."""
    return "cache_params" in inspect.signature(model.forward).parameters


def observation_shape(config: Any) -> tuple[int, ...]:
    """Return the shape of what one row observes at one step: (state_dim,), or (height, width) of a frame."""
    state_type, _ = state_and_action_types(config)
    return (config.image_size, config.image_size) if state_type == "image" else (config.state_dim,)


def frame_stack(config: Any) -> int:
    """Count the frames in a state; 0 where states are vectors, which are not stacked."""
    return config.num_channels if state_and_action_types(config)[0] == "image" else 0


def no_states(model: PreTrainedModel, count: int, length: int) -> Tensor:
    """Make room for the observations (count, length, ...) of so many rows and steps; frames stay bytes."""
    dtype = torch.uint8 if state_and_action_types(model.config)[0] == "image" else model.dtype
    return torch.zeros(count, length, *observation_shape(model.config), device=model.device, dtype=dtype)


def no_actions(model: PreTrainedModel, *shape: int) -> Tensor:
    """Make room for actions (*shape, act_dim), or discrete ones (*shape), none of which has been taken."""
    if state_and_action_types(model.config)[1] == "discrete":
        return torch.full(shape, NO_ACTION, device=model.device)
    return torch.zeros(*shape, model.config.act_dim, device=model.device, dtype=model.dtype)

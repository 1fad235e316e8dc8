"""What a policy may be told: row counts, dimensions and numbers, each refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import CONFIG_MAPPING, DecisionTransformerConfig, PreTrainedModel

from ..model import DecisionMambaProcessor
from ..model.checkpoint_decision_mamba import shown
from ..reporting.checks import wrong_type
from .shapes import state_and_action_types

MOST_ROWS = 2**20

LONGEST_CONTEXT = 2**20

LARGEST = 1e16  # of the numbers that a model sees: in float32, norms square larger ones to infinity and see zeros

FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_model_type(model_type: Any) -> None:
    """Refuse models that decide nothing: of transformers' own, configs of any size are made without a check."""
    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    if not known or (
        model_type != DecisionTransformerConfig.model_type
        and CONFIG_MAPPING[model_type].__module__.startswith("transformers.")
    ):
        raise ValueError(
            f"model_type={shown(model_type)} in config.json is no decision model that is known here; its own package "
            "must be imported first, or the config is damaged."
        )


def check_parts(model: Any, processor: Any) -> None:
    """Refuse what is no model, or no processor of one; theirs may be of remote code, whose classes are its own."""
    loads = "; DecisionMambaPolicy.from_pretrained(folder or repository) loads both"
    if not isinstance(model, torch.nn.Module):
        raise wrong_type("model", model, f"a decision model, such as DecisionMambaModel(config){loads}")
    if not hasattr(processor, "return_scale"):
        raise wrong_type("processor", processor, f"the DecisionMambaProcessor of the model{loads}")


def check_policy(policy: Any) -> None:
    """Refuse what does not act."""
    if not hasattr(policy, "act"):
        ways = "DecisionMambaPolicy.from_pretrained(folder or repository), or DecisionMambaPolicy(model, processor)"
        raise wrong_type("policy", policy, f"a policy: {ways}")


def check_sampling(sample: bool, temperature: float, action_type: str) -> None:
    if not isinstance(sample, (bool, np.bool_)) or not isinstance(temperature, (int, float, np.number)):
        raise ValueError(f"sample={sample!r} must be True or False, and temperature={temperature!r} a positive number.")
    if sample and action_type == "continuous":
        raise ValueError("sample=True needs discrete actions, but this model's are continuous; leave it out.")
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature={temperature} must be a positive number.")
    if temperature != 1 and not sample:
        raise ValueError(f"temperature={temperature} has no meaning without sample=True.")


def check_dimensions(model: PreTrainedModel, processor: DecisionMambaProcessor) -> None:
    config, other = model.config, "give the processor that was saved with this model."
    state_type, action_type = state_and_action_types(config)
    if processor.state_type != state_type:
        raise ValueError(
            f"The processor is for {processor.state_type} states (its state_mean is "
            f"{'None' if processor.state_mean is None else 'given'}), but the model reads {state_type} states; {other}"
        )
    if state_type == "image" and processor.frame_stack != config.num_channels:
        raise ValueError(
            f"The processor stacks {processor.frame_stack} frames, but the model reads "
            f"num_channels={config.num_channels}; {other}"
        )
    if processor.state_mean is not None and len(processor.state_mean) != config.state_dim:
        raise ValueError(
            f"The processor normalises {len(processor.state_mean)} state dimensions, but the model reads "
            f"state_dim={config.state_dim}; {other}"
        )
    goal_mean, goal_dim = getattr(processor, "goal_mean", None), getattr(config, "goal_dim", None)  # of remote code
    if (goal_mean is None) != (goal_dim is None) or len(goal_mean or ()) != (goal_dim or 0):
        raise ValueError(
            f"The processor normalises goals of {len(goal_mean or ())} dimensions, but the model reads "
            f"goal_dim={goal_dim}; {other}"
        )
    if processor.action_start and action_type == "continuous":
        raise ValueError(f"The processor numbers actions, but the model's are continuous; {other}")
    for does, values in (("bounds", processor.action_low), ("scales", processor.action_scale)):
        if values is not None and action_type == "discrete":
            raise ValueError(f"The processor {does} actions, but the model chooses discrete ones; {other}")
        if values is not None and len(values) != config.act_dim:
            raise ValueError(
                f"The processor {does} {len(values)} action dimensions, but the model predicts "
                f"act_dim={config.act_dim}; {other}"
            )


def checked_numbers(name: str, values: Any, dtype: Any) -> NDArray[Any]:
    """Return values as an array of this type, or of their own if it is None; beyond the type's range they are infinite.

    Raises:
        ValueError: they are no numbers.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's are of all three kinds
        raise ValueError(f"{name} cannot be read as an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is {type(values).__name__} of {array.dtype}; give numbers.")
    return array if dtype is None else np.asarray(array, dtype, order="C")


def check_whole_number(name: str, value: Any, least: int, most: int | None = None) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name}={value!r} must be a whole number.")
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}.")
    if most is not None and value > most:
        raise ValueError(f"{name}={value} must be at most {most}.")


def checked_rows(rows: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return indices of the rows that a boolean mask (n,) or indices name."""
    index = checked_numbers("rows", rows, None)
    if index.dtype == np.bool_:
        if index.shape != (count,):
            raise ValueError(f"rows is a mask of shape {index.shape}; the policy has {count} rows.")
        return np.flatnonzero(index)
    if index.size and (index.dtype.kind not in "iu" or index.ndim > 1):
        raise ValueError(f"rows are {index.dtype} of shape {index.shape}; give a boolean mask ({count},) or indices.")
    if index.size and (index.min() < 0 or index.max() >= count):
        raise ValueError(f"rows={index.tolist()} go beyond the policy's rows, 0 to {count - 1}.")
    return np.atleast_1d(index.astype(np.int64))

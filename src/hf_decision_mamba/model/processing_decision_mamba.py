# Copyright 2026
"""What stands between an environment and the model: normalised states, scaled returns, bounded actions.

Saved beside the weights (preprocessor_config.json), so that a checkpoint holds all that acting needs.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from transformers import FeatureExtractionMixin
from transformers.feature_extraction_utils import BatchFeature


class DecisionMambaProcessor(FeatureExtractionMixin):
    """Normalise states, scale returns and clip actions as the training data prescribes.

    Args:
        state_mean: (state_dim,) mean of every state dimension of the training data; None for images, which pass
            unchanged: the model divides their pixels by 255.
        state_std: (state_dim,) standard deviations, all positive; None for images.
        frame_stack: frames in the state of an image; vectors are one observation.
        return_scale: returns-to-go are divided by this before the model sees them.
        target_return: return asked for when the user names none, in the environment's units.
        context_length: environment steps that the model was trained on (K).
        env_id: gymnasium id of the environment, e.g. `"Hopper-v5"`.
        action_low, action_high: (act_dim,) bounds of the environment's action space; None for discrete actions.

    Raises:
        ValueError: statistics that are not finite, of different lengths, or not positive where they must be.
    """

    model_input_names = ["states", "actions", "returns_to_go", "timesteps", "attention_mask", "previous_actions"]

    def __init__(
        self,
        state_mean: Sequence[float] | None = None,
        state_std: Sequence[float] | None = None,
        return_scale: float = 1000.0,
        target_return: float | None = None,
        context_length: int = 20,
        env_id: str | None = None,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        frame_stack: int = 4,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if (state_mean is None) != (state_std is None):
            raise ValueError("state_mean and state_std must be given together, or neither (for images).")
        self.state_mean = None if state_mean is None else _checked_vector("state_mean", state_mean)
        self.state_std = None
        if self.state_mean is not None:
            self.state_std = _checked_vector("state_std", state_std, length=len(self.state_mean))
            if min(self.state_std) <= 0:
                raise ValueError(f"state_std must be positive everywhere, but its minimum is {min(self.state_std)}.")
        self.frame_stack = int(frame_stack)
        if self.frame_stack < 1:
            raise ValueError(f"frame_stack={frame_stack} must be at least 1.")
        self.return_scale = float(return_scale)
        if not (math.isfinite(self.return_scale) and self.return_scale > 0):
            raise ValueError(f"return_scale={return_scale} must be a positive number.")
        self.target_return = None if target_return is None else float(target_return)
        if self.target_return is not None and not math.isfinite(self.target_return):
            raise ValueError(f"target_return={target_return} must be finite, or None.")
        self.context_length = int(context_length)
        if self.context_length < 1:
            raise ValueError(f"context_length={context_length} must be at least 1.")
        self.env_id = env_id
        if (action_low is None) != (action_high is None):
            raise ValueError("action_low and action_high must be given together, or neither.")
        self.action_low = None if action_low is None else _checked_vector("action_low", action_low)
        self.action_high = None
        if self.action_low is not None and action_high is not None:
            self.action_high = _checked_vector("action_high", action_high, length=len(self.action_low))
            if any(low > high for low, high in zip(self.action_low, self.action_high, strict=True)):
                raise ValueError(f"action_low={self.action_low} exceeds action_high={self.action_high} somewhere.")

    @property
    def state_type(self) -> Literal["vector", "image"]:
        """What a state is: the `state_type` of the model's config."""
        return "image" if self.state_mean is None else "vector"

    def __call__(
        self, states: Any, returns_to_go: Any = None, return_tensors: str | None = "np", **inputs: Any
    ) -> BatchFeature:
        """Turn raw windows into model inputs.

        Args:
            states: (..., state_dim) raw observations, or (..., frame_stack, height, width) uint8 stacks of frames.
            returns_to_go: (..., 1) in the environment's units.
            return_tensors: `"np"` or `"pt"`.
            inputs: other model inputs (actions, timesteps, attention_mask, ...), passed on unchanged.
        """
        features = {"states": self.normalize_states(states)}
        if returns_to_go is not None:
            features["returns_to_go"] = self.scale_returns(returns_to_go)
        return BatchFeature({**features, **inputs}, tensor_type=return_tensors)

    def normalize_states(self, states: Any) -> np.ndarray:
        """(states - mean) / std in float32, for states of shape (..., state_dim); images as they are.

        Raises:
            ValueError: another number of dimensions than the training data had, or images that are not uint8 stacks of
                `frame_stack` frames, (..., frame_stack, height, width).
        """
        if self.state_mean is None or self.state_std is None:
            images = np.asarray(states)
            if images.dtype != np.uint8 or images.shape[-3:-2] != (self.frame_stack,):
                raise ValueError(
                    f"states are {images.dtype} of shape {images.shape}; image states are uint8 of shape "
                    f"(..., {self.frame_stack}, height, width): stack the last {self.frame_stack} frames, oldest first."
                )
            return images
        states = _float32(states)
        if states.shape[-1:] != (len(self.state_mean),):
            raise ValueError(
                f"states have shape {states.shape}; the last dimension must be {len(self.state_mean)}, "
                "the state dimension of the training data."
            )
        return (states - _float32(self.state_mean)) / _float32(self.state_std)

    def scale_returns(self, returns: Any) -> np.ndarray:
        """returns / return_scale in float32, of any shape."""
        return _float32(returns) / np.float32(self.return_scale)

    def clip_actions(self, actions: Any) -> np.ndarray:
        """Actions (..., act_dim) within the environment's bounds, float32; unchanged where no bounds are known."""
        actions = _float32(actions)
        if self.action_low is None or self.action_high is None:
            return actions
        return np.clip(actions, _float32(self.action_low), _float32(self.action_high))


def _float32(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def _checked_vector(name: str, values: Any, length: int | None = None) -> list[float]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, but has shape {array.shape}.")
    if length is not None and array.size != length:
        raise ValueError(f"{name} has {array.size} entries; expected {length}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite at index {int(np.flatnonzero(~np.isfinite(array))[0])}.")
    return array.tolist()


__all__ = ["DecisionMambaProcessor"]

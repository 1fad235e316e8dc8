# Copyright 2026
"""What stands between an environment and the model: normalised states, scaled returns, bounded actions.

Saved beside the weights (preprocessor_config.json), so that a checkpoint holds all that acting needs.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from transformers import FeatureExtractionMixin
from transformers.feature_extraction_utils import BatchFeature

from .checkpoint_decision_mamba import CheckedJSON, readable, shown, without_checksum
from .observations_decision_mamba import ACHIEVED, DESIRED, check_parts, flatten_observations, leave_achieved_out

_LONGEST_CONTEXT = 2**20
_MOST_FRAMES = 2**10


class DecisionMambaProcessor(CheckedJSON, FeatureExtractionMixin):
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
        action_mid, action_scale: (act_dim,) the model's actions are (action - mid) / scale; None where they are the
            environment's, as those of spaces within [-1, 1] are.
        action_start: number of the environment's first discrete action; the model counts them from 0.
        observation_parts: what the environment's observations are made of, in the order of the vectors that they become
            (see observations_decision_mamba.py); None where they are vectors or frames.
        env_kwargs: keyword arguments for `gymnasium.make`; None for none.
        goal_mean: (goal_dim,) mean of every dimension of the goals of the training data; None where none are asked for.
        goal_std: (goal_dim,) standard deviations, all positive; likewise.
        fps: steps a second of the training data, the rate to act at; None where the data do not say it.

    Raises:
        ValueError: a value of another kind, statistics that are not finite in float32, of different lengths, or not
            positive where they must be.
    """

    model_input_names = [
        "states",
        "actions",
        "returns_to_go",
        "goals",
        "timesteps",
        "attention_mask",
        "previous_actions",
    ]

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
        action_mid: Sequence[float] | None = None,
        action_scale: Sequence[float] | None = None,
        action_start: int = 0,
        observation_parts: Sequence[Mapping[str, Any]] | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        goal_mean: Sequence[float] | None = None,
        goal_std: Sequence[float] | None = None,
        fps: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if (state_mean is None) != (state_std is None):
            raise ValueError("state_mean and state_std must be given together, or neither (for images).")
        if (action_mid is None) != (action_scale is None):
            raise ValueError("action_mid and action_scale must be given together, or neither.")
        if (goal_mean is None) != (goal_std is None):
            raise ValueError("goal_mean and goal_std must be given together, or neither (where no goal is asked for).")
        self.state_mean, self.state_std = _checked_scaling("state_mean", state_mean, "state_std", state_std)
        self.goal_mean, self.goal_std = _checked_scaling("goal_mean", goal_mean, "goal_std", goal_std)
        self.action_mid, self.action_scale = _checked_scaling("action_mid", action_mid, "action_scale", action_scale)
        self.frame_stack = _checked_count("frame_stack", frame_stack, _MOST_FRAMES)
        self.return_scale = _checked_number("return_scale", return_scale)
        if self.return_scale < _SMALLEST:
            raise ValueError(f"return_scale={return_scale} must be a positive number.")
        self.target_return = None if target_return is None else _checked_number("target_return", target_return)
        if self.target_return is not None and abs(self.target_return) / self.return_scale > _LARGEST:
            raise ValueError(f"target_return={target_return} is too large for return_scale={return_scale}.")
        self.context_length = _checked_count("context_length", context_length, _LONGEST_CONTEXT)
        if env_id is not None and not isinstance(env_id, str):
            raise ValueError(f"env_id={shown(env_id)} must be a name, or None.")
        self.env_id = env_id
        if (action_low is None) != (action_high is None):
            raise ValueError("action_low and action_high must be given together, or neither.")
        self.action_low = None if action_low is None else _checked_vector("action_low", action_low)
        self.action_high = None
        if self.action_low is not None and action_high is not None:
            self.action_high = _checked_vector("action_high", action_high, length=len(self.action_low))
            if any(low > high for low, high in zip(self.action_low, self.action_high, strict=True)):
                raise ValueError(f"action_low={self.action_low} exceeds action_high={self.action_high} somewhere.")
        if isinstance(action_start, bool) or not isinstance(action_start, (int, np.integer)):
            raise ValueError(f"action_start={action_start!r} must be a whole number.")
        self.action_start = int(action_start)
        if observation_parts is not None and self.state_mean is None:
            raise ValueError("observation_parts has no meaning for images; leave it out.")
        size = len(self.state_mean or ())
        self.observation_parts = None if observation_parts is None else check_parts(observation_parts, size)
        self.env_kwargs = None if env_kwargs is None else _checked_arguments(env_kwargs)
        self.fps = None if fps is None else _checked_number("fps", fps)
        if self.fps is not None and self.fps < _SMALLEST:
            raise ValueError(f"fps={fps} must be a positive number: steps a second.")

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a processor as FeatureExtractionMixin does.

        Raises:
            ValueError: an unknown setting, or values that the class refuses.
        """
        if not isinstance(feature_extractor_dict, dict):
            kind = type(feature_extractor_dict).__name__
            raise ValueError(f"preprocessor_config.json holds a {kind}, not an object; get the file again.")
        settings = without_checksum(feature_extractor_dict)
        known = {*inspect.signature(cls).parameters, "feature_extractor_type", "processor_class", "auto_map"}
        for name in settings:
            if name not in known:
                raise ValueError(
                    f"preprocessor_config.json has an unknown setting {name[:100]!r}: it is damaged, or of a newer "
                    "hf_decision_mamba; get the file again, or upgrade."
                )
        return super().from_dict(settings, **kwargs)

    @classmethod
    def get_feature_extractor_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """Read the settings as FeatureExtractionMixin does.

        Raises:
            OSError, ValueError: the file cannot be read.
        """
        with readable("preprocessor_config.json"):
            return super().get_feature_extractor_dict(*args, **kwargs)

    @property
    def state_type(self) -> Literal["vector", "image"]:
        """What a state is: the `state_type` of the model's config."""
        return "image" if self.state_mean is None else "vector"

    @property
    def delta_timestamps(self) -> list[float] | None:
        """Seconds from the step of a decision to each of the `context_length` steps of its window, oldest first.

        The last is 0. They are what LeRobot's data sets take as `delta_timestamps` of a column; None where `fps` is not
        known.
        """
        return None if self.fps is None else [-step / self.fps for step in reversed(range(self.context_length))]

    def __call__(
        self,
        states: Any,
        returns_to_go: Any = None,
        return_tensors: str | None = "np",
        goals: Any = None,
        **inputs: Any,
    ) -> BatchFeature:
        """Turn raw windows into model inputs.

        Args:
            states: (..., state_dim) raw observations, or (..., frame_stack, height, width) uint8 stacks of frames.
            returns_to_go: (..., 1) in the environment's units.
            return_tensors: `"np"` or `"pt"`.
            goals: (..., goal_dim) in the environment's units.
            inputs: other model inputs (actions, timesteps, attention_mask, ...), passed on unchanged.
        """
        features = {"states": self.normalize_states(states)}
        if returns_to_go is not None:
            features["returns_to_go"] = self.scale_returns(returns_to_go)
        if goals is not None:
            features["goals"] = self.normalize_goals(goals)
        return BatchFeature({**features, **inputs}, tensor_type=return_tensors)

    def flatten_observations(self, observation: Any) -> Any:
        """Make the vectors that the model reads of observations as the environment gives them.

        Args:
            observation: of one environment, or of n as gymnasium's vector environments give them: a dictionary, a
                tuple, an array or a number. Arrays of vectors are returned as they are. Where goals are asked for, the
                goals of gymnasium's environments (`desired_goal`, `achieved_goal`) are no part of it; where the
                desired one is part of the states, the achieved one need not be.

        Returns:
            (state_dim,) or (n, state_dim).

        Raises:
            ValueError: a part is missing, additional or of another shape; or the processor has no `observation_parts`,
                and the observation is a dictionary.
        """
        if self.goal_mean is not None and isinstance(observation, Mapping):
            observation = {name: value for name, value in observation.items() if name not in (DESIRED, ACHIEVED)}
            state: Any = observation.get("observation") if len(observation) == 1 else None
            is_vector = np.shape(state)[-1:] == (len(self.state_mean or ()),)
            if state is not None and (is_vector or not self.observation_parts):
                return state
        if self.observation_parts:
            if isinstance(observation, Mapping) and leave_achieved_out(self.observation_parts):
                observation = {name: value for name, value in observation.items() if name != ACHIEVED}
            return flatten_observations(observation, self.observation_parts)
        if isinstance(observation, Mapping):
            raise ValueError(
                f"observation is a dictionary of {', '.join(map(str, observation))}, but this checkpoint has no "
                "observation_parts that say their order; concatenate them as its training data does."
            )
        return observation

    def normalize_states(self, states: Any) -> np.ndarray:
        """Compute (states - mean) / std in float32, for states of shape (..., state_dim); leave images as they are.

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

    def normalize_goals(self, goals: Any) -> np.ndarray:
        """Compute (goals - mean) / std in float32, for goals of shape (..., goal_dim).

        Raises:
            ValueError: another number of dimensions than the training data had, or goals were none of theirs.
        """
        goals = _float32(goals)
        if self.goal_mean is None or self.goal_std is None:
            raise ValueError("this processor knows no goals: it has no goal_mean and goal_std.")
        if goals.shape[-1:] != (len(self.goal_mean),):
            raise ValueError(
                f"goals have shape {goals.shape}; the last dimension must be {len(self.goal_mean)}, the goal dimension "
                "of the training data."
            )
        return (goals - _float32(self.goal_mean)) / _float32(self.goal_std)

    def scale_returns(self, returns: Any) -> np.ndarray:
        """Compute returns / return_scale in float32, of any shape."""
        return _float32(returns) / np.float32(self.return_scale)

    def normalize_actions(self, actions: Any) -> np.ndarray:
        """Scale the environment's actions (..., act_dim) to what the model sees and predicts, float32."""
        actions = _float32(actions)
        if self.action_mid is None or self.action_scale is None:
            return actions
        return (actions - _float32(self.action_mid)) / _float32(self.action_scale)

    def denormalize_actions(self, actions: Any) -> np.ndarray:
        """Scale the model's actions (..., act_dim) to the environment's units and clip them to its bounds, float32."""
        actions = _float32(actions)
        if self.action_mid is None or self.action_scale is None:
            return self.clip_actions(actions)
        return self.clip_actions(actions * _float32(self.action_scale) + _float32(self.action_mid))

    def clip_actions(self, actions: Any) -> np.ndarray:
        """Clip actions (..., act_dim) to the environment's bounds, float32; unchanged where no bounds are known."""
        actions = _float32(actions)
        if self.action_low is None or self.action_high is None:
            return actions
        # As np.clip, in less time.
        return np.minimum(np.maximum(actions, _float32(self.action_low)), _float32(self.action_high))


def _float32(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


# The model computes in float32: smaller numbers are zero there, larger ones infinite.
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def _checked_vector(name: str, values: Any, length: int | None = None) -> list[float]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a non-empty list of numbers ({type(error).__name__}).") from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, but has shape {array.shape}.")
    if length is not None and array.size != length:
        raise ValueError(f"{name} has {array.size} entries; expected {length}.")
    if not (np.abs(array) <= _LARGEST).all():
        index = int(np.flatnonzero(~(np.abs(array) <= _LARGEST))[0])
        raise ValueError(f"{name} is not finite at index {index}: {array[index]}, in float32.")
    return array.tolist()


def _checked_scaling(
    shift_name: str, shift: Any, scale_name: str, scale: Any
) -> tuple[list[float] | None, list[float] | None]:
    if shift is None:
        return None, None
    shifts = _checked_vector(shift_name, shift)
    scales = _checked_vector(scale_name, scale, length=len(shifts))
    if min(scales) < _SMALLEST:
        raise ValueError(f"{scale_name} must be positive everywhere, but its minimum is {min(scales)}.")
    return shifts, scales


def _checked_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not abs(value) <= _LARGEST:
        raise ValueError(f"{name}={shown(value)} must be a finite number.")
    return float(value)


def _checked_count(name: str, value: Any, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= highest:
        raise ValueError(f"{name}={shown(value)} must be a whole number from 1 to {highest}.")
    return int(value)


def _checked_arguments(arguments: Any) -> dict[str, Any]:
    try:
        if all(isinstance(name, str) for name in arguments):
            plain: dict[str, Any] = json.loads(json.dumps(dict(arguments)))
            return plain
    except (TypeError, ValueError):
        pass
    raise ValueError(f"env_kwargs={arguments!r} must be names, with values that JSON can hold.")


__all__ = ["DecisionMambaProcessor"]

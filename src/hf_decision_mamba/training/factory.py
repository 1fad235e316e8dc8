"""From settings and data to a model and its processor: a preset, a baseline, or a checkpoint to fine-tune.

The data say what a state and an action are, the settings everything else.
"""

import logging
from contextlib import suppress
from dataclasses import fields
from typing import Any

import numpy as np
from huggingface_hub.errors import StrictDataclassClassValidationError
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel

from ..acting.loading import load_model
from ..acting.shapes import condition_of
from ..baselines.architectures import (
    OF_ONE_STEP,
    WITH_PRESETS,
    architecture_of,
    baseline_config,
    embeds_time,
    fields_of,
    model_of,
)
from ..data import Trajectories
from ..data.statistics import TrajectoryStatistics, scaling_to_range
from ..model import PRESETS, DecisionMambaConfig, DecisionMambaProcessor
from ..model.observations_decision_mamba import describe_parts
from ..views import described_views, split_views
from .arguments import DEFAULT_CONTEXT_LENGTH, DEFAULT_FRAME_STACK, NORMALIZATIONS, DataArguments, ModelArguments

logger = logging.getLogger(__name__)

_WITHIN = 1 + 1e-5  # the rounding of a space that ends at 1
_FOR_ANY_STATES = ("gru",)  # presets that are of no paper, which would have chosen its states


def build(
    model_args: ModelArguments, data_args: DataArguments, trajectories: Trajectories, longest: int | None = None
) -> tuple[PreTrainedModel, DecisionMambaProcessor, int]:
    """Build the model that the settings ask for, its processor, and how long the windows are that it learns from.

    A new model is drawn from torch's random generator. The windows are the processor's `context_length`, but for those
    baselines that act on one step, which learn from the windows of the others.

    Args:
        trajectories: what is learned from; its statistics go into the processor of a new model.
        longest: steps of the longest episode, held-out ones included; that of `trajectories` when not given.

    Raises:
        ValueError: settings that contradict each other, the data or the checkpoint.
    """
    statistics = trajectories.statistics()
    longest = statistics.length_max if longest is None else longest
    if data_args.frame_stack is not None and trajectories.state_type == "vector":
        raise ValueError(
            f"frame_stack={data_args.frame_stack} has no meaning for data set {trajectories.name!r}, whose states are "
            "vectors; leave it out."
        )
    context_length = DEFAULT_CONTEXT_LENGTH[trajectories.state_type]
    settings: dict[str, Any] = {
        "state_mean": statistics.state_mean,
        "state_std": statistics.state_std,
        **_action_scaling(statistics),
        **_normalization(model_args, data_args, trajectories),
        "frame_stack": data_args.frame_stack or DEFAULT_FRAME_STACK,
        "return_scale": statistics.return_scale,
        "context_length": context_length,
        "action_start": trajectories.action_start,
        "observation_parts": trajectories.observation_parts,
        "fps": trajectories.fps,
    }
    if model_args.conditioning == "goal":
        settings = {"goal_mean": statistics.goal_mean, "goal_std": statistics.goal_std, **settings}
    source = model_args.model_name_or_path
    if source is not None:
        with suppress(OSError):  # of a model without a processor, of which more is said below
            _check_views(source, DecisionMambaProcessor.from_pretrained(source), trajectories)
        model = _load(source, model_args, data_args, trajectories, longest)
        kept = DecisionMambaProcessor.from_pretrained(source)  # the weights know states as this normalises them
        _check_parts(source, kept, trajectories)
        names = {*settings, "action_mid", "action_scale", "goal_mean", "goal_std"}
        settings = {name: getattr(kept, name) for name in names}
        settings["observation_parts"] = kept.observation_parts or trajectories.observation_parts
        settings["fps"] = trajectories.fps or kept.fps  # it is to act as fast as what it learned last
        if kept.fps is not None and settings["fps"] != kept.fps:
            logger.warning(
                "%s was trained at %g steps a second, and data set %r was recorded at %g: to a model, a step is a step",
                *(source, kept.fps, trajectories.name, trajectories.fps),
            )
        if architecture_of(model.config) in OF_ONE_STEP:
            settings["context_length"] = context_length
    for name in ("return_scale", "context_length"):
        given = getattr(data_args, name)
        settings[name] = settings[name] if given is None else given
    if source is None:
        try:
            config = _new_config(model_args, data_args, trajectories, longest, settings)
        except StrictDataclassClassValidationError as error:  # wraps what the config's own checks say
            raise ValueError(str(error.__cause__ or error)) from error
        model = model_of(config)
    _check_lengths(trajectories.name, longest, settings["context_length"], getattr(model.config, "max_ep_len", None))
    window_length = settings["context_length"]
    if architecture_of(model.config) in OF_ONE_STEP:
        settings["context_length"] = min(1, window_length)  # a length that is out of range is refused as such
    return model, DecisionMambaProcessor(**settings), window_length


def asks_for_goals(model_args: ModelArguments) -> bool:
    """Return whether the model that the settings name is asked for goals: as they say, or as its checkpoint does."""
    if model_args.model_name_or_path is None:
        return model_args.conditioning == "goal"
    with suppress(OSError):  # of a model without a processor, which is refused when it is loaded
        return DecisionMambaProcessor.from_pretrained(model_args.model_name_or_path).goal_mean is not None
    return False


def _action_scaling(statistics: TrajectoryStatistics) -> dict[str, NDArray[np.float64]]:
    """Scale actions that reach beyond [-1, 1], where tanh ends, to what is within; leave others as they are."""
    low, high = statistics.action_low, statistics.action_high
    if low is None or high is None or not _reach_beyond(low, high):
        return {}
    mid, scale = scaling_to_range(low, high)
    return {"action_mid": mid, "action_scale": scale}


def _reach_beyond(low: NDArray[np.float64], high: NDArray[np.float64]) -> bool:
    """Tell whether actions reach beyond [-1, 1]."""
    return bool(max(-low.min(), high.max()) > _WITHIN)


def _normalization(
    model_args: ModelArguments, data_args: DataArguments, trajectories: Trajectories
) -> dict[str, NDArray[np.float64] | None]:
    """Return the normalisation that the settings ask for, as the processor has it; empty where they ask for none.

    Raises:
        ValueError: states are images, or actions discrete; or a checkpoint is fine-tuned, which keeps its own.
    """
    for name in NORMALIZATIONS:
        method = getattr(data_args, name)
        if method is not None and model_args.model_name_or_path is not None:
            raise ValueError(
                f"{name}={method} cannot be chosen when fine-tuning {model_args.model_name_or_path}: its weights know "
                "states and actions as it was trained on them, so its normalisation is kept; leave it out."
            )
    settings: dict[str, NDArray[np.float64] | None] = {}
    if (of_states := data_args.state_normalization) is not None:
        settings["state_mean"], settings["state_std"] = trajectories.normalization("observations", of_states)
        if model_args.conditioning == "goal":
            column = "goals" if trajectories.achieved_goals is None else "achieved_goals"
            settings["goal_mean"], settings["goal_std"] = trajectories.normalization(column, of_states)
    if (of_actions := data_args.action_normalization) is not None:
        mid, scale = trajectories.normalization("actions", of_actions)
        none = of_actions == "none"
        settings |= {"action_mid": None if none else mid, "action_scale": None if none else scale}
    return settings


def _needs_no_tanh(data_args: DataArguments, statistics: TrajectoryStatistics) -> bool:
    """Tell whether the model's actions reach beyond [-1, 1], where tanh ends, however they are learned."""
    low, high, method = statistics.action_low, statistics.action_high, data_args.action_normalization
    if low is None or high is None:
        return False
    return method == "mean_std" or (method == "none" and _reach_beyond(low, high))


def _new_config(
    model_args: ModelArguments,
    data_args: DataArguments,
    trajectories: Trajectories,
    longest: int,
    settings: dict[str, Any],
) -> PreTrainedConfig:
    """Make the config of a new model: the task's fields from the data, sizes from the preset or the paper."""
    task = _task(trajectories, settings["frame_stack"])
    overrides = checked_overrides(model_args)
    if _needs_no_tanh(data_args, trajectories.statistics()):
        overrides["action_tanh"] = False
    if model_args.conditioning == "goal":
        overrides["goal_dim"] = trajectories.goal_dim
    elif not trajectories.has_rewards:
        overrides |= _imitating(model_args, trajectories.name)
    if model_args.builds_a_preset:
        _check_preset(model_args.preset, trajectories)
        config = DecisionMambaConfig.from_preset(model_args.preset, **task, **overrides)
        if "max_ep_len" not in overrides:
            config.max_ep_len = max(config.max_ep_len, longest)
        return config
    return baseline_config(model_args.architecture, task, overrides, longest)


def _imitating(model_args: ModelArguments, name: str) -> dict[str, str]:
    """Return the fields that make a model of data without rewards, which can only be imitated.

    Raises:
        ValueError: the model that was asked for needs returns.
    """
    if model_args.conditioning == "return":
        raise ValueError(
            f"--conditioning return asks for a return, and data set {name!r} has no rewards: give --rewards_from "
            "COLUMN, or leave --conditioning out, to imitate (none)."
        )
    if model_args.architecture == "rvs":
        raise ValueError(
            f"--architecture rvs is asked for a return, and data set {name!r} has no rewards: give --rewards_from "
            "COLUMN, or take another architecture, which imitates."
        )
    return {} if model_args.architecture == "bc" else {"conditioning": "none"}


def _task(trajectories: Trajectories, frame_stack: int) -> dict[str, Any]:
    """Say what a state and an action of these data are, as fields of a config."""
    task: dict[str, Any] = {"state_type": trajectories.state_type, "action_type": trajectories.action_type}
    if trajectories.state_type == "vector":
        task["state_dim"] = trajectories.state_dim
    else:
        height, width = trajectories.frame_shape
        if height != width:
            raise ValueError(
                f"Data set {trajectories.name!r} has frames of {height} × {width} pixels; the model reads square ones: "
                "resize or crop them."
            )
        task |= {"image_size": height, "num_channels": frame_stack}
    task["act_dim"] = trajectories.act_dim
    return task


def _presets_for(trajectories: Trajectories) -> list[str]:
    return [
        name
        for name, preset in PRESETS.items()
        if name in _FOR_ANY_STATES or preset.get("state_type", "vector") == trajectories.state_type
    ]


def _check_preset(preset: str, trajectories: Trajectories) -> None:
    """Refuse a preset for other states than the data have; an unknown name is `from_preset`'s to refuse."""
    fitting = _presets_for(trajectories)
    if preset in PRESETS and preset not in fitting:
        raise ValueError(
            f"Preset {preset!r} is for {PRESETS[preset].get('state_type', 'vector')} states, but data set "
            f"{trajectories.name!r} has {trajectories.state_type} states; presets that fit: {', '.join(fitting)}."
        )


def checked_overrides(model_args: ModelArguments) -> dict[str, Any]:
    """Return the config fields that were given, when the architecture has them."""
    architecture, overrides = model_args.architecture, model_args.overrides()
    if architecture not in WITH_PRESETS and model_args.preset != ModelArguments.preset:
        raise ValueError(
            f"--preset {model_args.preset} is a variant of decision_mamba; leave it out with --architecture "
            f"{architecture}, or leave that out."
        )
    has = fields_of(architecture)
    if architecture == "bc" and overrides.get("conditioning") == "goal":
        raise ValueError("--architecture bc sees the state alone; of a goal too it is --architecture rvs (RvS-G).")
    if architecture == "rvs" and overrides.get("conditioning") == "none":
        raise ValueError("--architecture rvs is asked for something; what sees the state alone is --architecture bc.")
    for name in overrides:
        if name not in has:
            known = ", ".join(f"--{entry.name}" for entry in fields(ModelArguments) if entry.name in has)
            raise ValueError(f"--{name} does not apply to --architecture {architecture}, which takes {known}.")
    return overrides


def _load(
    source: str, model_args: ModelArguments, data_args: DataArguments, trajectories: Trajectories, longest: int
) -> PreTrainedModel:
    """Load the model of a checkpoint to fine-tune, when it reads what the data hold."""
    overrides = model_args.overrides()
    overrides.pop("scan_backend", None)
    if overrides:
        raise ValueError(
            f"{next(iter(overrides))} cannot be changed when fine-tuning {source}: its architecture is kept."
        )
    if model_args.preset != ModelArguments.preset:
        raise ValueError(
            f"--preset {model_args.preset} builds a new model, and --model_name_or_path {source} fine-tunes that one; "
            "leave one of them out."
        )
    model = load_model(source)
    config, architecture = model.config, architecture_of(model.config)
    if model_args.architecture not in (ModelArguments.architecture, architecture):
        raise ValueError(
            f"{source} is a model of --architecture {architecture}, not {model_args.architecture}; leave it out when "
            "fine-tuning."
        )
    if architecture in WITH_PRESETS:
        config.scan_backend = model_args.scan_backend
    read_by_default = {"state_type": "vector", "action_type": "continuous"}
    frame_stack = data_args.frame_stack or int(getattr(config, "num_channels", DEFAULT_FRAME_STACK))
    for name, value in _task(trajectories, frame_stack).items():
        read = getattr(config, name, read_by_default.get(name))
        if read != value:
            raise ValueError(
                f"Data set {trajectories.name!r} has {name}={value}, but {source} was trained with {read}."
                + (" --action_type reads whole numbers and one-hot rows either way." if name == "action_type" else "")
            )
    condition_input, condition_dim = condition_of(config)
    if condition_input == "goals" and trajectories.goal_dim != condition_dim:
        raise ValueError(
            f"Data set {trajectories.name!r} has goals of {trajectories.goal_dim} numbers, but {source} is asked for "
            f"{condition_dim}."
        )
    if not trajectories.has_rewards and condition_input == "returns_to_go":
        raise ValueError(
            f"Data set {trajectories.name!r} has no rewards, but {source} is asked for a return: give --rewards_from "
            "COLUMN, or leave --model_name_or_path out, for a new model that imitates."
        )
    if hasattr(config, "max_ep_len") and not embeds_time(config):
        config.max_ep_len = max(config.max_ep_len, longest)  # nothing in the weights depends on it
    return model


def _check_views(source: str, processor: DecisionMambaProcessor, trajectories: Trajectories) -> None:
    """Refuse to fine-tune on data that show something else of the environment."""
    learned, shown = (split_views(env_kwargs)[0] for env_kwargs in (processor.env_kwargs, trajectories.env_kwargs))
    if learned != shown:
        raise ValueError(
            f"Data set {trajectories.name!r} shows {described_views(shown)}, but {source} was trained on "
            f"{described_views(learned)}."
        )


def _check_parts(source: str, processor: DecisionMambaProcessor, trajectories: Trajectories) -> None:
    """Refuse to fine-tune on observations of other parts, or on actions of other numbers."""
    known, found = processor.observation_parts, trajectories.observation_parts
    if known and found and known != found:
        raise ValueError(
            f"Data set {trajectories.name!r} observes {describe_parts(found)}, but {source} was trained on "
            f"{describe_parts(known)}."
        )
    if processor.action_start != trajectories.action_start:
        raise ValueError(
            f"Data set {trajectories.name!r} has action_start={trajectories.action_start}, but {source} was trained "
            f"with {processor.action_start}."
        )


def _check_lengths(name: str, longest: int, context_length: int, max_ep_len: int | None) -> None:
    """Refuse episodes and windows that are longer than the model allows; None allows all."""
    if max_ep_len is None:
        return
    if longest > max_ep_len:
        raise ValueError(
            f"Data set {name!r} has an episode of {longest} steps, but the model knows only max_ep_len={max_ep_len}; "
            "raise max_ep_len, or shorten the episodes."
        )
    if context_length > max_ep_len:
        raise ValueError(
            f"context_length={context_length} is longer than any episode can be: max_ep_len is {max_ep_len}."
        )

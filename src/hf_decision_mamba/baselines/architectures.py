"""What `--architecture` may be, and what is known about each.

An architecture is a config class, or some of its fields: RvS and behaviour cloning are two of one class, and a GRU is a
preset of our models.

Source of how parameters are counted: DeMa (arXiv 2405.12094).
"""

from dataclasses import fields
from typing import Any

from torch import nn
from transformers import DecisionTransformerConfig, DecisionTransformerModel, PreTrainedConfig, PreTrainedModel

from ..model import DecisionMambaConfig, DecisionMambaModel
from .decision_transformer import EncodedDecisionTransformerConfig, EncodedDecisionTransformerModel
from .mlp import DecisionMLPConfig, DecisionMLPModel

#: What `--architecture` may be, and the class of its config.
ARCHITECTURES: dict[str, type[PreTrainedConfig]] = {
    "decision_mamba": DecisionMambaConfig,
    "gru": DecisionMambaConfig,
    "decision_transformer": DecisionTransformerConfig,
    "rvs": DecisionMLPConfig,
    "bc": DecisionMLPConfig,
}
#: Those that read one step: they learn from the windows of the others.
OF_ONE_STEP = ("rvs", "bc")
#: Those that are presets of our models, which carry a state.
WITH_PRESETS = ("decision_mamba", "gru")
#: Those whose state is a scan's, with step sizes.
WITH_SCANS = ("decision_mamba",)
# Fields of a DecisionMambaConfig that mean nothing to a GRU.
_OF_A_SCAN = {
    *("state_size", "expand", "conv_kernel", "use_gate", "selective"),
    *("time_step_min", "time_step_max", "scan_backend"),
}
# What an MLP of each name may be conditioned on, the default first.
_CONDITIONINGS = {"rvs": ("return", "goal"), "bc": ("none",)}
_MODELS: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
    DecisionMambaConfig: DecisionMambaModel,
    DecisionTransformerConfig: DecisionTransformerModel,
    EncodedDecisionTransformerConfig: EncodedDecisionTransformerModel,
    DecisionMLPConfig: DecisionMLPModel,
}

_DECISION_TRANSFORMER_EP_LEN = 1000  # Chen et al. 2021, released code; more where the data have longer episodes
_DECISION_TRANSFORMER_ATARI = {"n_layer": 6, "n_head": 8, "activation_function": "gelu"}  # Chen et al. 2021, table 7

#: Presets whose authors count two heads that nothing trains, for the next state and the next return.
_COUNTED_WITH_UNUSED_HEADS = ("dema-b3ld", "dema-bl3d", "dema-post")


def architecture_of(config: PreTrainedConfig) -> str:
    """Return the value of `--architecture` that builds such a model.

    Raises:
        ValueError: none of them does.
    """
    if isinstance(config, DecisionMLPConfig):
        return next(name for name, known in _CONDITIONINGS.items() if config.conditioning in known)
    if isinstance(config, DecisionMambaConfig) and config.ssm == "gru":
        return "gru"
    for name, config_class in ARCHITECTURES.items():
        if isinstance(config, config_class):
            return name
    raise ValueError(f"A model of type {config.model_type!r} cannot be trained; known: {', '.join(ARCHITECTURES)}.")


def fields_of(architecture: str) -> set[str]:
    """List the config fields that mean something to models of this architecture."""
    names = {entry.name for entry in fields(ARCHITECTURES[architecture])}
    if architecture == "bc":  # which has no other
        names -= {"conditioning", "goal_dim"}
    if architecture == "decision_transformer":  # of our class, where it is not by return
        names |= {"conditioning", "goal_dim"}
    return names - _OF_A_SCAN if architecture == "gru" else names


def embeds_time(config: PreTrainedConfig) -> bool:
    """Tell whether the model has an embedding for each time step below `max_ep_len`, and knows none beyond."""
    return bool(getattr(config, "use_timestep_embedding", isinstance(config, DecisionTransformerConfig)))


def baseline_config(
    architecture: str, task: dict[str, Any], settings: dict[str, Any], longest: int
) -> PreTrainedConfig:
    """Make the config of a baseline that is no preset, sized as in its paper where `settings` name no others.

    Args:
        architecture: a key of `ARCHITECTURES`.
        task: the fields that say what a state and an action are, `state_type` and `action_type` among them.
        settings: other fields.
        longest: steps of the longest episode.
    """
    if architecture != "decision_transformer":
        return DecisionMLPConfig(**{"conditioning": _CONDITIONINGS[architecture][0], **task, **settings})
    types = {name: value for name, value in task.items() if name in ("state_type", "action_type")}
    defaults: dict[str, Any] = {"max_ep_len": max(_DECISION_TRANSFORMER_EP_LEN, longest)}
    conditioning = settings.get("conditioning", "return")
    if types == {"state_type": "vector", "action_type": "continuous"} and conditioning == "return":
        settings = {name: value for name, value in settings.items() if name != "conditioning"}
        task = {name: value for name, value in task.items() if name not in types}
        # They are of GPT-2's vocabulary, which is not there.
        return DecisionTransformerConfig(**task, **{**defaults, "bos_token_id": None, "eos_token_id": None, **settings})
    if task["state_type"] == "image":
        defaults |= _DECISION_TRANSFORMER_ATARI
    return EncodedDecisionTransformerConfig(**task, **{**defaults, **settings})


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    """Make a new model, drawn from torch's random generator."""
    return _MODELS[type(config)](config)


def paper_parameter_count(model: PreTrainedModel, preset: str | None = None) -> int:
    """Count parameters as the model's paper does: ours, with what the authors' code has beyond or leaves out.

    DeMa's code for MuJoCo holds heads for the next state and return that are never trained, and counts them. The
    positions that transformers' Decision Transformer inherits from GPT-2 are no part of the published model. Where
    nothing is known to differ, this is the number of parameters.

    Args:
        preset: the preset that the model was built from.
    """
    count, config = model.num_parameters(), model.config
    if isinstance(model, DecisionTransformerModel):
        return count - config.n_positions * config.hidden_size
    if preset in _COUNTED_WITH_UNUSED_HEADS and not config.predict_state_and_return:
        heads = nn.ModuleList([nn.Linear(config.hidden_size, size, device="meta") for size in (config.state_dim, 1)])
        return count + sum(parameter.numel() for parameter in heads.parameters())
    return count

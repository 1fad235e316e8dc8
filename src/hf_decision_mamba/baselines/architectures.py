"""What `--architecture` may be, and what is known about each.

Source of how parameters are counted: DeMa (arXiv 2405.12094).
"""

from torch import nn
from transformers import DecisionTransformerConfig, DecisionTransformerModel, PreTrainedConfig, PreTrainedModel

from ..model import DecisionMambaConfig, DecisionMambaModel
from .behaviour_cloning import DecisionBCConfig, DecisionBCModel

#: What `--architecture` may be, and the classes behind it.
ARCHITECTURES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "decision_mamba": (DecisionMambaConfig, DecisionMambaModel),
    "decision_transformer": (DecisionTransformerConfig, DecisionTransformerModel),
    "bc": (DecisionBCConfig, DecisionBCModel),
}

#: Presets whose authors count two heads that nothing trains, for the next state and the next return.
_COUNTED_WITH_UNUSED_HEADS = ("dema-b3ld", "dema-bl3d", "dema-post")


def architecture_of(config: PreTrainedConfig) -> str:
    """The value of `--architecture` that builds such a model.

    Raises:
        ValueError: none of them does.
    """
    for name, (config_class, _) in ARCHITECTURES.items():
        if config.model_type == config_class.model_type:
            return name
    raise ValueError(f"A model of type {config.model_type!r} cannot be trained; known: {', '.join(ARCHITECTURES)}.")


def embeds_time(config: PreTrainedConfig) -> bool:
    """Whether the model has an embedding for each time step below `max_ep_len`, and knows none beyond."""
    return bool(getattr(config, "use_timestep_embedding", config.model_type == DecisionTransformerConfig.model_type))


def paper_parameter_count(model: PreTrainedModel, preset: str | None = None) -> int:
    """Parameters as the model's paper counts them: ours, with what the authors' code has beyond or leaves out.

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

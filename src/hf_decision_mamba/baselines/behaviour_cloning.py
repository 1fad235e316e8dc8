"""Behaviour cloning on one step: the floor that every model with a memory has to beat.

It has `DecisionTransformerModel`'s forward, so that trainer, policy and evaluation know no difference. Source: the MLP
that Decision Transformer is compared with (Chen et al. 2021), here of one step and conditioned on the return-to-go.
"""

import math

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from ..model import DecisionMambaConfig, DecisionMambaOutput, DecisionMambaProcessor
from ..model.loading_decision_mamba import FORMAT_VERSION, CheckedConfig, CheckedWeights


@strict
class DecisionBCConfig(CheckedConfig, PreTrainedConfig):
    """Configuration of a `DecisionBCModel`.

    Args:
        state_dim: dimensions of one state.
        act_dim: dimensions of one action.
        hidden_size: width of the hidden layers.
        n_layer: number of hidden layers.
        dropout: share of the hidden values that are dropped in training.
        action_tanh: whether predicted actions pass through tanh.
        format_version: format of the checkpoint, as DecisionMambaConfig's.
    """

    model_type = "decision_bc"
    keys_to_ignore_at_inference = DecisionMambaConfig.keys_to_ignore_at_inference

    state_dim: int = 17
    act_dim: int = 4
    hidden_size: int = 256
    n_layer: int = 2
    dropout: float | int = 0.1
    action_tanh: bool = True
    format_version: int = FORMAT_VERSION

    def validate_architecture(self) -> None:
        """Part of `@strict` validation: refuse values from which no model can be built."""
        super().validate_architecture()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1.")


class DecisionBCModel(CheckedWeights, PreTrainedModel):
    """An MLP from (s_t, R_t) to a_t, step by step: what lies before in a window has no influence."""

    config: DecisionBCConfig
    config_class = DecisionBCConfig
    base_model_prefix = "model"
    main_input_name = "states"

    def __init__(self, config: DecisionBCConfig):
        super().__init__(config)
        widths = [config.state_dim + 1] + config.n_layer * [config.hidden_size]
        self.layers = nn.ModuleList([nn.Linear(width, config.hidden_size) for width in widths[:-1]])
        self.dropout = nn.Dropout(config.dropout)
        self.predict_action = nn.Linear(config.hidden_size, config.act_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)  # PyTorch's own
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)

    def forward(
        self,
        states: Tensor | None = None,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        returns_to_go: Tensor | None = None,
        timesteps: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        previous_actions: Tensor | None = None,
    ) -> tuple | DecisionMambaOutput:
        """Predict the action of every step from its state and return-to-go alone.

        Args:
            states: (b, K, state_dim), normalised.
            returns_to_go: (b, K, 1), scaled.
            return_dict: whether to return a `DecisionMambaOutput` or its `predictions`.
            actions, rewards, timesteps, attention_mask, output_hidden_states, output_attentions, previous_actions:
                accepted for the interface of the other models; not used.

        Raises:
            ValueError: states or returns_to_go are missing.
        """
        if states is None or returns_to_go is None:
            raise ValueError("states and returns_to_go are required.")
        if returns_to_go.dim() == 2 and returns_to_go.shape[1] == 1:
            returns_to_go = returns_to_go[..., None]  # as DecisionMambaModel takes them
        hidden = torch.cat([states.to(self.dtype), returns_to_go.to(self.dtype)], dim=-1)
        for layer in self.layers:
            hidden = self.dropout(torch.relu(layer(hidden)))
        action_preds = self.predict_action(hidden)
        if self.config.action_tanh:
            action_preds = torch.tanh(action_preds)
        output = DecisionMambaOutput(action_preds=action_preds, last_hidden_state=hidden)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.predictions()


AutoConfig.register(DecisionBCConfig.model_type, DecisionBCConfig)


AutoModel.register(DecisionBCConfig, DecisionBCModel)


AutoFeatureExtractor.register(DecisionBCConfig, DecisionMambaProcessor)


AutoProcessor.register(DecisionBCConfig, DecisionMambaProcessor)

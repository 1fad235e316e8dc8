"""Multilayer perceptrons on one step: the floor that every model with a memory has to beat.

Conditioned on the return-to-go it is RvS-R (Emmons et al., arXiv 2112.10751), on a goal RvS-G, on the state alone
behaviour cloning. It has `DecisionTransformerModel`'s forward, and goals as ours has them, so that trainer, policy and
evaluation know no difference.
"""

import math
from typing import Any, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from ..model import DecisionMambaConfig, DecisionMambaOutput
from ..model.checkpoint_decision_mamba import FORMAT_VERSION, CheckedConfig, CheckedWeights
from ..model.configuration_decision_mamba import ConditionedConfig
from ..model.modeling_decision_mamba import DecisionMambaImageEncoder
from .common import check_task, register


@strict
class DecisionMLPConfig(ConditionedConfig, CheckedConfig, PreTrainedConfig):
    """Configuration of a `DecisionMLPModel`.

    Args:
        conditioning: `"return"`, an action depends on state and return-to-go (RvS-R); `"goal"`, on state and goal
            (RvS-G); `"none"`, on the state alone (behaviour cloning).
        goal_dim: dimensions of a goal; with `conditioning="goal"` only.
        state_dim: dimensions of one state.
        act_dim: dimensions of one action, or number of discrete actions.
        hidden_size: width of the hidden layers.
        n_layer: number of hidden layers.
        dropout: share of the hidden values that are dropped in training.
        action_tanh: whether predicted actions pass through tanh; discrete ones never do.
        state_type, action_type, num_channels, image_size: as DecisionMambaConfig's.
        format_version: format of the checkpoint, as DecisionMambaConfig's.
    """

    model_type = "decision_mlp"
    keys_to_ignore_at_inference = DecisionMambaConfig.keys_to_ignore_at_inference

    conditioning: str = "return"
    goal_dim: int | None = None
    state_dim: int = 17
    act_dim: int = 4
    hidden_size: int = 256
    n_layer: int = 2
    dropout: float | int = 0.1
    action_tanh: bool = True
    state_type: str = "vector"
    action_type: str = "continuous"
    num_channels: int = 4
    image_size: int = 84
    format_version: int = FORMAT_VERSION

    def validate_architecture(self) -> None:
        """Refuse values from which no model can be built; `@strict` validation calls this."""
        super().validate_architecture()
        check_task(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1.")


class DecisionMLPModel(CheckedWeights, PreTrainedModel):
    """An MLP from s_t, (s_t, R_t) or (s_t, g_t) to a_t, step by step: what lies before in a window has no influence."""

    config: DecisionMLPConfig
    config_class = DecisionMLPConfig
    base_model_prefix = "model"
    main_input_name = "states"

    def __init__(self, config: DecisionMLPConfig):
        super().__init__(config)
        image = config.state_type == "image"
        if image:
            self.embed_state = DecisionMambaImageEncoder(cast(Any, config), config.hidden_size)
        seen = (config.hidden_size if image else config.state_dim) + config.condition_dim
        widths = [seen] + config.n_layer * [config.hidden_size]
        self.layers = nn.ModuleList([nn.Linear(width, config.hidden_size) for width in widths[:-1]])
        self.dropout = nn.Dropout(config.dropout)
        self.predict_action = nn.Linear(config.hidden_size, config.act_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = 1 / math.sqrt(module.weight[0].numel())  # PyTorch's own
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)

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
        goals: Tensor | None = None,
    ) -> tuple | DecisionMambaOutput:
        """Predict the action of every step, or the logits of discrete ones, from that step alone.

        Args:
            states: (b, K, state_dim), normalised; or frame stacks (b, K, num_channels, image_size, image_size).
            returns_to_go: (b, K, 1), scaled; of RvS-R only.
            goals: (b, K, goal_dim), normalised; of RvS-G only.
            return_dict: whether to return a `DecisionMambaOutput` or its `predictions`.
            actions, rewards, timesteps, attention_mask, output_hidden_states, output_attentions, previous_actions:
                accepted for the interface of the other models; not used.

        Raises:
            ValueError: states, or what the model is conditioned on, are missing.
        """
        asked_for, condition = self.config.condition_input, self.config.select_condition(returns_to_go, goals)
        if states is None or (asked_for is not None and condition is None):
            raise ValueError(f"states {f'and {asked_for} ' if asked_for else ''}are required.")
        image = self.config.state_type == "image"
        hidden = torch.relu(self.embed_state(states)) if image else states.to(self.dtype)
        if condition is not None:
            hidden = torch.cat([hidden, condition.to(self.dtype)], dim=-1)
        for layer in self.layers:
            hidden = self.dropout(torch.relu(layer(hidden)))
        action_preds = self.predict_action(hidden)
        if self.config.action_tanh and self.config.action_type == "continuous":
            action_preds = torch.tanh(action_preds)
        output = DecisionMambaOutput(action_preds=action_preds, last_hidden_state=hidden)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.predictions()


register(DecisionMLPConfig, DecisionMLPModel)

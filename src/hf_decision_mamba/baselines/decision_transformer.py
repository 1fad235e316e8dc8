"""Decision Transformer for what transformers' own class does not know: discrete actions, images, no returns, goals.

The backbone and the heads are transformers'; an embedding of actions (a linear map of one-hot rows) and the image
encoder of our models take the places of its linear embeddings, as in the Atari experiments of Chen et al. (arXiv
2106.01345). A goal takes the place of the return, or there is no such token. Vectors and continuous actions by return
are the business of transformers' `DecisionTransformerModel`.
"""

import math
from typing import Any, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    DecisionTransformerConfig,
    DecisionTransformerModel,
)
from transformers import initialization as init
from transformers.models.decision_transformer.modeling_decision_transformer import DecisionTransformerOutput

from ..model.checkpoint_decision_mamba import FORMAT_VERSION, CheckedConfig, CheckedWeights
from ..model.configuration_decision_mamba import ConditionedConfig
from ..model.modeling_decision_mamba import DecisionMambaActionEmbedding, DecisionMambaImageEncoder
from .common import check_task, register


@strict
class EncodedDecisionTransformerConfig(ConditionedConfig, CheckedConfig, DecisionTransformerConfig):
    """Configuration of an `EncodedDecisionTransformerModel`: DecisionTransformerConfig's fields, and these.

    Args:
        conditioning, goal_dim: as DecisionMambaConfig's; without a condition a step is a state and an action.
        state_type, action_type, num_channels, image_size: as DecisionMambaConfig's. Discrete actions pass no tanh.
        format_version: format of the checkpoint, as DecisionMambaConfig's.
    """

    model_type = "encoded_decision_transformer"
    keys_to_ignore_at_inference = ["state_preds", "return_preds", "last_hidden_state", "past_key_values"]

    conditioning: str = "return"
    goal_dim: int | None = None
    state_type: str = "vector"
    action_type: str = "discrete"
    num_channels: int = 4
    image_size: int = 84
    format_version: int = FORMAT_VERSION
    bos_token_id: int | None = None  # those of transformers are of GPT-2's vocabulary, which is not there
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: object) -> None:
        self.action_tanh = self.action_tanh and self.action_type == "continuous"
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse values from which no model can be built; `@strict` validation calls this."""
        super().validate_architecture()
        check_task(self)
        if self.hidden_size % self.n_head:
            raise ValueError(f"n_head={self.n_head} must divide hidden_size={self.hidden_size}.")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1.")


class EncodedDecisionTransformerModel(CheckedWeights, DecisionTransformerModel):
    """transformers' Decision Transformer with `action_preds` that are logits of discrete actions, or behind images.

    `forward` takes discrete actions as integers (b, K), -1 where none is known yet, and images as frame stacks
    (b, K, num_channels, image_size, image_size), uint8 from 0 to 255 or floating from 0 to 1.
    """

    config: EncodedDecisionTransformerConfig
    config_class = EncodedDecisionTransformerConfig

    def __init__(self, config: EncodedDecisionTransformerConfig):
        super().__init__(config)
        width, read = config.hidden_size, cast(Any, config)
        if config.state_type == "image":
            self.embed_state = cast(Any, DecisionMambaImageEncoder(read, width))
        if config.action_type == "discrete":
            self.embed_action = cast(Any, DecisionMambaActionEmbedding(config.act_dim, width))
        if config.conditioning != "return":
            del self.embed_return
        if config.conditioning == "goal":
            self.embed_goal = nn.Linear(config.condition_dim, width)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())  # PyTorch's own
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        else:
            super()._init_weights(module)

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
        goals: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | DecisionTransformerOutput:
        """Predict the action of every step from it and what was before, as `DecisionTransformerModel.forward` does.

        Args:
            states, actions, rewards, timesteps, attention_mask, output_hidden_states, output_attentions, return_dict:
                as there, or as the class says.
            returns_to_go: (b, K, 1); of models that are asked for a return.
            goals: (b, K, goal_dim); of models that are asked for a goal.

        Raises:
            ValueError: states, actions, timesteps or what the model is asked for are missing.
        """
        config, asked_for = self.config, self.config.condition_input
        condition = config.select_condition(returns_to_go, goals)
        if states is None or actions is None or timesteps is None or (asked_for is not None and condition is None):
            raise ValueError(f"{', '.join(filter(None, ('states', 'actions', asked_for)))} and timesteps are required.")
        (b, k), width = states.shape[:2], config.hidden_size
        tokens = [self.embed_state(states), self.embed_action(actions)]
        if condition is not None:
            tokens.insert(0, (self.embed_return if asked_for == "returns_to_go" else self.embed_goal)(condition))
        time, count = self.embed_timestep(timesteps), len(tokens)
        embedded = torch.stack([token + time for token in tokens], dim=2).view(b, count * k, width)
        if attention_mask is None:
            attention_mask = torch.ones(b, k, dtype=torch.long, device=states.device)
        mask = attention_mask.repeat_interleave(count, dim=1)  # one of each token
        found = self.encoder(
            inputs_embeds=self.embed_ln(embedded),
            attention_mask=mask,
            position_ids=torch.zeros_like(mask, dtype=torch.long),
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            return_dict=True,
        )
        of_state, of_action = found.last_hidden_state.view(b, k, count, width)[:, :, -2:].unbind(2)
        state_preds, return_preds = self.predict_state(of_action), self.predict_return(of_action)
        action_preds = self.predict_action(of_state)
        if not (config.return_dict if return_dict is None else return_dict):
            return state_preds, action_preds, return_preds
        return DecisionTransformerOutput(
            last_hidden_state=found.last_hidden_state,
            state_preds=state_preds,
            action_preds=action_preds,
            return_preds=return_preds,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )


register(EncodedDecisionTransformerConfig, EncodedDecisionTransformerModel)

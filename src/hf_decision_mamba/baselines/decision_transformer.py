"""Decision Transformer for what transformers' own class does not read: discrete actions and images.

The backbone, the tokens and the forward are transformers'; an embedding of actions (a linear map of one-hot rows) and
the image encoder of our models take the places of its linear embeddings, as in the Atari experiments of Chen et al.
(arXiv 2106.01345). Vectors and continuous actions are the business of transformers' `DecisionTransformerModel`.
"""

import math
from typing import Any, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    DecisionTransformerConfig,
    DecisionTransformerModel,
)
from transformers import initialization as init

from ..model.checkpoint_decision_mamba import FORMAT_VERSION, CheckedConfig, CheckedWeights
from ..model.modeling_decision_mamba import DecisionMambaActionEmbedding, DecisionMambaImageEncoder
from .common import check_task, register


@strict
class EncodedDecisionTransformerConfig(CheckedConfig, DecisionTransformerConfig):
    """Configuration of an `EncodedDecisionTransformerModel`: DecisionTransformerConfig's fields, and these.

    Args:
        state_type, action_type, num_channels, image_size: as DecisionMambaConfig's. Discrete actions pass no tanh.
        format_version: format of the checkpoint, as DecisionMambaConfig's.
    """

    model_type = "encoded_decision_transformer"
    keys_to_ignore_at_inference = ["state_preds", "return_preds", "last_hidden_state", "past_key_values"]

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
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())  # PyTorch's own
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        else:
            super()._init_weights(module)


register(EncodedDecisionTransformerConfig, EncodedDecisionTransformerModel)

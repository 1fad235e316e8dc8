"""Baselines: what the models are compared with, in the same trainer and the same evaluation.

`architectures` lists all that can be trained, `mlp` is RvS and behaviour cloning, `decision_transformer` takes
transformers' to discrete actions and images.
"""

from .architectures import ARCHITECTURES, architecture_of
from .decision_transformer import EncodedDecisionTransformerConfig, EncodedDecisionTransformerModel
from .mlp import DecisionMLPConfig, DecisionMLPModel

__all__ = [
    "ARCHITECTURES",
    "DecisionMLPConfig",
    "DecisionMLPModel",
    "EncodedDecisionTransformerConfig",
    "EncodedDecisionTransformerModel",
    "architecture_of",
]

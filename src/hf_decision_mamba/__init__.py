"""Decision models on a Mamba backbone for the Hugging Face ecosystem."""

from .acting.policy import DecisionMambaPolicy
from .baselines.behaviour_cloning import DecisionBCConfig, DecisionBCModel
from .model import (
    DecisionMambaCache,
    DecisionMambaConfig,
    DecisionMambaModel,
    DecisionMambaOutput,
    DecisionMambaProcessor,
)
from .reporting._version import __version__

__all__ = [
    "DecisionBCConfig",
    "DecisionBCModel",
    "DecisionMambaCache",
    "DecisionMambaConfig",
    "DecisionMambaModel",
    "DecisionMambaOutput",
    "DecisionMambaPolicy",
    "DecisionMambaProcessor",
    "__version__",
]

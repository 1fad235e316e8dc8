"""Decision models on a Mamba backbone for the Hugging Face ecosystem."""

from .baselines import DecisionBCConfig, DecisionBCModel
from .model import (
    DecisionMambaCache,
    DecisionMambaConfig,
    DecisionMambaModel,
    DecisionMambaOutput,
    DecisionMambaProcessor,
)
from .policy import DecisionMambaPolicy

__version__ = "0.1.0"

__all__ = [
    "DecisionBCConfig",
    "DecisionBCModel",
    "DecisionMambaCache",
    "DecisionMambaConfig",
    "DecisionMambaModel",
    "DecisionMambaOutput",
    "DecisionMambaPolicy",
    "DecisionMambaProcessor",
]

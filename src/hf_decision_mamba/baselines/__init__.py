"""Baselines: what the models are compared with, in the same trainer and the same evaluation.

`architectures` lists all that can be trained, `behaviour_cloning` is the one that is ours.
"""

from .architectures import ARCHITECTURES, architecture_of
from .behaviour_cloning import DecisionBCConfig, DecisionBCModel

__all__ = [
    "ARCHITECTURES",
    "DecisionBCConfig",
    "DecisionBCModel",
    "architecture_of",
]

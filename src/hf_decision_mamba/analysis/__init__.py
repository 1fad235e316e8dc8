"""Analysis: looking inside a model, and taking parts out of it.

`hidden_attention`, `effective_context` and `time_constants` measure any model on any batch. Whole checkpoints have
`inspection` with its `page`, and `ablation`, what is left of a score without the trained hidden attention.
"""

from .ablation import Ablation, ablate, randomize_hidden_attention, swap_hidden_attention, zero_hidden_attention
from .effective_context import EffectiveContext, effective_context
from .hidden_attention import Decay, HiddenAttention, decay_rate, hidden_attention
from .inspection import ModelInspection, inspect_checkpoint
from .memory import MemoryOfBeginning, memory_of_beginning
from .page import plot_inspection, write_inspection
from .time_constants import TimeConstants, time_constants

__all__ = [
    "Ablation",
    "Decay",
    "EffectiveContext",
    "HiddenAttention",
    "MemoryOfBeginning",
    "ModelInspection",
    "TimeConstants",
    "ablate",
    "decay_rate",
    "effective_context",
    "hidden_attention",
    "inspect_checkpoint",
    "memory_of_beginning",
    "plot_inspection",
    "randomize_hidden_attention",
    "swap_hidden_attention",
    "time_constants",
    "write_inspection",
    "zero_hidden_attention",
]

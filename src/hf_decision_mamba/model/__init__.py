"""The model: config, network, recurrent cache, processor and the selective scan.

Self-contained (nothing here imports the rest of the package): these files travel with a checkpoint, side by side and
without this one, and run there as transformers' remote code.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

from .cache_decision_mamba import DecisionMambaCache
from .configuration_decision_mamba import PRESETS, DecisionMambaConfig
from .modeling_decision_mamba import DecisionMambaModel, DecisionMambaOutput, DecisionMambaPreTrainedModel
from .processing_decision_mamba import DecisionMambaProcessor
from .selective_scan import selective_scan

AutoConfig.register(DecisionMambaConfig.model_type, DecisionMambaConfig)
AutoModel.register(DecisionMambaConfig, DecisionMambaModel)
AutoFeatureExtractor.register(DecisionMambaConfig, DecisionMambaProcessor)
AutoProcessor.register(DecisionMambaConfig, DecisionMambaProcessor)

__all__ = [
    "PRESETS",
    "DecisionMambaCache",
    "DecisionMambaConfig",
    "DecisionMambaModel",
    "DecisionMambaOutput",
    "DecisionMambaPreTrainedModel",
    "DecisionMambaProcessor",
    "selective_scan",
]

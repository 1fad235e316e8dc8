"""Decision models on a Mamba backbone for the Hugging Face ecosystem.

The front door: `import hf_decision_mamba as hdm`, and every step from data to a shared checkpoint has a name here
(docs/api.md). Importing loads the models, so that transformers' Auto classes know them; all else is loaded when it is
asked for. Nothing inside of the package uses this file.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .baselines import (
    DecisionMLPConfig,
    DecisionMLPModel,
    EncodedDecisionTransformerConfig,
    EncodedDecisionTransformerModel,
)
from .model import (
    DecisionMambaCache,
    DecisionMambaConfig,
    DecisionMambaModel,
    DecisionMambaOutput,
    DecisionMambaProcessor,
)
from .reporting._version import __version__

if TYPE_CHECKING:
    from .acting.export import export_policy
    from .acting.policy import DecisionMambaPolicy
    from .analysis.effective_context import effective_context
    from .analysis.hidden_attention import hidden_attention
    from .analysis.inspection import inspect_checkpoint
    from .analysis.page import plot_inspection
    from .collecting.collect import collect
    from .collecting.settings import CollectSettings
    from .conversion import convert_official_checkpoint
    from .data.sources import load_trajectories
    from .data.trajectories import Trajectories
    from .data.windows import WindowDataset
    from .evaluation.result import EvaluationResult
    from .evaluation.rollouts import evaluate_policy
    from .evaluation.scores import normalized_score
    from .sharing.model_card import push_to_hub, write_model_card
    from .study.results import StudyResult
    from .study.runner import run_study
    from .training.record import plot_learning_curve
    from .training.run import TrainingResult, train
    from .training.trainer import DecisionMambaTrainer

#: Where each name is that is loaded when it is asked for.
_PLACES = {
    "CollectSettings": "collecting.settings",
    "DecisionMambaPolicy": "acting.policy",
    "DecisionMambaTrainer": "training.trainer",
    "EvaluationResult": "evaluation.result",
    "StudyResult": "study.results",
    "TrainingResult": "training.run",
    "Trajectories": "data.trajectories",
    "WindowDataset": "data.windows",
    "collect": "collecting.collect",
    "convert_official_checkpoint": "conversion",
    "effective_context": "analysis.effective_context",
    "evaluate_policy": "evaluation.rollouts",
    "export_policy": "acting.export",
    "hidden_attention": "analysis.hidden_attention",
    "inspect_checkpoint": "analysis.inspection",
    "load_trajectories": "data.sources",
    "normalized_score": "evaluation.scores",
    "plot_inspection": "analysis.page",
    "plot_learning_curve": "training.record",
    "push_to_hub": "sharing.model_card",
    "run_study": "study.runner",
    "train": "training.run",
    "write_model_card": "sharing.model_card",
}
_ROOMS = (
    "acting",
    "analysis",
    "collecting",
    "conversion",
    "data",
    "evaluation",
    "info",
    "sharing",
    "study",
    "training",
)

__all__ = [
    "CollectSettings",
    "DecisionMLPConfig",
    "DecisionMLPModel",
    "DecisionMambaCache",
    "DecisionMambaConfig",
    "DecisionMambaModel",
    "DecisionMambaOutput",
    "DecisionMambaPolicy",
    "DecisionMambaProcessor",
    "DecisionMambaTrainer",
    "EncodedDecisionTransformerConfig",
    "EncodedDecisionTransformerModel",
    "EvaluationResult",
    "StudyResult",
    "TrainingResult",
    "Trajectories",
    "WindowDataset",
    "__version__",
    "collect",
    "convert_official_checkpoint",
    "effective_context",
    "evaluate_policy",
    "export_policy",
    "hidden_attention",
    "inspect_checkpoint",
    "load_trajectories",
    "normalized_score",
    "plot_inspection",
    "plot_learning_curve",
    "push_to_hub",
    "run_study",
    "train",
    "write_model_card",
]


def __getattr__(name: str) -> Any:
    """Load a public name, or a room, when it is asked for first."""
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; docs/api.md lists all that it has")
    value = globals()[name] = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})

"""What all baselines have in common: they refuse a task that is none, and transformers' Auto classes know them."""

from typing import Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel

from ..model import DecisionMambaProcessor
from ..model.configuration_decision_mamba import CONDITIONS

SMALLEST_IMAGE = 36  # of which the image encoder's three convolutions leave something

_CHOICES = {
    "state_type": ("vector", "image"),
    "action_type": ("continuous", "discrete"),
    "conditioning": (*CONDITIONS, "none"),
}


def check_task(config: Any) -> None:
    """Refuse what a state, an action and a condition cannot be.

    Raises:
        ValueError: an unknown kind of them, images that are too small, or a goal without a size.
    """
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}={getattr(config, name)!r} is unknown; choose one of {choices}.")
    if config.state_type == "image" and config.image_size < SMALLEST_IMAGE:
        raise ValueError(f"image_size={config.image_size} must be at least {SMALLEST_IMAGE}, for three convolutions.")
    config.check_goal_dim()


def register(config: type[PreTrainedConfig], model: type[PreTrainedModel]) -> None:
    """Make the classes of a baseline known to transformers' Auto classes, with the processor of all models."""
    AutoConfig.register(str(config.model_type), config)
    AutoModel.register(config, model)
    for auto in (AutoFeatureExtractor, AutoProcessor):
        auto.register(config, DecisionMambaProcessor)

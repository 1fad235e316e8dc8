"""Training: one command from settings and data to a scored checkpoint.

`run` is the whole road, `arguments` its settings, `task` finds data and environment, `factory` makes models, `trainer`
optimises, `resuming` goes on with what was interrupted, `record` writes what repeats and explains a run.
"""

from .arguments import parse_arguments
from .callbacks import RolloutCallback
from .record import plot_learning_curve
from .run import TrainingResult, main, train
from .trainer import DecisionMambaTrainer

__all__ = [
    "DecisionMambaTrainer",
    "RolloutCallback",
    "TrainingResult",
    "main",
    "parse_arguments",
    "plot_learning_curve",
    "train",
]

"""Evaluation: how good a policy is, in real environments, with honest uncertainty.

`environments` are made and compared with a policy, `playing` stands around one while it is played, `rollouts` play,
`result` keeps and draws, `scores` normalise, `video` films what was counted.
"""

from .environments import make_environments
from .result import EvaluationResult
from .rollouts import evaluate_policy
from .scores import normalized_score, score_reference
from .video import record_videos

__all__ = [
    "EvaluationResult",
    "evaluate_policy",
    "make_environments",
    "normalized_score",
    "record_videos",
    "score_reference",
]

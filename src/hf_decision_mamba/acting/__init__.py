"""Acting: a model becomes a policy.

`policy` chooses actions, `history` is what it remembers, `compiled` the network as one call, `export` one decision as a
file, `loading` reads a checkpoint that can be trusted.
"""

from .export import export_policy
from .loading import load_model
from .policy import DecisionMambaPolicy

__all__ = [
    "DecisionMambaPolicy",
    "export_policy",
    "load_model",
]

"""Collecting: data sets of one's own, from a policy's rollouts or a training, ready for the Hub.

`collect` plays and writes, `settings` says what, `policies` act, `describe` tells what came of it.
"""

from .collect import collect
from .settings import CollectSettings

__all__ = [
    "CollectSettings",
    "collect",
]

"""Sharing: cards, code and one commit that bring a checkpoint or a data set to the Hub.

`model_card` and `dataset_card` render and push, `push` survives what networks do, `remote_code` lets others load a
model without this package.
"""

from .dataset_card import push_dataset_to_hub, write_dataset_card
from .model_card import push_to_hub, write_model_card
from .push import PushError

__all__ = [
    "PushError",
    "push_dataset_to_hub",
    "push_to_hub",
    "write_dataset_card",
    "write_model_card",
]

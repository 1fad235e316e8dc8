"""Splits such as "train[:10%]" by whole episodes, for the sources in which a row is no episode.

Where a row is one, `datasets` slices the rows itself.
"""

from __future__ import annotations

import re

import datasets
import numpy as np

from .trajectories import Trajectories


def whole_split(split: str) -> str:
    """Return the name of the split of which this is a slice."""
    return re.sub(r"\[.*?\]", "", split)


def choose_episodes(trajectories: Trajectories, split: str, source_name: str) -> Trajectories:
    """Return the episodes of a split, in their order.

    Args:
        trajectories: all episodes of the split.
        split: its name, or a slice of it such as "train[:10%]".
        source_name: what errors call the data set.

    Raises:
        ValueError: the split cannot be understood, or has no episodes.
    """
    name = whole_split(split)
    if name == split:
        return trajectories
    chosen = np.zeros(trajectories.num_episodes, dtype=np.bool_)
    try:
        pieces = datasets.ReadInstruction.from_spec(split).to_absolute({name: trajectories.num_episodes})
    except (AssertionError, ValueError) as error:
        raise ValueError(f"data set {source_name!r} cannot be loaded with split={split!r}: {error}") from error
    for piece in pieces:
        chosen[piece.from_ : piece.to] = True
    if not chosen.any():
        raise ValueError(f"data set {source_name!r} has no episodes in split {split!r}; choose another split or source")
    return trajectories.select(chosen).compact()


def only_train(split: str, source_name: str) -> None:
    """Refuse a split that a source without splits does not have.

    Raises:
        ValueError: it is not "train" or a slice of it.
    """
    if whole_split(split) != "train":
        raise ValueError(
            f"data set {source_name!r} cannot be loaded with split={split!r}: its one split is 'train', of which "
            "slices such as 'train[:10%]' are taken by whole episodes"
        )

"""Windows of a data set whose columns lie on a GPU: nothing but the places of a batch's windows travels there.

A small model takes a training step in less time than a host needs to gather its batch and to send it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import storage
from .goals import Goals
from .trajectories import Trajectories
from .windows import WindowDataset

#: The data may take this share of the memory that is free on a GPU: the rest is for the model and its activations.
_SHARE_OF_FREE_MEMORY = 0.25


class DeviceWindowDataset(WindowDataset):
    """`WindowDataset` on a device: takes the same arguments, and gives the same batches to the bit, as tensors there.

    For the process that trains: workers of a DataLoader would each need the data for themselves.

    Args:
        device: holds a copy of the columns that windows are cut from.
    """

    _arrays = torch
    _copy = staticmethod(torch.clone)
    _as_tensor = staticmethod(torch.as_tensor)

    def __init__(
        self, trajectories: Trajectories, context_length: int, *, device: torch.device | str, **kwargs: Any
    ) -> None:
        self.device = torch.device(device)
        super().__init__(trajectories, context_length, **kwargs)
        columns = _columns(trajectories, self.goals)
        self._columns = {name: _copied(values, self.device) for name, values in columns.items()}

    def _on_device(self, *values: NDArray[Any]) -> Sequence[Tensor]:
        # Numbers too: CUDA would multiply by the inverse of one of the host instead of dividing by it.
        return torch.from_numpy(np.stack(values)).to(self.device).unbind()

    def _take(self, column: str, rows: Tensor) -> Tensor:
        values = self._columns[column]
        return values.index_select(0, rows.flatten()).view(*rows.shape, *values.shape[1:])


def fits(trajectories: Trajectories, device: torch.device, goals: Goals | None = None) -> bool:
    """Return whether the columns of a data set take up little enough of the memory that is free on a GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    return sum(values.nbytes for values in _columns(trajectories, goals).values()) <= _SHARE_OF_FREE_MEMORY * free


def _columns(trajectories: Trajectories, goals: Goals | None) -> dict[str, np.ndarray]:
    """Return the columns that windows are cut from."""
    earned = ("rewards", "returns_to_go") if trajectories.has_rewards else ()
    asked = () if goals is None else ("goals",) if goals == "recorded" else ("achieved_goals",)
    return {name: getattr(trajectories, name) for name in ("observations", "actions", *earned, *asked)}


def _copied(values: np.ndarray, device: torch.device) -> Tensor:
    """Return a column on the device; the host holds few of its rows at a time."""
    column = torch.from_numpy(np.empty_like(values[:0])).new_empty(values.shape, device=device)
    start = 0
    for block in storage.blocks(values):
        column[start : start + len(block)] = torch.from_numpy(np.array(block))
        start += len(block)
    return column

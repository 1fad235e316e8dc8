"""Windows of a data set whose columns lie on a GPU: nothing but the places of a batch's windows travels there.

A small model takes a training step in less time than a host needs to gather its batch and to send it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import storage
from .trajectories import Trajectories
from .windows import IGNORED_LABEL, NO_ACTION, WindowDataset

#: Of the memory that is free on a GPU the data may take this share: the rest is for the model and its activations.
_SHARE_OF_FREE_MEMORY = 0.25
_COLUMNS = ("observations", "actions", "rewards", "returns_to_go")


class ResidentWindows(WindowDataset):
    """`WindowDataset` on a device: takes the same arguments, and gives the same batches to the bit, as tensors there.

    For the process that trains: workers of a DataLoader would each need the data for themselves.

    Args:
        device: holds a copy of the columns that windows are cut from.
    """

    def __init__(
        self, trajectories: Trajectories, context_length: int, *, device: torch.device | str, **kwargs: Any
    ) -> None:
        super().__init__(trajectories, context_length, **kwargs)
        self.device = torch.device(device)
        self._columns = {name: _copied(getattr(trajectories, name), self.device) for name in _COLUMNS}
        scaling = (self.state_mean, self.state_std, self.action_mid, self.action_scale)
        self._mean, self._std, self._mid, self._scale = (
            None if values is None else torch.as_tensor(values, device=self.device) for values in scaling
        )
        # A tensor there: CUDA would multiply by the inverse of a number of the host.
        self._return_scale = torch.tensor(self.return_scale, device=self.device)

    def _gather(self, episode: NDArray[np.int64], step: NDArray[np.int64]) -> dict[str, Tensor]:
        first_row, length = self._episode_starts[episode], self._lengths[episode]
        places = torch.from_numpy(np.stack([first_row, first_row + step, first_row + length]))
        first, start, end = places.to(self.device).unsqueeze(-1)
        rows = start + torch.arange(self.context_length, device=self.device)
        padding = rows >= end
        rows = torch.minimum(rows, end - 1)

        states = self._stacked(rows, first)
        taken = self._take("actions", torch.cat([(rows[:, :1] - 1).clamp(min=0), rows], dim=1))
        if self._mid is not None and self._scale is not None:
            taken = (taken - self._mid) / self._scale
        previous_actions, actions = taken[:, :-1], taken[:, 1:]
        timesteps = rows - first
        nothing = NO_ACTION if self.trajectories.action_type == "discrete" else 0
        return {
            "states": _filled(states, padding),
            "actions": _filled(actions, padding),
            "rewards": _filled(self._take("rewards", rows), padding)[..., None],
            "returns_to_go": _filled(self._take("returns_to_go", rows) / self._return_scale, padding)[..., None],
            "timesteps": _filled(timesteps, padding),
            "attention_mask": (~padding).long(),
            "previous_actions": _filled(previous_actions, padding | (timesteps == 0), nothing),
            "labels": _filled(actions, padding, IGNORED_LABEL),
        }

    def _take(self, column: str, rows: Tensor) -> Tensor:
        values = self._columns[column]
        return values.index_select(0, rows.flatten()).view(*rows.shape, *values.shape[1:])

    def _stacked(self, rows: Tensor, first: Tensor) -> Tensor:
        if self._mean is None or self._std is None:  # images
            before = torch.arange(self.frame_stack - 1, -1, -1, device=self.device)
            return self._take("observations", torch.maximum(rows[..., None] - before, first[..., None]))
        return (self._take("observations", rows) - self._mean) / self._std


def fits(trajectories: Trajectories, device: torch.device) -> bool:
    """Whether the columns of a data set take up little enough of the memory that is free on a GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    return sum(getattr(trajectories, name).nbytes for name in _COLUMNS) <= _SHARE_OF_FREE_MEMORY * free


def _copied(values: np.ndarray, device: torch.device) -> Tensor:
    """Return a column on the device; the host holds few of its rows at a time."""
    column = torch.from_numpy(np.empty_like(values[:0])).new_empty(values.shape, device=device)
    start = 0
    for block in storage.blocks(values):
        column[start : start + len(block)] = torch.from_numpy(np.array(block))
        storage.release(values)
        start += len(block)
    return column


def _filled(values: Tensor, where: Tensor, value: float = 0) -> Tensor:
    """Return a copy with the value at the steps (b, K) that are marked."""
    return values.masked_fill(where.view(*where.shape, *(1,) * (values.dim() - 2)), value)

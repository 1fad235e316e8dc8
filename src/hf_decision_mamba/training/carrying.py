"""The states that a model carries from one chunk of an episode to the next while it is trained.

Each pass of an optimizer step has rows of its own, and so has the evaluation; a checkpoint holds those of training.
Source: truncated backpropagation through time (Williams & Peng 1990).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..model import DecisionMambaCache, DecisionMambaModel


def carried_file(process: int) -> str:
    """Return the name of the file in which a process keeps its states."""
    return f"carried_states_{process}.safetensors"


class CarriedStates:
    """The caches of a model in training, by lane: the pass of an optimizer step, or the evaluation.

    Args:
        model: with a cache, which is asked for only where a batch says which of its rows begin an episode.
    """

    def __init__(self, model: Any):
        self._model: DecisionMambaModel = model
        self._caches: dict[int | str, DecisionMambaCache] = {}
        self._lane: int | str = 0

    @contextmanager
    def of(self, lane: int | str) -> Iterator[None]:
        """Carry the states of this lane until the end of the context; what has been evaluated is forgotten then."""
        before, self._lane = self._lane, lane
        try:
            yield
        finally:
            self._lane = before
            if lane == "evaluation":
                self._caches.pop(lane, None)
            elif lane in self._caches:
                self._caches[lane].detach()  # no gradient reaches the chunk before, and its graph is freed

    def at(self, begins: Tensor) -> DecisionMambaCache:
        """Return the states of this lane's rows, forgotten where a row begins an episode: `begins` (b,) bool."""
        cache = self._caches.get(self._lane)
        if cache is None or cache.batch_size != len(begins):
            dtype = next(self._model.parameters()).dtype
            cache = DecisionMambaCache(self._model.config, len(begins), device=begins.device, dtype=dtype)
            self._caches[self._lane] = cache
        cache.reset(begins)
        return cache

    def save(self, path: Path) -> None:
        """Write the states of training; nothing where none are carried."""
        tensors = {
            f"{lane}.{name}": tensor.contiguous()
            for lane, cache in self._caches.items()
            if lane != "evaluation"
            for name, tensor in cache.tensors().items()
        }
        if tensors:
            save_file(tensors, path)

    def load(self, path: Path, device: torch.device) -> None:
        """Go on from the states in a file.

        Raises:
            ValueError: there is none, or it is not of this model.
        """
        try:
            tensors = load_file(path, str(device))
            self._caches.clear()
            for lane in sorted({int(name.partition(".")[0]) for name in tensors}):
                mine = {name.partition(".")[2]: x for name, x in tensors.items() if name.startswith(f"{lane}.")}
                cache = DecisionMambaCache(self._model.config, len(mine["started"]), device)
                cache.load_tensors(mine)
                self._caches[lane] = cache
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read ({type(error).__name__}: {error}), so the states that the rows carry are lost. "
                "Resume from another checkpoint, or start again (--overwrite_output_dir true)."
            ) from error

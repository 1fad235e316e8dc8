"""Whole episodes in chunks of `context_length` steps, in the order in which a model that carries its state reads them.

A batch has rows; each row walks through an episode chunk by chunk, then through the next one. The walk is a function of
(seed, position), so that processes agree on it and a resumed run finds its place.
Source: truncated backpropagation through time (Williams & Peng 1990); DeMa trains its RNN-like variant on whole
trajectories (arXiv 2405.12094, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from .trajectories import Trajectories
from .windows import IGNORED_LABEL, WindowDataset

IDLE = -1  # the item of a row that has nothing to read


class SequenceDataset(WindowDataset):
    """Chunks of episodes: item i is the i-th chunk, counted over the episodes; only an episode's last one is padded.

    A batch is that of `WindowDataset`, with `begins` (b,) bool: whether the chunk is the first of its episode, so that
    its row has to forget what it carries. The item `IDLE` is all padding.

    Args: as `WindowDataset`, but for `starts` and `stride`.

    Raises:
        ValueError: as `WindowDataset`, and where goals would be drawn: each chunk would have another one.
    """

    def __init__(self, trajectories: Trajectories, context_length: int, **kwargs: Any) -> None:
        super().__init__(trajectories, context_length, stride=max(context_length, 1), **kwargs)
        if self.goals in ("uniform", "geometric"):
            raise ValueError(
                f"goals={self.goals!r} draws another goal for each chunk of an episode, whose state is carried from "
                "one to the next: in sequences take goals='last' or 'recorded' (--goals last)"
            )

    def chunks(self) -> NDArray[np.int64]:
        """Return how many chunks each episode has, (E,)."""
        return np.diff(self._first_windows)

    def __getitems__(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the batch of these chunks, one a row."""
        chosen = np.asarray(indices, dtype=np.int64)
        idle = chosen == IDLE
        batch = super().__getitems__(np.where(idle, 0, chosen))
        batch["begins"] = torch.from_numpy(self._first_windows[np.searchsorted(self._first_windows, chosen)] == chosen)
        if idle.any():
            rows = torch.from_numpy(idle)
            for name in ("attention_mask", "labels"):
                batch[name][rows] = IGNORED_LABEL if name == "labels" else 0
        return batch


class _Place(NamedTuple):
    """Where a walk stands: the next chunk of each row, how many are left of its episode, and the queue of episodes."""

    item: NDArray[np.int64]
    left: NDArray[np.int64]
    queue: NDArray[np.int64]
    shuffles: int


class SequenceSampler(Sampler[list[int]]):
    """Lets rows walk through all episodes, again and again: batch t of the walk has the next chunk of every row.

    A row that has reached an episode's end takes the next one of the queue, which holds every episode once in an order
    of its own, then every episode once more in another, and so on. Each row's walk begins with an episode cut off
    after a random number of chunks, beside the queue, or rows would stay in step where all episodes are equally long.

    An epoch is as many batches as hold all chunks once; the walk goes on from one to the next. With several lanes the
    walk has `lanes * rows` rows, and batch i has those of lane `i % lanes`: one for each process and each pass of an
    optimizer step, because each of them carries states of its own.

    Args:
        chunks: (E,) chunks of each episode, see `SequenceDataset.chunks`.
        rows: of a batch.
        lanes: number of batches that walk side by side.
        seed: not negative.
        epoch: where the walk stands at the beginning.
    """

    def __init__(self, chunks: NDArray[np.int64], rows: int, lanes: int = 1, seed: int = 0, epoch: int = 0) -> None:
        self.chunks, self.rows, self.lanes, self.seed, self.epoch = chunks, rows, lanes, seed, epoch
        self._first = np.concatenate([[0], np.cumsum(chunks)])
        self._reached = 0, self._begin()  # an epoch, and where the walk stands at its beginning

    def set_epoch(self, epoch: int) -> None:
        """Walk on from the beginning of this epoch at the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.lanes * -(-int(self._first[-1]) // (self.lanes * self.rows))

    def __iter__(self) -> Iterator[list[int]]:
        return self._batches(self.epoch)

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        steps = len(self) // self.lanes
        begun, place = self._reached if self._reached[0] <= epoch else (0, self._begin())
        for t in range(begun * steps, (epoch + 1) * steps):
            items, place = self._step(place)
            if t == (epoch + 1) * steps - 1:
                self._reached = epoch + 1, place
            if t >= epoch * steps:
                for lane in range(self.lanes):
                    yield items[lane * self.rows : (lane + 1) * self.rows].tolist()

    def _begin(self) -> _Place:
        """Return where the walk begins."""
        draw = np.random.default_rng([self.seed, 0])
        episodes = draw.integers(len(self.chunks), size=self.lanes * self.rows)
        left = draw.integers(1, self.chunks[episodes], endpoint=True)
        return _Place(self._first[episodes], left, np.zeros(0, dtype=np.int64), 0)

    def _step(self, place: _Place) -> tuple[NDArray[np.int64], _Place]:
        """Return the next chunk of all rows, and where the walk stands behind it."""
        item, left, queue, shuffles = place.item.copy(), place.left.copy(), place.queue, place.shuffles
        free = np.flatnonzero(left == 0)
        while len(queue) < len(free):
            shuffles += 1
            order = np.random.default_rng([self.seed, shuffles]).permutation(len(self.chunks))
            queue = np.concatenate([queue, order])
        episodes = queue[: len(free)]
        item[free], left[free] = self._first[episodes], self.chunks[episodes]
        return item, _Place(item + 1, left - 1, queue[len(free) :], shuffles)


class SequencePass(Sampler[list[int]]):
    """Lets rows walk through all episodes once, the longest first: what a held-out loss is measured on.

    Args:
        chunks: (E,) chunks of each episode.
        rows: of a batch; those that run out of episodes are `IDLE`.
    """

    def __init__(self, chunks: NDArray[np.int64], rows: int) -> None:
        first = np.concatenate([[0], np.cumsum(chunks)])
        ends, walks = np.zeros(min(rows, len(chunks)), dtype=np.int64), []
        for episode in np.argsort(-chunks, kind="stable"):
            row = int(ends.argmin())
            walks.append((row, int(ends[row]), episode))
            ends[row] += chunks[episode]
        self._items = np.full((int(ends.max(initial=0)), len(ends)), IDLE)
        for row, begin, episode in walks:
            self._items[begin : begin + chunks[episode], row] = np.arange(first[episode], first[episode + 1])

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._items.tolist())

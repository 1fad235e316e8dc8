"""What is left of a beginning: two episodes that differ in their first observation alone, and a model that carries on.

How far apart the two recurrent states are is the memory; how far both have moved together is drift, which a read-out
that never saw it may take for something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..acting.policy import DecisionMambaPolicy
from ..acting.shapes import carries_state
from ..data import WindowDataset
from ..data.windows import window_settings
from ..model import DecisionMambaCache
from .episodes import PlayedEpisodes
from .windows import Floats, evaluation_mode

_POINTS = 160  # about so many steps are looked at, evenly spread on a logarithmic axis
_CHUNK = 512  # decisions at once, which bounds the memory


@dataclass(frozen=True)
class MemoryOfBeginning:
    """What two beginnings leave behind, at n steps of an episode.

    Attributes:
        episodes: (followed, other): the numbers of the episode that both are but for the first observation, and of that
            whose first observation the other one has.
        steps: (n,) decisions that have been made, from 1 on.
        signal: (layers, n) Euclidean distance of the two recurrent states.
        drift: (layers, n) how far their mean has moved since the first decision, likewise.
        difference: (n,) the largest difference of a logit, or of an action's dimension in the model's units.
        asked: (n,) the same, had the last thing that is seen in the episode come next: of a T-Maze, the junction.
        answers: (n, 2, act_dim) what both would have answered then.
    """

    episodes: tuple[int, int]
    steps: NDArray[np.int64]
    signal: Floats
    drift: Floats
    difference: Floats
    asked: Floats
    answers: Floats


def check_carries_state(policy: DecisionMambaPolicy) -> None:
    """Refuse a model without a recurrent state.

    Raises:
        ValueError: it has none.
    """
    if not carries_state(policy.model):
        raise ValueError(
            f"{type(policy.model).__name__} carries no state between decisions, so there is no memory to look at: "
            "leave memory out."
        )


def memory_of_beginning(
    policy: DecisionMambaPolicy, played: PlayedEpisodes, steps: int | None = None
) -> MemoryOfBeginning:
    """Follow two beginnings through the longest of some episodes: actions, returns and what is seen later are its own.

    Only what the scan (or a GRU) carries counts as state; convolutions and local mixers forget within some tokens.

    Args:
        policy: of any mode.
        played: the episodes.
        steps: decisions to follow, at most; to the episode's end when not given.

    Raises:
        ValueError: the model carries no state, or all episodes begin alike.
    """
    check_carries_state(policy)
    if steps is not None and steps < 2:
        raise ValueError(f"steps={steps} must be at least 2.")
    trajectories, firsts = played.trajectories, played.trajectories.step_offsets()[:-1]
    followed = int(trajectories.lengths.argmax())
    other = _other_beginning(trajectories.observations[firsts], followed, played.numbers)
    count = min(int(trajectories.lengths[followed]), steps or int(trajectories.lengths[followed]))
    points = np.unique(np.geomspace(1, count, _POINTS).round().astype(np.int64))
    twins = _Twins(policy, played, int(firsts[followed]), int(firsts[other]))
    states, answers, asked = [], [], []
    with evaluation_mode(policy.model):
        for point in points.tolist():
            answers.append(twins.go_on_to(point))
            states.append(twins.states())
            asked.append(twins.asked(count))
    pairs = [np.stack(layer) for layer in zip(*states, strict=True)]  # of each layer (n, 2, numbers)
    means, at_the_end = [pair.mean(1) for pair in pairs], np.stack(asked)
    return MemoryOfBeginning(
        (played.numbers[followed], played.numbers[other]),
        points,
        np.stack([np.linalg.norm(pair[:, 0] - pair[:, 1], axis=-1) for pair in pairs]),
        np.stack([np.linalg.norm(mean - mean[0], axis=-1) for mean in means]),
        _difference(np.stack(answers)),
        _difference(at_the_end),
        at_the_end,
    )


def _difference(answers: Floats) -> Floats:
    """Return the largest difference of two rows' answers (n, 2, act_dim), (n,)."""
    largest: Floats = np.abs(answers[:, 0] - answers[:, 1]).max(-1)
    return largest


class _Twins:
    """Two rows of the model that differ in what they see first.

    Args:
        first, other: rows of the trajectories at which the episode that is followed begins, and the other one.
    """

    def __init__(self, policy: DecisionMambaPolicy, played: PlayedEpisodes, first: int, other: int):
        self._model: Any = policy.model
        self._first, self._done = first, 0
        self._windows = WindowDataset(played.trajectories, _CHUNK, **window_settings(policy.processor))
        self._returns_to_go = torch.from_numpy(policy.processor.scale_returns(played.returns_to_go))
        self._seen_first = self._windows.__getitems__(np.array([other]))["states"][0, 0]
        config: Any = policy.model.config
        self._cache = DecisionMambaCache(config, 2, device=policy.model.device, dtype=policy.model.dtype)

    def go_on_to(self, step: int) -> Floats:
        """Make decisions until so many have been made; return the last answers (2, act_dim)."""
        while True:
            count = min(step - self._done, _CHUNK)
            answer = self._decide(self._done, count)
            self._done += count
            if self._done == step:
                return answer

    def asked(self, length: int) -> Floats:
        """Return the answers (2, act_dim) to the last of so many things that are seen, and forget that it was asked.

        The action before it, its return-to-go and time step are those of its place.
        """
        kept, self._cache = self._cache, deepcopy(self._cache)
        answer = self._decide(length - 1, 1)
        self._cache = kept
        return answer

    def states(self) -> list[Floats]:
        """Return the recurrent states of every layer, (2, numbers)."""
        return [state.double().flatten(1).cpu().numpy() for state in self._cache.ssm_states]

    def _decide(self, step: int, count: int) -> Floats:
        """Make so many decisions from a step of the episode on; return the last answers."""
        start = self._first + step
        window = self._windows.__getitems__(np.array([start]))
        inputs: dict[str, Tensor] = {
            name: window[name][:, :count].repeat_interleave(2, dim=0)
            for name in ("states", "previous_actions", "timesteps")
        }
        left = self._returns_to_go[start : start + count].to(inputs["states"].device)
        inputs["returns_to_go"] = left[None, :, None].expand(2, -1, -1)
        if step == 0:
            inputs["states"][1, 0] = self._seen_first
        inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        output = self._model(**inputs, cache_params=self._cache)
        answers: Floats = output.action_preds[:, -1].double().cpu().numpy()
        return answers


def _other_beginning(seen: NDArray[Any], followed: int, numbers: Sequence[int]) -> int:
    """Return the first episode whose first observation (E, ...) is another one than that of the one followed."""
    differs = (seen != seen[followed]).reshape(len(seen), -1).any(axis=1)
    if not differs.any():
        raise ValueError(
            f"memory: the {len(numbers)} episodes begin with the same observation, so that there is nothing to tell "
            "apart; take more episodes or another seed."
        )
    return int(differs.argmax())

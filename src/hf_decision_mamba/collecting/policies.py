"""What acts while data are collected: one of our checkpoints or a stable-baselines3 policy, and chance beside them.

A stable-baselines3 file is read without running code of it: its pickled settings are never opened, only their readable
part, and the weights are loaded as weights. Source: https://stable-baselines3.readthedocs.io, the format of its files.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..acting.policy import DecisionMambaPolicy
from ..evaluation.environments import action_bounds, check_spaces, decide

if TYPE_CHECKING:
    from gymnasium import Space
    from gymnasium.vector import VectorEnv


class Behaviour(Protocol):
    """What acts in all rows of a vector environment, each an episode of its own."""

    def reset(self, count: int) -> None:
        """Start new episodes in so many rows."""

    def reset_rows(self, rows: NDArray[np.bool_]) -> None:
        """Start new episodes in these rows (n,)."""

    def act(self, observations: NDArray[Any], rewards: NDArray[np.float64] | None) -> NDArray[Any]:
        """Return the next actions (n, ...); the rewards (n,) are those of the previous ones."""

    def took(self, actions: NDArray[Any]) -> None:
        """Note the actions (n, ...) that were taken instead."""


class CheckpointBehaviour:
    """One of our checkpoints, asked for a return.

    Args:
        path: folder or Hub repository.
        envs: what it will act in.
        target_return: the checkpoint's when not given.
        mode, sample, seed, device: as for `DecisionMambaPolicy`.

    Raises:
        OSError, ValueError: there is no such checkpoint, or it is for another kind of environment.
    """

    def __init__(
        self,
        path: str,
        envs: VectorEnv,
        env_id: str,
        *,
        target_return: float | None,
        mode: Any,
        sample: bool,
        seed: int,
        device: str | None,
    ):
        self.policy = DecisionMambaPolicy.from_pretrained(path, mode, device, sample=sample, seed=seed)
        self._envs = envs
        check_spaces(env_id, envs, self.policy)
        self.target_return = self.policy.processor.target_return if target_return is None else target_return

    def reset(self, count: int) -> None:
        """Start new episodes in so many rows."""
        self.policy.reset(self.target_return, num_envs=count)

    def reset_rows(self, rows: NDArray[np.bool_]) -> None:
        """Start new episodes in these rows (n,)."""
        self.policy.reset_rows(rows)

    def act(self, observations: NDArray[Any], rewards: NDArray[np.float64] | None) -> NDArray[Any]:
        """Return the next actions (n, ...)."""
        return decide(self.policy, self._envs, observations, rewards)

    def took(self, actions: NDArray[Any]) -> None:
        """Note the actions (n, ...) that were taken instead: the model reads them as previous actions."""
        self.policy.took(actions)


class ExpertBehaviour:
    """What an environment itself says is right, in its method `expert_action()`.

    Raises:
        ValueError: the environment has no such method.
    """

    def __init__(self, envs: Any, env_id: str):
        try:
            self._experts = [env.get_wrapper_attr("expert_action") for env in envs.envs]
        except AttributeError as error:
            raise ValueError(f"{env_id} has no expert: its class has no method `expert_action()`.") from error

    def reset(self, count: int) -> None:
        """Nothing is remembered."""

    def reset_rows(self, rows: NDArray[np.bool_]) -> None:
        """Nothing is remembered."""

    def act(self, observations: NDArray[Any], rewards: NDArray[np.float64] | None) -> NDArray[Any]:
        """Return the right actions (n, ...)."""
        return np.stack([expert() for expert in self._experts])

    def took(self, actions: NDArray[Any]) -> None:
        """Nothing is remembered."""


class Exploration:
    """Chance in the actions: every episode draws from a stream of its own, whatever the other rows do.

    Args:
        space: of one action.
        count: rows.
        seed: of all streams.
        noise: standard deviation of Gaussian noise, as a share of half the range of each dimension (in the action's
            unit where it has no range).
        epsilon: probability of an action drawn uniformly from the space.
    """

    def __init__(self, space: Space, count: int, seed: int, noise: float, epsilon: float):
        from gymnasium.spaces import Box

        self._spaces = [copy.deepcopy(space) for _ in range(count)]
        self._seed, self._noise, self._epsilon = seed, noise, epsilon
        self._generators = [np.random.default_rng(seed)] * count
        self._bounds = action_bounds(space)
        if isinstance(space, Box):
            half = (space.high.astype(np.float64) - space.low) / 2
            self._scale = np.where(np.isfinite(half), half, 1.0)

    def begin(self, row: int, episode: int) -> None:
        """Start the stream of an episode in a row."""
        self._generators[row] = np.random.default_rng([self._seed, episode])
        self._spaces[row].seed(int(self._generators[row].integers(1 << 31)))

    def explore(self, actions: NDArray[Any] | None) -> NDArray[Any]:
        """Return the actions (n, ...) to take: those given, with noise, within their space; or random ones of all rows.

        Args:
            actions: what the policy would do; None where there is none.
        """
        if actions is None:
            return self._stored(np.stack([space.sample() for space in self._spaces]))
        taken = np.array(actions)
        if self._noise or self._epsilon:
            for row, (generator, space) in enumerate(zip(self._generators, self._spaces, strict=True)):
                if self._noise:
                    taken[row] += self._noise * self._scale * generator.standard_normal(taken[row].shape)
                if self._epsilon and generator.random() < self._epsilon:
                    taken[row] = space.sample()
        return self._stored(taken)

    def _stored(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions within their space, and rounded as a data set stores them: what is stored is what was done."""
        if self._bounds is None:
            return actions
        low, high = np.asarray(self._bounds, np.float32)
        return np.clip(actions.astype(np.float32), low, high).astype(self._spaces[0].dtype)


def require_zero_start(what: str, env_id: str, space: Space) -> None:
    """Refuse discrete actions that do not count from 0, as stable-baselines3's do.

    Raises:
        ValueError: they do not.
    """
    start = getattr(space, "start", 0)
    if start != 0:
        raise ValueError(
            f"{what} gives actions that count from 0, and those of {env_id} count from {start}; renumber them with "
            "gymnasium.wrappers.TransformAction."
        )

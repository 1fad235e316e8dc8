"""What acts while data are collected: a policy, with chance in its actions or in its place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..evaluation.environments import action_bounds
from ..evaluation.rollouts import Actor, Job
from ..model.observations_decision_mamba import Part

if TYPE_CHECKING:
    from gymnasium import Space

    from ..tasks.experts import Expert


class OverriddenActor(Actor, Protocol):
    """An actor in whose place others may act."""

    def override_actions(self, actions: NDArray[Any]) -> None:
        """Note the actions (n, ...) that were taken instead."""


class ExpertPolicy:
    """What is right in an environment: its own method `expert_action()` says it, or an expert of `tasks`.

    Args:
        envs: made by `make_environments`.
        env_id: what errors call them.
        kind: of the expert, where there are several; empty for the first.

    Raises:
        ValueError: the environment has neither, or no expert of this kind.
    """

    def __init__(self, envs: Any, env_id: str, kind: str = ""):
        from ..tasks.experts import HAVE_EXPERTS, expert_of

        try:
            made: list[Any] = [expert_of(env, kind) for env in envs.envs]
        except ValueError as error:
            raise ValueError(f"policy 'expert:{kind}' of {env_id}: {error}.") from error
        if None in made:
            raise ValueError(
                f"{env_id} has no expert: its class has no method `expert_action()`, and experts of other packages are "
                f"known for {HAVE_EXPERTS}."
            )
        self._made = made
        self._experts: list[Expert] = []
        self._parts = getattr(envs, "observation_parts", None) or []

    def reset(self, jobs: Sequence[Job]) -> None:
        """Begin new episodes in all rows."""
        self._experts = [make() for make in self._made]

    def reset_rows(self, rows: NDArray[np.bool_], jobs: Sequence[Job]) -> None:
        """Begin new episodes in some rows."""
        for row in np.flatnonzero(rows).tolist():
            self._experts[row] = self._made[row]()

    def act(self, observations: NDArray[Any], rewards: NDArray[np.float64] | None) -> NDArray[Any]:
        """Return the right actions (n, ...)."""
        seen = [_whole_numbers(observation, self._parts) for observation in observations]
        return np.stack([np.asarray(expert(numbers)) for expert, numbers in zip(self._experts, seen, strict=True)])

    def override_actions(self, actions: NDArray[Any]) -> None:
        """Do nothing: what is right does not depend on what was done instead, or the environment knows it."""


def _whole_numbers(vector: NDArray[Any], parts: Sequence[Part]) -> list[int]:
    """Return the whole numbers that became one of n in a vector (size,), in its order; of other parts nothing."""
    numbers, place = [], 0
    for part in parts:
        ends = place + np.cumsum([0, *part.get("counts", [])])
        for begin, end, start in zip(ends[:-1], ends[1:], part.get("starts", []), strict=True):
            numbers.append(int(vector[begin:end].argmax()) + start)
        place += part["size"]
    return numbers


class Exploration:
    """A policy, or nobody, with chance in its actions: an actor whose episodes draw from streams of their own.

    Args:
        space: of one action.
        count: rows.
        seed: of all streams; the episode of the job with seed `seed + i` draws from stream i.
        noise: standard deviation of Gaussian noise, as a share of half the range of each dimension (in the action's
            unit where it has no range).
        epsilon: probability of an action drawn uniformly from the space.
        policy: what acts; None for chance alone.
    """

    def __init__(
        self, space: Space, count: int, seed: int, noise: float, epsilon: float, policy: OverriddenActor | None = None
    ):
        from gymnasium.spaces import Box

        self._spaces = [copy.deepcopy(space) for _ in range(count)]
        self._seed, self._noise, self._epsilon, self._policy = seed, noise, epsilon, policy
        self._generators = [np.random.default_rng(seed)] * count
        self._bounds = action_bounds(space)
        if isinstance(space, Box):
            half = (space.high.astype(np.float64) - space.low) / 2
            self._scale = np.where(np.isfinite(half), half, 1.0)

    def reset(self, jobs: Sequence[Job]) -> None:
        """Start new episodes in all rows."""
        for row, job in enumerate(jobs):
            self.begin(row, job.seed - self._seed)
        if self._policy is not None:
            self._policy.reset(jobs)

    def reset_rows(self, rows: NDArray[np.bool_], jobs: Sequence[Job]) -> None:
        """Start new episodes in some rows."""
        for row, job in zip(np.flatnonzero(rows).tolist(), jobs, strict=True):
            self.begin(row, job.seed - self._seed)
        if self._policy is not None:
            self._policy.reset_rows(rows, jobs)

    def act(self, observations: NDArray[Any], rewards: NDArray[np.float64] | None) -> NDArray[Any]:
        """Return the next actions (n, ...); where they are not the policy's, it is told."""
        if self._policy is None:
            return self.explore(None)
        proposed = self._policy.act(observations, rewards)
        actions = self.explore(proposed)
        if not np.array_equal(actions, proposed):
            self._policy.override_actions(actions)
        return actions

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
        """Return actions within their space, rounded as a data set stores them: what is stored is what was done."""
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

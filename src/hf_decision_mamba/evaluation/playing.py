"""What stands around an environment while it is played: observations become vectors, and what is wrong gets a place.

Imports gymnasium, which the rest of the package does without.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ..data.metadata import describe_actions, describe_observations
from ..model.observations_decision_mamba import flatten_observations

_API = "reset returns (observation, info) and step (observation, reward, terminated, truncated, info) in gymnasium"


class PlayedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment: what it gives is checked, and what it raises is named, with the seed and the step.

    Args:
        env: what is played.
        name: what errors call it.
        closes: whether `close` closes it; not one that somebody else has made.

    Attributes:
        observed_space: of its own observations.
        observation_parts: what these are made of; None where they are vectors or frames.

    Raises:
        ValueError: it observes what is not read, or takes actions that no model gives.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str, closes: bool = True):
        super().__init__(env)
        self.name, self.closes = name, closes
        self.observed_space = env.observation_space
        self.observation_parts = describe_observations(name, self.observed_space)
        describe_actions(name, env.action_space)
        if self.observation_parts is not None:
            self.observation_space = _vectors(self.observation_parts)
        self._space: Any = self.observation_space
        self.episode_seed: int | None = None
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, as gymnasium's environments do."""
        self.episode_seed, self.steps = seed, 0
        try:
            result: Any = self.env.reset(seed=seed, options=options)
        except Exception as error:  # what it may raise, nobody knows
            _refuse(self.name, f"in the reset of {_episode(seed)}", error)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(f"{self.name} gave no (observation, info) in the reset of {_episode(seed)}: {_API}.")
        return self._seen(result[0]), result[1]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, as gymnasium's environments do."""
        try:
            result: Any = self.env.step(action)
        except Exception as error:
            _refuse(self.name, self._place(), error)
        if not isinstance(result, tuple) or len(result) != 5:
            raise ValueError(f"{self.name} gave no five results {self._place()}: {_API}.")
        observation, reward, terminated, truncated, info = result
        earned = _number(reward)
        if not math.isfinite(earned):
            raise ValueError(f"{self.name} gave the reward {reward} {self._place()}; returns need finite rewards.")
        for flag in (terminated, truncated):
            if not isinstance(flag, (bool, np.bool_, int, np.integer)):
                raise ValueError(f"{self.name} gave {flag!r} for true or false {self._place()}: {_API}.")
        self.steps += 1
        return self._seen(observation), earned, bool(terminated), bool(truncated), info

    def close(self) -> None:
        """Close the environment, if that is for us to do."""
        if self.closes:
            super().close()

    def _seen(self, observation: Any) -> NDArray[Any]:
        """Return an observation as a vector or a frame, when it is of the environment's own space."""
        space = self._space
        try:
            if self.observation_parts is not None:
                observation = flatten_observations(observation, self.observation_parts)
            seen = np.asarray(observation)
        except ValueError as error:
            raise ValueError(f"{self.name} gave a wrong observation {self._place()}: {error}") from error
        fits = seen.dtype == space.dtype or np.can_cast(seen.dtype, space.dtype, "same_kind")
        if seen.shape != space.shape or not fits:
            raise ValueError(
                f"{self.name} gave an observation of shape {seen.shape} and type {seen.dtype} {self._place()}; its "
                f"observation_space says {space.shape} and {space.dtype}."
            )
        if seen.dtype.kind == "f" and not np.isfinite(seen).all():
            _refuse_infinite(self.name, seen[None], [self._place()])
        return seen

    def _place(self) -> str:
        return f"at step {self.steps} of {_episode(self.episode_seed)}"


class PlayedVectorEnv(VectorWrapper):
    """A vector environment that somebody else has made, likewise; it is left open.

    Args:
        envs: what is played.
        name: what errors call it.
        max_episode_steps: truncates longer episodes.
        closes: whether `close` closes it.

    Attributes:
        observed_space, observation_parts: as `PlayedEnv`'s, of one row.
        resets_rows: whether rows can be reset one by one, each with its seed; if not, only all of them with one seed.

    Raises:
        ValueError: as `PlayedEnv`.
    """

    def __init__(self, envs: VectorEnv, name: str, max_episode_steps: int | None = None, closes: bool = False):
        super().__init__(envs)
        self.name, self.max_episode_steps, self.closes = name, max_episode_steps, closes
        self.resets_rows = isinstance(envs.unwrapped, (SyncVectorEnv, AsyncVectorEnv))
        self.observed_space = envs.single_observation_space
        self.observation_parts = describe_observations(name, self.observed_space)
        describe_actions(name, envs.single_action_space)
        if self.observation_parts is not None:
            self.single_observation_space = _vectors(self.observation_parts)
            self.observation_space = batch_space(self.single_observation_space, envs.num_envs)
        self.seeds: list[int | None] = [None] * envs.num_envs
        self.steps = np.zeros(envs.num_envs, dtype=np.int64)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, as gymnasium's environments do."""
        mask = np.ones(self.num_envs, np.bool_) if options is None else options["reset_mask"]
        given = seed if isinstance(seed, list) else [seed] * self.num_envs
        self.seeds = [new if chosen else old for new, old, chosen in zip(given, self.seeds, mask, strict=True)]
        self.steps[mask] = 0
        try:
            observations, info = self.env.reset(seed=seed, options=options)
        except Exception as error:
            _refuse(self.name, f"in the reset of {self._episodes()}", error)
        return self._seen(observations), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, as gymnasium's environments do."""
        try:
            observations, rewards, terminated, truncated, info = self.env.step(actions)
        except Exception as error:
            _refuse(self.name, f"in {self._episodes()}, of which it does not say in which one", error)
        if not np.isfinite(rewards).all():
            row = int(np.flatnonzero(~np.isfinite(rewards))[0])
            place = self._places()[row]
            raise ValueError(f"{self.name} gave the reward {rewards[row]} {place}; returns need finite rewards.")
        self.steps += 1
        seen = self._seen(observations)
        if self.max_episode_steps is not None:
            truncated = truncated | (self.steps >= self.max_episode_steps)
        return seen, rewards, terminated, truncated, info

    def close(self, **kwargs: Any) -> None:
        """Close the environments, if that is for us to do."""
        if self.closes:
            super().close(**kwargs)

    def _seen(self, observations: Any) -> NDArray[Any]:
        if self.observation_parts is not None:
            try:
                observations = flatten_observations(observations, self.observation_parts)
            except ValueError as error:
                raise ValueError(f"{self.name} gave wrong observations in {self._episodes()}: {error}") from error
        seen = np.asarray(observations)
        if seen.dtype.kind == "f" and not np.isfinite(seen).all():
            _refuse_infinite(self.name, seen, self._places())
        return seen

    def _places(self) -> list[str]:
        return [f"at step {step} of {_episode(seed)}" for step, seed in zip(self.steps, self.seeds, strict=True)]

    def _episodes(self) -> str:
        played = zip(self.seeds, self.steps, strict=True)
        return "the episodes " + ", ".join(f"with seed {seed} (step {step})" for seed, step in played)


def _vectors(parts: list[dict[str, Any]]) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(-np.inf, np.inf, (sum(part["size"] for part in parts),), np.float32)


def _episode(seed: int | None) -> str:
    return "an episode without a seed" if seed is None else f"the episode with seed {seed}"


def _refuse(name: str, place: str, error: Exception) -> NoReturn:
    text = " ".join(str(error).split()) or "without a word"
    api = f" ({_API})" if "values to unpack" in text else ""
    raise ValueError(f"{name} raised {type(error).__name__} {place}: {text}{api}") from error


def _number(reward: Any) -> float:
    """Return a reward as a number; NaN where it is none."""
    if isinstance(reward, (float, int, np.number)):
        return float(reward)
    try:
        return float(np.asarray(reward, dtype=np.float64).reshape(()))
    except (TypeError, ValueError):
        return math.nan


def _refuse_infinite(name: str, observations: NDArray[Any], places: list[str]) -> NoReturn:
    """Say which of observations (n, size) is not finite."""
    row, dimension = np.argwhere(~np.isfinite(observations))[0]
    value = observations[row, dimension]
    raise ValueError(f"{name} gave an observation that is {value} in dimension {dimension} {places[row]}.")

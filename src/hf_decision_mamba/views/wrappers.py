"""Views as gymnasium's wrappers; `views.with_views` puts them around an environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from . import position_columns


class PositionsOnly(gymnasium.ObservationWrapper[Any, Any, Any]):
    """A MuJoCo environment without the velocities.

    Raises:
        ValueError: it does not observe positions and velocities alone.
    """

    view = "positions_only"

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        self.columns, space = position_columns(env), env.observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        low, high = space.low[self.columns], space.high[self.columns]
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        """Leave the velocities out."""
        return np.asarray(observation)[self.columns]


class DelayedReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that gives all the reward of an episode at its last step, and 0 before."""

    view = "delayed_reward"

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        self._earned = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, in which nothing has been earned."""
        self._earned = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step; what it earns is kept back."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._earned += float(reward)
        return observation, self._earned if terminated or truncated else 0.0, terminated, truncated, info

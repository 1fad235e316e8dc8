"""OGBench's environments as others are: they show their goal, and the seed of a reset decides everything.

Source: OGBench (Park et al. 2025, arXiv 2410.20092), version 1.2.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..model.observations_decision_mamba import DESIRED
from ..tasks.oracles import lent_to_numpy

_FIRST_SEED = 0  # of the reset that shows what goals look like
_STEPS_A_SECOND = 20  # of the robot arm, which does not say it


def with_ogbench_goals(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Return an environment as it is, or an `OGBenchEnv` where it is one of OGBench's below all wrappers."""
    ours = any(base.__module__.split(".")[0] == "ogbench" for base in type(env.unwrapped).__mro__)
    return OGBenchEnv(env) if ours else env


class OGBenchEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment of OGBench that shows its goal and plays its tasks in turn.

    A goal is a whole observation, or with the keyword argument `use_oracle_rep` the part of it that counts. OGBench
    gives it in the `info` of a reset; here an observation is `{"observation", "desired_goal"}`, as gymnasium's
    environments of goals have it. Environments of a single task, which have a reward instead, and those for collecting
    show what they always do. Those for collecting are OGBench's mode of the robot arm, and mazes that do not end at the
    goal (`terminate_at_goal`), in which episodes begin anywhere and lead anywhere.

    A reset with seed s plays task 1 + s mod n of n, so that consecutive seeds play all of them alike; `options` may say
    another (`task_id`, `task_info`). Whatever OGBench draws without asking the seed follows from it here.

    Args:
        env: one of OGBench's, with observations that are vectors.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        own: Any = env.unwrapped
        self._own = own
        _keep_action_space(self._own)
        self._chance = np.random.RandomState(_FIRST_SEED)  # of what is drawn from NumPy's own generator
        self._goal: Any = None
        self._shows_goal = False
        if not env.metadata.get("render_modes"):  # it draws all the same
            self.metadata = {**env.metadata, "render_modes": ["rgb_array"], "render_fps": _STEPS_A_SECOND}
        _, info = self.reset(seed=_FIRST_SEED)
        goal = np.asarray(info.get("goal", 0.0))
        if goal.ndim == 1 and own._reward_task_id is None and not self._leads_anywhere():
            self._shows_goal = True
            shown: Any = spaces.Box(-np.inf, np.inf, goal.shape, np.float64)
            self.observation_space = spaces.Dict({DESIRED: shown, "observation": env.observation_space})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and show the goal of the task."""
        options, tasks = dict(options or {}), len(getattr(self._own, "task_infos", []))
        if seed is not None:
            self._own.action_space.seed(seed)  # actions are drawn from it before the goal is seen
            self._chance = np.random.RandomState(seed)
        if not options.keys() & {"task_id", "task_info"}:
            if self._leads_anywhere():
                cells = np.argwhere(self._own.maze_map == 0)
                begin, end = cells[self._chance.randint(len(cells), size=2)]
                options["task_info"] = {"init_ij": tuple(begin), "goal_ij": tuple(end)}
            elif seed is not None and tasks:
                options["task_id"] = 1 + seed % tasks
        with lent_to_numpy(self._chance):
            observation, info = self.env.reset(seed=seed, options=options)
        self._goal = info.get("goal")
        return self._seen(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and show the goal again."""
        draws = bool(getattr(self._own, "_teleport_info", None))
        with lent_to_numpy(self._chance) if draws else nullcontext():
            observation, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(observation), reward, terminated, truncated, info

    def _seen(self, observation: Any) -> Any:
        return {DESIRED: self._goal, "observation": observation} if self._shows_goal else observation

    def _leads_anywhere(self) -> bool:
        """Return whether this is a maze for collecting."""
        tasks = getattr(self._own, "task_infos", [])
        return bool(tasks) and "init_ij" in tasks[0] and not self._own._terminate_at_goal


def _keep_action_space(own: Any) -> None:
    """Keep the action space that an environment would make anew, with chance of its own, whenever it is asked."""
    kind = type(own)
    if isinstance(getattr(kind, "action_space", None), property):
        own.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "action_space": own.action_space})

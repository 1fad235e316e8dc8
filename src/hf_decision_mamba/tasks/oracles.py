"""Experts of OGBench: what made its data, from the oracles that come with it.

Source: OGBench (Park et al. 2025, arXiv 2410.20092, appendix on its data sets) and the settings of its programs that
made them. Where they draw from NumPy's own generator, it is lent one of the episode's, so that the seed decides.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mazes import Cell, Ways

#: Steps of an episode, in which one target follows another; and of one that has a single target near by.
_STEPS, _STEPS_NEAR = 1000, 200
#: Cells on the way to a target near by.
_NEAR = 4
#: How a Markovian oracle's noise, drawn for each episode up to this, is spread over x, y, z, yaw and gripper.
_NOISE, _SPREAD = 0.1, np.array([1.0, 1.0, 1.0, 3.0, 10.0])
#: The range that an episode's probability of stacking is drawn from, by the number of cubes.
_STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}
_STACKING |= {"octuple": (0.0, 0.35)}


def collecting_kwargs(env_id: str, kind: str = "") -> dict[str, Any]:
    """Return what OGBench's environments are made with for data of an expert; nothing for those of others.

    Args:
        kind: of the expert.
    """
    if re.fullmatch(r"(cube|scene|puzzle)-[\w-]+", env_id):
        return {"mode": "data_collection", "terminate_at_goal": False, "max_episode_steps": _STEPS}
    if re.fullmatch(r"pointmaze-[\w-]+", env_id):
        return {"terminate_at_goal": False, "max_episode_steps": _STEPS_NEAR if kind == "stitch" else _STEPS}
    return {}


@contextmanager
def lent_to_numpy(generator: np.random.RandomState) -> Iterator[None]:
    """Let NumPy's own generator draw what this one would, and give it back."""
    own = np.random.get_state()
    np.random.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(np.random.get_state())
        np.random.set_state(own)


class Play:
    """A plan for each target, with noise that is smooth in time, and not looked after while it is followed (`play`)."""

    kind, settings = "plan", {"noise": 0.1, "noise_smoothing": 0.5}

    def __init__(self, env: Any):
        self._env = env
        self._oracle: Any = None
        self._random: Any = None

    def __call__(self, observation: Sequence[int]) -> NDArray[np.float32]:
        """Return the next action (5,), towards a new target where the last one is done."""
        info = self._env.compute_ob_info()
        if self._random is None:
            self._begin()
            self._take(info)
        elif self._oracle.done:
            self._env.set_new_target(return_info=False, p_stack=self._stacking)
            info = self._env.compute_ob_info()
            self._take(info)
        return np.clip(self._shaken(self._oracle.select_action(None, info)), -1, 1).astype(np.float32)

    def _begin(self) -> None:
        """Draw what holds for a whole episode, whose seed the environment knows."""
        self._random = np.random.RandomState(self._env.np_random_seed)
        self._stacking = self._random.uniform(*_STACKING.get(self._env._env_type, (0.5, 0.5)))

    def _take(self, info: Mapping[str, Any]) -> None:
        """Take the oracle of the target's kind."""
        task = str(info["privileged/target_task"])
        module = importlib.import_module(f"ogbench.manipspace.oracles.{self.kind}.{task}_{self.kind}")
        settings: dict[str, Any] = dict(self.settings)
        if not hasattr(self._env, "_num_cubes"):
            settings["gripper_always_closed"] = True  # of puzzles, in which there is nothing to hold
        self._oracle = getattr(module, f"{task.capitalize()}{self.kind.capitalize()}Oracle")(env=self._env, **settings)
        with lent_to_numpy(self._random):
            self._oracle.reset(None, info)

    def _shaken(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        return action


class Noisy(Play):
    """What is right in each state, with noise that differs from episode to episode (`noisy`)."""

    kind, settings = "markov", {"min_norm": 0.4}

    def _begin(self) -> None:
        super()._begin()
        self._deviation = self._random.uniform(0, _NOISE)

    def _shaken(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        return action + self._deviation * _SPREAD * self._random.standard_normal(len(action))


class Navigate:
    """The way from one place of a maze to another, one after the other (`navigate`)."""

    def __init__(self, env: Any):
        self._env, self._ways = env, Ways(env.maze_map == 1)
        self._turns = [cell for cell in zip(*np.nonzero(env.maze_map == 0), strict=True) if self._is_turn(*cell)]
        self._random: Any = None

    def __call__(self, observation: Sequence[int]) -> NDArray[np.float32]:
        """Return the next action (2,), a step towards the goal."""
        env = self._env
        place = env.get_xy()
        if self._random is None:
            self._random = np.random.RandomState(env.np_random_seed)
            self._begin(env.xy_to_ij(place))
        if np.linalg.norm(place - env.cur_goal_xy) <= env._goal_tol:
            self._arrive()
        there = env.xy_to_ij(env.cur_goal_xy)
        following = self._ways.next_cell(env.xy_to_ij(place), there)
        way = (env.cur_goal_xy if following == there else np.array(env.ij_to_xy(following))) - place
        return (way / (np.linalg.norm(way) + 1e-6)).astype(np.float32)

    def _begin(self, cell: Cell) -> None:
        """Begin an episode in a cell, with the goal that the environment drew."""

    def _arrive(self) -> None:
        """Go on to another turn of the maze."""
        self._go_to(self._turns[self._random.randint(len(self._turns))])

    def _go_to(self, cell: Cell) -> None:
        goal = np.array(self._env.ij_to_xy(cell)) + self._random.uniform(-1, 1, 2)
        self._env.set_goal(goal_xy=goal)

    def _is_turn(self, row: int, column: int) -> bool:
        """Return whether a cell is not just on the way between two others, in a straight line."""
        walls = self._env.maze_map == 1
        above, below = walls[row - 1, column], walls[row + 1, column]
        left, right = walls[row, column - 1], walls[row, column + 1]
        return not (above == below and left == right and above != left)


class Stitch(Navigate):
    """The way to a place four cells away, where it stays (`stitch`): longer ways are to be put together of these."""

    def _begin(self, cell: Cell) -> None:
        near = self._ways.cells_at(cell, _NEAR) or [cell]
        self._go_to(near[self._random.randint(len(near))])

    def _arrive(self) -> None:
        """Stay."""

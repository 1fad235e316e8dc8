"""Mazes: the way to the goal is the shortest, and who follows it gets there, out of dead ends and against noise."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from hf_decision_mamba import load_trajectories
from hf_decision_mamba.collecting import CollectSettings, collect
from hf_decision_mamba.data.goals import GoalsFrom
from hf_decision_mamba.tasks.mazes import Ways

#: 1 is a wall, as in gymnasium-robotics; what is not may be a letter.
MAP = [[1, 1, 1, 1, 1], [1, "r", 0, 0, 1], [1, 1, 1, 0, 1], [1, "g", 0, 0, 1], [1, 1, 1, 1, 1]]
WALLS = np.array([[cell == 1 for cell in row] for row in MAP])


class Maze:
    maze_map = MAP

    def cell_rowcol_to_xy(self, cell):
        return np.array([cell[1] - 2.0, 2.0 - cell[0]])

    def cell_xy_to_rowcol(self, position):
        return np.floor([2.5 - position[1], position[0] + 2.5]).astype(int)


class PointMazeEnv(gymnasium.Env):
    """A ball in the maze above, without bounces: a wall stops it."""

    box = spaces.Box(-np.inf, np.inf, (2,))
    observation_space = spaces.Dict(
        {"observation": spaces.Box(-np.inf, np.inf, (4,)), "achieved_goal": box, "desired_goal": box}
    )
    action_space = spaces.Box(-1, 1, (2,))
    maze = Maze()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        start, end = ((1, 1), (3, 1)) if self.np_random.random() < 0.5 else ((3, 1), (1, 1))
        self.goal = self.maze.cell_rowcol_to_xy(end) + self.np_random.uniform(-0.25, 0.25, 2)
        self.data = SimpleNamespace(qpos=self.maze.cell_rowcol_to_xy(start), qvel=np.zeros(2))
        return self.seen(), {}

    def step(self, action):
        for axis in range(2):
            self.data.qvel[axis] = np.clip(self.data.qvel[axis] + 0.3 * action[axis], -2, 2)
            place = self.data.qpos.copy()
            place[axis] += 0.05 * self.data.qvel[axis]
            if WALLS[tuple(self.maze.cell_xy_to_rowcol(place))]:
                self.data.qvel[axis] = 0.0
            else:
                self.data.qpos = place
        there = bool(np.linalg.norm(self.data.qpos - self.goal) < 0.3)
        return self.seen(), float(there), there, False, {"success": there}

    def seen(self):
        state = np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)
        return {"observation": state, "achieved_goal": state[:2], "desired_goal": self.goal.astype(np.float32)}


PointMazeEnv.__module__ = "gymnasium_robotics.envs.maze.point_maze"


@pytest.fixture
def maze():
    gymnasium.register("PointMaze_Ours-v3", PointMazeEnv, max_episode_steps=200)
    yield "PointMaze_Ours-v3"
    del gymnasium.registry["PointMaze_Ours-v3"]


def test_the_next_cell_is_on_the_shortest_way():
    ways = Ways(np.pad(np.zeros((4, 4), bool), 1, constant_values=True))
    for goal in ((1, 1), (4, 2)):
        for row in range(1, 5):
            for column in range(1, 5):
                after = ways.next_cell((row, column), goal)
                before = abs(row - goal[0]) + abs(column - goal[1])
                assert abs(after[0] - goal[0]) + abs(after[1] - goal[1]) == max(before - 1, 0)
    around = Ways(WALLS)
    cells, here = [(1, 1)], (1, 1)
    while here != (3, 1):
        here = around.next_cell(here, (3, 1))
        cells.append(here)
    assert cells == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert around.cells_at((1, 1), 4) == [(3, 3)] and around.cells_at((1, 1), 7) == []


def test_who_has_no_way_stays():
    walls = np.array([[False, True, False]])
    assert Ways(walls).next_cell((0, 0), (0, 2)) == (0, 0)
    assert Ways(walls).cells_at((0, 0), 2) == []


def test_the_expert_gets_there_and_its_data_have_goals(maze, tmp_path):
    settings = CollectSettings(maze, policy="expert", episodes=20, noise=0.3)
    folder, _ = collect(settings, tmp_path / "maze", progress=False)
    data = load_trajectories(folder)
    assert data.terminations.sum() == 20 and (data.returns() == 1).all()
    assert [part["path"] for part in data.observation_parts] == [["achieved_goal"], ["desired_goal"], ["observation"]]
    by_goal = GoalsFrom().of(data)
    assert by_goal.state_dim == 4 and by_goal.goals.shape == by_goal.achieved_goals.shape == (len(data.actions), 2)
    np.testing.assert_array_equal(by_goal.achieved_goals, by_goal.observations[:, :2])


@pytest.mark.parametrize("size", ["UMaze", "Medium"])
def test_the_expert_of_gymnasium_robotics(size, tmp_path):
    pytest.importorskip("gymnasium_robotics")
    settings = CollectSettings(
        f"PointMaze_{size}-v3", policy="expert", episodes=5, noise=0.2, env_kwargs={"continuing_task": False}
    )
    folder, _ = collect(settings, tmp_path / "maze", progress=False)
    data = load_trajectories(folder)
    assert data.terminations.sum() == 5 and data.observation_parts[1]["path"] == ["desired_goal"]

"""OGBench's environments show their goal, play their tasks in turn, and what they draw follows from the seed."""

import json

import gymnasium
import numpy as np
import pytest
from factories import TINY_MODEL
from gymnasium import spaces

from hf_decision_mamba import DecisionMambaPolicy, evaluate_policy, load_trajectories, train
from hf_decision_mamba.collecting import CollectSettings, collect
from hf_decision_mamba.evaluation import environments
from hf_decision_mamba.evaluation.environments import make_environments


class CubeEnv(gymnasium.Env):
    """A point on a line that is to go to one of five places, and as in OGBench chance that no seed governs."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    metadata = {"render_modes": []}
    task_infos = [{"goal": place} for place in (-2.0, -1.0, 0.0, 1.0, 2.0)]

    def __init__(self, mode="task", reward_task_id=None, near=0.2):
        self.near = near
        self.mode, self._reward_task_id, self._teleport_info = mode, reward_task_id, mode == "teleport"

    @property
    def action_space(self):  # anew, with chance of its own
        return spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, options=None, *args, **kwargs):
        super().reset(*args, **kwargs)
        task = (options or {}).get("task_id", np.random.randint(1, 6))
        self.place, self.asked = self.np_random.uniform(-1, 1), self.task_infos[task - 1]["goal"]
        if self.mode == "data_collection":
            return self.seen(), {}
        return self.seen(), {"goal": np.array([self.asked, *self.action_space.sample(), np.random.random()])}

    def step(self, action):
        self.place += 0.25 * float(action[0]) + (np.random.random() if self._teleport_info else 0)
        success = abs(self.place - self.asked) < self.near
        return self.seen(), float(success), np.bool_(success), False, {"success": success}

    def seen(self):
        return np.array([self.place, 0.0, 0.5])


class PointEnv(gymnasium.Env):
    """A corridor of four cells, of which a step leads to the next."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    maze_map = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]])
    task_infos = [{"init_ij": (1, 1), "goal_ij": (1, 4)}]
    _reward_task_id, _goal_tol = None, 0.5

    def __init__(self, terminate_at_goal=True):
        self._terminate_at_goal = terminate_at_goal

    def reset(self, options=None, *args, **kwargs):
        super().reset(*args, **kwargs)
        task = options.get("task_info") or self.task_infos[options["task_id"] - 1]
        self.place = self.ij_to_xy(task["init_ij"])
        self.set_goal(self.ij_to_xy(task["goal_ij"]))
        return self.place, {"goal": self.cur_goal_xy}

    def step(self, action):
        self.place = self.place + action
        there = bool(np.linalg.norm(self.place - self.cur_goal_xy) <= self._goal_tol)
        return self.place, float(there), there and self._terminate_at_goal, False, {"success": there}

    def ij_to_xy(self, cell):
        return np.array([cell[1], cell[0]], np.float64)

    def xy_to_ij(self, place):
        return round(place[1]), round(place[0])

    def get_xy(self):
        return self.place

    def set_goal(self, goal_xy):
        self.cur_goal_xy = goal_xy if goal_xy[1] == 1 else np.array([goal_xy[0].round().clip(1, 4), 1])


CubeEnv.__module__ = "ogbench.manipspace.envs.cube_env"
PointEnv.__module__ = "ogbench.locomaze.point"


@pytest.fixture(autouse=True)
def cube():
    gymnasium.register("cube-ours-v0", CubeEnv, max_episode_steps=12)
    gymnasium.register("pointmaze-ours-v0", PointEnv, max_episode_steps=6)
    yield
    del gymnasium.registry["cube-ours-v0"], gymnasium.registry["pointmaze-ours-v0"]


def episode(seeds, rows=None, **env_kwargs):
    """What is seen from a reset with these seeds on, after a few steps of another episode."""
    envs = make_environments("cube-ours-v0", len(seeds), env_kwargs={**env_kwargs, "near": 0})
    if rows is not None:
        envs.reset(seed=[99] * len(seeds))
        envs.step(np.ones((len(seeds), 1), np.float32))
    seen = [envs.reset(seed=[*seeds])[0]]
    seen += [envs.step(np.full((len(seeds), 1), 0.1, np.float32))[0] for _ in range(4)]
    return np.array(seen), envs


def test_goals_are_shown_and_the_tasks_are_played_in_turn():
    seen, envs = episode(range(10))
    assert [part["path"] for part in envs.observation_parts] == [["desired_goal"], ["observation"]]
    assert seen.shape == (5, 10, 6) and envs.metadata["render_modes"] == ["rgb_array"]
    assert seen[0, :, 0].tolist() == [-2, -1, 0, 1, 2] * 2  # tasks 1 to 5, twice
    assert (seen[:, :, :3] == seen[0, :, :3]).all() and len(np.unique(seen[0, :, 1])) == 10
    np.testing.assert_allclose(np.diff(seen[:, :, 3], axis=0), 0.025, atol=1e-6)
    env = envs.envs[0]
    assert env.reset(seed=0, options={"task_id": 4})[0][0] == 1


@pytest.mark.parametrize("mode", ["task", "teleport"])
def test_the_seed_decides_everything_and_others_keep_their_chance(mode):
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    seen, _ = episode([3, 8, 14], mode=mode)
    assert np.random.random() == expected
    np.testing.assert_array_equal(episode([3, 8, 14], rows=True, mode=mode)[0], seen)
    np.testing.assert_array_equal(episode([14], mode=mode)[0][:, 0], seen[:, 2])


@pytest.mark.parametrize("env_kwargs", [{"reward_task_id": 2}, {"mode": "data_collection"}])
def test_single_tasks_and_collecting_show_what_they_always_do(env_kwargs):
    seen, envs = episode([1, 2], **env_kwargs)
    assert envs.observation_parts is None and seen.shape == (5, 2, 3)


def test_mazes_for_collecting_begin_anywhere_and_lead_from_goal_to_goal(tmp_path):
    settings = CollectSettings("pointmaze-ours-v0", policy="expert", episodes=12, num_envs=5, max_episode_steps=30)
    folder, _ = collect(settings, tmp_path / "maze", progress=False)
    data = load_trajectories(folder)
    assert data.observation_parts is None and data.env_kwargs is None and (data.lengths == 30).all()
    places = data.observations[:, 0].reshape(12, 30)
    assert len(np.unique(places[:, 0])) == 4 and data.observations[:, 1].std() < 1e-5
    assert ((places.round() == 1).any(1) & (places.round() == 4).any(1)).all()  # the turns of a corridor are its ends
    envs = make_environments("pointmaze-ours-v0", 2)
    assert envs.reset(seed=[3, 4])[0].tolist() == [[4, 1, 1, 1]] * 2  # the task of who is scored


def test_a_goal_is_a_whole_observation_from_data_to_scores(tmp_path):
    random, episodes = np.random.default_rng(0), []
    for _ in range(8):
        actions = random.uniform(-1, 1, (12, 1)).astype(np.float32)
        places = np.cumsum(0.25 * actions[:, 0]) - 0.25 * actions[:, 0]
        observations = np.stack([places, 0 * places, 0 * places + 0.5], 1).astype(np.float32)
        episodes.append({"observations": observations, "actions": actions, "truncations": np.arange(12) == 11})
    settings = {**TINY_MODEL, "context_length": 4, "max_steps": 2, "eval_steps": 1, "use_cpu": True}
    settings |= {"conditioning": "goal", "achieved_goals_from": "observations", "env_id": "cube-ours-v0"}
    result = train(episodes, **settings, eval_episodes=5, output_dir=str(tmp_path / "run"))
    config, processor = result.policy.model.config, result.policy.processor
    assert (config.goal_dim, config.state_dim) == (3, 3) and processor.goal_mean == processor.state_mean
    assert "success_rate" in json.dumps(result.evaluation.to_dict())
    policy = DecisionMambaPolicy.from_pretrained(tmp_path / "run")
    again = evaluate_policy(policy, episodes=5, num_envs=2, progress=False)
    assert [row["return"] for row in again.episodes] == [row["return"] for row in result.evaluation.episodes]
    given = evaluate_policy(policy, gymnasium.make("cube-ours-v0"), episodes=5, progress=False)
    assert [row["length"] for row in given.episodes] == [row["length"] for row in again.episodes]


def test_without_ogbench_it_is_named(monkeypatch):
    monkeypatch.setattr(environments.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"an environment of OGBench, which is missing; try: pip install .*\[ogbench\]"
    ):
        make_environments("cube-dozen-v0", 1)


def test_the_environments_of_ogbench():
    pytest.importorskip("ogbench")
    for env_id, size, kwargs in (
        ("pointmaze-medium-v0", 4, {}),
        ("cube-single-v0", 56, {}),
        ("cube-single-v0", 31, {"use_oracle_rep": True}),
        ("cube-single-singletask-v0", 28, {}),
    ):
        seen = []
        for rows in (1, 2):
            envs = make_environments(env_id, rows, env_kwargs=kwargs)
            envs.reset(seed=[3] * rows)
            first = envs.reset(seed=[8] * rows)[0]
            action = np.full(envs.action_space.shape, 0.5, np.float32)
            seen.append(np.stack([first, *(envs.step(action)[0] for _ in range(5))])[:, 0])
        assert seen[0].shape == (6, size)
        np.testing.assert_array_equal(*seen)

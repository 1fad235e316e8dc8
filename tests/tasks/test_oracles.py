"""OGBench's experts: what made its data, from its own oracles, with chance that follows from an episode's seed."""

import sys
from types import ModuleType

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces

from hf_decision_mamba import load_trajectories
from hf_decision_mamba.collecting import CollectSettings, collect
from hf_decision_mamba.evaluation.environments import make_environments
from hf_decision_mamba.sharing.dataset_card import DATA_FILE
from hf_decision_mamba.tasks.mazes import Ways
from hf_decision_mamba.tasks.oracles import collecting_kwargs, lent_to_numpy


class CubeEnv(gymnasium.Env):
    """A hand on a line that a target is set for, as OGBench's robot arm has it."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (5,), np.float32)
    task_infos, _reward_task_id, _env_type, _num_cubes, _target_task = (), None, "double", 2, "cube"

    def __init__(self, mode="task", terminate_at_goal=True):
        self.made = (mode, terminate_at_goal)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.targets = 0.0, 0
        self.set_new_target()
        return self.seen(), {}

    def step(self, action):
        self.place += 0.1 * float(action[0])
        return self.seen(), 0.0, False, False, {}

    def seen(self):
        return np.array([self.place, self.targets])

    def set_new_target(self, return_info=True, p_stack=0.5):
        self.targets += 1
        self.target, self.stacking = self.np_random.uniform(-1, 1), p_stack

    def compute_ob_info(self):
        return {"privileged/target_task": "cube", "place": self.place}


class Oracle:
    """Goes to the target and a little further, as luck has it."""

    def __init__(self, env, **settings):
        self.env, self.settings, self.done = env, settings, False

    def reset(self, ob, info):
        self.aim, self.done = self.env.target + np.random.uniform(-0.1, 0.1), False

    def select_action(self, ob, info):
        self.done = abs(self.aim - info["place"]) < 0.1
        return np.array([20 * (self.aim - info["place"]), 0, 0, 0, 0])


CubeEnv.__module__ = "ogbench.manipspace.envs.cube_env"


@pytest.fixture
def cube(monkeypatch):
    for kind in ("plan", "markov"):
        module = ModuleType(f"ogbench.manipspace.oracles.{kind}.cube_{kind}")
        setattr(module, f"Cube{kind.capitalize()}Oracle", Oracle)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    gymnasium.register("cube-ours-v0", CubeEnv, max_episode_steps=7)
    yield
    del gymnasium.registry["cube-ours-v0"]


@pytest.mark.parametrize("kind", ["play", "noisy"])
@pytest.mark.usefixtures("cube")
def test_targets_follow_one_another_and_the_seed_decides(kind, tmp_path):
    tables = []
    for rows in (1, 3):
        np.random.seed(rows)  # is not asked
        settings = CollectSettings(
            "cube-ours-v0", policy=f"expert:{kind}", episodes=3, num_envs=rows, epsilon=0.1, max_episode_steps=80
        )
        folder, _ = collect(settings, tmp_path / str(rows), progress=False)
        tables.append(pq.read_table(folder / DATA_FILE))
    assert tables[0].equals(tables[1])
    data = load_trajectories(folder)
    assert data.env_kwargs is None and (data.lengths == 80).all()  # what collects is no part of what is learned for
    targets = data.observations[:, 1].reshape(3, 80)
    assert (np.diff(targets) >= 0).all() and targets[:, -1].min() > 3
    assert len(np.unique(targets[:, -1])) > 1
    others = data.actions.reshape(3, 80, 5)[:, :, 4]
    assert (np.abs(others).max(1) > 0).all()
    if kind == "noisy":  # with a deviation of its own each
        spread = np.median(np.abs(others), axis=1)
        assert max(spread) > 1.5 * min(spread) > 0


@pytest.mark.usefixtures("cube")
def test_an_episode_says_how_it_was_collected(tmp_path):
    settings = CollectSettings("cube-ours-v0", policy="expert", episodes=1, max_episode_steps=20)
    folder, _ = collect(settings, tmp_path / "cube", progress=False)
    card = (folder / "README.md").read_text()
    assert "collected_with:\n    mode: data_collection\n    terminate_at_goal: false" in card
    assert "max_episode_steps: 20\n" in card and settings.expert_kind == ""
    kinds = r"policy 'expert:slow' of cube-ours-v0: .* no expert 'slow' here, whose expert has kinds play, noisy\."
    with pytest.raises(ValueError, match=kinds):
        collect(CollectSettings("cube-ours-v0", policy="expert:slow"), tmp_path / "slow", progress=False)
    with pytest.raises(ValueError, match="no expert 'slow' here, whose expert has no kinds"):
        collect(CollectSettings("hf_decision_mamba/TMaze-v0", policy="expert:slow"), tmp_path / "t", progress=False)
    with pytest.raises(ValueError, match="sample=True has no meaning for the environment's expert"):
        CollectSettings("cube-ours-v0", policy="expert:play", sample=True)


def test_numpys_own_generator_is_given_back():
    generator, same = np.random.RandomState(3), np.random.RandomState(3)
    np.random.seed(1)
    first = np.random.random()
    np.random.seed(1)
    with lent_to_numpy(generator):
        assert np.random.random() == same.random_sample()
    assert np.random.random() == first and generator.random_sample() == same.random_sample()


@pytest.mark.parametrize(
    ("env_id", "kind"),
    [
        *(("cube-single-v0", kind) for kind in ("play", "noisy")),
        *(("pointmaze-medium-v0", kind) for kind in ("navigate", "stitch")),
    ],
)
def test_the_experts_of_ogbench(env_id, kind, tmp_path):
    pytest.importorskip("ogbench")
    settings = CollectSettings(env_id, policy=f"expert:{kind}", episodes=2, num_envs=2, max_episode_steps=120)
    folder, _ = collect(settings, tmp_path / "data", progress=False)
    row = pq.read_table(folder / DATA_FILE).to_pylist()[1]
    envs = make_environments(env_id, 1, env_kwargs=collecting_kwargs(env_id, kind))
    seen = [envs.reset(seed=[row["seed"]])[0][0]]
    seen += [envs.step(np.array([action], np.float32))[0][0] for action in row["actions"][:-1]]
    np.testing.assert_array_equal(np.array(seen, np.float32), np.array(row["observations"], np.float32))


def test_what_is_to_be_stitched_ends_four_cells_away(tmp_path):
    pytest.importorskip("ogbench")
    settings = CollectSettings("pointmaze-medium-v0", policy="expert:stitch", episodes=5)
    folder, _ = collect(settings, tmp_path / "data", progress=False)
    maze = make_environments("pointmaze-medium-v0", 1).envs[0].unwrapped
    for row in pq.read_table(folder / DATA_FILE).to_pylist():
        first, last = (maze.xy_to_ij(row["observations"][step][:2]) for step in (0, -1))
        assert len(row["observations"]) == 200 and last in Ways(maze.maze_map == 1).cells_at(first, 4)

"""Environments as they are made for rollouts: Atari played the standard way, references of scores, and refusals."""

import re
import sys

import numpy as np
import pytest
from factories import BREAKOUT

from hf_decision_mamba.data import load_trajectories
from hf_decision_mamba.data.formats.minari import observations_of
from hf_decision_mamba.evaluation.environments import action_bounds, make_environments
from hf_decision_mamba.evaluation.scores import normalized_score, score_reference
from hf_decision_mamba.reporting.env_ids import is_env_id

gymnasium = pytest.importorskip("gymnasium")


@pytest.mark.parametrize("name", ["Hopper-v5", "ALE/Pong-v5", "pusht", "my_envs.tall:me/Hopper-v5", "a.b:Walk"])
def test_ids_have_gymnasiums_form(name):
    assert is_env_id(name)


@pytest.mark.parametrize(
    "name", ["", "Hopper v5", 'Hopper-v5")', "a/b/c", "../Hopper-v5", "Hopper-v5\n", "Hop\u202eper", "a" * 500, None, 5]
)
def test_what_cannot_be_an_id_is_known(name):
    assert not is_env_id(name)


class TestScores:
    @pytest.mark.parametrize(
        "env_id", ["Hopper-v5", "Hopper-v4", "mujoco/Hopper-v5", "hopper", "some_module:Hopper-v5"]
    )
    def test_versions_of_an_environment_share_their_references(self, env_id):
        assert normalized_score(env_id, -20.272305) == 0
        assert normalized_score(env_id, 3234.3) == 100
        np.testing.assert_allclose(normalized_score(env_id, np.array([-20.272305, 3234.3])), [0, 100])

    @pytest.mark.parametrize(
        ("env_id", "expert"),
        [
            ("HalfCheetah-v5", 12135.0),
            ("Walker2d-v4", 4592.3),
            ("Ant-v5", 3879.7),
            ("maze2d-umaze-v1", 161.86),
            ("AdroitHandPen-v1", 3076.8331),
            ("AdroitHandDoor-v1", 2880.5693),
            ("FrankaKitchen-v1", 4.0),
        ],
    )
    def test_the_expert_of_every_family_scores_100(self, env_id, expert):
        assert normalized_score(env_id, expert) == pytest.approx(100)
        assert score_reference(env_id).source == "D4RL"

    @pytest.mark.parametrize(
        ("game", "random", "human"),
        [
            ("Breakout", 1.7, 30.5),
            ("Pong", -20.7, 14.6),
            ("Qbert", 163.9, 13455.0),
            ("Seaquest", 68.4, 42054.7),
            ("SpaceInvaders", 148.0, 1668.7),
        ],
    )
    @pytest.mark.parametrize("name", ["{}NoFrameskip-v4", "ALE/{}-v5", "ale_py:ALE/{}-v5"])
    def test_a_human_scores_100_in_atari(self, name, game, random, human):
        assert score_reference(name.format(game)) == (random, human, "random/human")
        np.testing.assert_allclose(normalized_score(name.format(game), np.array([random, human])), [0, 100])

    @pytest.mark.parametrize(
        "env_id", ["InvertedDoublePendulum-v5", "AntMaze_UMaze-v5", "CartPole-v1", "ALE/Freeway-v5", None]
    )
    def test_no_reference(self, env_id):
        assert score_reference(env_id) is None and normalized_score(env_id, 1.0) is None


class Goal(gymnasium.Env):
    """Observes where it is and where it shall be, in a dictionary."""

    observation_space = gymnasium.spaces.Dict(
        {"position": gymnasium.spaces.Box(-1, 1, (3,)), "goal": gymnasium.spaces.Box(-1, 1, (2, 1))}
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_dictionaries_are_flattened_as_those_of_data_are():
    gymnasium.register("Goal-v3", Goal)
    try:
        envs = make_environments("Goal-v3", 2)
        found = envs.reset(seed=[3, 4])[0]
        raw = [Goal().reset(seed=seed)[0] for seed in (3, 4)]
        batched = {name: np.stack([one[name] for one in raw]) for name in raw[0]}
        np.testing.assert_array_equal(found, observations_of("here", Goal.observation_space, batched))
        assert envs.single_observation_space.shape == (5,) and envs.step(np.zeros((2, 1)))[0].shape == (2, 5)
        assert envs.observation_parts == [
            {"path": ["goal"], "shape": [2, 1], "size": 2},
            {"path": ["position"], "shape": [3], "size": 3},
        ]
        envs.close()
    finally:
        gymnasium.registry.pop("Goal-v3")


@pytest.mark.parametrize(
    ("space", "low", "high"),
    [
        (gymnasium.spaces.Box(-1, 0.5, (2,), np.float32), [-1, -1], [0.5, 0.5]),
        (gymnasium.spaces.Box(np.array([-0.1, -np.inf]), np.array([0.1, np.inf]), dtype=np.float64), None, None),
        (gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32), None, None),
    ],
)
def test_bounds_of_actions_lie_inside_of_their_space(space, low, high):
    bounds = np.array(action_bounds(space))
    assert np.isfinite(bounds).all() and (bounds.astype(np.float32) == bounds).all()
    for bound in bounds.astype(np.float32):
        assert space.contains(bound.astype(space.dtype))
    assert low is None or bounds.tolist() == [low, high]
    finite = np.isfinite(space.low)
    np.testing.assert_allclose(bounds[0][finite], space.low[finite], rtol=1e-7)


MODULE = """
import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from helper_of_mine import LIMIT
gymnasium.register("{name}-v0", entry_point=CartPoleEnv, max_episode_steps=LIMIT)
"""


class TestIds:
    @pytest.fixture(autouse=True)
    def undone(self, monkeypatch, tmp_path):
        """Every test in a folder of its own, with a path and a registry that are put back."""
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
        monkeypatch.chdir(tmp_path)
        known, modules = dict(gymnasium.registry), {*sys.modules}
        yield
        gymnasium.registry.clear()
        gymnasium.registry.update(known)
        for name in {*sys.modules} - modules:
            if "of_mine" in name or name == "gymnasium_robotics":
                del sys.modules[name]

    def test_a_module_of_the_working_folder_registers_its_environment(self, tmp_path):
        (tmp_path / "env_of_mine.py").write_text(MODULE.format(name="Mine"))
        (tmp_path / "helper_of_mine.py").write_text("LIMIT = 7")
        envs = make_environments("env_of_mine:Mine-v0", 2)
        assert envs.spec.max_episode_steps == 7 and sys.path[0] == str(tmp_path)
        envs.close()

    def test_only_an_id_with_a_module_makes_the_working_folder_importable(self, tmp_path):
        make_environments("CartPole-v1", 1).close()
        assert str(tmp_path) not in sys.path

    @pytest.mark.parametrize(
        ("text", "env_id", "message"),
        [
            (
                "",
                "nothing_of_mine:Mine-v0",
                "'nothing_of_mine:Mine-v0': no module 'nothing_of_mine' is installed, or",
            ),
            (
                "1 / 0",
                "env_of_mine:Mine-v0",
                "'env_of_mine:Mine-v0': importing env_of_mine raised ZeroDivisionError",
            ),
            ("", "env_of_mine:CardPole-v1", "env_of_mine registers none of this name; did you mean 'CartPole-v1'"),
            ("", "env_of_mine:CartPole-v9", "No environment 'env_of_mine:CartPole-v9': use 'env_of_mine:CartPole-v1'"),
        ],
    )
    def test_a_module_that_does_not_help_is_named(self, text, env_id, message, tmp_path):
        (tmp_path / "env_of_mine.py").write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)) as raised:
            make_environments(env_id, 1)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("env_id", "known"),
        [
            ("CartPol-v1", "'CartPole-v1'"),
            ("Hoper-v5", "'Hopper-v5'"),
            ("MountainCarContinous-v0", "'MountainCarContinu"),
        ],
    )
    def test_an_unknown_id_gets_those_that_are_close(self, env_id, known):
        with pytest.raises(ValueError, match=rf"No environment '{env_id}': check the spelling, .*did you mean {known}"):
            make_environments(env_id, 1)

    def test_robotics_need_no_prefix_where_they_are_installed(self, tmp_path, monkeypatch):
        (tmp_path / "gymnasium_robotics.py").write_text(MODULE.format(name="PointMaze_UMaze"))
        (tmp_path / "helper_of_mine.py").write_text("LIMIT = 5")
        monkeypatch.syspath_prepend(tmp_path)
        envs = make_environments("PointMaze_UMaze-v0", 1)
        assert envs.spec.max_episode_steps == 5
        envs.close()

    @pytest.mark.parametrize("env_id", ["PointMaze_UMaze-v3", "AdroitHandDoor-v1", "gymnasium_robotics:FetchReach-v4"])
    def test_robotics_are_named_where_they_are_missing(self, env_id, monkeypatch):
        monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
        with pytest.raises(ImportError, match=rf"{env_id} .*pip install .hf_decision_mamba\[robotics\]"):
            make_environments(env_id, 1)

    @pytest.mark.parametrize(
        ("entry_point", "command"),
        [
            ("gymnasium.envs.box2d.lunar_lander:LunarLander", 'pip install "gymnasium[box2d]"'),
            ("gymnasium.envs.toy_text.taxi:TaxiEnv", 'pip install "gymnasium[toy-text]"'),
            ("gymnasium.envs.classic_control:CartPoleEnv", 'pip install "gymnasium[classic-control]"'),
            ("gymnasium.envs.mujoco.hopper_v5:HopperEnv", 'pip install "hf_decision_mamba[mujoco]"'),
        ],
    )
    @pytest.mark.parametrize("error", [gymnasium.error.DependencyNotInstalled("no\nengine"), ImportError("no engine")])
    def test_what_an_environment_needs_is_named(self, entry_point, command, error, monkeypatch):
        def missing(*args, **kwargs):
            raise error

        gymnasium.register("Needy-v0", entry_point=entry_point)
        monkeypatch.setattr(gymnasium, "make_vec", missing)
        with pytest.raises(
            ImportError, match=rf"^Needy-v0 needs a package .* \(no engine\); try: {re.escape(command)}"
        ):
            make_environments("Needy-v0", 1)


class TestArguments:
    def test_they_reach_the_environment(self):
        envs = make_environments("Hopper-v5", 1, env_kwargs={"reset_noise_scale": 0.0})
        starts = [envs.reset(seed=[seed])[0] for seed in (1, 2)]
        np.testing.assert_array_equal(*starts)
        envs.close()

    @pytest.mark.parametrize("arguments", [{"wind": 3}, {"num_envs": 3}])
    def test_what_it_does_not_take_is_named(self, arguments):
        with pytest.raises(ValueError, match=rf"^CartPole-v1 cannot be made: TypeError: .*{next(iter(arguments))}"):
            make_environments("CartPole-v1", 1, env_kwargs=arguments)

    def test_they_are_for_ids(self):
        with pytest.raises(ValueError, match=r"env_kwargs={'wind': 3} are for an environment that is made by its id"):
            make_environments(Goal, 1, env_kwargs={"wind": 3})


BOX, LETTERS = gymnasium.spaces.Box, gymnasium.spaces.Text(5)


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (
            LETTERS,
            BOX(-1, 1, (2,)),
            "Odd, 'observations': observations from Text.* are not read, only numbers, grey",
        ),
        (BOX(0, 255, (96, 96, 3), np.uint8), BOX(-1, 1, (2,)), "Odd, 'observations': observations from Box.* are not"),
        (BOX(-1, 1, (2,)), gymnasium.spaces.MultiDiscrete([2, 3]), "number their combinations as one Discrete space"),
        (BOX(-1, 1, (2,)), gymnasium.spaces.MultiBinary(3), "number their combinations as one Discrete space with gym"),
        (
            BOX(-1, 1, (2,)),
            BOX(0, 9, (2,), np.int64),
            "take floats and round them with gymnasium.wrappers.TransformAction",
        ),
        (BOX(-1, 1, (2,)), BOX(-1, 1, ()), "make vectors of them with gymnasium.wrappers.TransformAction"),
        (BOX(-1, 1, (2,)), BOX(-1, 1, (2, 2)), "make vectors of them with gymnasium.wrappers.TransformAction"),
        (BOX(-1, 1, (2,)), gymnasium.spaces.Dict({"a": BOX(-1, 1, (2,))}), "concatenate them into one Box with gymna"),
    ],
)
def test_spaces_that_no_model_has_are_refused_by_name(observations, actions, message):
    class Odd(gymnasium.Env):
        observation_space, action_space = observations, actions

    with pytest.raises(ValueError, match=message) as raised:
        make_environments(Odd, 1)
    assert str(raised.value).startswith("Odd") and "\n" not in str(raised.value)


@pytest.mark.parametrize("thing", [5, ["CartPole-v1"], lambda: None])
def test_what_is_no_environment_is_refused(thing):
    with pytest.raises(ValueError, match=r"is no environment: give a gymnasium id, a gymnasium.Env, a VectorEnv or"):
        make_environments(thing, 1)


class TestAtari:
    @pytest.fixture(autouse=True)
    def games(self):
        pytest.importorskip("ale_py")
        pytest.importorskip("cv2")

    def test_recorded_actions_give_the_recorded_frames_and_points(self):
        """So a policy sees at evaluation what it was trained on. The first episode was recorded from seed 1."""
        data = load_trajectories(BREAKOUT)
        envs = make_environments(str(data.env_id), 1)
        frames, _ = envs.reset(seed=[1])
        steps = int(data.lengths[0])
        assert data.rewards[:steps].sum() > 0
        for t in range(steps):
            # The resizing may round differently in other versions of OpenCV.
            np.testing.assert_allclose(frames[0].astype(int), data.observations[t], atol=1)
            frames, rewards, terminated, truncated, _ = envs.step(data.actions[t : t + 1])
            assert (rewards[0], terminated[0]) == (data.rewards[t], data.terminations[t])
        assert terminated[0] or truncated[0] or data.truncations[steps - 1]
        envs.close()

    @pytest.mark.parametrize(("env_id", "actions"), [("BreakoutNoFrameskip-v4", 4), ("ale_py:ALE/Pong-v5", 6)])
    def test_every_id_is_played_the_standard_way(self, env_id, actions):
        envs = make_environments(env_id, 1)
        assert envs.single_observation_space == gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
        assert envs.single_action_space == gymnasium.spaces.Discrete(actions)
        ale = envs.envs[0].unwrapped.ale
        assert ale.getFloat("repeat_action_probability") == 0
        assert ale.getInt("max_num_frames_per_episode") == 108_000
        envs.reset(seed=[0])
        before = ale.getEpisodeFrameNumber()
        envs.step(np.array([0]))
        assert 1 <= before <= 30 and ale.getEpisodeFrameNumber() == before + 4
        envs.close()

    def test_the_seed_decides_the_episode(self):
        envs, films = make_environments("ALE/Breakout-v5", 2), []
        for seeds in ([1, 2], [2, 1]):
            envs.reset(seed=seeds)
            films.append(np.stack([envs.step(np.array([t % 4, t % 4]))[0] for t in range(30)], axis=1))
        np.testing.assert_array_equal(films[0][::-1], films[1])
        assert (films[0][0] != films[0][1]).any()
        envs.close()

    def test_no_such_game(self):
        with pytest.raises(ValueError, match=r"No environment 'ALE/Brakeout-v5'"):
            make_environments("ALE/Brakeout-v5", 1)

    @pytest.mark.parametrize("package", ["ale_py", "cv2"])
    @pytest.mark.parametrize("env_id", ["PongNoFrameskip-v4", "ALE/Pong-v5"])
    def test_a_package_is_missing(self, env_id, package, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf'{env_id} needs .* pip install "hf_decision_mamba\[atari\]"'):
            make_environments(env_id, 1)

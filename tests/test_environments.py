"""Environments as they are made for rollouts: Atari played the standard way, references of scores, and refusals."""

import sys
from pathlib import Path

import numpy as np
import pytest

from hf_decision_mamba.data import load_trajectories
from hf_decision_mamba.data.formats.minari import _observations
from hf_decision_mamba.environments import is_env_id, make_environments, normalized_score, score_reference

gymnasium = pytest.importorskip("gymnasium")

BREAKOUT = Path(__file__).parent / "data" / "breakout-tiny.parquet"


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
        np.testing.assert_array_equal(found, _observations("here", Goal.observation_space, batched))
        assert envs.single_observation_space.shape == (5,) and envs.step(np.zeros((2, 1)))[0].shape == (2, 5)
        envs.close()
    finally:
        gymnasium.registry.pop("Goal-v3")


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
        steps = int(data.lengths()[0])
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

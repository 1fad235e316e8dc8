"""Videos show the very episodes that were counted, and say what is missing where they cannot."""

import json
import sys

import numpy as np
import pytest
import torch

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaPolicy, DecisionMambaProcessor
from hf_decision_mamba.cli import main
from hf_decision_mamba.evaluation.environments import make_environments
from hf_decision_mamba.evaluation.rollouts import evaluate_policy
from hf_decision_mamba.evaluation.video import follow, record_videos
from hf_decision_mamba.reporting.figures import number
from hf_decision_mamba.reporting.files import video_names

gymnasium = pytest.importorskip("gymnasium")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("imageio_ffmpeg")

SIZES = {"hidden_size": 16, "embedding_size": 8, "state_size": 4, "n_layer": 1}


class Lamp(gymnasium.Env):
    """An episode of seed s lasts 4 + s steps, earns what its actions sum to, and shines brighter with each step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(self, render_mode=None, discrete=False, draw=None, chance=lambda: 0.0, more=0):
        self.action_space = gymnasium.spaces.Discrete(3) if discrete else gymnasium.spaces.Box(-1, 1, (2,))
        self.render_mode, self.draw, self.chance, self.more = render_mode, draw, chance, more

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.lit, self.sum = 4 + seed + self.more, 0, 0.0
        return np.array([0.0, seed, 0.0]), {}

    def step(self, action):
        self.lit += 1
        self.sum += float(np.sum(action))
        observation = np.array([self.lit, self.length, self.sum])
        return observation, float(np.sum(action)) + self.chance(), self.lit == self.length, False, {}

    def render(self):
        if self.draw is not None:
            self.draw(self)
        return np.full((32, 48, 3), 15 * self.lit, np.uint8)


class Dark(Lamp):
    """The same without pictures."""

    metadata = {"render_modes": ["human"]}


def no_display(env):
    raise gymnasium.error.DependencyNotInstalled('pygame is missing,\nrun `pip install "gymnasium[classic-control]"`')


def power_cut(env):
    if env.lit == 2:
        raise ConnectionError("no power")


@pytest.fixture(autouse=True)
def environments():
    drawn = iter(range(1_000_000))
    variants = {
        "Lamp-v0": {},
        "Switch-v0": {"discrete": True},
        "NoDisplay-v0": {"draw": no_display},
        "PowerCut-v0": {"draw": power_cut},
        "Chance-v0": {"chance": lambda: float(next(drawn))},
    }
    for env_id, kwargs in variants.items():
        gymnasium.register(env_id, Lamp, kwargs=kwargs, disable_env_checker=True)
    gymnasium.register("Dark-v0", Dark, disable_env_checker=True)
    yield
    for env_id in (*variants, "Dark-v0"):
        del gymnasium.registry[env_id]


def make_policy(action_type="continuous", env_id="Lamp-v0", act_dim=2, **options) -> DecisionMambaPolicy:
    torch.manual_seed(0)
    config = DecisionMambaConfig.from_preset(
        "dema-b3ld", state_dim=3, act_dim=act_dim, action_type=action_type, **SIZES
    )
    processor = DecisionMambaProcessor(
        state_mean=[0.0] * 3, state_std=[1.0] * 3, return_scale=10.0, target_return=5.0, context_length=4, env_id=env_id
    )
    return DecisionMambaPolicy(DecisionMambaModel(config), processor, **options)


def evaluate(policy=None, env_id=None, **options):
    return evaluate_policy(policy or make_policy(), env_id, progress=False, **{"episodes": 3, **options})


def read(path):
    """Frames in RGB and their rate, with another decoder than wrote them."""
    video = cv2.VideoCapture(str(path))
    frames = []
    while (found := video.read())[0]:
        frames.append(found[1][..., ::-1])
    return frames, video.get(cv2.CAP_PROP_FPS)


class TestRecording:
    def test_the_environment_is_made_with_the_same_arguments(self, tmp_path):
        (path,) = record_videos(evaluate(env_kwargs={"more": 3}), tmp_path, progress=False)
        assert len(read(path)[0]) == 1 + 4 + 3

    def test_it_shows_the_first_episode_from_its_reset_to_its_end(self, tmp_path):
        result = evaluate(seed=2)
        videos = record_videos(result, tmp_path / "new", progress=False)
        assert videos == {tmp_path / "new" / "replay.mp4": result.episodes[0]["return"]}
        frames, rate = read(tmp_path / "new" / "replay.mp4")
        brightness = [frame.mean() for frame in frames]
        np.testing.assert_allclose(brightness, 15 * np.arange(7), atol=4)  # 4 + 2 steps; the format loses a little
        assert rate == 20 and frames[0].shape == (32, 48, 3)

    @pytest.mark.parametrize("num_envs", [1, 4, None])
    def test_every_target_return_has_a_video_of_its_own_actions(self, num_envs, tmp_path):
        """In Switch the return is made of the actions, and these are drawn: others would return something else."""
        policy = make_policy("discrete", "Switch-v0", act_dim=3, sample=True)
        result = evaluate(policy, target_returns=[5, -2.5], num_envs=num_envs, seed=9)
        videos = record_videos(result, tmp_path, progress=False)
        assert [path.name for path in videos] == ["replay-target-5.mp4", "replay-target--2.5.mp4"]
        assert {target: float(actions.sum()) for target, actions in result.actions.items()} == {5.0: 9, -2.5: 11}
        assert list(videos.values()) == [9, 11]
        assert [row["return_first"] for row in result.summary()] == list(videos.values())

    def test_episodes_that_were_cut_are_shown_as_far_as_they_were_counted(self, tmp_path):
        record_videos(evaluate(max_episode_steps=2), tmp_path, progress=False)
        assert len(read(tmp_path / "replay.mp4")[0]) == 3

    def test_atari_is_shown_as_people_see_it(self, tmp_path):
        pytest.importorskip("ale_py")
        torch.manual_seed(0)
        config = DecisionMambaConfig.from_preset("dema-atari", act_dim=4, **{**SIZES, "embedding_size": 16})
        processor = DecisionMambaProcessor(target_return=9.0, context_length=5, env_id="BreakoutNoFrameskip-v4")
        policy = DecisionMambaPolicy(DecisionMambaModel(config), processor, "recurrent", sample=True)
        record_videos(evaluate(policy, episodes=1, max_episode_steps=12), tmp_path, progress=False)
        frames, _ = read(tmp_path / "replay.mp4")
        assert len(frames) == 13 and frames[0].shape == (210, 160, 3)
        assert np.ptp(frames[-1].astype(int), axis=-1).max() > 100  # in colour, though the policy reads grey

    def test_robots_are_followed(self):
        pytest.importorskip("mujoco")
        envs = make_environments("Hopper-v5", 1, render_mode="rgb_array")
        env = envs.envs[0].unwrapped
        follow(env)
        assert env.model.camera(env.mujoco_renderer.camera_id).name == "track"
        envs.close()


def test_names_tell_target_returns_apart():
    assert video_names([3600.0]) == ["replay.mp4"]
    assert video_names([1e6, 1e6 + 1, 0.5]) == [f"replay-target-{name}.mp4" for name in ("1000000", "1000001", "0.5")]


class TestRefusals:
    @pytest.mark.parametrize(
        ("env_id", "error", "message"),
        [
            ("Dark-v0", ValueError, "Dark-v0 cannot be filmed: .* rgb_array, and its render modes are human"),
            ("NoDisplay-v0", OSError, r"cannot be drawn here \(pygame is missing, run `pip install .*`\)\.$"),
            ("PowerCut-v0", ConnectionError, "no power"),
            (
                "Chance-v0",
                ValueError,
                "the episode with seed 1 returned .* in 5 steps, but .* chance that the seed does",
            ),
        ],
    )
    def test_no_video_is_left(self, env_id, error, message, tmp_path):
        result = evaluate(env_id=env_id, seed=1)
        with pytest.raises(error, match=message):
            record_videos(result, tmp_path, progress=False)
        assert list(tmp_path.iterdir()) == []

    def test_mujoco_has_no_renderer(self, tmp_path, monkeypatch):
        pytest.importorskip("mujoco")
        from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

        def fail(self, render_mode):
            raise RuntimeError("no OpenGL context")

        monkeypatch.setattr(MujocoRenderer, "render", fail)
        config = DecisionMambaConfig(state_dim=11, act_dim=3, hidden_size=8, n_layer=1, state_size=2)
        processor = DecisionMambaProcessor(state_mean=[0.0] * 11, state_std=[1.0] * 11, target_return=1.0)
        policy = DecisionMambaPolicy(DecisionMambaModel(config), processor)
        result = evaluate(policy, "Hopper-v5", episodes=1, max_episode_steps=2)
        with pytest.raises(OSError, match=r"no OpenGL context\)\. Without a display set MUJOCO_GL=egl"):
            record_videos(result, tmp_path, progress=False)

    @pytest.mark.parametrize("package", ["imageio.v2", "imageio_ffmpeg"])
    def test_a_package_is_missing(self, package, tmp_path, monkeypatch):
        result = evaluate()
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r'Videos need .*: pip install "hf_decision_mamba\[mujoco\]"'):
            record_videos(result, tmp_path)


class TestCommandLine:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        policy = make_policy()
        policy.model.save_pretrained(tmp_path)
        policy.processor.save_pretrained(tmp_path)
        return tmp_path

    def test_a_video_lies_beside_the_scores_and_in_the_card(self, checkpoint, capsys):
        main(["evaluate", str(checkpoint), "--episodes", "2", "--video", "--output", str(checkpoint)])
        value = json.loads((checkpoint / "evaluation.json").read_text())["results"][0]["return_first"]
        assert (
            f"{checkpoint / 'replay.mp4'}: the episode of seed 0, which returned {number(value, 1)}"
            in capsys.readouterr().out
        )
        assert f"(seed 0): asked for 5, it returned {number(value, 1)}." in (checkpoint / "README.md").read_text()
        main(["evaluate", str(checkpoint), "--episodes", "1", "--output", str(checkpoint)])
        assert not (checkpoint / "replay.mp4").exists() and "replay.mp4" not in (checkpoint / "README.md").read_text()

    def test_a_video_that_fails_loses_no_scores(self, checkpoint, capsys):
        options = ["--env-id", "NoDisplay-v0", "--episodes", "1", "--video", "--output", str(checkpoint)]
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(checkpoint), *options])
        printed = capsys.readouterr()
        assert stop.value.code == 2 and printed.err.splitlines()[-1].startswith("error: NoDisplay-v0 cannot be drawn")
        assert "return mean" in printed.out and (checkpoint / "evaluation.json").is_file()
        assert "## Results" in (checkpoint / "README.md").read_text()

    def test_what_is_missing_shows_before_anything_is_measured(self, checkpoint, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
        with pytest.raises(SystemExit):
            main(["evaluate", str(checkpoint), "--video", "--output", str(checkpoint)])
        printed = capsys.readouterr()
        assert "Videos need imageio" in printed.err and "return mean" not in printed.out

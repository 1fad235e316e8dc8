"""DecisionMambaProcessor: what it does to numbers, that it travels, what it refuses."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoProcessor

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaProcessor

SETTINGS = {
    "state_mean": [1.0, -2.0],
    "state_std": [2.0, 4.0],
    "return_scale": 100.0,
    "target_return": 3600.0,
    "context_length": 8,
    "env_id": "Hopper-v5",
    "action_low": [-1.0],
    "action_high": [0.5],
}


def test_numbers():
    processor = DecisionMambaProcessor(**SETTINGS)
    np.testing.assert_allclose(processor.normalize_states([[3.0, 2.0]]), [[1.0, 1.0]])
    np.testing.assert_allclose(processor.scale_returns([50.0]), [0.5])
    np.testing.assert_allclose(processor.clip_actions([[-3.0], [0.1], [2.0]]), [[-1.0], [0.1], [0.5]])
    assert processor.normalize_states(np.zeros((2, 3, 2))).dtype == np.float32
    features = processor(states=[[3.0, 2.0]], returns_to_go=[[50.0]], timesteps=[0], return_tensors="pt")
    torch.testing.assert_close(features["states"], torch.tensor([[1.0, 1.0]]))
    assert set(features) == {"states", "returns_to_go", "timesteps"}


def test_images_pass_unchanged():
    """The model divides pixels by 255 itself; bytes are a quarter of the memory on the way there."""
    processor = DecisionMambaProcessor(return_scale=1.0, frame_stack=2)
    assert (processor.state_type, DecisionMambaProcessor(**SETTINGS).state_type) == ("image", "vector")
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 6, 6), np.uint8)
    np.testing.assert_array_equal(processor.normalize_states(images), images)
    features = processor(states=images, returns_to_go=np.full((5, 3, 1), 90.0), return_tensors="pt")
    assert features["states"].dtype == torch.uint8 and features["returns_to_go"].unique() == 90


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 2, 6, 6)), r"float64 of shape \(3, 2, 6, 6\); image states are uint8 of shape \(..., 2, height"),
        (np.zeros((3, 4, 6, 6), np.uint8), r"uint8 of shape \(3, 4, 6, 6\); .* stack the last 2 frames"),
        (np.zeros((6, 6), np.uint8), r"uint8 of shape \(6, 6\)"),
    ],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        DecisionMambaProcessor(frame_stack=2).normalize_states(images)


IMAGES = {"state_mean": None, "state_std": None, "frame_stack": 3, "env_id": "ALE/Pong-v5", "context_length": 30}


@pytest.mark.parametrize("settings", [SETTINGS, IMAGES], ids=["vectors", "images"])
@pytest.mark.parametrize("auto_class", [AutoProcessor, AutoFeatureExtractor])
def test_travels_with_the_weights(auto_class, settings, tmp_path):
    DecisionMambaConfig().save_pretrained(tmp_path)
    DecisionMambaProcessor(**settings).save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert isinstance(loaded, DecisionMambaProcessor)
    assert {name: getattr(loaded, name) for name in settings} == settings


def test_files_from_before_images_load(tmp_path):
    settings = {**SETTINGS, "feature_extractor_type": "DecisionMambaProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded = DecisionMambaProcessor.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in SETTINGS} == SETTINGS and loaded.state_type == "vector"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_std": [1.0, 0.0]}, "state_std must be positive"),
        ({"state_std": [1.0]}, "state_std has 1 entries; expected 2"),
        ({"state_mean": [float("nan"), 0.0]}, "state_mean is not finite at index 0"),
        ({"state_mean": []}, "state_mean must be a non-empty list"),
        ({"return_scale": 0.0}, "return_scale=0.0"),
        ({"target_return": float("inf")}, "target_return=inf"),
        ({"context_length": 0}, "context_length=0"),
        ({"frame_stack": 0}, "frame_stack=0"),
        ({"state_std": None}, "state_mean and state_std must be given together"),
        ({"action_high": None}, "given together"),
        ({"action_low": [1.0]}, "exceeds action_high"),
        ({"state_mean": [1e300, 0.0]}, "state_mean is not finite at index 0"),
        ({"state_mean": ["a", 0.0]}, "state_mean must be a non-empty list of numbers"),
        ({"state_std": [1.0, 1e-320]}, "state_std must be positive"),
        ({"state_std": [1.0, -1.0]}, "state_std must be positive"),
        ({"action_high": [0.5, 0.5]}, "action_high has 2 entries; expected 1"),
        ({"return_scale": 1e-300}, "return_scale=1e-300 must be a positive number"),
        ({"return_scale": float("nan")}, "return_scale=nan"),
        ({"return_scale": "1000"}, "return_scale='1000' must be a finite number"),
        ({"target_return": 1e30, "return_scale": 1e-30}, "target_return=1e\\+30 is too large for return_scale=1e-30"),
        ({"context_length": 10**9}, "context_length=1000000000 must be a whole number from 1 to"),
        ({"context_length": 2.5}, "context_length=2.5 must be a whole number"),
        ({"frame_stack": True}, "frame_stack=True must be a whole number"),
        ({"env_id": 5}, "env_id=5 must be a name"),
        ({"fps": 0}, "fps=0 must be a positive number: steps a second"),
        ({"fps": "fast"}, "fps='fast' must be a finite number"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DecisionMambaProcessor(**{**SETTINGS, **change})
    with pytest.raises(ValueError, match=message):
        DecisionMambaProcessor.from_dict({**SETTINGS, **change})


def test_unknown_settings_in_a_file_are_refused():
    """A setting that this version does not apply would mean other numbers than the file's author had."""
    with pytest.raises(ValueError, match=r"unknown setting 'reward_scale': .* newer hf_decision_mamba"):
        DecisionMambaProcessor.from_dict({**SETTINGS, "reward_scale": 2.0})


def test_states_of_another_environment_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\); the last dimension must be 2"):
        DecisionMambaProcessor(**SETTINGS).normalize_states(np.zeros(3))


def test_a_window_in_seconds(tmp_path):
    """LeRobot's delta timestamps of the window that a decision reads."""
    assert DecisionMambaProcessor(**SETTINGS).delta_timestamps is None
    DecisionMambaProcessor(**{**SETTINGS, "context_length": 3}, fps=50).save_pretrained(tmp_path)
    processor = DecisionMambaProcessor.from_pretrained(tmp_path)
    assert (processor.fps, processor.delta_timestamps) == (50.0, [-0.04, -0.02, 0.0])


GOALS = {"goal_mean": [1.0, -1.0, 0.0], "goal_std": [2.0, 0.5, 1.0]}


def test_goals_are_normalised_and_travel(tmp_path):
    DecisionMambaProcessor(**SETTINGS, **GOALS).save_pretrained(tmp_path)
    processor = DecisionMambaProcessor.from_pretrained(tmp_path)
    assert (processor.goal_mean, processor.goal_std) == (GOALS["goal_mean"], GOALS["goal_std"])
    np.testing.assert_array_equal(processor.normalize_goals([[3.0, 0.0, 7.0]]), [[1.0, 2.0, 7.0]])
    assert set(processor(states=[[3.0, 2.0]], goals=[[3.0, 0.0, 7.0]])) == {"states", "goals"}
    with pytest.raises(ValueError, match=r"goals have shape \(2,\); the last dimension must be 3, the goal dimension"):
        processor.normalize_goals([1.0, 2.0])
    with pytest.raises(ValueError, match="this processor knows no goals"):
        DecisionMambaProcessor(**SETTINGS).normalize_goals([1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goal_std": None}, "goal_mean and goal_std must be given together"),
        ({"goal_std": [1.0, 0.0, 1.0]}, "goal_std must be positive everywhere"),
        ({"goal_std": [1.0]}, "goal_std has 1 entries; expected 3"),
        ({"goal_mean": [1.0, np.inf, 0.0]}, "goal_mean is not finite at index 1"),
    ],
)
def test_impossible_goals_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DecisionMambaProcessor(**SETTINGS, **{**GOALS, **change})


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_the_state_of_an_environment_of_goals_is_what_is_no_goal(shape):
    seen = np.arange(2.0).reshape(shape)
    given = {"achieved_goal": np.ones(3), "desired_goal": np.zeros(3), "observation": seen}
    parts = [{"path": ["observation"], "shape": list(shape), "size": 2}]
    processor = DecisionMambaProcessor(**SETTINGS, **GOALS, observation_parts=parts)
    np.testing.assert_array_equal(processor.flatten_observations(given), [0, 1])
    with pytest.raises(ValueError, match="an additional 'wind'"):
        processor.flatten_observations({**given, "wind": np.zeros(1)})
    bare = DecisionMambaProcessor(**SETTINGS, **GOALS)
    np.testing.assert_array_equal(bare.flatten_observations({**given, "observation": np.arange(2.0)}), [0, 1])
    with pytest.raises(ValueError, match="an additional 'achieved_goal'"):
        DecisionMambaProcessor(**SETTINGS, observation_parts=parts).flatten_observations(given)


def test_who_reads_the_desired_goal_need_not_read_the_achieved_one():
    parts = [{"path": ["observation"], "shape": [1], "size": 1}, {"path": ["desired_goal"], "shape": [1], "size": 1}]
    given = {"achieved_goal": np.full(1, 7.0), "desired_goal": np.full(1, 2.0), "observation": np.full(1, 1.0)}
    processor = DecisionMambaProcessor(**SETTINGS, observation_parts=parts)
    np.testing.assert_array_equal(processor.flatten_observations(given), [1, 2])
    with pytest.raises(ValueError, match="an additional 'wind'"):
        processor.flatten_observations({**given, "wind": np.zeros(1)})

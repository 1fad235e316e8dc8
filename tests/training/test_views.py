"""Trained in a view: data, environment, record, card and whatever acts with the checkpoint agree, or are refused."""

import json

import numpy as np
import pytest
import yaml
from factories import HOPPER, TINY_RUN

from hf_decision_mamba import DecisionMambaPolicy, train
from hf_decision_mamba.analysis.episodes import chosen_episodes, play_episodes
from hf_decision_mamba.collecting import CollectSettings, collect
from hf_decision_mamba.data import load_trajectories
from hf_decision_mamba.training.run import main

BOTH = {"positions_only": True, "delayed_reward": True}
TINY = {
    "dataset_name": str(HOPPER),
    "env_id": "Hopper-v5",
    **TINY_RUN,
    "logging_steps": 1,
    "held_out_fraction": 0.1,
    "eval_steps": 2,
    "rollout_episodes": 1,
    "eval_episodes": 2,
    "eval_max_episode_steps": 8,
    "disable_tqdm": True,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on positions only, with the reward at the end."""
    folder = tmp_path_factory.mktemp("run")
    return train(**TINY, **BOTH, output_dir=str(folder / "seen"))


def test_run_record_and_card_say_what_was_seen(run):
    record = json.loads((run.folder / "training.json").read_text())
    assert record["arguments"]["positions_only"] is record["arguments"]["delayed_reward"] is True
    assert record["dataset"]["env_kwargs"] == BOTH and len(record["history"]["eval_return_mean"]) == 2
    assert run.policy.processor.env_kwargs == run.evaluation.env_kwargs == BOTH
    assert run.policy.observation_shape == (5,)
    card = (run.folder / "README.md").read_text()
    made = "env = with_views(gym.make(\"Hopper-v5\"), ['positions_only', 'delayed_reward'])"
    assert made in card and card.count("positions_only (positions without velocities)") == 2
    snippet = card[card.index("import gymnasium as gym") : card.index("observation, _ = env.reset")]
    names = {}
    exec(snippet, names)
    assert names["env"].observation_space.shape == (5,)


def test_train_yaml_repeats_it(run, tmp_path):
    settings = yaml.safe_load((run.folder / "train.yaml").read_text())
    assert settings["positions_only"] is settings["delayed_reward"] is True and settings["env_kwargs"] == BOTH
    again = train(**{**settings, **TINY, "eval_episodes": 0}, output_dir="again")
    assert again.metrics["loss"] == run.metrics["loss"]


def test_a_checkpoint_plays_inspects_and_collects_in_its_view(run, tmp_path):
    policy = DecisionMambaPolicy.from_pretrained(run.folder)
    played = play_episodes(policy, "Hopper-v5", 100.0, 1, 0, False, policy.processor.env_kwargs)
    assert played.trajectories.state_dim == 5 and (played.returns_to_go == 100).all()
    settings = CollectSettings("Hopper-v5", policy=str(run.folder), episodes=2, max_episode_steps=6)
    folder, _ = collect(settings, tmp_path / "collected", progress=False)
    collected = load_trajectories(folder)
    assert collected.env_kwargs == BOTH and collected.state_dim == 5
    assert np.count_nonzero(collected.rewards) == collected.num_episodes == 2
    assert "neither are these data: positions_only (positions without velocities)" in (folder / "README.md").read_text()
    assert "positions_only" in json.loads((folder / "collection.json").read_text())["command"]
    looked_into = chosen_episodes(policy, str(folder), 2, 0)
    assert looked_into.trajectories.env_kwargs == BOTH


def test_data_are_read_as_the_policy_was_trained(run):
    seen = chosen_episodes(DecisionMambaPolicy.from_pretrained(run.folder), str(HOPPER), 3, 0).trajectories
    assert seen.state_dim == 5 and (seen.returns_to_go == np.repeat(seen.returns(), seen.lengths).astype("f4")).all()


def test_data_that_show_less_than_a_policy_saw_are_refused(run, tmp_path):
    whole = train(**{**TINY, "rollout_episodes": 0, "eval_episodes": 0, "max_steps": 1}, output_dir="whole")
    settings = CollectSettings("Hopper-v5", policy=str(run.folder), episodes=2, max_episode_steps=6)
    folder, _ = collect(settings, tmp_path / "collected", progress=False)
    with pytest.raises(ValueError, match=r"shows positions_only .* checkpoint was trained on all that there is"):
        chosen_episodes(whole.policy, str(folder), 1, 0)


@pytest.mark.parametrize("more", [{}, {"streaming": "true", "streaming_buffer": "600"}])
def test_streams_are_seen_alike(tmp_path, more):
    settings = {**TINY, **BOTH, "rollout_episodes": 0, "output_dir": tmp_path / "run", **more}
    main([f"--{name}={value}" for name, value in settings.items()])
    policy = DecisionMambaPolicy.from_pretrained(tmp_path / "run")
    assert policy.observation_shape == (5,) and policy.processor.env_kwargs == BOTH


def test_fine_tuning_and_resuming_keep_what_is_seen(run):
    for settings in ({"positions_only": True}, {}):
        with pytest.raises(ValueError, match=r"shows .*, but .*seen was trained on positions_only \(positions .* end"):
            train(dataset_name=str(HOPPER), env_id="Hopper-v5", model_name_or_path=str(run.folder), **settings)
    tuned = train(
        **{name: value for name, value in TINY.items() if name not in ("hidden_size", "embedding_size", "n_layer")}
        | {"state_size": None, "max_steps": 1, "eval_episodes": 1, "rollout_episodes": 0, **BOTH},
        model_name_or_path=str(run.folder),
        output_dir="tuned",
    )
    assert tuned.evaluation.env_kwargs == BOTH
    with pytest.raises(ValueError, match="it has delayed_reward=True, and the settings say unset"):
        train(
            **{**TINY, "max_steps": 6}, positions_only=True, output_dir=str(run.folder), resume_from_checkpoint="last"
        )


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"env_kwargs": {"positions_only": True}},
            "positions_only=true .*, but data set 'hopper-tiny-v5' shows all",
        ),
        ({**BOTH, "env_kwargs": {"delayed_reward": False}}, "delayed_reward=false for the environment, but data set"),
        ({**BOTH, "env_id": None}, "nothing names it: name one with --env_id"),
        ({**BOTH, "env_id": "Walker2d-v5"}, "would leave out some of the 17 numbers"),
    ],
)
def test_settings_that_disagree_are_refused_by_name(settings, why):
    with pytest.raises(ValueError, match=why):
        train(**{**TINY, **settings}, output_dir="wrong")

"""What the best checkpoint is chosen by: success where it is told, and one error before training elsewhere."""

import numpy as np
import pytest
from factories import HOPPER, TINY_RUN

from hf_decision_mamba import train
from hf_decision_mamba.collecting import CollectSettings, collect
from hf_decision_mamba.training.run import main

TINY = {
    **TINY_RUN,
    "eval_steps": 2,
    "save_steps": 2,
    "eval_episodes": 0,
    "rollout_episodes": 3,
    "load_best_model_at_end": "true",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_success_at_the_junction_is_shown_as_training_goes_and_chooses(tmp_path, capfd):
    maze = CollectSettings("hf_decision_mamba/TMaze-v0", policy="expert", episodes=40, env_kwargs={"length": [2, 3]})
    collect(maze, tmp_path / "maze", progress=False)
    settings = {**TINY, "dataset_name": tmp_path / "maze", "preset": "dema-bl3d", "output_dir": tmp_path / "run"}
    main([f"--{name}={value}" for name, value in settings.items()] + ["--metric_for_best_model=eval_success_rate"])
    lines = [line for line in capfd.readouterr().out.splitlines() if "eval_success_rate" in line]
    assert len(lines) == 2 and [line.strip()[:8] for line in lines] == ["step 2: ", "step 4: "]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"metric_for_best_model": "eval_success_rate"},
            "eval_success_rate: Hopper-v5 does not say which episodes were",
        ),
        ({"metric_for_best_model": "success_rate"}, "eval_success_rate: Hopper-v5 does not say which episodes were"),
        (
            {"metric_for_best_model": "eval_sucess_rate"},
            "sucess_rate is not measured; there are eval_loss, eval_return",
        ),
        (
            {"metric_for_best_model": "eval_success_rate", "rollout_episodes": 0},
            "eval_success_rate needs rollouts in training: --rollout_episodes 10",
        ),
        (
            {"metric_for_best_model": "eval_return_mean", "env_id": None},
            "eval_return_mean needs rollouts in training, and there is no environment to play in; take eval_loss",
        ),
    ],
)
def test_what_is_not_measured_is_refused_before_training(settings, why, tmp_path):
    known = {"dataset_name": str(HOPPER), "env_id": "Hopper-v5", "eval_max_episode_steps": 5, "output_dir": "run"}
    with pytest.raises(ValueError, match=why):
        train(**{**TINY, **known, **settings})
    assert not (tmp_path / "run").exists()


def test_asking_whether_success_is_told_changes_nothing_of_the_training(tmp_path):
    maze = CollectSettings("hf_decision_mamba/TMaze-v0", policy="expert", episodes=40, env_kwargs={"length": [2, 3]})
    collect(maze, tmp_path / "maze", progress=False)
    losses = [
        train(
            **{**TINY, "load_best_model_at_end": False, "logging_steps": 1, "embd_pdrop": 0.1},
            dataset_name=str(tmp_path / "maze"),
            output_dir=f"run-{metric}",
            metric_for_best_model=metric,
        ).metrics["loss"]
        for metric in ("eval_loss", "eval_success_rate")
    ]
    assert losses[0] == losses[1] and np.isfinite(losses[0])

"""What a run leaves for others: paths that mean something elsewhere, and curves of what was logged."""

from pathlib import Path

import pytest

from hf_decision_mamba.run_files import draw_learning_curve, learning_history, portable


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("org/name", "org/name"),
        ("datasets/hopper", "datasets/hopper"),
        ("./datasets/hopper", "datasets/hopper"),  # train.yaml's own `./` would be its folder
        ("{here}/datasets/hopper", "datasets/hopper"),
        ("../elsewhere/hopper", "hopper"),
        ("/data/me/hopper", "hopper"),
        ("~/hopper", "hopper"),
        ("minari:mujoco/hopper/expert-v0", "minari:mujoco/hopper/expert-v0"),
        ("train[:10%]", "train[:10%]"),
    ],
)
def test_settings_name_no_folder_of_this_machine(given, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert portable(given.format(here=tmp_path)) == written


LOG = [
    {"step": 2, "loss": 0.5, "learning_rate": 1e-3},
    {"step": 4, "loss": 0.25, "learning_rate": 1e-4},
    {"step": 4, "eval_loss": 0.375, "eval_runtime": 1.0, "eval_normalized_score": 50.0},
    {"step": 4, "train_loss": 0.3},
]


def test_the_history_is_of_losses_and_scores_by_step():
    assert learning_history(LOG) == {
        "loss": {2: 0.5, 4: 0.25},
        "eval_loss": {4: 0.375},
        "eval_normalized_score": {4: 50.0},
    }


def test_a_curve_needs_two_points(tmp_path: Path):
    assert not draw_learning_curve(tmp_path / "curve.png", learning_history(LOG[1:]), "mean squared error")
    assert not list(tmp_path.iterdir())
    for history in (learning_history(LOG), {"eval_return_mean": {1: -10.0, 2: -5.0}}):
        assert draw_learning_curve(tmp_path / "curve.png", history, "mean squared error")
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

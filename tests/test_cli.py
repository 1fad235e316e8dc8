"""The command line: its verbs reach their rooms, and what a user can put right is one line."""

import json
from pathlib import Path

import pytest

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaProcessor
from hf_decision_mamba.cli import main


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = DecisionMambaConfig(state_dim=11, act_dim=3, hidden_size=8, n_layer=1, state_size=2)
    DecisionMambaModel(config).save_pretrained(tmp_path)
    processor = DecisionMambaProcessor(
        state_mean=[0.0] * 11, state_std=[1.0] * 11, target_return=3600.0, context_length=4, env_id="Hopper-v5"
    )
    processor.save_pretrained(tmp_path)
    return tmp_path


def test_evaluate_prints_a_table_and_keeps_the_results(checkpoint, capsys):
    arguments = ["--episodes", "2", "--target-return", "1800", "3600", "--mode", "recurrent", "--seed", "5"]
    main(["evaluate", str(checkpoint), *arguments, "--output", str(checkpoint)])
    printed = capsys.readouterr().out
    assert "1800" in printed and "3600" in printed
    results = json.loads((checkpoint / "evaluation.json").read_text())
    assert (results["mode"], results["seed"], results["episodes_per_target"]) == ("recurrent", 5, 2)
    assert "Hopper-v5" in (checkpoint / "README.md").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evaluate", "nowhere/at-all"], "nowhere/at-all"),
        (["push", "no-such-folder", "me/policy"], "no-such-folder"),
        (["train", "--presett", "dmm"], "preset"),
    ],
)
def test_user_errors_are_one_line(argv, message, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in ("train", "evaluate", "push"))

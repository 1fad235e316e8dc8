"""What a run leaves for others, paths that mean something elsewhere and curves, and what it knows of itself."""

import json
from pathlib import Path

import pytest

from hf_decision_mamba.reporting.files import portable
from hf_decision_mamba.reporting.stretches import go_on, varying_settings
from hf_decision_mamba.training.record import (
    draw_learning_curve,
    learning_history,
    other_settings,
    plot_learning_curve,
    read_run,
    write_run,
)


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
        ("sb3:sac:/tmp/agent.zip", "sb3:sac:agent.zip"),
        ("sb3:sac:owner/name", "sb3:sac:owner/name"),
        ("sb3:{here}/agents/walker.zip", "sb3:agents/walker.zip"),
        ("hf://datasets/owner/name", "hf://datasets/owner/name"),
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


def test_curves_show_what_was_logged_twice(drawn, tmp_path: Path):
    assert not draw_learning_curve(tmp_path / "curve.png", learning_history(LOG[1:]), "mean squared error")
    assert not list(tmp_path.iterdir())
    for history, label in (
        (learning_history(LOG), "mean squared error"),
        ({"loss": {3: 1.0}, "eval_return_mean": {1: -10.0, 2: -5.0}}, "mean return"),
        ({"eval_return_mean": {1: 0.0, 2: 9.0}, "eval_normalized_score": {1: 3.0, 2: 4.0}}, "normalised score"),
        ({"eval_return_mean": {1: 0.0, 2: 9.0}, "eval_success_rate": {1: 0.0, 2: 0.5}}, "success rate"),
    ):
        assert draw_learning_curve(tmp_path / "curve.png", history, "mean squared error")
        (axes,) = drawn["curve.png"].axes
        (line,) = axes.lines
        shown = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert shown in history.values() and len(shown) == 2
        assert axes.get_title(loc="left") == label and axes.get_ylim()[0] <= 0
        if "normalised" in label:
            assert shown == {1: 3.0, 2: 4.0}
        assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_the_curve_of_a_folder_is_that_of_its_history(tmp_path: Path):
    history = learning_history([*LOG, {"step": 8, "eval_loss": 0.25, "eval_normalized_score": 60.0}])
    record = {"history": history, "loss_function": "cross-entropy"}
    (tmp_path / "training.json").write_text(json.dumps(record))  # with steps as texts
    for run, title in ((history, "loss"), (tmp_path, "cross-entropy"), (str(tmp_path), "cross-entropy")):
        losses, scores = plot_learning_curve(run).axes
        curves = {line.get_label(): (*line.get_xdata(), *line.get_ydata()) for line in losses.lines}
        assert curves == {"training": (2, 4, 0.5, 0.25), "held-out episodes": (4, 8, 0.375, 0.25)}
        assert [*scores.lines[0].get_ydata()] == [50, 60] and losses.get_title(loc="left") == title
    with pytest.raises(FileNotFoundError, match="no folder of a finished run"):
        plot_learning_curve(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="No curve: none of loss, eval_loss"):
        plot_learning_curve({"loss": {1: 0.5}})


RUN = {"seed": 42, "preset": "dmm", "per_device_train_batch_size": 64, "dataset_revision": "abc"}


@pytest.mark.parametrize(
    ("held", "asked", "others"),
    [
        ({}, {}, {}),
        ({}, {"seed": 1}, {"seed": (42, 1)}),
        ({}, {"data_seed": 42}, {}),  # the run's seed is that of its data
        ({}, {"data_seed": 1}, {"data_seed": (42, 1)}),
        ({}, {"preset": None, "context_length": 8}, {"preset": ("dmm", None), "context_length": (None, 8)}),
        ({}, {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "world_size": 2}, {}),
        ({}, {"dataset_revision": None}, {}),  # no connection
        ({}, {"dataset_revision": "def"}, {"dataset_revision": ("abc", "def")}),
        ({"model_name_or_path": "runs/a"}, {"model_name_or_path": "/home/me/runs/a"}, {}),
        ({"model_name_or_path": "me/a"}, {"model_name_or_path": None}, {"model_name_or_path": ("a", None)}),
        ({"streaming": True}, {"streaming": True}, {}),
        (
            {"streaming": True},
            {"streaming": True, "per_device_train_batch_size": 32, "world_size": 2},
            {"per_device_train_batch_size": (64, 32), "world_size": (1, 2)},
        ),
        ({"streaming": True}, {"streaming": True, "dataloader_num_workers": 2}, {"dataloader_num_workers": (0, 2)}),
    ],
)
def test_another_run_is_told_by_what_runs_keep(held, asked, others):
    assert other_settings({**RUN, **held}, {**RUN, **asked}) == others


def test_a_batch_of_another_size_is_another_run():
    (name, sizes), *more = other_settings(RUN, {**RUN, "gradient_accumulation_steps": 2}).items()
    assert name == "per_device_train_batch_size × gradient_accumulation_steps × processes"
    assert (sizes, more) == ((64, 128), [])


def part(**settings) -> dict:
    return {
        "settings": {"learning_rate": 1e-3, **settings},
        "hardware": "2 cores",
        "versions": {"torch": "2", "mujoco": "4"},
    }


def test_a_stretch_lasts_as_long_as_its_settings():
    begun = go_on([], 0, part())
    assert begun == [{"from_step": 0, "to_step": 0, **part()}]
    begun[-1] |= {"to_step": 20, "highest_learning_rate": 1e-3}
    for same in (part(), part(save_steps=7), {**part(), "versions": {"torch": "2", "mujoco": "5"}}):
        assert go_on(begun, 20, same) == [{**begun[0], **same}]  # saving and playing change no weights
    for new in (part(learning_rate=0.1), {**part(), "hardware": "4 cores"}, {**part(), "versions": {"torch": "3"}}):
        stretches = go_on(begun, 20, new)
        assert stretches == [*begun, {"from_step": 20, "to_step": 20, **new}]
        assert len(varying_settings(stretches)) == 1
    unknown = {"from_step": 0, "to_step": 20, "settings": None}
    assert go_on([unknown], 20, part()) == [unknown, {"from_step": 20, "to_step": 20, **part()}]


def test_a_checkpoint_keeps_its_run(tmp_path):
    assert read_run(tmp_path) is None
    run = {"episodes": 1, "transitions": 9, "stretches": go_on([], 0, part())}
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run
    broken = [
        "{",
        "[]",
        "{}",
        {**run, "stretches": []},
        {**run, "stretches": [{"settings": {}}]},
        {**run, "episodes": None},
    ]
    for content in broken:
        (tmp_path / "run.json").write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ValueError, match=r"run\.json cannot be read"):
            read_run(tmp_path)

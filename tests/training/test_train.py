"""`train`: the command's run from Python, of data that have a name or are in memory; windows cut by the Trainer."""

import json
import os
import shlex
import signal

import datasets
import numpy as np
import pytest
import torch
import yaml
from factories import HOPPER, TINY_RUN
from safetensors.torch import load_file
from transformers.utils.logging import is_progress_bar_enabled

import hf_decision_mamba as hdm
from hf_decision_mamba.reporting.console import StoppedBySignal
from hf_decision_mamba.training.arguments import DecisionMambaTrainingArguments
from hf_decision_mamba.training.run import main

SETTINGS = {
    **TINY_RUN,
    "logging_steps": 2,
    "held_out_fraction": 0.1,
    "eval_episodes": 0,
    "disable_tqdm": True,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trajectories() -> hdm.Trajectories:
    return hdm.load_trajectories(HOPPER)


def swings(episodes: int = 12, steps: int = 20) -> list[dict]:
    """Episodes of random numbers in the shape of Pendulum-v1's."""
    random = np.random.default_rng(0)
    return [
        {
            "observations": random.normal(size=(steps, 3)).astype(np.float32),
            "actions": random.uniform(-1, 1, (steps, 1)).astype(np.float32),
            "rewards": random.normal(size=steps).astype(np.float32),
        }
        for _ in range(episodes)
    ]


def flat(episodes: list[dict]) -> dict:
    columns = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    ends = np.cumsum([len(episode["rewards"]) for episode in episodes]) - 1
    return {**columns, "timeouts": np.isin(np.arange(ends[-1] + 1), ends)}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_name_and_its_trajectories_train_to_the_commands_weights(tmp_path, trajectories, monkeypatch):
    monkeypatch.setattr("sys.argv", ["notebook"])
    options = {**SETTINGS, "lr_scheduler_kwargs": {"num_cycles": 0.5}}
    words = [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}" for name, value in options.items()]
    metrics = main([f"--dataset_name={HOPPER}", *words, "--output_dir=command"])
    named = hdm.train(HOPPER, output_dir=tmp_path / "named", **options)
    given = hdm.train(trajectories, output_dir="given", **options)
    assert same(weights(named.folder), weights(tmp_path / "command"))
    assert same(weights(given.folder), weights(tmp_path / "command"))
    assert {**named.metrics, "train_runtime": 0} == {**metrics, "train_runtime": 0}
    assert (named.evaluation, given.evaluation) == (None, None)

    records = [json.loads((result.folder / "training.json").read_text()) for result in (named, given)]
    command = shlex.split(records[0]["command"])
    assert command[:2] == ["hf-decision-mamba", "train"] and "--disable_tqdm=true" in command
    assert f"--dataset_name={HOPPER.name}" in command and '--lr_scheduler_kwargs={"num_cycles": 0.5}' in command
    assert not any("output_dir" in word and str(tmp_path) in word for word in command)
    assert records[1]["command"] is None and records[1]["dataset"]["in_memory"]
    assert records[1]["dataset"]["name"] == HOPPER.stem == records[0]["dataset"]["name"]
    assert "in_memory" not in records[0]["dataset"]


def test_data_in_memory_train_and_act_and_say_that_no_command_repeats_them(capsys):
    bars = is_progress_bar_enabled()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    played = {"env_id": "Pendulum-v1", "env_kwargs": {"g": 9.0}, "target_return": -100, "eval_episodes": 2}
    options = {**SETTINGS, **played, "eval_max_episode_steps": 3}
    first = hdm.train(swings(), dataset_name="me/swings", **options)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert is_progress_bar_enabled() == bars
    assert first.folder.name == "dema-b3ld-swings" and "me/swings: 12 episodes (1 held out)" in capsys.readouterr().out
    assert first.policy.act(np.zeros(3)).shape == (1,)
    assert first.policy.processor.target_return == -100
    assert first.metrics["eval_return_mean"] == first.evaluation.summary()[0]["return_mean"]
    assert first.evaluation.env_kwargs == {"g": 9.0} and len(first.evaluation.episodes) == 2

    text = (first.folder / "train.yaml").read_text()
    settings = yaml.safe_load(text)
    assert "dataset_name" not in settings and "no command repeats" in text
    card = (first.folder / "README.md").read_text()
    assert "`me/swings` (given in memory)" in card and "no command repeats the run" in card
    assert "huggingface.co/datasets/me/swings" not in card and "\ndatasets:" not in card
    (program,) = [line for line in card.splitlines() if line.startswith("hdm.train(")]
    names = {"hdm": hdm, "yaml": yaml, "data": flat(swings()), "open": lambda _: text}
    again = eval(program.replace(", **", ", output_dir='again', disable_tqdm=True, **", 1), names)
    assert same(weights(again.folder), weights(first.folder))
    assert again.metrics["eval_return_mean"] == first.metrics["eval_return_mean"]


def test_a_loaded_data_set_trains_and_a_run_in_memory_is_resumed():
    rows = datasets.Dataset.from_list([{name: values.tolist() for name, values in row.items()} for row in swings()])
    whole = hdm.train(rows, output_dir="whole", **SETTINGS)
    assert json.loads((whole.folder / "training.json").read_text())["dataset"]["name"] == "in-memory"
    half = {**SETTINGS, "max_steps": 2, "save_steps": 1, "lr_scheduler_type": "constant"}
    hdm.train(rows, output_dir="parts", **half)
    longer = hdm.train(rows, output_dir="parts", **{**half, "max_steps": 3}, resume_from_checkpoint="last")
    assert longer.metrics["global_step"] == 3
    with pytest.raises(ValueError, match="dataset_name=in-memory"):
        hdm.train(rows, output_dir="parts", dataset_name="others", resume_from_checkpoint="last", **half)
    with pytest.raises(ValueError, match="already holds a run"):
        hdm.train(rows, output_dir="parts", **half)


@pytest.mark.parametrize(
    ("data", "settings", "error", "message"),
    [
        (42, {}, TypeError, "trajectories come from .* not from int"),
        (np.zeros((3, 3)), {}, TypeError, "not from ndarray"),
        (None, {}, ValueError, "No data set"),
        ("nowhere.parquet", {}, FileNotFoundError, "no data set at 'nowhere.parquet'"),
        ("a", {"dataset_name": "b"}, ValueError, "data and dataset_name both"),
        (swings(2), {"max_step": 3}, ValueError, "^Unknown setting 'max_step'; did you mean max_steps"),
        (swings(2), {"qqqqqqq": 3}, ValueError, "hf-decision-mamba train --help lists all settings"),
        (swings(2), {"max_steps": "many"}, ValueError, "^max_steps='many': invalid int value"),
        (swings(2), {"max_steps": 2.5}, ValueError, "^max_steps=2.5: invalid int value"),
        (swings(2), {"learning_rate": True}, ValueError, "^learning_rate=True: invalid float value"),
        (swings(2), {"learning_rate": -1}, ValueError, "learning_rate=-1.0 must be at least 0"),
        (swings(2), {"architecture": "lstm"}, ValueError, "^architecture='lstm': invalid choice"),
        (swings(2), {"env_kwargs": {"g": {1, 2}}}, TypeError, "env_kwargs=.* what JSON can"),
        (swings(2), {"target_return": object()}, TypeError, "^target_return is an object; pass a number"),
        (swings(2), {"output_dir": ["a", "b"]}, TypeError, "^output_dir is a list"),
        (swings(2), {"streaming": True}, ValueError, "streaming reads files"),
        (swings(2), {"dataset_revision": "abc"}, ValueError, "revision"),
        (swings(2), {"dataset_name": 3}, TypeError, "dataset_name=3 must be a text"),
        (swings(2), {"dataset_name": str(HOPPER)}, ValueError, "is a file or folder here"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_written(data, settings, error, message, tmp_path):
    with pytest.raises(error, match=message):
        hdm.train(data, **{**SETTINGS, **settings})
    assert not (tmp_path / "runs").exists()


def test_a_notebook_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    with pytest.raises(TypeError):
        hdm.train(42, torch_compile=True, torch_compile_mode="reduce-overhead", **SETTINGS)
    assert {name for name in os.environ if name.startswith("ACCELERATE_")} == {"ACCELERATE_DYNAMO_MODE"}
    assert os.environ["ACCELERATE_DYNAMO_MODE"] == "default"


def test_trajectories_have_been_read(trajectories):
    with pytest.raises(ValueError, match=r"dataset_split=train\[:10%\] says how data are read"):
        hdm.train(trajectories, dataset_split="train[:10%]", **SETTINGS)


def test_an_interrupt_says_how_to_go_on(trajectories, monkeypatch):
    step = hdm.DecisionMambaTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(hdm.DecisionMambaTrainer, "training_step", interrupted)
    with pytest.raises(StoppedBySignal, match=r"checkpoint-2 is complete: .* --resume_from_checkpoint last"):
        hdm.train(trajectories, save_steps=1, save_total_limit=1, output_dir="cut", **SETTINGS)


def arguments(**settings) -> DecisionMambaTrainingArguments:
    quiet = {"eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    return DecisionMambaTrainingArguments(output_dir="out", max_steps=2, warmup_steps=0, **{**quiet, **settings})


def model_and_processor(trajectories) -> tuple[hdm.DecisionMambaModel, hdm.DecisionMambaProcessor]:
    torch.manual_seed(0)
    sizes = {name: SETTINGS[name] for name in ("hidden_size", "embedding_size", "n_layer", "state_size")}
    config = hdm.DecisionMambaConfig.from_preset("dema-b3ld", state_dim=11, act_dim=3, **sizes)
    mean, std = trajectories.statistics().state_mean, trajectories.statistics().state_std
    processor = hdm.DecisionMambaProcessor(state_mean=mean, state_std=std, return_scale=1000.0, context_length=4)
    return hdm.DecisionMambaModel(config), processor


def test_the_trainer_cuts_windows_of_trajectories(trajectories):
    model, processor = model_and_processor(trajectories)
    parts = dict(zip(("train_dataset", "eval_dataset"), trajectories.split(0.2, 0), strict=True))
    trainer = hdm.DecisionMambaTrainer(model, arguments(), processing_class=processor, **parts)
    windows = {"state_mean": processor.state_mean, "state_std": processor.state_std, "return_scale": 1000.0}
    expected = hdm.WindowDataset(parts["train_dataset"], 4, **windows)
    held_out = hdm.WindowDataset.covering(parts["eval_dataset"], 4, **windows)
    for found, wanted in ((trainer.train_dataset, expected), (trainer.eval_dataset, held_out)):
        assert len(found) == len(wanted)
        batches = found.__getitems__([0, 5, 9]), wanted.__getitems__([0, 5, 9])
        assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[1])
    trainer.train()
    both = {name: parts["eval_dataset"] for name in ("here", "there")}
    several = hdm.DecisionMambaTrainer(model, arguments(), processing_class=processor, eval_dataset=both)
    assert several.evaluate()["eval_here_loss"] == trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_dataset": np.zeros((8, 11))}, "^train_dataset is a ndarray; pass Trajectories"),
        ({"train_dataset": "org/name"}, "^train_dataset='org/name' is a str; pass Trajectories"),
        ({"eval_dataset": {"a": torch.zeros(3)}}, r"^eval_dataset\['a'\] is a Tensor; pass Trajectories"),
        ({"model": "dema-b3ld"}, "^model='dema-b3ld' is a str; pass a model"),
        ({"args": {"max_steps": 3}}, "^args is a dict; pass transformers' TrainingArguments"),
        ({"processing_class": None}, "^processing_class is a NoneType; pass the DecisionMambaProcessor by which"),
    ],
)
def test_the_trainer_says_what_to_pass(given, message, trajectories):
    model, processor = model_and_processor(trajectories)
    usual = {"model": model, "args": arguments(), "train_dataset": trajectories, "processing_class": processor}
    with pytest.raises(TypeError, match=message):
        hdm.DecisionMambaTrainer(**{**usual, **given})

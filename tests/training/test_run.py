"""Training: settings, exact losses, resuming to the bit, scores among the metrics, and the whole command."""

import contextlib
import gc
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium
import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from factories import BREAKOUT, HOPPER, ROOT, SAMPLES, TINY_MODEL, TINY_RUN, Reach, reaching
from hub_server import Blob, Fault, LoopbackHub, Repository
from processes import run_file, run_python
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import AutoConfig, DecisionTransformerConfig, DecisionTransformerModel

import hf_decision_mamba.reporting.console
import hf_decision_mamba.training.callbacks
import hf_decision_mamba.training.run
import hf_decision_mamba.training.task
from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaPolicy, DecisionMambaProcessor
from hf_decision_mamba.baselines.architectures import paper_parameter_count
from hf_decision_mamba.data import Trajectories, WindowDataset, load_trajectories, open_stream
from hf_decision_mamba.evaluation.result import EvaluationResult
from hf_decision_mamba.evaluation.rollouts import evaluate_policy
from hf_decision_mamba.model import PRESETS
from hf_decision_mamba.reporting.console import report_user_errors
from hf_decision_mamba.sharing.push import PushError
from hf_decision_mamba.sharing.remote_code import CODE_FILES
from hf_decision_mamba.training.arguments import (
    DataArguments,
    DecisionMambaTrainingArguments,
    ModelArguments,
    parse_arguments,
)
from hf_decision_mamba.training.callbacks import RolloutCallback, score_metrics
from hf_decision_mamba.training.checkpoints import last_complete_checkpoint
from hf_decision_mamba.training.factory import build
from hf_decision_mamba.training.run import goes_to_the_device, main, train
from hf_decision_mamba.training.task import RunData
from hf_decision_mamba.training.trainer import DecisionMambaTrainer, action_loss

# What differs in the command lines of the others.
ATARI = {"preset": "dema-atari", "dataset_name": BREAKOUT, "per_device_eval_batch_size": 32}
BASELINES = {
    "decision_transformer": {**dict.fromkeys(TINY_MODEL), "hidden_size": 8, "architecture": "decision_transformer"},
    "rvs": {**dict.fromkeys(TINY_MODEL), "hidden_size": 8, "architecture": "rvs"},
    "bc": {**dict.fromkeys(TINY_MODEL), "hidden_size": 8, "architecture": "bc"},
}
PAPERS = [name for name in PRESETS if name != "gru"]  # which is no paper's
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}/src:{ROOT}/tests"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """Work in another folder than the repository: paths must not depend on it (and mujoco logs into it)."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trajectories() -> Trajectories:
    return load_trajectories(HOPPER)


@pytest.fixture(scope="module")
def ragged(trajectories) -> WindowDataset:
    return ragged_windows(trajectories)


@pytest.fixture(scope="module")
def frames() -> Trajectories:
    return load_trajectories(BREAKOUT)


def ragged_windows(trajectories: Trajectories) -> WindowDataset:
    """Eighty windows of four steps that begin near the ends of their episodes: most are padded, all differently."""
    ends = trajectories.step_offsets()[1:]
    starts = np.sort(np.concatenate([ends - distance for distance in (1, 2, 3, 5)]))
    return WindowDataset(trajectories, 4, return_scale=1000.0, starts=starts)


def tiny_model(seed: int = 0, **overrides) -> DecisionMambaModel:
    torch.manual_seed(seed)
    config = DecisionMambaConfig.from_preset("dema-b3ld", state_dim=11, act_dim=3, **{**TINY_MODEL, **overrides})
    return DecisionMambaModel(config)


def tiny_atari_model() -> DecisionMambaModel:
    torch.manual_seed(0)
    return DecisionMambaModel(DecisionMambaConfig.from_preset("dema-atari", act_dim=4, **TINY_MODEL, embd_pdrop=0.0))


def tiny_arguments(output_dir: Path, **settings) -> DecisionMambaTrainingArguments:
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "eval_strategy": "no",
        "save_strategy": "no",
        "warmup_steps": 0,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    alone = "WORLD_SIZE" not in os.environ
    return DecisionMambaTrainingArguments(output_dir=str(output_dir), use_cpu=alone, **{**defaults, **settings})


def command_line(output_dir: Path, **settings) -> list[str]:
    """Arguments of a run that takes a second or two; settings that are None are left out."""
    defaults = {
        "dataset_name": HOPPER,
        **TINY_RUN,
        "held_out_fraction": 0.1,
        "eval_episodes": 0,
        "output_dir": output_dir,
    }
    return [f"--{name}={value}" for name, value in {**defaults, **settings}.items() if value is not None]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# ------------------------------------------------------------------------------------------------------- settings


DEFAULT_CONFIG = ROOT / "configs" / "hopper-medium-replay.yaml"


def test_the_shipped_settings_are_those_of_the_readme(trajectories):
    model_args, data, evaluation, args = parse_arguments([], DEFAULT_CONFIG)
    model, processor, window_length = build(model_args, data, trajectories)
    config = model.config
    assert (config.embedding_size, config.hidden_size, config.state_size, config.n_layer) == (128, 64, 16, 3)
    assert [Path(name).resolve() for name in data.dataset_name] == [ROOT / "datasets" / "hopper-medium-replay"]
    assert (processor.context_length, window_length, processor.return_scale) == (10, 10, 1000.0)
    assert data.return_temperature == 0.2
    assert (evaluation.eval_episodes, args.output_dir) == (20, "runs/dema-b3ld-hopper-medium-replay")
    assert (args.max_steps, args.per_device_train_batch_size, args.learning_rate) == (1500, 64, 1e-3)
    assert (args.warmup_steps, args.lr_scheduler_type, args.max_grad_norm) == (150, "cosine", 0.25)


def test_the_command_line_wins_over_the_yaml_file(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "learning_rate: 1e-4\nmax_steps: 7\ntarget_return: [3600, 1800]\nuse_cpu: yes\npreset:\n"
        "dataset_columns: {observations: obs}\ndataset_name: ./here\noutput_dir: there\n"
    )
    model, data, evaluation, args = parse_arguments([str(config), "--max_steps", "9"])
    assert (args.learning_rate, args.max_steps, args.use_cpu, args.output_dir) == (1e-4, 9, True, "there")
    assert evaluation.target_return == [3600.0, 1800.0]
    assert model.preset == "dema-b3ld"  # an empty value is the default
    assert data.columns() == {"observations": "obs"}
    assert [Path(name).resolve() for name in data.dataset_name] == [tmp_path / "here"]  # ./ means: beside the file


def test_paths_may_begin_at_home_and_data_sets_be_several(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text(
        "dataset_name: [~/a.parquet, ./b.parquet, org/c]\noutput_dir: ~/out\nmodel_name_or_path: ~/model\n"
    )
    model, data, _, args = parse_arguments(["~/run.yaml", "--resume_from_checkpoint=~/out/checkpoint-2"])
    assert data.dataset_name[::2] == [f"{tmp_path}/a.parquet", "org/c"]
    assert Path(data.dataset_name[1]).resolve() == tmp_path / "b.parquet"
    assert (args.output_dir, model.model_name_or_path) == (f"{tmp_path}/out", f"{tmp_path}/model")
    assert args.resume_from_checkpoint == f"{tmp_path}/out/checkpoint-2"
    assert parse_arguments(["~/run.yaml", "--dataset_name", "d", "~/e"])[1].dataset_name == ["d", f"{tmp_path}/e"]


def test_parts_of_a_preset_can_be_taken_out(trajectories):
    model_args, data, _, _ = parse_arguments(
        ["--preset=dmm", "--local_mixer=none", "--use_gate=false", "--use_cpu=true"]
    )
    model, _, _ = build(model_args, data, trajectories)
    assert (model.config.local_mixer, model.config.use_gate, model.config.selective) == (None, False, True)
    with pytest.raises(ValueError, match="invalid choice: 'all'"):
        parse_arguments(["--preset=dmm", "--local_mixer=all"])


@pytest.mark.parametrize("preset", PAPERS)
def test_every_preset_has_the_settings_of_its_paper(preset, trajectories, frames):
    model_args, data, evaluation, args = parse_arguments([str(ROOT / "configs" / f"{preset}.yaml")])
    assert model_args.preset == preset
    images = PRESETS[preset].get("state_type") == "image"
    assert (data.dataset_name is None) == images  # for Atari on the command line
    model, processor, window_length = build(model_args, data, frames if images else trajectories)
    assert window_length == processor.context_length == {"dema": 30 if images else 20, "deci": 20}.get(preset[:4], 8)
    assert args.learning_rate == (6e-4 if images else 1e-4)
    assert (args.num_train_epochs, args.adam_beta2) == ((5, 0.95) if images else (3, 0.999))
    assert evaluation.eval_episodes == (10 if images else 100)
    if not images and preset.startswith("dema"):
        assert evaluation.target_return == [3600.0 * times for times in (1, 2, 10, 20)]
    assert model.num_parameters() > 80_000


def test_every_settings_file_is_of_a_preset_or_the_default():
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == {*PAPERS, DEFAULT_CONFIG.stem}


@pytest.mark.parametrize(
    ("argv", "by_default", "by_name"),
    [
        ([], 1000, 1000),
        (["--preset=dmm"], 1000, 1000),
        (["--dataset_name", str(ROOT / "configs" / ".." / "datasets" / "hopper-medium-replay")], 1000, 1000),
        (["--dataset_name=mine.parquet"], None, 1000),  # who names a paper's file for other data asks for its settings
        (["--dataset_name=mine.parquet", "--return_scale=5"], 5, 5),
        (["--model_name_or_path=there"], None, None),
        (["--model_name_or_path=there", "--return_scale=5"], 5, 5),
    ],
)
def test_the_return_scale_of_the_default_file_is_for_its_data(argv, by_default, by_name):
    assert parse_arguments(argv, DEFAULT_CONFIG)[1].return_scale == by_default
    assert parse_arguments([str(DEFAULT_CONFIG), *argv])[1].return_scale == by_name


@pytest.mark.parametrize(
    "argv",
    [
        ["--dataset_name=mine.parquet"],
        ["--train_mode=sequences"],
        ["--streaming"],
        ["--conditioning=goal"],
    ],
)
def test_the_default_file_draws_by_return_its_own_data_alone_and_where_it_can(argv):
    arguments = parse_arguments(argv, DEFAULT_CONFIG)
    assert arguments[1].return_temperature is None and "return_temperature left out" in arguments.remarks[-1]
    assert parse_arguments([*argv, "--return_temperature=1"], DEFAULT_CONFIG)[1].return_temperature == 1
    assert parse_arguments(["--preset=dmm", "--model_name_or_path=there"], DEFAULT_CONFIG)[1].return_temperature == 0.2


@pytest.mark.parametrize(
    ("argv", "folder"),
    [
        (["--dataset_name", "some/hopper.v2"], "runs/dema-b3ld-hopper.v2"),
        (["--dataset_name", str(HOPPER), "--preset", "dmm"], "runs/dmm-hopper-tiny-v5"),
        (["--dataset_name", "a/b", "--architecture", "bc"], "runs/bc-b"),
        (["--dataset_name", "a/b", "--model_name_or_path", "me/dema"], "runs/dema-b"),
        (["--dataset_name", "a/b", "c/d"], "runs/dema-b3ld-b-d"),
        (["--dataset_name", f"{HOPPER.parent}/hopper-tin?-v5.*"], "runs/dema-b3ld-hopper-tiny-v5"),
        (["--dataset_name", "a/b", "c/d", "e/f", "g"], "runs/dema-b3ld-b-d-2-more"),
        (["--dataset_name", "a/b", "--output_dir", "here"], "here"),
        (["--dataset_name", "a/b", "--seed", "42"], "runs/dema-b3ld-b"),
        (["--dataset_name", "a/b", "--seed", "1"], "runs/dema-b3ld-b-seed1"),
    ],
)
def test_a_run_without_a_folder_is_named_after_model_and_data(argv, folder):
    assert parse_arguments(argv)[3].output_dir == folder


@pytest.mark.parametrize(
    ("argv", "ours", "published"),
    [
        (["--embedding_size=128"], 164_227, 165_007),  # DeMa's own number, hopper
        (["--preset=dema-post"], 479_363, 479_363 + (128 * 11 + 11) + (128 + 1)),
        (["--preset=dmm"], 123_587, 123_587),  # DMM's own number, hopper
        (["--architecture=decision_transformer"], 858_767, 727_695),  # as in DeMa's tables, hopper
        (["--architecture=rvs"], 69_891, 69_891),
        (["--architecture=bc"], 69_891 - 256, 69_891 - 256),
        (["--architecture=gru"], 162_607, 162_607),
    ],
    ids=["dema-b3ld", "dema-post", "dmm", "decision_transformer", "rvs", "bc", "gru"],
)
def test_parameters_are_counted_as_the_papers_do(trajectories, argv, ours, published):
    model_args, data_args, *_ = parse_arguments(argv)
    model, *_ = build(model_args, data_args, trajectories)
    preset = model_args.preset if model_args.builds_a_preset else None
    assert (model.num_parameters(), paper_parameter_count(model, preset)) == (ours, published)


@pytest.mark.parametrize(
    ("yaml", "argv", "message"),
    [
        ("architecture: mamba", [], r"argument --architecture: invalid choice: 'mamba'"),
        ("learning_rat: 1", [], r"run.yaml: unknown setting 'learning_rat'; did you mean learning_rate\?"),
        ("- 1", [], r"run.yaml must hold lines of the form `setting: value`, not a list"),
        ("a: [", [], r"run.yaml is not valid YAML: "),
        ("[" * 500, [], r"run.yaml is not valid YAML: maximum recursion depth"),
        ("max_steps: many", [], r"argument --max_steps/--max-steps: invalid int value: 'many'"),
        ("eval_mode: fast", [], r"argument --eval_mode/--eval-mode: invalid choice"),
        ("max_steps: 1", ["--learningrate=1"], r"Unknown argument '--learningrate=1'; did you mean --learning_rate\?"),
        ("max_steps: 1", ["--max_step", "3"], r"Unknown argument '--max_step'; did you mean --max_steps\?"),
    ],
)
def test_wrong_settings_are_named(tmp_path, yaml, argv, message):
    (tmp_path / "run.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(tmp_path / "run.yaml"), *argv])


def test_help_lists_every_group_of_settings(capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.startswith("usage: accelerate launch train.py [settings.yaml] [--setting value ...]")
    for line in ("model:", "data:", "evaluation in the environment:", "training (transformers.TrainingArguments):"):
        assert line in text
    assert "--dataset-name" not in text  # one spelling each


# ------------------------------------------------------------------------------------------------------ the trainer


def test_no_weight_decay_on_dynamics_norms_biases_and_embeddings(tmp_path):
    trainer = DecisionMambaTrainer(tiny_model(use_timestep_embedding=True), tiny_arguments(tmp_path))
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    mixer = "layers.0.mixer"
    assert {f"{mixer}.in_proj.weight", f"{mixer}.out_proj.weight", "embed_state.weight"} <= decayed
    free = {f"{mixer}.A_log", f"{mixer}.D", f"{mixer}.dt_proj.bias", "norm_f.weight", "embed_timestep.weight"}
    assert free <= {name for name, _ in trainer.model.named_parameters()}
    assert not free & decayed
    assert not [name for name in decayed if "norm" in name or name.endswith("bias")]
    groups = trainer.create_optimizer().param_groups
    assert [len(group["params"]) for group in groups] == [
        len(decayed),
        len(list(trainer.model.parameters())) - len(decayed),
    ]
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]


@pytest.mark.parametrize(
    "make_model",
    [
        pytest.param(lambda: tiny_model(), id="decision_mamba"),
        pytest.param(lambda: _tiny_decision_transformer(), id="decision_transformer"),
        pytest.param(lambda: tiny_atari_model(), id="images, discrete actions"),
    ],
)
def test_accumulated_batches_equal_one_batch(tmp_path, ragged, frames, make_model):
    """4 × 16 windows, padded differently, take the same steps as 1 × 64: the loss is one mean over all entries."""
    trained = []
    for batch, accumulation in ((64, 1), (16, 4)):
        torch.manual_seed(0)
        model = make_model()
        discrete = getattr(model.config, "action_type", None) == "discrete"
        ends = frames.step_offsets()[1:]
        starts = np.sort(np.concatenate([ends - distance for distance in (1, 2, 3, 5, 8)]))
        args = tiny_arguments(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=3 if discrete else 5,  # more than the one or two steps of an epoch
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=1.0,
        )
        data = WindowDataset(frames, 4, starts=starts) if discrete else ragged
        trainer = DecisionMambaTrainer(model, args, train_dataset=data)
        trainer.train()
        trained.append((model.state_dict(), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    (one, one_losses), (four, four_losses) = trained
    torch.testing.assert_close(four, one, atol=1e-6, rtol=0)
    assert four_losses == pytest.approx(one_losses, abs=1e-6)


def _tiny_decision_transformer() -> DecisionTransformerModel:
    config = DecisionTransformerConfig(
        state_dim=11,
        act_dim=3,
        hidden_size=8,
        n_layer=1,
        n_head=1,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return DecisionTransformerModel(config)


# Run by test_two_processes_are_one_training in a world of one and of two: the same windows per step.


def train_ragged(folder: Path, resume_from: Path | None = None) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    # 80 windows make epochs of 5 steps of 16: step 7 lies within the second one.
    args = tiny_arguments(
        folder,
        per_device_train_batch_size=16 // world,
        max_steps=12,
        optim="sgd",
        learning_rate=0.5,
        save_strategy="steps",
        save_steps=7,
    )
    trainer = DecisionMambaTrainer(tiny_model(), args, train_dataset=ragged_windows(load_trajectories(HOPPER)))
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    trainer.save_model()


def train_in_two_processes(folder: Path) -> None:
    """Do what torchrun does, but by forks."""
    place = {"run_id": "tests", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0}
    launch = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", **place)
    elastic_launch(launch, train_in_two)(folder)


def train_in_two(folder: Path) -> None:
    """Train, resume, and lose the second process within the last save."""
    train_ragged(folder / "two")
    train_ragged(folder / "resumed", resume_from=folder / "two" / "checkpoint-7")
    if os.environ["RANK"] == "1":
        torch.save = lambda states, path: os._exit(1)  # its random state, the only thing that it writes
    train_ragged(folder / "lost", resume_from=folder / "two" / "checkpoint-7")


def test_two_processes_are_one_training(tmp_path, capsys):
    """Two processes with 8 windows each take the steps of one with 16, also after resuming within an epoch.

    Nobody says `use_cpu`, and a checkpoint is complete when both have written what they have to.
    """
    environment = {**ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""}
    done = run_file(__file__, "train_in_two_processes", str(tmp_path), environment=environment)
    assert done.returncode == 1 and "ChildFailedError" in done.stderr, done.stderr[-2000:]
    train_ragged(tmp_path / "one")
    for folder in ("two", "resumed"):
        torch.testing.assert_close(weights(tmp_path / folder), weights(tmp_path / "one"), atol=1e-6, rtol=0)
    states = [
        json.loads((tmp_path / name / "checkpoint-12" / "trainer_state.json").read_text()) for name in ("one", "two")
    ]
    losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in states]
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)

    lost = tmp_path / "lost" / "checkpoint-12"
    written = {path.name for path in lost.iterdir()}
    assert written >= {"rng_state_0.pth", "optimizer.pt"} and "rng_state_1.pth" not in written
    assert last_complete_checkpoint(tmp_path / "lost") is None
    assert f"Skipping {lost}, which is not complete: trainer_state.json cannot be read" in capsys.readouterr().out
    (tmp_path / "two" / "checkpoint-12" / "rng_state_1.pth").unlink()
    assert last_complete_checkpoint(tmp_path / "two") == tmp_path / "two" / "checkpoint-7"
    assert "rng_state_1.pth is missing or cut short" in capsys.readouterr().out


@pytest.mark.parametrize("place", [{"RANK": "1"}, {"LOCAL_RANK": "1", "RANK": "1"}])
def test_a_process_that_is_one_of_nobody_knows_how_many_is_refused(tmp_path, monkeypatch, place):
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"RANK=1 .* but no WORLD_SIZE: this process would train alone, into the same"):
        tiny_arguments(tmp_path)


def test_processes_that_do_not_become_one_training_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # but no LOCAL_RANK, by which accelerate knows them on accelerators
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    with pytest.raises(ValueError, match=r"2 processes were started, but not as one training.*torchrun or accelerate"):
        DecisionMambaTrainingArguments(output_dir=str(tmp_path))


def test_eval_loss_is_the_mean_over_all_action_entries(tmp_path, trajectories):
    _, held_out = trajectories.split(0.2, seed=0)
    dataset = WindowDataset.covering(held_out, 7, return_scale=1000.0)
    model = tiny_model()
    trainer = DecisionMambaTrainer(model, tiny_arguments(tmp_path, per_device_eval_batch_size=5), eval_dataset=dataset)
    measured = trainer.evaluate()["eval_loss"]

    batch = dataset.__getitems__(np.arange(len(dataset)))
    with torch.no_grad():
        predictions = model.eval()(**{k: v for k, v in batch.items() if k != "labels"}).action_preds
    errors = (predictions - batch["actions"])[batch["attention_mask"].bool()].double()
    assert errors.numel() == held_out.num_steps * held_out.act_dim  # every transition once
    assert measured == pytest.approx(errors.square().mean().item(), rel=1e-6)


def test_eval_loss_of_discrete_actions_is_the_mean_cross_entropy_over_all_steps(tmp_path, frames):
    _, held_out = frames.split(0.2, seed=0)
    dataset = WindowDataset.covering(held_out, 7)
    model = tiny_atari_model()
    trainer = DecisionMambaTrainer(model, tiny_arguments(tmp_path, per_device_eval_batch_size=5), eval_dataset=dataset)
    measured = trainer.evaluate()["eval_loss"]

    batch = dataset.__getitems__(np.arange(len(dataset)))
    with torch.no_grad():
        output = model.eval()(**batch)
    real = batch["attention_mask"].bool()
    chosen = output.action_preds.double().log_softmax(-1)[real].gather(1, batch["actions"][real][:, None])
    assert chosen.numel() == held_out.num_steps  # every step once
    assert measured == pytest.approx(-chosen.mean().item(), rel=1e-6)
    # The same as the model's own loss, and as that of a model that has none.
    assert output.loss.item() == pytest.approx(measured, rel=1e-6)
    assert action_loss(output, batch["labels"]).item() == pytest.approx(measured, rel=1e-6)


def test_a_model_without_loss_trains_too(tmp_path, trajectories):
    """transformers' DecisionTransformer: no `labels`, no `previous_actions`, no loss of its own."""
    dataset = WindowDataset(trajectories, 4, return_scale=1000.0)
    model = _tiny_decision_transformer()
    before = model.predict_action[0].weight.detach().clone()
    held_out = WindowDataset.covering(trajectories, 4, return_scale=1000.0)
    trainer = DecisionMambaTrainer(model, tiny_arguments(tmp_path), train_dataset=dataset, eval_dataset=held_out)
    trainer.train()
    assert trainer.state.global_step == 3
    assert not torch.equal(before, model.predict_action[0].weight)
    assert trainer.evaluate()["eval_loss"] > 0


# A source of each format, as `--dataset_name` names it, and the settings that it needs.
SOURCES = {
    "parquet, one row per episode": {"dataset_name": HOPPER},
    "LeRobot, one row per step": {"dataset_name": SAMPLES / "lerobot"},
    "Minari": {"dataset_name": "minari:hopper/sample-v0"},
    "D4RL": {"dataset_name": SAMPLES / "d4rl.hdf5"},
    "pickle": {"dataset_name": SAMPLES / "dt.pkl"},
    "actions beyond their space": {"dataset_name": SAMPLES / "door-human.parquet", "held_out_fraction": 0.5},
    "DQN replay": {**ATARI, "dataset_name": SAMPLES / "dqn-replay-Pong", "held_out_fraction": 0},
}


@pytest.mark.parametrize("source", [*SOURCES, "arrays in memory"])
def test_ten_steps_of_training_from_each_source(source, tmp_path, trajectories, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SAMPLES / "minari"))
    if source in SOURCES:
        settings = {
            "max_steps": 10,
            "logging_steps": 5,
            "eval_strategy": "no",
            "save_strategy": "no",
            **SOURCES[source],
        }
        main(command_line(tmp_path / "run", **settings))
        trained = json.loads((tmp_path / "run" / "training.json").read_text())
    else:
        columns = {"observations": trajectories.observations, "actions": trajectories.actions}
        flags = {"rewards": trajectories.rewards, "terminals": trajectories.terminations}
        windows = WindowDataset(load_trajectories({**columns, **flags, "timeouts": trajectories.truncations}), 4)
        trainer = DecisionMambaTrainer(tiny_model(), tiny_arguments(tmp_path, max_steps=10), train_dataset=windows)
        trained = {"loss": trainer.train().training_loss, "global_step": trainer.state.global_step}
    assert trained["global_step"] == 10
    assert 0 < trained["loss"] < 100


def in_files(folder: Path, files: int) -> dict[str, bytes]:
    """The tiny data set in so many parquet files of two row groups each."""
    table = pq.read_table(HOPPER)
    folder.mkdir()
    rows = -(-table.num_rows // files)
    for number in range(files):
        path = folder / f"train-{number:02}.parquet"
        pq.write_table(table.slice(number * rows, rows), path, row_group_size=-(-rows // 2))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


STREAMED = {"streaming": True, "streaming_buffer": 600, "save_steps": 2}


def test_a_resumed_stream_goes_on_to_the_same_weights(tmp_path):
    in_files(tmp_path / "episodes", files=4)
    settings = {"dataset_name": tmp_path / "episodes", "max_steps": 60, **STREAMED, "save_steps": 30}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(command_line(whole, **settings))
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoint-60")
    (killed / "model.safetensors").unlink()
    main(command_line(killed, **settings, resume_from_checkpoint="last"))
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    record = json.loads((killed / "training.json").read_text())
    assert record["arguments"]["streaming"] is True
    assert 0 < record["dataset"]["streaming_sample"]["transitions"] < 2000
    assert "eval_loss" in record and "2,874" not in (killed / "README.md").read_text()


def test_a_stream_needs_a_number_of_steps(tmp_path):
    with pytest.raises(
        ValueError, match="streaming has no epochs, as nobody knows how long a stream is; say --max_steps"
    ):
        main(command_line(tmp_path / "run", streaming=True, max_steps=-1, num_train_epochs=1))


def test_streaming_from_the_hub_downloads_no_file(tmp_path):
    """Twenty files: the sample is of seven, the first steps of training are of a few; and none is on the disk."""
    repository = Repository("datasets", "alice/hopper", private=False)
    content = in_files(tmp_path / "episodes", files=20)
    repository.add("main", {f"data/{name}": Blob(file, lfs=True) for name, file in content.items()}, "episodes")
    with LoopbackHub({}) as hub:
        hub.repositories["datasets", "alice/hopper"] = repository
        environment = hub.client_environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        words = command_line(tmp_path / "run", dataset_name="alice/hopper", **{**STREAMED, "max_steps": 2})
        program = "import sys; from hf_decision_mamba.training.run import main; main(sys.argv[1:])"
        done = run_python(program, *words, environment=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    asked = [(path.rsplit("/")[-1], status) for method, path, status in hub.requests if method == "GET"]
    parquet = [(name, status) for name, status in asked if name.endswith(".parquet")]
    assert {status for _, status in parquet} == {206}  # parts of files
    assert 7 <= len({name for name, _ in parquet}) < 20
    assert not [path for path in (tmp_path / "home").rglob("*") if path.suffix in (".parquet", ".arrow", ".npy")]
    assert "alice/hopper is streamed; a sample: 6 episodes (1 held out)" in done.stdout
    commit = repository.branches["main"]
    settings = (tmp_path / "run" / "train.yaml").read_text()
    assert f"dataset_name: alice/hopper\ndataset_revision: {commit}\n" in settings
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"| Revision | `{commit}` |" in card and "| Episodes of the sample that normalisation was learned" in card


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path, trajectories):
    dataset = WindowDataset(trajectories, 4)
    model = tiny_model()
    args = tiny_arguments(tmp_path, save_strategy="steps", save_steps=1, max_steps=5)

    def break_observations(*_args, **_kwargs):
        if trainer.state.global_step == 2:
            model.embed_state.bias.data.fill_(float("nan"))

    model.register_forward_pre_hook(break_observations)
    trainer = DecisionMambaTrainer(model, args, train_dataset=dataset)
    with pytest.raises(FloatingPointError, match=r"The loss is nan at step 3, so training stopped.*checkpoint-2"):
        trainer.train()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_saved_folders_hold_the_processor_and_no_pickled_arguments(tmp_path, trajectories):
    processor = DecisionMambaProcessor(state_mean=[0.5] * 11, state_std=[2.0] * 11, context_length=4)
    trainer = DecisionMambaTrainer(
        tiny_model(),
        tiny_arguments(tmp_path, save_strategy="steps", save_steps=3, hub_token="hf_secret"),
        train_dataset=WindowDataset(trajectories, 4),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        assert DecisionMambaProcessor.from_pretrained(folder).state_mean == [0.5] * 11
        assert not (folder / "training_args.bin").exists()
        assert b"hf_secret" not in b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    assert "library_name: hf_decision_mamba" in (tmp_path / "README.md").read_text()


# ----------------------------------------------------------------------------------------- scores among the metrics


@pytest.fixture
def scripted_scores(monkeypatch):
    """Rollouts that score 10, 50, 20, ... without an environment; returns the list of the policies rolled out."""
    scores, policies = iter([10.0, 50.0, 20.0, 5.0]), []

    def evaluate(policy, env_id, **protocol):
        policies.append((policy, env_id, protocol))
        score, target = next(scores), protocol["target_returns"][0]
        row = {
            "target_return": target,
            "episode": 0,
            "seed": 0,
            "return": 32.34 * score,
            "length": 1,
            "terminated": True,
        }
        return EvaluationResult(env_id, "window", 4, 0, [{**row, "normalized_score": score}])

    monkeypatch.setattr(hf_decision_mamba.training.callbacks, "evaluate_policy", evaluate)
    return policies


def test_rollouts_choose_the_best_model(tmp_path, trajectories, scripted_scores):
    processor = DecisionMambaProcessor(state_mean=[0.0] * 11, state_std=[1.0] * 11, context_length=4)
    args = tiny_arguments(
        tmp_path,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_normalized_score",
    )
    dataset = WindowDataset(trajectories, 4)
    rollouts = RolloutCallback("Hopper-v5", episodes=2, target_return=3600.0, seed=7)
    trainer = DecisionMambaTrainer(
        tiny_model(),
        args,
        train_dataset=dataset,
        eval_dataset=WindowDataset.covering(trajectories, 4),
        processing_class=processor,
        callbacks=[rollouts],
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    # D4RL's references turn returns of 32.34 times the score into something near the score.
    assert [round(entry["eval_normalized_score"]) for entry in history] == [11, 50, 20]
    assert [entry["eval_return_mean"] for entry in history] == pytest.approx([323.4, 1617.0, 646.8])
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    torch.testing.assert_close(trainer.model.state_dict(), weights(tmp_path / "checkpoint-2"), atol=0, rtol=0)
    policy, env_id, protocol = scripted_scores[1]
    torch.testing.assert_close(policy.model.state_dict(), weights(tmp_path / "checkpoint-2"), atol=0, rtol=0)
    assert env_id == "Hopper-v5"
    assert (protocol["episodes"], protocol["target_returns"], protocol["seed"]) == (2, [3600.0], 7)


def test_success_is_a_metric_where_the_environment_speaks_of_it():
    row = {"target_return": 1.0, "episode": 0, "seed": 0, "return": 1.0, "length": 1, "terminated": True}
    rows = [{**row, "normalized_score": None}, {**row, "normalized_score": None, "episode": 1}]
    told = [{**row, "success": bool(row["episode"])} for row in rows]
    metrics = [score_metrics(EvaluationResult("CartPole-v1", "window", 4, 0, found)) for found in (rows, told)]
    assert metrics[1] == {**metrics[0], "eval_success_rate": 0.5}


# --------------------------------------------------------------------------------------------- stopping and resuming


# Run by test_killed_training_resumes_to_the_bit in a process of its own, which imports everything once and forks.


def train_and_kill(folder: Path) -> None:
    """Train undisturbed; then again, killed over and over, at random moments and within saves, before it may finish."""
    command = {
        "max_steps": 40,
        "logging_steps": 5,
        "eval_steps": 7,
        "save_steps": 1,
        "resid_pdrop": 0.2,
        "embd_pdrop": 0.1,
    }
    gc.freeze()  # what was imported is no garbage: every training looks for some
    assert _run_forked(command_line(folder / "whole", **command)) == 0
    resuming = command_line(folder / "killed", **command, resume_from_checkpoint="last")
    moments = np.random.default_rng(0)
    endings = []
    for attempt in range(9):
        when = (_at_once, _after_a_save, _within_a_save)[attempt % 3]
        endings.append(_run_forked(resuming, folder / "killed", when, moments.uniform(0, 0.1)))
    assert _run_forked(resuming) == 0
    (folder / "kills").write_text(str(sum(ending == signal.SIGKILL for ending in endings)))


def _run_forked(argv: list[str], folder: Path | None = None, when: Callable | None = None, delay: float = 0.0) -> int:
    """Run `main` in a forked child and return its exit status; SIGKILL it `delay` seconds after `when` is true."""
    child, started = os.fork(), time.time()
    if child == 0:
        status = 1
        try:
            main(argv)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return status
        if when is not None and when(folder, started):
            time.sleep(0 if when is _within_a_save else delay)
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.0005)


def _at_once(folder: Path, since: float) -> bool:
    return True


def _after_a_save(folder: Path, since: float) -> bool:
    return any(file.stat().st_mtime > since for file in folder.glob("checkpoint-*/trainer_state.json"))


def _within_a_save(folder: Path, since: float) -> bool:
    """Whether a checkpoint is being written: files of this run, but not yet the last one."""
    incomplete = [path for path in folder.glob("checkpoint-*") if not (path / "trainer_state.json").exists()]
    return any(file.stat().st_mtime > since for path in incomplete for file in path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill many runs quickly")
def test_killed_training_resumes_to_the_bit(tmp_path):
    """SIGKILL at random moments and within saves, then the same command again: the same weights, dropout included."""
    done = run_file(__file__, "train_and_kill", str(tmp_path), environment=ONE_THREAD)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int((tmp_path / "kills").read_text()) >= 6
    assert done.stdout.count("which is not complete") >= 2  # kills within a save leave half a checkpoint
    whole, killed = tmp_path / "whole" / "model.safetensors", tmp_path / "killed" / "model.safetensors"
    assert killed.read_bytes() == whole.read_bytes()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """A run of four steps with a checkpoint at each of the last two; tests copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    main(command_line(folder, save_steps=1))
    return folder


def test_data_on_the_device_trains_the_same_weights(finished_run, tmp_path, capsys):
    main(command_line(tmp_path / "run", save_steps=1, data_on_device=True))
    assert "device       cpu (holds the data), " in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("settings", "device", "room", "expected"),
    [
        ({}, "cuda", True, True),
        ({}, "cuda", False, False),
        ({"dataloader_num_workers": 2}, "cuda", True, False),
        ({"data_on_device": False}, "cuda", True, False),
        ({"data_on_device": True}, "cuda", False, True),
        ({}, "cpu", True, False),
    ],
)
def test_data_goes_to_a_gpu_that_has_room(tmp_path, trajectories, monkeypatch, settings, device, room, expected):
    monkeypatch.setattr(hf_decision_mamba.training.run, "fits", lambda data, place, goals: room)
    args = tiny_arguments(tmp_path, **settings)
    monkeypatch.setattr(type(args), "device", torch.device(device))
    data = RunData(trajectories.statistics(), trajectories, None, None)
    assert goes_to_the_device(data, args) is expected


def test_compiled_training_is_one_graph_and_the_same_training(finished_run, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    main(command_line(tmp_path / "run", torch_compile=True, torch_compile_backend="aot_eager"))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    torch.testing.assert_close(weights(tmp_path / "run"), weights(finished_run), atol=1e-5, rtol=1e-4)


def test_a_score_in_mixed_precision_is_the_checkpoints(tmp_path):
    main(command_line(tmp_path / "run", bf16=True, eval_episodes=2, env_id="Hopper-v5", target_return=1000))
    scored = json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"][0]
    policy = DecisionMambaPolicy.from_pretrained(tmp_path / "run")
    assert policy.model.dtype == torch.float32
    again = evaluate_policy(policy, "Hopper-v5", episodes=2, target_returns=[1000.0], progress=False)
    assert again.summary()[0]["return_mean"] == scored["return_mean"]


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trainer_state.json", "trainer_state.json cannot be read"),
        ("model.safetensors", "model.safetensors is missing or cut short"),
        ("optimizer.pt", "optimizer.pt is missing or cut short"),
        ("scheduler.pt", "scheduler.pt is missing or cut short"),
        ("rng_state.pth", "rng_state.pth is missing or cut short"),
        ("run.json", "run.json cannot be read"),
    ],
)
def test_half_written_checkpoints_are_skipped(run, name, message, capsys):
    newest = run / "checkpoint-4" / name
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert last_complete_checkpoint(run) == run / "checkpoint-3"
    assert f"Skipping {run / 'checkpoint-4'}, which is not complete: {message}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=f"Cannot resume from .*checkpoint-4: {re.escape(message)}"):
        main(command_line(run, resume_from_checkpoint=run / "checkpoint-4"))


@pytest.fixture
def interrupted_in(monkeypatch) -> Callable[[int, int], None]:
    """Makes a signal come in the middle of a step, counted from 1."""
    step = DecisionMambaTrainer.training_step

    def prepare(which: int, number: int) -> None:
        def interrupted(trainer, *args, **kwargs):
            if trainer.state.global_step == which - 1:
                signal.raise_signal(number)
            return step(trainer, *args, **kwargs)

        monkeypatch.setattr(DecisionMambaTrainer, "training_step", interrupted)

    return prepare


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_to_go_on_from(tmp_path, finished_run, interrupted_in, capsys, number):
    interrupted_in(2, number)
    with pytest.raises(SystemExit) as end, report_user_errors():
        main(command_line(tmp_path / "run"))
    assert end.value.code == 128 + number
    line = capsys.readouterr().err.splitlines()[-1]
    checkpoint = tmp_path / "run" / "checkpoint-2"
    how = "the same command with --resume_from_checkpoint last goes on from there."
    assert line == f"interrupted: {checkpoint} is complete: {how}"
    assert not (tmp_path / "run" / "model.safetensors").exists()
    main(command_line(tmp_path / "run", resume_from_checkpoint="last"))
    assert f"Resuming from {checkpoint}." in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()


def test_who_never_saves_is_promised_nothing_after_a_signal(tmp_path, interrupted_in):
    interrupted_in(2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as end:
        main(command_line(tmp_path / "run", save_strategy="no"))
    assert str(end.value) == "No checkpoint was complete yet: start again (--overwrite_output_dir true)."
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(("size", "writer"), [(4_000, "safetensors"), (20_000, "torch")])
def test_a_full_disk_keeps_the_last_checkpoint_to_go_on_from(
    tmp_path, finished_run, monkeypatch, no_room, size, writer
):
    save = DecisionMambaTrainer._save_checkpoint

    def at_last(trainer, *args):
        with no_room(size) if trainer.state.global_step == 3 else contextlib.nullcontext():
            save(trainer, *args)

    monkeypatch.setattr(DecisionMambaTrainer, "_save_checkpoint", at_last)
    run = tmp_path / "run"
    with pytest.raises(
        OSError, match=r"checkpoint-3 cannot be written; is the disk full\? \(.*checkpoint-2 is complete: the"
    ):
        main(command_line(run, save_steps=1))
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    monkeypatch.undo()
    main(command_line(run, save_steps=1, resume_from_checkpoint="last"))
    assert (run / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()


def test_resuming_with_another_number_of_processes_is_said(run, capsys):
    checkpoint = run / "checkpoint-3"
    shutil.rmtree(run / "checkpoint-4")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["stateful_callbacks"]["processes"]["args"]["count"] = 2
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    for number in range(2):
        shutil.copy(checkpoint / "rng_state.pth", checkpoint / f"rng_state_{number}.pth")
    (checkpoint / "rng_state.pth").unlink()
    main(command_line(run, save_steps=1, resume_from_checkpoint="last"))
    printed = capsys.readouterr().out
    assert f"{checkpoint} was saved by 2 processes, and 1 process will go on, with other random numbers" in printed
    assert "and 8 windows a step. Only 2 processes would end in the weights of a run that was never" in printed


def test_weights_are_replaced_when_all_are_written(run, trajectories, no_room):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    trainer = DecisionMambaTrainer(tiny_model(seed=1), tiny_arguments(run))
    with no_room(4_000), pytest.raises(OSError, match=f"{run} cannot be written"):
        trainer.save_model()
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    trainer.save_model()
    assert (run / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_an_output_folder_that_holds_a_run_is_not_overwritten(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"already holds a run.*--resume_from_checkpoint last.*--overwrite_output_dir true"
    ):
        main(command_line(run))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_a_run_is_overwritten_when_asked(run, finished_run):
    (run / "evaluation.json").write_text("{}")
    main(command_line(run, overwrite_output_dir=True, max_steps=2, save_steps=1))
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert not (run / "evaluation.json").exists()  # of the earlier weights
    assert json.loads((run / "training.json").read_text())["global_step"] == 2


def test_resuming_a_finished_run_changes_nothing(run, finished_run, capsys):
    (run / "evaluation.json").write_text(EVALUATION)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "README.md"}
    settings = {"save_steps": 1, "logging_steps": 7, "eval_episodes": 2, "env_id": "Hopper-v5"}
    metrics = main(command_line(run, **settings, resume_from_checkpoint="last"))
    output = capsys.readouterr().out
    assert "nothing left to train" in output and "evaluate scores it again" in output
    assert metrics["global_step"] == 4
    assert "train_runtime" not in metrics  # the time of this part would be a lie about the whole
    assert {path: path.read_bytes() for path in before} == before
    # Killed between training and record: that is made up for.
    (run / "training.json").unlink()
    (run / "model.safetensors").write_bytes(b"half")
    main(command_line(run, save_steps=1, resume_from_checkpoint="last"))
    assert (run / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()
    again, record = (json.loads((folder / "training.json").read_text()) for folder in (run, finished_run))
    assert again["stretches"] == record["stretches"] and again["history"] == record["history"]
    assert "to the bit" in " ".join((run / "train.yaml").read_text().split())
    assert not (run / "evaluation.json").exists()  # of which weights, nobody knows


# --------------------------------------------------------------------------------------- resuming with other settings


EVALUATION = json.dumps({"results": [], "checkpoint": "last"})
OTHERS = {"learning_rate": 1e-5, "weight_decay": 0.5, "adam_beta2": 0.9, "lr_scheduler_type": "constant"}


def stretches_of(folder: Path) -> list[dict]:
    """The stretches in a folder's training.json, each as its steps and the settings of OTHERS."""
    found = json.loads((folder / "training.json").read_text())["stretches"]
    return [
        (part["from_step"], part["to_step"], part["settings"] and {name: part["settings"][name] for name in OTHERS})
        for part in found
    ]


def rates_of(checkpoint: Path) -> dict[int, float]:
    """The learning rate that was logged at each step."""
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {row["step"]: row["learning_rate"] for row in log if "learning_rate" in row}


FIRST = {"learning_rate": 1e-3, "weight_decay": 1e-4, "adam_beta2": 0.999, "lr_scheduler_type": "cosine"}


@pytest.fixture(scope="module")
def longer_run(finished_run, tmp_path_factory) -> Path:
    """The finished run, resumed twice: from step 4 with OTHERS, and from step 8 with a higher learning rate."""
    folder = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("longer") / "run"))
    common = {"save_steps": 2, "logging_steps": 1, "save_total_limit": 10, "resume_from_checkpoint": "last"}
    main(command_line(folder, **common, **OTHERS, max_steps=8))
    main(command_line(folder, **common, **{**OTHERS, "learning_rate": 0.01}, max_steps=10))
    return folder


def test_what_is_new_is_used_from_the_step_of_resuming_on(longer_run):
    rates = rates_of(longer_run / "checkpoint-10")
    assert {step: rate for step, rate in rates.items() if step > 4} == {
        **dict.fromkeys((5, 6, 7, 8), 1e-5),
        **dict.fromkeys((9, 10), 0.01),
    }
    groups = torch.load(longer_run / "checkpoint-8" / "optimizer.pt", weights_only=True)["param_groups"]
    assert [(group["lr"], group["weight_decay"], group["betas"]) for group in groups] == [
        (1e-5, 0.5, (0.9, 0.9)),
        (1e-5, 0.0, (0.9, 0.9)),
    ]


def test_the_files_tell_the_history_of_a_run(longer_run):
    last = {**OTHERS, "learning_rate": 0.01}
    assert stretches_of(longer_run) == [(0, 4, FIRST), (4, 8, OTHERS), (8, 10, last)]
    record = json.loads((longer_run / "training.json").read_text())
    assert [part["highest_learning_rate"] for part in record["stretches"]] == [1e-3, 1e-5, 0.01]
    assert record["arguments"]["learning_rate"] == record["highest_learning_rate"] == 0.01
    card = (longer_run / "README.md").read_text()
    head, _, *rows = re.search(r"\n\| steps .*?\n\n", card, re.DOTALL)[0].strip().split("\n")
    columns = [name.strip(" `") for name in head.strip("|").split("|")]
    table = [dict(zip(columns, [cell.strip() for cell in row.strip("|").split("|")], strict=True)) for row in rows]
    assert [row["steps"] for row in table] == ["0 to 4", "4 to 8", "8 to 10"]
    assert [row["learning_rate"] for row in table] == ["0.001", "1e-05", "0.01"]
    assert [row["weight_decay"] for row in table] == ["0.0001", "0.5", "0.5"]
    assert "seed" not in columns
    assert "batches of 8 windows of 4 steps, gradient norm at most 0.25, seed 42." in card  # and none of what varied
    for text in (card, (longer_run / "train.yaml").read_text()):
        assert "to the bit" not in text and "does not repeat" in " ".join(text.replace("#", " ").split())
    assert "\nlearning_rate: 0.01\n" in (longer_run / "train.yaml").read_text()


def test_a_kill_in_a_later_stretch_changes_nothing(longer_run, tmp_path):
    killed = Path(shutil.copytree(longer_run, tmp_path / "killed"))
    shutil.rmtree(killed / "checkpoint-10")
    shutil.rmtree(killed / "checkpoint-8")
    for name in ("model.safetensors", "training.json"):
        (killed / name).unlink()
    common = {"save_steps": 2, "logging_steps": 1, "save_total_limit": 10, "resume_from_checkpoint": "last"}
    main(command_line(killed, **common, **OTHERS, max_steps=8))
    assert stretches_of(killed) == [(0, 4, FIRST), (4, 8, OTHERS)]
    main(command_line(killed, **common, **{**OTHERS, "learning_rate": 0.01}, max_steps=10))
    assert (killed / "model.safetensors").read_bytes() == (longer_run / "model.safetensors").read_bytes()
    assert stretches_of(killed) == stretches_of(longer_run)


def test_an_older_checkpoint_knows_its_own_history(longer_run, tmp_path):
    """Of another folder too, and a resume with the settings that it had begins no new stretch."""
    older = longer_run / "checkpoint-6"
    main(command_line(tmp_path / "branch", **OTHERS, save_steps=2, max_steps=8, resume_from_checkpoint=older))
    assert stretches_of(tmp_path / "branch") == [(0, 4, FIRST), (4, 8, OTHERS)]
    assert weights(tmp_path / "branch")["embed_state.weight"].equal(
        weights(longer_run / "checkpoint-8")["embed_state.weight"]
    )


def test_a_finished_run_is_made_longer_on_the_schedule_of_its_new_length(run, tmp_path, capsys):
    main(command_line(run, max_steps=8, logging_steps=1, save_steps=3, resume_from_checkpoint="last"))
    assert "From step 4 on: max_steps=8 (was 4)." in capsys.readouterr().out
    rates = rates_of(run / "checkpoint-8")
    fresh = [0.5 * 1e-3 * (1 + np.cos(np.pi * (step - 1) / 7)) for step in (4, 5, 6, 7)]  # after one step of warm-up
    assert [rates[step] for step in (5, 6, 7, 8)] == pytest.approx(fresh)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [
        "checkpoint-6",
        "checkpoint-8",
    ]  # the new interval
    assert [(begin, end) for begin, end, _ in stretches_of(run)] == [(0, 4), (4, 8)]
    assert "to the bit" not in (run / "train.yaml").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"seed": 1},
            "it has seed=42, and the settings say 1. .*--model_name_or_path .*checkpoint-4 begins with these",
        ),
        ({"data_seed": 1}, "it has data_seed=42, and the settings say 1"),
        ({"dataset_name": SAMPLES / "dt.pkl"}, "it has dataset_name=hopper-tiny-v5, and the settings say dt"),
        ({"dataset_split": "train[:90%]"}, r"it has dataset_split=train, and the settings say train\[:90%\]"),
        ({"held_out_fraction": 0.2}, "it has held_out_fraction=0.1, and the settings say 0.2"),
        ({"context_length": 5}, "it has context_length=4, and the settings say 5"),
        ({"return_scale": 10}, "it has return_scale=960.0, and the settings say 10.0"),
        ({"return_temperature": 0.1}, "it has return_temperature=unset, and the settings say 0.1"),
        ({"per_device_train_batch_size": 4}, "it has per_device_train_batch_size × .*=8, and the settings say 4"),
        (
            {"gradient_accumulation_steps": 2},
            "it has .* × gradient_accumulation_steps × processes=8, and the settings say 16",
        ),
        ({"optim": "sgd"}, "it has optim=unset, and the settings say sgd"),
        ({"preset": "dmm"}, "it has preset=dema-b3ld, and the settings say dmm"),
        ({"state_size": 5}, "it has state_size=4, and the settings say 5. Resume with the settings that the run was "),
        ({"resid_pdrop": 0.5}, "it has resid_pdrop=0.0, and the settings say 0.5"),
        (
            {"learning_rate": 1e-5},
            "it is at step 4, and training ends at step 4, so that learning_rate=1e-05 .it has 0",
        ),
        ({"max_steps": 3}, "it is at step 4, and training ends at step 3; raise --max_steps"),
    ],
)
def test_what_a_run_keeps_to_its_end_is_refused_by_name(finished_run, settings, message):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    with pytest.raises(ValueError, match=f"^Cannot resume from .*checkpoint-4: {message}") as refused:
        main(command_line(finished_run, **settings, resume_from_checkpoint="last"))
    assert "\n" not in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def test_a_batch_may_be_split_another_way(run):
    more = {"max_steps": 6, "eval_strategy": "no", "resume_from_checkpoint": "last"}
    split = Path(shutil.copytree(run, run.parent / "split"))
    main(command_line(run, **more))
    main(command_line(split, **more, per_device_train_batch_size=2, gradient_accumulation_steps=4))
    torch.testing.assert_close(weights(split), weights(run), atol=1e-6, rtol=0)
    settings = [part["settings"] for part in json.loads((split / "training.json").read_text())["stretches"]]
    assert [kept["per_device_train_batch_size"] for kept in settings] == [8, 2]


def test_other_data_of_the_same_name_are_not_resumed_on(run, trajectories, tmp_path):
    table = pq.read_table(HOPPER)
    (tmp_path / "other").mkdir()
    for rows in (table.slice(0, 19), pa.concat_tables([table.slice(0, 10), table.slice(0, 10)])):
        other = tmp_path / "other" / HOPPER.name
        pq.write_table(rows, other)
        with pytest.raises(ValueError, match=r"Cannot resume .*it has (episodes=20|transitions=2874|return_scale=960)"):
            main(command_line(run, dataset_name=other, resume_from_checkpoint="last"))


def test_checkpoints_of_an_earlier_version_are_resumed_as_well_as_they_can_be(run, finished_run, capsys):
    """They lack run.json; what training.json, trainer_state.json and the processor know of the run is compared."""
    for folder in run.glob("checkpoint-*"):
        (folder / "run.json").unlink()
    with pytest.raises(ValueError, match="it has seed=42, and the settings say 1"):
        main(command_line(run, seed=1, resume_from_checkpoint="last"))
    shutil.rmtree(run / "checkpoint-4")
    (run / "training.json").unlink()  # killed before its end
    for settings, message in (
        ({"per_device_train_batch_size": 4}, r"it has steps_per_epoch=\d+, and the settings say \d+"),
        ({"return_scale": 10}, "it has return_scale=960.0, and the settings say 10.0"),
        ({"seed": 5}, "(the states that it learned from have another mean|it has return_scale=960)"),
    ):
        with pytest.raises(ValueError, match=f"Cannot resume from .*checkpoint-3: {message}"):
            main(command_line(run, **settings, resume_from_checkpoint="last"))
    capsys.readouterr()
    main(command_line(run, save_steps=1, resume_from_checkpoint="last"))
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "earlier version" in line]
    assert "checkpoint-3" in told and "is not known" in told
    assert (run / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()
    assert stretches_of(run) == [(0, 3, None), (3, 4, FIRST)]
    assert "| 0 to 3 | not recorded |" in (run / "README.md").read_text()
    assert "to the bit" not in (run / "train.yaml").read_text()


def test_a_schedule_that_follows_the_losses_goes_on_or_begins_anew(tmp_path, ragged):
    """The same settings go on to the bit; another rate, or another kind of schedule, is used."""
    few = WindowDataset(ragged.trajectories, 4, starts=ragged.starts[:8])
    first = {"learning_rate": 0.01, "lr_scheduler_type": "reduce_lr_on_plateau"}
    common = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    halving = {"patience": 0, "factor": 0.5, "threshold": 0.99}  # at every evaluation but the first

    def trained(
        name: str, resume_from: Path | None = None, step: int = 0, max_steps: int = 6, **new
    ) -> dict[int, float]:
        kinds = {"lr_scheduler_kwargs": None if "lr_scheduler_type" in new else halving}
        args = tiny_arguments(tmp_path / name, **{**common, **first, **new}, **kinds, max_steps=max_steps)
        trainer = DecisionMambaTrainer(tiny_model(), args, train_dataset=ragged, eval_dataset=few)
        settings = [{**first, "lr_scheduler_kwargs": halving}, {**first, **kinds, **new}]
        parts = [{"from_step": begin, "settings": each} for begin, each in zip((0, step), settings, strict=True)]
        trainer.run = {"episodes": 1, "transitions": 1, "stretches": parts if new else parts[:1]}
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
        return rates_of(tmp_path / name / f"checkpoint-{max_steps}")

    assert trained("whole") == {1: 0.01, 2: 0.01, 3: 0.01, 4: 0.01, 5: 0.005, 6: 0.005}
    middle = tmp_path / "whole" / "checkpoint-4"
    assert trained("same", middle)[6] == 0.005
    torch.testing.assert_close(
        weights(tmp_path / "same/checkpoint-6"), weights(tmp_path / "whole/checkpoint-6"), atol=0, rtol=0
    )
    assert trained("lower", middle, 4, learning_rate=0.002)[5] == 0.002
    assert trained("constant", middle, 4, lr_scheduler_type="constant")[5] == 0.01
    assert trained("back", tmp_path / "constant" / "checkpoint-6", 6, 8, learning_rate=0.003)[7] == 0.003


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, r"holds another run, with seed=42 \(asked for: 1\)\. To keep it: --output_dir another/folder"),
        ({"preset": "dmm"}, r"holds another run, with preset=dema-b3ld \(asked for: dmm\)"),
        ({"architecture": "bc"}, r"holds another run, with architecture=decision_mamba \(asked for: bc\)"),
        ({"hidden_size": 16}, r"holds another run, with hidden_size=8 \(asked for: 16\)"),
        ({"dataset_name": "a/b"}, r"holds another run, with dataset_name=hopper-tiny-v5 \(asked for: a/b\)"),
        ({"dataset_name": SAMPLES / "lerobot"}, r"with dataset_name=hopper-tiny-v5 \(asked for: lerobot\)"),
        ({"context_length": 5}, r"holds another run, with context_length=4 \(asked for: 5\)"),
        ({"learning_rate": 1e-5}, "already holds a run. Go on with it: --resume_from_checkpoint last; keep it: "),
    ],
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "killed"])
def test_resuming_is_not_proposed_to_whom_asks_for_another_run(finished_run, tmp_path, settings, message, finished):
    folder = finished_run
    if not finished:
        shutil.copytree(finished_run / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
        folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message) as refused:
        main(command_line(folder, **settings))
    assert ("resume" in str(refused.value)) == ("learning_rate" in settings)


def test_another_run_without_checkpoints_is_not_written_over_by_resuming(run):
    for folder in run.glob("checkpoint-*"):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match="holds another run, with seed=42"):
        main(command_line(run, seed=1, resume_from_checkpoint="last"))


# ---------------------------------------------------------------------------------------- what is said before training


def test_a_warm_up_that_does_not_end_is_said_before_and_after(tmp_path, capsys):
    main(command_line(tmp_path / "run", warmup_steps=500, max_steps=2, save_strategy="no", eval_strategy="no"))
    output = capsys.readouterr().out
    assert "warmup_steps=500 of max_steps=2: the learning rate only reaches 2.0e-06" in output
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["highest_learning_rate"] == pytest.approx(2e-6)  # step 2 of 500, the first one being 0
    assert "learning rate at most 2e-06 (cosine, warm-up 500)" in (tmp_path / "run" / "README.md").read_text()


def test_settings_of_a_schedule_that_are_not_used_are_said(tmp_path, capsys):
    settings = {"lr_scheduler_type": "constant", "max_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    main(command_line(tmp_path / "run", **settings, warmup_steps=3, num_train_epochs=2))
    output = capsys.readouterr().out
    assert "warmup_steps=3 is not used: lr_scheduler_type=constant has none" in output
    assert "num_train_epochs=2 is not used, but max_steps=1 (-1 counts epochs)" in output
    assert "learning rate 0.001 (constant)," in (tmp_path / "run" / "README.md").read_text()


def test_without_episodes_to_play_no_environment_is_made(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("an environment was made")

    monkeypatch.setattr(hf_decision_mamba.training.task, "make_environments", refuse)
    settings = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    main(command_line(tmp_path / "run", **settings, env_id="Nowhere-v0", eval_episodes=0))
    assert DecisionMambaProcessor.from_pretrained(tmp_path / "run").env_id == "Nowhere-v0"


def test_what_takes_a_moment_is_said(monkeypatch):
    said, told = [], threading.Event()
    monkeypatch.setattr(hf_decision_mamba.reporting.console, "say", lambda text: (said.append(text), told.set()))
    with hf_decision_mamba.reporting.console.waiting("a moment", seconds=60.0):
        pass
    assert said == []
    with hf_decision_mamba.reporting.console.waiting("data", seconds=0.0):
        assert told.wait(10)
    assert said == ["data"]


@pytest.mark.parametrize(("pause", "times"), [(0.0, 2), (3600.0, 0)])
def test_that_kernels_are_compiled_is_said_after_a_pause(monkeypatch, capsys, pause, times):
    hf_decision_mamba.reporting.console.say_when_kernels_compile()
    numba.njit(lambda number: number)(1)
    capsys.readouterr()
    monkeypatch.setattr(hf_decision_mamba.reporting.console, "PAUSE", pause)
    for kernel in (lambda number: number + 1, lambda number: np.zeros(number)[0]):  # this one compiles others too
        numba.njit(kernel)(1)
    assert capsys.readouterr().out.count("kernels      compiling") == times


# ----------------------------------------------------------------------------------------------- the whole command


def test_the_command_trains_evaluates_and_writes_everything(tmp_path):
    """`accelerate launch train.py`, as the README says it, ends with checkpoint, card, scores and plot."""
    settings = command_line(
        tmp_path / "run",
        env_id="Hopper-v5",
        logging_steps=2,
        eval_episodes=2,
        target_return=1000,
        cpu_threads=1,
        hub_token="hf_secret",
    )
    launch = "import runpy; runpy.run_module('accelerate.commands.launch', run_name='__main__')"
    done = run_python(launch, str(ROOT / "train.py"), *settings, environment=ONE_THREAD, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "20 episodes (2 held out), 2,874 transitions" in done.stdout
    assert re.search(r"loss=0\.\d+, lr=\d", done.stderr)  # in the progress bar
    assert re.search(r"1000 +-?\d+\.\d+ ± \d+\.\d+", done.stdout)  # the table of returns
    for line in (f"checkpoint   {tmp_path / 'run'}", "card         ", "plot         "):
        assert line in done.stdout
    files = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert files == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "training.json", "README.md"),
        *("evaluation.json", "evaluation.parquet", "returns.png", "train.yaml", "learning_curve.png"),
    }
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    returns = {name: value for name, value in record["dataset"].items() if name.startswith("return_")}
    assert {name: value for name, value in record["dataset"].items() if name not in returns} == {
        **{"name": "hopper-tiny-v5", "revision": None, "env_id": "Hopper-v5"},
        **{"episodes": 20, "transitions": 2874, "held_out_episodes": 2},
    }
    quantiles = returns["return_quantiles"]
    assert list(quantiles) == ["min", "5%", "25%", "median", "75%", "95%", "max"]
    assert (quantiles["min"], quantiles["max"]) == (returns["return_min"], returns["return_max"])
    assert list(record["history"]["loss"]) == ["2", "4"]
    assert record["history"]["eval_loss"] == {"4": record["eval_loss"]}
    assert (record["preset"], record["architecture"], record["global_step"]) == ("dema-b3ld", "decision_mamba", 4)
    assert record["arguments"]["learning_rate"] == 1e-3
    assert record["arguments"]["context_length"] == 4
    assert 0 < record["eval_loss"] < 2
    assert record["command"].startswith("accelerate launch train.py --dataset_name=hopper-tiny-v5.parquet")
    for path in (tmp_path / "run").glob("*.*"):
        content = path.read_bytes()
        assert b"hf_secret" not in content
        assert path.name == "README.md" or str(tmp_path).encode() not in content
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (evaluation["checkpoint"], evaluation["results"][0]["episodes"]) == ("last", 2)
    processor = DecisionMambaProcessor.from_pretrained(tmp_path / "run")
    assert (processor.target_return, processor.env_id, processor.action_high) == (1000.0, "Hopper-v5", [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    "changes", [{}, BASELINES["bc"], {"max_steps": -1, "num_train_epochs": 0.02}], ids=["", "bc", "epochs"]
)
def test_the_settings_file_repeats_the_run_to_the_bit(tmp_path, changes):
    """train.yaml holds whatever differs from the defaults, whether a file, the command line or the data said it."""
    shutil.copy(HOPPER, tmp_path)
    (tmp_path / "mine.yaml").write_text("dataset_name: ./hopper-tiny-v5.parquet\nseed: 3\nlearning_rate: 0.003\n")
    settings = {"max_steps": 10, "dataset_name": None, "resid_pdrop": None, "hub_token": "hf_secret", **changes}
    main(["mine.yaml", *command_line(tmp_path / "run", **settings)])
    written = (tmp_path / "run" / "train.yaml").read_text()
    assert "\ndataset_name: hopper-tiny-v5.parquet\n" in written
    for private in ("hf_secret", "output_dir", str(tmp_path)):
        assert private not in written
    main([str(tmp_path / "run" / "train.yaml"), "--output_dir=again"])
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "run" / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "again" / "train.yaml").read_text() == written


def test_two_data_sets_are_learned_from_together(tmp_path):
    shutil.copy(HOPPER, tmp_path / "medium.parquet")
    shutil.copy(HOPPER, tmp_path / "expert.parquet")
    main([*command_line(tmp_path / "run", dataset_name=None), "--dataset_name", "medium.parquet", "expert.parquet"])
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (record["dataset"]["name"], record["dataset"]["episodes"]) == ("medium + expert", 40)
    assert "medium + expert" in (tmp_path / "run" / "README.md").read_text()
    assert "\ndataset_name:\n- medium.parquet\n- expert.parquet\n" in (tmp_path / "run" / "train.yaml").read_text()


def test_images_and_discrete_actions_train_to_a_card_with_scores(tmp_path):
    """The task is read from the data: a processor without normalisation, 30 steps a window, returns of size one."""
    folder = tmp_path / "run"
    metrics = main(
        command_line(folder, **ATARI, context_length=None, max_steps=2, eval_episodes=1, eval_max_episode_steps=5)
    )
    assert 0 < metrics["eval_loss"] < 2  # log 4 is 1.39
    config = DecisionMambaModel.from_pretrained(folder).config
    assert (config.state_type, config.action_type, config.act_dim) == ("image", "discrete", 4)
    assert (config.num_channels, config.image_size) == (4, 84)
    processor = DecisionMambaProcessor.from_pretrained(folder)
    assert (processor.state_mean, processor.frame_stack, processor.action_low) == (None, 4, None)
    assert (processor.context_length, processor.return_scale) == (30, 6.0)
    assert processor.target_return == 20.0  # the best return of the data
    record = json.loads((folder / "training.json").read_text())
    assert (record["preset"], record["arguments"]["frame_stack"]) == ("dema-atari", 4)
    assert record["loss_function"] == "cross-entropy"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert (evaluation["env_id"], evaluation["results"][0]["length_mean"]) == ("BreakoutNoFrameskip-v4", 5.0)
    assert "mean_reward" in (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> Path:
    """Episodes that return 0 or 1 and take one of two actions, kept as whole numbers."""
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("sparse") / "sparse.parquet"
    columns = {
        "observations": [random.normal(size=(5, 3)).tolist() for _ in range(20)],
        "actions": [[[float(number % 2)]] * 5 for number in range(20)],
        "rewards": [[0.0] * 4 + [float(number % 2)] for number in range(20)],
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_the_return_scale_is_that_of_the_data_where_nobody_gives_one(tmp_path, sparse, capsys, streaming):
    settings = {"dataset_name": sparse, "max_steps": 1, "action_type": "discrete", "streaming": streaming or None}
    main(command_line(tmp_path / "run", **settings))
    printed = capsys.readouterr().out
    assert "return 0.5 ± 0.5, at best 1, divided by 1\n" in printed and "Warning" not in printed
    assert DecisionMambaProcessor.from_pretrained(tmp_path / "run").return_scale == 1.0
    assert DecisionMambaModel.from_pretrained(tmp_path / "run").config.action_type == "discrete"
    written = (tmp_path / "run" / "train.yaml").read_text()
    assert "action_type: discrete\n" in written and "return_scale: 1.0\n" in written
    main(command_line(tmp_path / "other", **settings, return_scale=1000))
    printed = capsys.readouterr().out
    assert "at best 1, divided by 1000\n" in printed
    assert "Warning: return_scale 1000 makes returns-to-go of 0 to 1 ones of 0 to 0.001, too much alike" in printed


@pytest.mark.parametrize("choice", ["preset=dmm", *(f"architecture={name}" for name in ("gru", *BASELINES))])
def test_discrete_actions_of_vectors_train_with_any_vector_preset_and_baseline(tmp_path, trajectories, choice):
    data = Trajectories(
        observations=trajectories.observations,
        actions=(trajectories.actions[:, 0] > 0).astype(np.int64),
        rewards=trajectories.rewards,
        terminations=trajectories.terminations,
        truncations=trajectories.truncations,
        starts=trajectories.starts,
        lengths=trajectories.lengths,
    )
    model_args, data_args, *_ = parse_arguments([f"--{choice}", "--hidden_size=8", "--context_length=4"])
    model, processor, _ = build(model_args, data_args, data)
    assert (model.config.action_type, model.config.act_dim, model.config.state_dim) == ("discrete", 2, 11)
    windows = WindowDataset(data, 4, state_mean=processor.state_mean, state_std=processor.state_std)
    trainer = DecisionMambaTrainer(model, tiny_arguments(tmp_path), train_dataset=windows)
    trainer.train()
    assert 0 < trainer.state.log_history[0]["loss"] < 2


@pytest.mark.parametrize("architecture", BASELINES)
def test_baselines_learn_from_images_and_act_on_them(tmp_path, architecture):
    folder = tmp_path / "run"
    settings = {**BASELINES[architecture], "n_layer": 1, "dataset_name": BREAKOUT, "max_steps": 1, "save_steps": 2}
    metrics = main(command_line(folder, **settings, per_device_eval_batch_size=32))
    assert 0 < metrics["eval_loss"] < 3
    record = json.loads((folder / "training.json").read_text())
    assert (record["architecture"], record["loss_function"]) == (architecture, "cross-entropy")
    policy = DecisionMambaPolicy.from_pretrained(folder)
    assert (policy.state_type, policy.action_type) == ("image", "discrete")
    policy.reset(num_envs=2)
    acted = [policy.act(np.full((2, 84, 84), grey, np.uint8)) for grey in (0, 9, 200)]
    assert all(((actions >= 0) & (actions < 4)).all() for actions in acted)
    assert f"| Architecture | `{architecture}` |" in (folder / "README.md").read_text()


def test_a_gru_learns_and_acts_with_its_state_carried(tmp_path):
    folder = tmp_path / "run"
    sizes = {**dict.fromkeys(TINY_MODEL), "hidden_size": 8, "embedding_size": 8}
    settings = {**sizes, "env_id": "Hopper-v5", "eval_episodes": 1, "eval_max_episode_steps": 10}
    main(command_line(folder, architecture="gru", train_mode="sequences", eval_mode="recurrent", **settings))
    record = json.loads((folder / "training.json").read_text())
    assert (record["architecture"], record["preset"]) == ("gru", "gru")
    assert DecisionMambaModel.from_pretrained(folder).config.ssm == "gru"
    written = (folder / "train.yaml").read_text()
    assert "preset: gru\n" in written and "architecture: gru\n" in written
    with pytest.raises(ValueError, match=r"already holds a run\. Go on with it: --resume_from_checkpoint last"):
        main(command_line(folder, preset="gru", train_mode="sequences", eval_mode="recurrent", **settings))
    tuned = {**dict.fromkeys(TINY_MODEL), "model_name_or_path": folder, "architecture": "gru", "max_steps": 1}
    main(command_line(tmp_path / "tuned", **tuned))
    record = json.loads((tmp_path / "tuned" / "training.json").read_text())
    assert (record["architecture"], record["preset"]) == ("gru", None)


def test_good_episodes_are_learned_from_more_often(tmp_path, capsys):
    learned = {}
    for temperature in (None, 1e-6):
        folder = tmp_path / str(temperature)
        main(command_line(folder, return_temperature=temperature, held_out_fraction=0, max_steps=2))
        learned[temperature] = weights(folder)
        said = "half of them from 1 of 20 episodes (return_temperature 1e-06)"
        assert (said in capsys.readouterr().out) == (temperature is not None)
        card = (folder / "README.md").read_text()
        assert ("drawn in proportion to exp(return / (1e-06 × range of returns))" in card) == (temperature is not None)
    assert any(not torch.equal(learned[None][name], learned[1e-6][name]) for name in learned[None])
    record = json.loads((folder / "training.json").read_text())
    assert record["arguments"]["return_temperature"] == 1e-6


def test_the_best_episodes_alone_are_learned_from_and_held_out(tmp_path, trajectories, capsys):
    folder = tmp_path / "run"
    main(command_line(folder, top_fraction=0.4, held_out_fraction=0.5, max_steps=1))
    best = trajectories.best(0.4)
    count, worst = best.num_episodes, best.returns().min()
    assert 2 < count < 20 and (trajectories.returns() > worst).sum() == count - 1
    held_out = round(count / 2)
    assert f"{count} episodes, the best by return of 20 ({held_out} held out)" in capsys.readouterr().out
    record = json.loads((folder / "training.json").read_text())
    facts = {name: record["dataset"][name] for name in ("episodes", "best_of_episodes", "held_out_episodes")}
    assert facts == {"episodes": count, "best_of_episodes": 20, "held_out_episodes": held_out}
    assert record["dataset"]["return_min"] == pytest.approx(worst)
    assert record["arguments"]["top_fraction"] == 0.4 and "top_fraction: 0.4\n" in (folder / "train.yaml").read_text()
    card = (folder / "README.md").read_text()
    assert f"{count}, the best by return of 20, of which {held_out} held out for the evaluation loss" in card


@pytest.mark.parametrize("architecture", ["decision_transformer", "rvs"])
def test_baselines_train_resume_act_and_get_a_card(tmp_path, architecture):
    folder = tmp_path / "run"
    command = {
        **BASELINES[architecture],
        **{"save_steps": 2, "env_id": "Hopper-v5", "eval_episodes": 2, "eval_max_episode_steps": 10},
    }
    metrics = main(command_line(folder, **command))
    assert metrics["global_step"] == 4
    assert 0 < metrics["eval_loss"] < 2
    record = json.loads((folder / "training.json").read_text())
    assert (record["architecture"], record["preset"]) == (architecture, None)
    assert "preset" not in record["arguments"]
    assert record["arguments"]["context_length"] == 4
    assert f"{metrics['eval_return_mean']:.3g} ± " in (folder / "README.md").read_text()
    policy = DecisionMambaPolicy.from_pretrained(folder)
    assert policy.context_length == (4 if architecture == "decision_transformer" else 1)
    assert policy.act(np.zeros(11)).shape == (3,)

    whole = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "checkpoint-4")
    main(command_line(folder, **command, resume_from_checkpoint="last"))
    assert (folder / "model.safetensors").read_bytes() == whole
    with pytest.raises(ValueError, match=f"it has architecture={architecture}, and the settings say decision_mamba"):
        main(command_line(folder, resume_from_checkpoint="last"))

    # Fine-tuning takes the architecture from the checkpoint.
    tuned = {**dict.fromkeys(command), **dict.fromkeys(TINY_MODEL), "model_name_or_path": folder}
    main(command_line(tmp_path / "tuned", **tuned, seed=1))
    record = json.loads((tmp_path / "tuned" / "training.json").read_text())
    assert (record["architecture"], record["arguments"]["context_length"]) == (architecture, 4)
    other = next(name for name in BASELINES if name != architecture)
    with pytest.raises(ValueError, match=f"run is a model of --architecture {architecture}, not {other}"):
        main(command_line(tmp_path / "other", **{**tuned, "architecture": other}))


def test_errors_of_the_user_end_in_one_line(capsys):
    with pytest.raises(SystemExit) as end, report_user_errors():
        main(["--dataset_name", "no/such/folder"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert re.match("error: no data set at .*no/such/folder", error)
    assert error.count("\n") == 1


PUSHING = {"push_to_hub": True, "hub_model_id": "alice/hopper", "hub_token": "hf_alice"}


@pytest.fixture
def hub(monkeypatch):
    with LoopbackHub({"hf_alice": "alice"}) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("hf_decision_mamba.sharing.push.RETRY_WAITS", (0.0,))
        yield server


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own, to httpx2
@pytest.mark.parametrize(("strategy", "steps"), [("end", []), ("every_save", [2, 4])])
def test_checkpoints_are_pushed_as_hub_strategy_says(tmp_path, hub, strategy, steps):
    run, always = tmp_path / "run", {"hub_always_push": True}  # or a save is skipped while one is on its way
    main(command_line(run, **PUSHING, **always, hub_strategy=strategy, save_steps=2))
    repository = hub.model("alice/hopper")
    messages = [f"Training in progress, step {step}" for step in steps]
    assert repository.history() == ["Upload checkpoint", *reversed(messages), "initial commit"]
    shas = {commit.message: sha for sha, commit in repository.commits.items()}
    sent = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", ".gitattributes", *CODE_FILES}
    for step, message in zip(steps, messages, strict=True):
        files = repository.files(shas[message])
        assert set(files) == sent
        assert files["model.safetensors"] == (run / f"checkpoint-{step}" / "model.safetensors").read_bytes()
    assert set(repository.files()) == {*sent, "training.json", "train.yaml"}


def test_a_failed_push_does_not_fail_the_training(tmp_path, hub, capsys):
    hub.faults = [Fault("POST /api/repos/create", status=503, times=1000)]
    run = tmp_path / "run"
    main(command_line(run, **PUSHING, hub_strategy="every_save", save_steps=2, hub_revision="dev"))
    output = capsys.readouterr().out
    assert "Step 2 was not pushed: the Hub is in trouble (503 Service Unavailable)." in output
    assert "The training is finished, but not pushed. Pushing" in output and not hub.repositories
    assert f"this repeats the push: hf-decision-mamba push {run} alice/hopper --revision dev" in output
    assert (run / "model.safetensors").exists()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_trainer_alone_pushes_the_same_way(tmp_path, hub, ragged, capsys):
    trainer = DecisionMambaTrainer(
        tiny_model(), tiny_arguments(tmp_path, **PUSHING, hub_private_repo=True), train_dataset=ragged
    )
    trainer.save_model()
    assert hub.model("alice/hopper").private and hub.model("alice/hopper").history()[0] == "Model save"
    trainer.push_to_hub("A branch", revision="dev")
    assert hub.model("alice/hopper").history("dev") == ["Model save", "initial commit"]  # the same files: no commit
    hub.faults = [Fault("POST /api/repos/create", status=503, times=1000)]
    trainer.save_model()
    assert "Not pushed. Pushing" in capsys.readouterr().out
    with pytest.raises(PushError, match="the Hub is in trouble"):
        trainer.push_to_hub()


def test_fine_tuning_keeps_the_normalisation_of_the_checkpoint(run, tmp_path):
    """The weights know states as their processor gives them, so another data set's statistics would break them."""
    old = DecisionMambaProcessor.from_pretrained(run)
    main(
        command_line(
            tmp_path / "tuned",
            **dict.fromkeys(TINY_MODEL),
            model_name_or_path=run,
            seed=1,
            context_length=None,
            held_out_fraction=0.9,  # the two that are left have other returns
        )
    )
    new = DecisionMambaProcessor.from_pretrained(tmp_path / "tuned")
    assert (new.state_mean, new.context_length) == (old.state_mean, old.context_length)
    assert new.return_scale == old.return_scale == 960.0
    assert json.loads((tmp_path / "tuned" / "training.json").read_text())["preset"] is None
    assert not torch.equal(weights(run)["embed_state.weight"], weights(tmp_path / "tuned")["embed_state.weight"])


@pytest.fixture(scope="module")
def quantiles(tmp_path_factory, trajectories) -> Path:
    """A run whose states and actions are normalised by quantiles."""
    folder = tmp_path_factory.mktemp("quantiles") / "run"
    main(command_line(folder, max_steps=2, state_normalization="quantile", action_normalization="quantile"))
    return folder


def test_normalisation_by_quantiles_is_learned_from_and_undone(quantiles, trajectories):
    train, _ = trajectories.split(0.1, 42)
    processor = DecisionMambaProcessor.from_pretrained(quantiles)
    for values, mid, scale in (
        (train.compact().observations, processor.state_mean, processor.state_std),
        (train.compact().actions, processor.action_mid, processor.action_scale),
    ):
        low, high = np.percentile(values.astype(float), [1, 99], axis=0)
        np.testing.assert_allclose([mid, scale], [(low + high) / 2, (high - low) / 2])
    policy = DecisionMambaPolicy.from_pretrained(quantiles)
    policy.reset(target_return=1000)
    low, high = (np.array(processor.action_mid) + end * np.array(processor.action_scale) for end in (-1, 1))
    actions = policy.act(10 * train.observations[:64])
    assert ((low <= actions + 1e-6) & (actions <= high + 1e-6)).all()
    assert policy.model.config.action_tanh
    settings = (quantiles / "train.yaml").read_text()
    assert "state_normalization: quantile" in settings and "action_normalization: quantile" in settings
    assert "Actions are normalised by their 1st and 99th percentile" in (quantiles / "README.md").read_text()


def test_the_rate_and_the_names_of_the_data_go_with_the_model(tmp_path, caplog):
    shutil.copytree(SAMPLES / "lerobot", tmp_path / "robot")
    path = tmp_path / "robot" / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.state"]["names"] = {"motors": [f"motor_{number}" for number in range(11)]}
    path.write_text(json.dumps(info))
    main(command_line(tmp_path / "run", dataset_name=tmp_path / "robot", max_steps=1))
    assert json.loads((tmp_path / "run" / "training.json").read_text())["dataset"]["fps"] == 125
    card = (tmp_path / "run" / "README.md").read_text()
    assert "125 steps a second: the first of the 4 steps of a window is 0.024 s before the last |" in card
    assert "a dictionary of motor_0 (), motor_1 ()" in card
    policy = DecisionMambaPolicy.from_pretrained(tmp_path / "run")
    assert policy.processor.delta_timestamps == [-0.024, -0.016, -0.008, 0]
    assert policy.act({f"motor_{number}": 0.1 for number in range(11)}).shape == (3,)

    tuned = ModelArguments(model_name_or_path=str(tmp_path / "run")), DataArguments()
    data = load_trajectories(tmp_path / "robot")
    assert build(*tuned, replace(data, fps=None))[1].fps == build(*tuned, data)[1].fps == 125 and not caplog.records
    assert build(*tuned, replace(data, fps=50.0))[1].fps == 50
    assert "run was trained at 125 steps a second, and data set" in caplog.text


def test_a_stream_is_normalised_by_its_sample(tmp_path):
    stream = {"streaming": True, "streaming_buffer": 500, "held_out_fraction": 0}
    main(command_line(tmp_path, **stream, max_steps=1, state_normalization="min_max"))
    sample = open_stream(HOPPER).sample(500, 0)[1]
    assert sample.num_steps < 2874
    low, high = (end.astype(float) for end in (sample.observations.min(axis=0), sample.observations.max(axis=0)))
    processor = DecisionMambaProcessor.from_pretrained(tmp_path)
    np.testing.assert_array_equal((processor.state_mean, processor.state_std), ((low + high) / 2, (high - low) / 2))


def test_fine_tuning_keeps_quantiles(quantiles, tmp_path, capsys):
    tuned = [f"--model_name_or_path={quantiles}", f"--output_dir={tmp_path / 'tuned'}", "--max_steps=1", "--seed=1"]
    tuned.append(f"--dataset_name={HOPPER}")
    main([str(quantiles / "train.yaml"), *tuned])  # a file of settings, which were of another model
    remark = "state_normalization and action_normalization left out (the checkpoint has its own)"
    assert remark in capsys.readouterr().out
    old, new = (DecisionMambaProcessor.from_pretrained(folder) for folder in (quantiles, tmp_path / "tuned"))
    assert all(getattr(old, name) == getattr(new, name) for name in ("state_mean", "action_mid", "action_scale"))
    with pytest.raises(ValueError, match=r"state_normalization=none cannot be chosen when fine-tuning .* is kept"):
        main([str(quantiles / "train.yaml"), *tuned, "--state_normalization=none", "--overwrite_output_dir=true"])


@pytest.mark.parametrize("architecture", ["decision_mamba", "decision_transformer", "bc"])
def test_actions_that_are_normalised_to_no_range_need_no_tanh(trajectories, architecture):
    model_args = ModelArguments(architecture=architecture, hidden_size=8)
    far = replace(trajectories, actions=10 * trajectories.actions)
    for data, method, tanh in (
        (trajectories, None, True),
        (trajectories, "none", True),
        (trajectories, "mean_std", False),
        (far, None, True),
        (far, "none", False),
        (far, "min_max", True),
    ):
        model, processor, _ = build(model_args, DataArguments(action_normalization=method), data)
        assert model.config.action_tanh == tanh
        assert (processor.action_mid is None) == (method == "none" or (data is trajectories and method is None))


def test_states_as_they_are_and_goals_as_states(trajectories):
    goals = replace(trajectories, achieved_goals=trajectories.observations[:, :2].copy())
    model_args = ModelArguments(conditioning="goal", hidden_size=8, embedding_size=8)
    _, processor, _ = build(model_args, DataArguments(state_normalization="min_max"), goals)
    assert processor.goal_std == processor.state_std[:2] and processor.goal_mean == processor.state_mean[:2]
    _, processor, _ = build(ModelArguments(hidden_size=8), DataArguments(state_normalization="none"), trajectories)
    assert (processor.state_mean, processor.state_std) == ([0.0] * 11, [1.0] * 11)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "state_normalization",
            "observations are images, which are not normalised; leave state_normalization=min_max",
        ),
        ("action_normalization", "actions are discrete, which are not normalised; leave action_normalization=min_max"),
    ],
)
def test_images_and_discrete_actions_are_not_normalised(frames, setting, message):
    with pytest.raises(ValueError, match=message):
        build(ModelArguments(preset="dema-atari"), DataArguments(**{setting: "min_max"}), frames)


def test_imitation_is_asked_for_nothing(tmp_path):
    main(command_line(tmp_path / "run", conditioning="none", env_id="Hopper-v5", eval_episodes=1, max_steps=2))
    policy = DecisionMambaPolicy.from_pretrained(tmp_path / "run")
    assert policy.model.config.token_order == ["previous_action", "state"]
    policy.reset()
    assert policy.act(np.zeros(11)).shape == (3,)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "policy.reset()" in card and "policy.act(observation, reward)" not in card
    assert "conditioning: none" in (tmp_path / "run" / "train.yaml").read_text()
    for baseline in ("bc", "decision_transformer"):
        with pytest.raises(ValueError, match="conditioning"):
            main(command_line(tmp_path / baseline, architecture=baseline, conditioning="none", preset=None))


def test_the_target_return_is_the_best_of_the_data(tmp_path):
    main(command_line(tmp_path / "run", env_id="Hopper-v5", max_steps=1))
    processor = DecisionMambaProcessor.from_pretrained(tmp_path / "run")
    assert processor.target_return == pytest.approx(960.1016)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "dema-b4ld"}, "Unknown preset 'dema-b4ld'; known presets: "),
        ({"dataset_name": None}, "No data set: give --dataset_name"),
        ({"held_out_fraction": 1.0}, "held_out_fraction=1.0 must be 0 or more and below 1"),
        ({"context_length": 5000}, "context_length=5000 is longer than any episode can be: max_ep_len is 4096"),
        ({"context_length": 0}, "context_length=0 must be a whole number from 1"),
        ({"max_ep_len": 100}, "has an episode of 316 steps, but the model knows only max_ep_len=100"),
        (
            {"eval_episodes": 2, "env_id": "Hoper-v5"},
            "No environment 'Hoper-v5': check the spelling.*--eval_episodes 0",
        ),
        ({"eval_episodes": 2, "env_id": "HalfCheetah-v5"}, "HalfCheetah-v5 observes 17 dimensions"),
        ({"env_id": "Hopper v5"}, "env_id='Hopper v5' is no gymnasium id"),
        ({"eval_episodes": -1}, "eval_episodes=-1 must be 0 or more"),
        ({"target_return": "nan"}, r"target_return=\[nan\] must be finite"),
        ({"return_scale": 0}, "return_scale=0.0 must be a positive number"),
        ({"dataset_columns": "obs"}, "dataset_columns=obs must be JSON"),
        ({"metric_for_best_model": "eval_normalized_score"}, "needs rollouts in training: --rollout_episodes"),
        ({"held_out_fraction": 0, "rollout_episodes": 2}, "held_out_fraction=0 leaves nothing to evaluate"),
        ({"push_to_hub": True}, "push_to_hub needs the repository to push to: --hub_model_id"),
        ({"push_to_hub": True, "hub_model_id": "a/b/c"}, "Repo id must be in the form"),
        ({**PUSHING, "hub_strategy": "checkpoint"}, "hub_strategy=checkpoint would send optimizer.pt.*Take every_save"),
        ({"resume_from_checkpoint": "nowhere"}, "Cannot resume from nowhere: there is no such folder"),
        ({"resume_from_checkpoint": "last", "overwrite_output_dir": True}, "contradict each other"),
        ({"cpu_threads": 0}, "cpu_threads=0 must be at least 1"),
        ({"report_to": "pen"}, "report_to=pen is no tracker; there are azure_ml, "),
        (
            {"lr_scheduler_kwargs": '{"rate": 1}'},
            "lr_scheduler_kwargs=.'rate': 1. is not for lr_scheduler_type=cosine: ",
        ),
        (
            {"data_on_device": True, "dataloader_num_workers": 1},
            "data_on_device and dataloader_num_workers exclude each other",
        ),
        ({"eval_max_episode_steps": 0}, "eval_max_episode_steps=0 must be at least 1"),
        ({"hidden_size": 0}, "^hidden_size=0 must be at least 1"),
        ({**BASELINES["bc"], "hidden_size": 0}, "^hidden_size=0 must be at least 1"),
        ({"frame_stack": 0}, "frame_stack=0 must be at least 1"),
        ({"frame_stack": 4}, "frame_stack=4 has no meaning for data set 'hopper-tiny-v5', whose states are vectors"),
        (
            {"preset": "dema-atari"},
            "Preset 'dema-atari' is for image states, but data set 'hopper-tiny-v5' has vector states; "
            "presets that fit: dema-b3ld, dema-bl3d, dema-post, dmm, dmm-conv, dmm-mamba2, decision-mamba, gru",
        ),
        (
            {"dataset_name": BREAKOUT},
            "Preset 'dema-b3ld' is for vector states, but data set 'breakout-tiny' has image states; "
            "presets that fit: dema-atari, dema-atari-post, gru",
        ),
        ({"top_fraction": 0}, "top_fraction=0.0 must be above 0 and at most 1"),
        ({"top_fraction": 1.5}, "top_fraction=1.5 must be above 0 and at most 1"),
        ({"top_fraction": "nan"}, "top_fraction=nan must be above 0 and at most 1"),
        ({"top_fraction": 0.5, "streaming": True}, "top_fraction=0.5 and streaming exclude each other"),
        ({"return_temperature": 0}, "return_temperature=0.0 must be a positive number"),
        ({"return_temperature": 0.1, "streaming": True}, "return_temperature=0.1 and streaming exclude each other"),
        (
            {"return_temperature": 0.1, "train_mode": "sequences"},
            "return_temperature=0.1 draws windows, and train_mode",
        ),
        (
            {"top_fraction": 0.01},
            "top_fraction=0.01 leaves one of the 20 episodes of data set 'hopper-tiny-v5', of which none can be held",
        ),
        (
            {**dict.fromkeys(TINY_MODEL), "architecture": "gru", "conv_kernel": 4},
            "--conv_kernel does not apply to --architecture gru, which takes --conditioning, --hidden_size,",
        ),
        ({**BASELINES["bc"], "preset": "dmm"}, "--preset dmm is a variant of decision_mamba; leave it out with"),
        (
            {**BASELINES["decision_transformer"], "state_size": 4},
            "--state_size does not apply to --architecture decision_transformer, which takes --conditioning, --hidden_",
        ),
        (
            {**BASELINES["bc"], "env_id": "Hopper-v5", "eval_mode": "recurrent"},
            "DecisionMLPModel carries no state between decisions; use mode='window'",
        ),
        (
            {**BASELINES["decision_transformer"], "env_id": "Hopper-v5", "eval_episodes": 1, "max_ep_len": 400},
            "Episodes of Hopper-v5 last up to 1000 steps, but the model knows only max_ep_len=400",
        ),
        ({**BASELINES["bc"], "context_length": 0}, "context_length=0 must be a whole number from 1"),
    ],
)
def test_bad_input_is_refused_before_any_training(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        main(command_line(tmp_path / "run", **settings))
    assert not list((tmp_path / "run").glob("*"))


def test_trackers_that_are_not_installed_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_decision_mamba.training.run, "get_available_reporting_integrations", lambda: ["trackio"])
    with pytest.raises(
        ImportError, match=r"report_to=wandb: wandb is not installed. Install it.*installed here: trackio"
    ):
        main(command_line(tmp_path / "run", report_to="wandb"))
    assert not (tmp_path / "run").exists()


def test_what_a_data_set_names_as_its_environment_and_is_none_is_left_out(tmp_path, capsys):
    shutil.copy(HOPPER, tmp_path / "data.parquet")
    said = 'Hopper-v5")\nimport os  #'
    (tmp_path / "data.json").write_text(json.dumps({"env_id": said}))
    main(command_line(tmp_path / "run", dataset_name=tmp_path / "data.parquet", max_steps=1, save_strategy="no"))
    assert f"data names the environment {said!r}, which is no gymnasium id: left out" in capsys.readouterr().out
    assert DecisionMambaProcessor.from_pretrained(tmp_path / "run").env_id is None
    assert "import os" not in (tmp_path / "run" / "README.md").read_text()


def test_data_of_other_dimensions_than_the_checkpoint_is_refused(tmp_path):
    tiny_model_of_another_task = DecisionMambaModel(
        DecisionMambaConfig(state_dim=4, act_dim=1, hidden_size=8, n_layer=1)
    )
    tiny_model_of_another_task.save_pretrained(tmp_path / "other")
    settings = {**dict.fromkeys(TINY_MODEL), "model_name_or_path": tmp_path / "other"}
    with pytest.raises(ValueError, match=r"'hopper-tiny-v5' has state_dim=11, but .*other was trained with 4"):
        main(command_line(tmp_path / "run", **settings))
    with pytest.raises(ValueError, match="state_size cannot be changed when fine-tuning"):
        main(command_line(tmp_path / "run", **{**settings, "state_size": 4}))
    with pytest.raises(
        ValueError, match=r"--preset dmm builds a new model, and --model_name_or_path .*other fine-tunes"
    ):
        main(command_line(tmp_path / "run", **settings, preset="dmm"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observation_parts": [{"path": ["b"], "shape": [2], "size": 2}]},
            r"observes a dictionary of b \(2,\), but .* of a",
        ),
        ({"observation_parts": None}, None),
        ({"action_start": 1}, "has action_start=1, but .*other was trained with 0"),
    ],
)
def test_data_of_other_parts_than_the_checkpoint_is_refused(tmp_path, change, message):
    parts = [{"path": ["a"], "shape": [2], "size": 2}]
    model = DecisionMambaModel(
        DecisionMambaConfig(state_dim=2, act_dim=3, action_type="discrete", hidden_size=8, n_layer=1)
    )
    model.save_pretrained(tmp_path / "other")
    DecisionMambaProcessor([0.0] * 2, [1.0] * 2, observation_parts=parts).save_pretrained(tmp_path / "other")
    columns = np.zeros((4, 2), np.float32), np.arange(4) % 3, np.ones(4, np.float32)
    ends = np.arange(4) == 3, np.zeros(4, bool), np.array([0]), np.array([4])
    data = Trajectories(*columns, *ends, **{"observation_parts": parts, **change})
    arguments = ModelArguments(model_name_or_path=str(tmp_path / "other")), DataArguments(), data
    if message is None:  # nobody knows: the checkpoint's stay
        assert build(*arguments)[1].observation_parts == parts
        return
    with pytest.raises(ValueError, match=message):
        build(*arguments)


def test_arguments_of_the_environment_belong_to_it(tmp_path, capsys):
    main(
        command_line(tmp_path / "run", max_steps=1, eval_episodes=1, env_id="Hopper-v5", env_kwargs='{"frame_skip": 2}')
    )
    processor = DecisionMambaProcessor.from_pretrained(tmp_path / "run")
    assert (processor.env_id, processor.env_kwargs) == ("Hopper-v5", {"frame_skip": 2})
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["env_kwargs"] == {"frame_skip": 2}
    assert "Hopper-v5, frame_skip=2: 1 episode" in capsys.readouterr().out
    assert parse_arguments([str(tmp_path / "run" / "train.yaml")])[2].environment_kwargs() == {"frame_skip": 2}


# ------------------------------------------------------------------------------------------------- without rewards


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The data of the other runs without their rewards, and with what could be made rewards of."""
    table = pq.read_table(HOPPER)
    lengths = [len(rewards) for rewards in table.column("rewards").to_pylist()]
    won = [[step == length - 1 and number % 2 == 0 for step in range(length)] for number, length in enumerate(lengths)]
    path = tmp_path_factory.mktemp("bare") / HOPPER.name
    pq.write_table(table.drop_columns("rewards").append_column("won", pa.array(won)), path)
    return path


IN_SEQUENCES = {"train_mode": "sequences", "per_device_train_batch_size": 2}
ON_THE_DEVICE = {"data_on_device": "true"}
IMITATING = {
    "windows": {},
    "sequences": IN_SEQUENCES,
    "on the device": ON_THE_DEVICE,
    "gru": {"preset": "gru", "state_size": None},
    "streaming": {"streaming": "true", "streaming_buffer": 500},
    "bc": BASELINES["bc"],
}


@pytest.mark.parametrize("kind", IMITATING)
def test_without_rewards_the_same_is_learned(kind, bare, tmp_path, capsys):
    """To the bit: nothing of what a model that imitates learns comes from rewards."""
    settings = IMITATING[kind]
    asked = {} if kind == "bc" else {"conditioning": "none"}
    for name, more in (("whole", asked), ("bare", {"dataset_name": bare})):
        main(command_line(tmp_path / name, **{**settings, **more}))
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "bare")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "bare")]
    assert records[0]["eval_loss"] == records[1]["eval_loss"] and records[1]["loss"] == records[0]["loss"]
    said = capsys.readouterr().out
    assert said.count("transitions, no rewards: conditioning=none") == 1 and "nan" not in said
    settings = (tmp_path / "bare" / "train.yaml").read_text()
    assert ("conditioning: none" in settings) == (kind != "bc") and "return" not in settings
    policy = DecisionMambaPolicy.from_pretrained(tmp_path / "bare")
    assert policy.processor.target_return is None and policy.condition_input is None
    policy.reset()
    assert policy.act(np.zeros(11)).shape == (3,)


def test_the_line_that_says_it_is_said_once(bare, tmp_path, capsys, caplog):
    line = "no rewards: conditioning=none; give --rewards_from COLUMN (such as next.success or terminated) to have "
    for name in ("first", "from the cache"):
        caplog.clear()
        main(command_line(tmp_path / name, dataset_name=bare, max_steps=1))
        assert (capsys.readouterr().out + caplog.text).count(line) == 1


def test_what_imitates_is_scored_and_repeated(bare, tmp_path):
    scored = {"env_id": "Hopper-v5", "eval_episodes": 2, "eval_max_episode_steps": 6, "max_steps": 2}
    scored |= {"rollout_episodes": 1, "eval_steps": 1}
    main(command_line(tmp_path / "run", dataset_name=bare, **scored))
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"]
    assert [row["target_return"] for row in results] == [None] and results[0]["return_mean"] > 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert "target return" not in card.lower() and "Return of an episode" not in card and "n/a" not in card
    dataset = json.loads((tmp_path / "run" / "training.json").read_text())["dataset"]
    assert dataset["episodes"] == 20 and not [name for name in dataset if "return" in name]
    main([str(tmp_path / "run" / "train.yaml"), f"--output_dir={tmp_path / 'again'}", f"--dataset_name={bare}"])
    again = weights(tmp_path / "again")
    assert all(torch.equal(values, again[name]) for name, values in weights(tmp_path / "run").items())
    for mode in ("window", "recurrent"):
        policy = DecisionMambaPolicy.from_pretrained(tmp_path / "run", mode=mode)
        policy.reset()
        actions = [policy.act(np.full(11, step / 10)) for step in range(6)]
        scores = evaluate_policy(policy, episodes=1, max_episode_steps=5, progress=False)
        assert np.isfinite(actions).all() and scores.episodes[0]["target_return"] is None
    with pytest.raises(ValueError, match="already holds a run"):
        main(command_line(tmp_path / "run", dataset_name=bare, **scored))
    resumed = main(
        command_line(tmp_path / "run", dataset_name=bare, **{**scored, "max_steps": 3}, resume_from_checkpoint="last")
    )
    assert resumed["global_step"] == 3


@pytest.mark.parametrize("imitates", [{"conditioning": "none"}, {"architecture": "bc", **dict.fromkeys(TINY_MODEL)}])
def test_what_imitates_data_with_rewards_is_asked_for_no_return(imitates, tmp_path, capsys):
    scored = {"env_id": "Hopper-v5", "eval_episodes": 1, "eval_max_episode_steps": 3, "max_steps": 1}
    main(command_line(tmp_path / "run", target_return=5, **scored, **imitates))
    assert "target_return=[5.0] is not used: the policy imitates, and is asked for no return" in capsys.readouterr().out
    assert DecisionMambaProcessor.from_pretrained(tmp_path / "run").target_return is None
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"]
    assert [row["target_return"] for row in results] == [None]
    assert "asked for a return" not in (tmp_path / "run" / "README.md").read_text().lower()


def test_rewards_may_be_another_column(bare, tmp_path):
    main(command_line(tmp_path / "run", dataset_name=bare, rewards_from="won"))
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (record["dataset"]["return_mean"], record["dataset"]["return_max"]) == (0.5, 1.0)
    assert record["arguments"]["rewards_from"] == "won" and "--rewards_from=won" in record["command"]
    assert "rewards_from: won" in (tmp_path / "run" / "train.yaml").read_text()
    assert "| Rewards | the values of the column `won` |" in (tmp_path / "run" / "README.md").read_text()
    processor = DecisionMambaProcessor.from_pretrained(tmp_path / "run")
    assert (processor.target_return, processor.return_scale) == (1.0, 1.0)
    with pytest.raises(ValueError, match="it has rewards_from=won, and the settings say unset"):
        main(command_line(tmp_path / "run", dataset_name=bare, resume_from_checkpoint="last"))
    with pytest.raises(ValueError, match="rewards_from=won says how data are read, and Trajectories have been"):
        train(load_trajectories(bare), rewards_from="won", output_dir=str(tmp_path / "other"), use_cpu=True)


WITHOUT = "data set 'hopper-tiny-v5' has no rewards: leave it out, or give --rewards_from COLUMN"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditioning": "return"}, "--conditioning return asks for a return, and .* or leave --conditioning out, to"),
        (
            BASELINES["rvs"],
            "--architecture rvs is asked for a return, .* or take another architecture, which imitates",
        ),
        ({"return_scale": 10}, f"return_scale=10.0 is about returns, and {WITHOUT}"),
        ({"target_return": 10}, rf"target_return=\[10.0\] is about returns, and {WITHOUT}"),
        ({"top_fraction": 0.5}, f"top_fraction=0.5 is about returns, and {WITHOUT}"),
        ({"return_temperature": 0.5}, f"return_temperature=0.5 is about returns, and {WITHOUT}"),
        ({"delayed_reward": "true"}, f"delayed_reward=True is about returns, and {WITHOUT}"),
        (
            {"rewards_from": "score"},
            r"has no column 'score' for the rewards; its columns are .*, won\. Say which one it",
        ),
        ({"dataset_columns": '{"rewards": "score"}'}, "has no column 'score' for the rewards; its columns are .*, won"),
    ],
)
def test_what_needs_returns_says_so(settings, message, bare, tmp_path):
    with pytest.raises(ValueError, match=message):
        main(command_line(tmp_path / "run", dataset_name=bare, **settings))
    assert not (tmp_path / "run").exists()


def test_decision_transformer_imitates(bare, tmp_path):
    main(command_line(tmp_path / "run", dataset_name=bare, **BASELINES["decision_transformer"]))
    policy = DecisionMambaPolicy.from_pretrained(tmp_path / "run")
    assert policy.condition_input is None and policy.processor.target_return is None
    policy.reset()
    assert [policy.act(np.full(11, value, np.float32)).shape for value in (0.0, 1.0)] == [(3,), (3,)]
    assert "arget return" not in (tmp_path / "run" / "README.md").read_text()
    main(command_line(tmp_path / "other", **BASELINES["decision_transformer"], conditioning="none"))
    assert AutoConfig.from_pretrained(tmp_path / "other").conditioning == "none"
    main(command_line(tmp_path / "theirs", **BASELINES["decision_transformer"], conditioning="return"))
    assert type(AutoConfig.from_pretrained(tmp_path / "theirs")) is DecisionTransformerConfig


def test_what_is_asked_for_a_return_is_not_tuned_without(run, bare, tmp_path):
    tuned = {**dict.fromkeys(TINY_MODEL), "context_length": None, "dataset_name": bare}
    with pytest.raises(
        ValueError, match=r"has no rewards, but .* is asked for a return: give --rewards_from COLUMN, or"
    ):
        main(command_line(tmp_path / "tuned", **tuned, model_name_or_path=run))
    main(command_line(tmp_path / "first", dataset_name=bare, max_steps=1))
    main(command_line(tmp_path / "tuned", **tuned, model_name_or_path=tmp_path / "first"))
    assert "conditioning" not in (tmp_path / "tuned" / "train.yaml").read_text()


@pytest.fixture
def reach():
    gymnasium.register("Reach-v0", Reach, max_episode_steps=12, disable_env_checker=True)
    yield
    del gymnasium.registry["Reach-v0"]


BY_GOAL = {**TINY_RUN, "conditioning": "goal", "env_id": "Reach-v0", "eval_episodes": 0, "held_out_fraction": 0.1}


def test_a_policy_learns_to_go_to_goals_and_is_scored_by_success(reach, tmp_path):
    """The vertical slice: rollouts, hindsight, training, evaluation, card, a checkpoint that acts and is repeated."""
    settings = {"hidden_size": 32, "embedding_size": 32, "max_steps": 300, "learning_rate": 3e-3, "eval_episodes": 30}
    made = {"per_device_train_batch_size": 32, "rollout_episodes": 2, "eval_steps": 300, "warmup_steps": 20}
    result = train(reaching(80), **{**BY_GOAL, **settings, **made}, output_dir=str(tmp_path / "run"))
    (summary,) = result.evaluation.summary()
    assert summary["success_rate"] > 0.8 and summary["target_return"] is None
    assert result.metrics["eval_success_rate"] == summary["success_rate"]
    processor = DecisionMambaProcessor.from_pretrained(tmp_path / "run")
    assert processor.target_return is None and len(processor.goal_mean) == 2
    assert processor.observation_parts == [{"path": ["observation"], "shape": [3], "size": 3}]
    record = json.loads((tmp_path / "run" / "training.json").read_text())["arguments"]
    assert (record["conditioning"], record["goals"]) == ("goal", "uniform")
    assert "goals: uniform" in (tmp_path / "run" / "train.yaml").read_text()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "policy.reset(goal=[0.0] * 2)" in card and "Given a goal of 2 numbers to go to" in card
    assert "target return" not in card.lower() and "drawn uniformly" in card and "success" in card
    policy, env = DecisionMambaPolicy.from_pretrained(tmp_path / "run", "recurrent"), gymnasium.make("Reach-v0")
    observation, _ = env.reset(seed=5)
    policy.reset(goal=observation["desired_goal"])
    assert policy.act(observation["observation"]).shape == (2,)
    assert policy.act(observation).shape == (2,)


@pytest.mark.parametrize("goals", ["uniform", "recorded"])
def test_a_resumed_run_draws_the_goals_of_one_that_was_never_stopped(goals, tmp_path):
    data, settings = reaching(20), {**BY_GOAL, "goals": goals, "save_steps": 2, "eval_steps": 2}
    settings |= {"dataloader_num_workers": 0, "lr_scheduler_type": "constant", "env_id": None}
    train(data, **{**settings, "output_dir": str(tmp_path / "whole")})
    train(data, **{**settings, "output_dir": str(tmp_path / "parts"), "max_steps": 2})
    resumed = {"output_dir": str(tmp_path / "parts"), "resume_from_checkpoint": "last"}
    train(data, **{**settings, **resumed})
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(values, parts[name]) for name, values in whole.items())
    with pytest.raises(ValueError, match=f"goals={goals}, and the settings say last"):
        train(data, **{**settings, **resumed, "goals": "last"})


@pytest.mark.parametrize("architecture", ["rvs", "decision_transformer"])
def test_baselines_of_goals(architecture, tmp_path):
    """RvS-G and a Decision Transformer: hindsight, training, a checkpoint that acts; it is tuned as such."""
    settings = {name: value for name, value in BY_GOAL.items() if name not in TINY_MODEL}
    settings |= {"env_id": None, "max_steps": 1, "architecture": architecture}
    train(reaching(10), **settings, output_dir=str(tmp_path / "first"))
    policy = DecisionMambaPolicy.from_pretrained(tmp_path / "first")
    assert (policy.model.config.conditioning, policy.model.config.goal_dim) == ("goal", 2)
    assert ("RvS-G of [RvS" in (tmp_path / "first" / "README.md").read_text()) == (architecture == "rvs")
    policy.reset(goal=[1.0, 2.0])
    assert policy.act(np.zeros(3, np.float32)).shape == (2,)
    settings |= {"model_name_or_path": str(tmp_path / "first"), "conditioning": None}
    train(reaching(10, seed=100), **settings, output_dir=str(tmp_path / "tuned"))
    assert "goals: uniform" in (tmp_path / "tuned" / "train.yaml").read_text()


def concatenated(episodes: list[dict], *names: str) -> list[dict]:
    """Episodes whose observations are these parts, one behind the other."""
    return [
        {**episode, "observations": np.concatenate([episode["observations"][name] for name in names], axis=-1)}
        for episode in episodes
    ]


@pytest.mark.parametrize("conditioning", [None, "goal"])
def test_vectors_of_an_environment_of_goals_play_there_when_their_parts_are_named(conditioning, reach, tmp_path):
    data = concatenated(reaching(10), "observation", "desired_goal")
    settings = {**BY_GOAL, "max_steps": 1, "eval_episodes": 2, "conditioning": conditioning}
    named = {"observation_parts": {"observation": 3, "desired_goal": 2}}
    if conditioning == "goal":
        named["achieved_goals_from"] = [0, 1]
    policy = train(data, **settings, **named, output_dir=str(tmp_path / "run")).policy
    assert ("observation_parts" in (tmp_path / "run" / "train.yaml").read_text()) and policy.processor.env_id
    observation, _ = gymnasium.make("Reach-v0").reset(seed=3)
    policy.reset()
    action = policy.act(observation)
    policy.reset(**({"goal": observation["desired_goal"]} if conditioning else {}))
    vector = np.concatenate([observation["observation"], *([] if conditioning else [observation["desired_goal"]])])
    np.testing.assert_array_equal(policy.act(vector), action)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, r"5 dimensions; .*of its parts the data have, and in what order, says --observation_parts"),
        (
            {"observation": 2, "desired_goal": 3},
            r"observes a dictionary of desired_goal \(2,\), observation \(3,\), but",
        ),
        ({"observation": 4}, r"observation_parts \(--observation_parts\): .* add up to the 5 numbers of an obs"),
        ({"observation": 5.0}, 'observation_parts={"observation": 5.0} must be JSON such as {"observation": 4}'),
        ({}, "observation_parts={} must be the names of the parts"),
    ],
)
def test_parts_of_vectors_that_are_not_the_environments(parts, message, reach, tmp_path):
    data = concatenated(reaching(10), "observation", "desired_goal")
    settings = {**BY_GOAL, "max_steps": 1, "eval_episodes": 1, "conditioning": None, "observation_parts": parts}
    with pytest.raises(ValueError, match=message):
        train(data, **settings, output_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_a_study_will_play_in_is_looked_at_before_the_training(tmp_path):
    unplayed = {"max_steps": 1, "eval_episodes": 0}
    with pytest.raises(ValueError, match=r"CartPole-v1 observes 4 dimensions.*\(--env_id names another one\.\)"):
        main(command_line(tmp_path / "run", **unplayed, env_id="CartPole-v1"), plays_later=True)
    assert not (tmp_path / "run").exists()
    for later, bounds in ((True, [1.0] * 3), (False, None)):
        output = tmp_path / str(later)
        main(command_line(output, **unplayed, env_id="Hopper-v5"), plays_later=later)
        assert DecisionMambaProcessor.from_pretrained(output).action_high == bounds


def test_a_checkpoint_of_goals_is_tuned_on_data_with_goals(tmp_path):
    settings = {**BY_GOAL, "env_id": None, "max_steps": 1}
    train(reaching(10), **settings, output_dir=str(tmp_path / "first"))
    tuning = {name: value for name, value in settings.items() if name not in (*TINY_MODEL, "conditioning")}
    tuning |= {"model_name_or_path": str(tmp_path / "first")}
    train(reaching(10, seed=100), **tuning, output_dir=str(tmp_path / "tuned"))
    first, tuned = (DecisionMambaProcessor.from_pretrained(tmp_path / name) for name in ("first", "tuned"))
    assert tuned.goal_mean == first.goal_mean
    with pytest.raises(ValueError, match="has no goals, which goals='recorded' needs"):
        train(HOPPER, **tuning, output_dir=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"goals": "last", "conditioning": None},
            "goals=last is for models that are asked for goals: ",
        ),
        ({"train_mode": "sequences"}, r"take goals='last' or 'recorded' \(--goals last\)"),
        ({"goals_from": [0, 9]}, r"goals_from=\[0, 9\] \(--goals_from\) must be different numbers .* 0 to 6"),
        ({"achieved_goals_from": ["0", "x"]}, "achieved_goals_from='0 x' .* must be numbers of an observation, or"),
        ({"architecture": "bc"}, r"bc sees the state alone; of a goal too it is --architecture rvs \(RvS-G\)"),
        ({"architecture": "rvs", "conditioning": "none"}, "what sees the state alone is --architecture bc"),
        ({"architecture": "bc", "conditioning": "none"}, "--conditioning does not apply to --architecture bc"),
    ],
)
def test_settings_of_goals_that_cannot_be_right(settings, message, tmp_path):
    given = {**BY_GOAL, "env_id": None, **settings}
    if "architecture" in settings:
        given = {name: value for name, value in given.items() if name not in TINY_MODEL}
    with pytest.raises(ValueError, match=message):
        train(reaching(5), **given, output_dir=str(tmp_path / "run"))


def test_numbers_of_the_observation_are_goals_on_the_command_line(tmp_path, capsys):
    of_goals = ["--goals_from", "9", "10", "--achieved_goals_from", "0", "1"]
    main([*command_line(tmp_path / "run", conditioning="goal", target_return=5), *of_goals])
    assert "target_return=[5.0] is not used: the policy is asked for goals" in capsys.readouterr().out
    processor = DecisionMambaProcessor.from_pretrained(tmp_path / "run")
    assert len(processor.state_mean) == 9
    np.testing.assert_allclose(processor.goal_mean, processor.state_mean[:2], rtol=1e-6)
    assert "goals_from:\n- 9\n- 10" in (tmp_path / "run" / "train.yaml").read_text()
    streamed = ["--streaming", "true", "--streaming_buffer", "500"]
    for more in (["--train_mode", "sequences", "--goals", "last"], streamed):
        output = tmp_path / more[1]
        main([*command_line(output, conditioning="goal"), *of_goals, *more])
        assert DecisionMambaConfig.from_pretrained(output).goal_dim == 2


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    {"train_and_kill": train_and_kill, "train_in_two_processes": train_in_two_processes}[task](folder)

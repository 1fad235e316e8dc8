"""Training with carried states: chunks are one sequence, whoever computes them, and resuming goes on to the bit."""

import os
import re
import sys
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import BREAKOUT, HOPPER, ROOT
from processes import run_file
from safetensors.torch import load_file

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel
from hf_decision_mamba.data import SequenceDataset, load_trajectories
from hf_decision_mamba.model import PRESETS
from hf_decision_mamba.training import DecisionMambaTrainer, main
from hf_decision_mamba.training.arguments import DecisionMambaTrainingArguments
from hf_decision_mamba.training.carrying import CarriedStates

SIZES = {"hidden_size": 8, "embedding_size": 8, "n_layer": 2, "state_size": 4}
PATHS = f"{ROOT}/src:{ROOT}/tests"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS, "CUDA_VISIBLE_DEVICES": ""}


def make_model(preset: str = "dema-b3ld", **overrides) -> DecisionMambaModel:
    torch.manual_seed(0)
    image = "atari" in preset
    kinds = {"act_dim": 4} if image else {"state_dim": 11, "act_dim": 3}
    config = DecisionMambaConfig.from_preset(preset, **{**SIZES, **kinds, "embd_pdrop": 0.0, **overrides})
    return DecisionMambaModel(config).double()


def chunks_of(dataset: SequenceDataset) -> list[dict[str, torch.Tensor]]:
    """The chunks of the first two episodes, a batch for each place in them."""
    first, second = (range(*bounds) for bounds in ((0, dataset.chunks()[0]), dataset.chunks()[:2].cumsum()))
    items = [[a, b] for a, b in zip(first, second, strict=False)]
    longer, row = (first, 0) if len(first) > len(second) else (second, 1)
    for item in longer[len(items) :]:
        items.append([item, -1] if row == 0 else [-1, item])
    return [dataset.__getitems__(pair) for pair in items]


def forward(model: DecisionMambaModel, batch: dict[str, torch.Tensor], **options) -> torch.Tensor:
    known = {name: x for name, x in batch.items() if name not in ("rewards", "begins", "labels")}
    known = {name: x.double() if x.is_floating_point() else x for name, x in known.items()}
    return model(**known, **options).action_preds


@pytest.mark.parametrize("preset", PRESETS)
def test_chunks_with_carried_states_are_the_whole_episode(preset):
    data, two = (BREAKOUT, [2, 0]) if "atari" in preset else (HOPPER, [0, 1])  # the shortest with frames
    trajectories = load_trajectories(data).select(np.array(two))
    model = make_model(preset, max_ep_len=2000, **({"hidden_size": 16} if "mamba2" in preset else {})).eval()
    longest = int(trajectories.lengths.max())
    whole = SequenceDataset(trajectories, longest).__getitems__([0, 1])
    with torch.no_grad():
        expected = forward(model, whole)
        carried, rows = CarriedStates(model), [[], []]
        for batch in chunks_of(SequenceDataset(trajectories, 37)):
            found = forward(model, batch, cache_params=carried.at(batch["begins"]))
            for row in (0, 1):
                rows[row].append(found[row][batch["attention_mask"][row].bool()])
    for row, length in enumerate(trajectories.lengths):
        found = torch.cat(rows[row])
        assert len(found) == length
        torch.testing.assert_close(found, expected[row, :length], atol=1e-9, rtol=1e-9)


def train(folder: Path, length: int = 8, resume: Path | None = None, **settings) -> DecisionMambaTrainer:
    data = load_trajectories(HOPPER)
    defaults = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "warmup_steps": 0,
        "save_steps": 4,
        "logging_steps": 1,
    }
    args = DecisionMambaTrainingArguments(
        output_dir=str(folder),
        use_cpu="WORLD_SIZE" not in os.environ,
        eval_strategy="no",
        disable_tqdm=True,
        **{**defaults, **settings},
    )
    trainer = DecisionMambaTrainer(
        make_model().float(), args, train_dataset=SequenceDataset(data, length, return_scale=1000.0)
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.save_model()
    return trainer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_resumed_run_goes_on_to_the_bit(tmp_path):
    options = {"gradient_accumulation_steps": 2, "max_steps": 7}
    train(tmp_path / "whole", **options)
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert (checkpoint / "carried_states_0.safetensors").is_file()
    train(tmp_path / "resumed", resume=checkpoint, **options)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    (checkpoint / "carried_states_0.safetensors").unlink()
    with pytest.raises(ValueError, match=r"carried_states_0.safetensors cannot be read .*Resume from another"):
        train(tmp_path / "lost", resume=checkpoint, **options)


def test_dilation_is_drawn_from_the_seed_and_only_for_training(tmp_path, monkeypatch):
    drawn = []
    scales = DecisionMambaModel.forward

    @wraps(scales)
    def forward(self, *args, time_scale=None, **kwargs):
        drawn.append(None if time_scale is None else time_scale.numpy().copy())
        return scales(self, *args, time_scale=time_scale, **kwargs)

    monkeypatch.setattr(DecisionMambaModel, "forward", forward)
    options = {"time_dilation": 0.25, "time_dilation_max": 100.0, "gradient_accumulation_steps": 2}
    trainer = train(tmp_path / "whole", length=64, **options)
    trainer.evaluate(SequenceDataset(load_trajectories(HOPPER), 64))
    whole = [x for x in drawn if x is not None]
    assert len(whole) == 12 and None in [None if x is None else 0 for x in drawn]
    factors = np.concatenate([x.ravel() for x in whole])
    assert 0.2 < (factors > 1).mean() < 0.3 and factors.min() == 1 and factors.max() <= 100
    assert np.log(factors[factors > 1]).mean() == pytest.approx(np.log(100) / 2, rel=0.1)
    drawn.clear()
    train(tmp_path / "resumed", length=64, resume=tmp_path / "whole" / "checkpoint-4", **options)
    assert all(np.array_equal(x, y) for x, y in zip(drawn, whole[8:], strict=True))
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(first[name], second[name]) for name in first)


def train_two_rows(folder: Path) -> None:
    train(folder, per_device_train_batch_size=2)


def test_passes_and_processes_have_rows_of_their_own(tmp_path):
    train(tmp_path / "one", per_device_train_batch_size=4)
    train(tmp_path / "passes", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    done = run_file(__file__, str(tmp_path / "processes"), environment=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("passes", "processes"):
        torch.testing.assert_close(weights(tmp_path / name), weights(tmp_path / "one"), atol=1e-6, rtol=0)


def test_chunks_as_long_as_episodes_are_training_on_whole_episodes():
    trajectories = load_trajectories(HOPPER).select(np.arange(3))
    model, longest = make_model(), int(trajectories.lengths.max())
    batch = SequenceDataset(trajectories, longest).__getitems__([0, 1, 2])
    gradients = []
    for options in ({}, {"cache_params": CarriedStates(model).at(batch["begins"])}):
        model.zero_grad()
        predictions = forward(model, batch, **options)
        real = batch["attention_mask"].bool()
        (predictions[real] - batch["labels"].double()[real]).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-9, rtol=1e-6, msg=name)


def test_no_gradient_reaches_the_chunk_before():
    model = make_model()
    carried = CarriedStates(model)
    first, second = chunks_of(SequenceDataset(load_trajectories(HOPPER), 5))[:2]
    with carried.of(0):
        cache = carried.at(first["begins"])
        forward(model, first, cache_params=cache).sum().backward()
    assert not any(state.requires_grad for state in cache.tensors().values())
    with carried.of(0):
        forward(model, second, cache_params=carried.at(second["begins"])).sum().backward()  # its graph is its own


def test_the_command_line_trains_on_sequences(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = [f"--{name}={value}" for name, value in SIZES.items()]
    run = [f"--dataset_name={HOPPER}", *sizes, "--context_length=16", "--warmup_steps=1", "--eval_episodes=0"]
    run += ["--train_mode=sequences", "--per_device_train_batch_size=4", "--use_cpu=true", "--eval_mode=recurrent"]
    metrics = main([*run, "--time_dilation=0.1", "--max_steps=3", "--logging_steps=1", "--output_dir=run"])
    assert np.isfinite([metrics["loss"], metrics["eval_loss"]]).all()
    assert "train_mode: sequences" in Path("run/train.yaml").read_text()
    card = Path("run/README.md").read_text()
    assert "| `time_dilation` | 0.1 |" in card and re.search(r"\| `time_dilation_max` \| (1e\+06|1,?000,?000) \|", card)
    for more, message in ((["--streaming=true"], "train_mode=sequences and streaming exclude each other"),):
        with pytest.raises(ValueError, match=message):
            main([*run, *more, "--max_steps=1", "--output_dir=other"])
    for setting, message in (
        ("--train_mode=sequences", "train_mode=sequences: --architecture bc has no state to carry"),
        ("--time_dilation=0.1", "time_dilation=0.1: --architecture bc has no step sizes to multiply"),
        ("--time_dilation=1.5", "time_dilation=1.5 must be below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            main([run[0], run[7], setting, "--architecture=bc", "--max_steps=1", "--output_dir=other"])


def test_the_held_out_loss_does_not_depend_on_the_batch(tmp_path):
    data, losses = load_trajectories(HOPPER).select(np.arange(6)), []
    for rows in (1, 3, 64):
        args = DecisionMambaTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, per_device_eval_batch_size=rows, disable_tqdm=True
        )
        trainer = DecisionMambaTrainer(make_model().float(), args, eval_dataset=SequenceDataset(data, 7))
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


if __name__ == "__main__":
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    place = {"run_id": "tests", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0}
    launch = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", **place)
    elastic_launch(launch, train_two_rows)(Path(sys.argv[1]))  # what torchrun does, but by forks

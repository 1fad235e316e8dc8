"""Official checkpoints: what does not fit is named (what fits is proven in tests/golden)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_decision_mamba.conversion import convert_official_checkpoint

CASE = Path(__file__).parent / "golden" / "dema_b3ld"
CONSTRUCTOR = json.loads(CASE.with_suffix(".json").read_text())["constructor"]


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    tensors = load_file(CASE.with_suffix(".safetensors"))
    return {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}


def test_converted_models_are_ready_to_act_and_to_save(weights, tmp_path):
    model = convert_official_checkpoint(weights, "dema", **CONSTRUCTOR)
    assert not model.training
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reloaded[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 32}, r"token_proj.weight has shape \(16, 24\) instead of \(32, 24\)"),
        ({"n_layer": 3}, "missing layers.2.mixer.A_log"),
        ({"type_input": "B4LD"}, "type_input='B4LD'"),
        ({"wheels": 4}, "Unknown official constructor arguments: wheels"),
    ],
)
def test_misfits_are_named(weights, change, message):
    with pytest.raises(ValueError, match=message):
        convert_official_checkpoint(weights, "dema", **{**CONSTRUCTOR, **change})


def test_unknown_weights_and_architectures_are_named(weights):
    with pytest.raises(ValueError, match=r"unexpected backbone\.extra"):
        convert_official_checkpoint({**weights, "backbone.extra": torch.zeros(1)}, "dema", **CONSTRUCTOR)
    with pytest.raises(ValueError, match=r"Unknown architecture 'dema2'; known: decision-mamba, dema, "):
        convert_official_checkpoint(weights, "dema2", **CONSTRUCTOR)

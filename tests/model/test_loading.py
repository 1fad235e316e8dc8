"""What a checkpoint may hold: safetensors that fit their config; and what was saved once loads forever."""

import ast
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoints
from factories import damaged
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    DecisionTransformerConfig,
    DecisionTransformerModel,
)
from transformers.utils import logging

from hf_decision_mamba import (
    DecisionMambaConfig,
    DecisionMambaModel,
    DecisionMambaPolicy,
    DecisionMambaProcessor,
    DecisionMLPConfig,
    DecisionMLPModel,
)
from hf_decision_mamba.model import PRESETS, checkpoint_decision_mamba

ROOT = Path(__file__).parents[2]
STATE_DIM, ACT_DIM = 4, 2
SIZES = {"state_dim": STATE_DIM, "act_dim": ACT_DIM, "hidden_size": 8, "n_layer": 1}


def make_model(kind: str = "mamba", **sizes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {**SIZES, **sizes}
    if kind == "mlp":
        return DecisionMLPModel(DecisionMLPConfig(**sizes))
    if kind == "transformer":
        return DecisionTransformerModel(DecisionTransformerConfig(**sizes, n_head=1, n_positions=64))
    return DecisionMambaModel(DecisionMambaConfig.from_preset("dema-b3ld", **sizes, embedding_size=8, state_size=4))


PROCESSOR = DecisionMambaProcessor(
    state_mean=[0.25, -1.5, 3.0, 1e-3],
    state_std=[1.5] * STATE_DIM,
    target_return=3600.0,
    action_low=[-1.0] * ACT_DIM,
    action_high=[1.0] * ACT_DIM,
    env_id="Hopper-v5",
)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """No progress bar for each of the hundreds of files that are loaded here."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(params=["mamba", "mlp", "transformer"])
def kind(request):
    return request.param


def save(folder: Path, kind: str = "mamba", **options) -> Path:
    make_model(kind).save_pretrained(folder, **options)
    PROCESSOR.save_pretrained(folder)
    return folder


def change_json(path: Path, **changes) -> None:
    """Edit a file as one does by hand."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, **changes) -> None:
    """Write other weights with another tool; None takes one away."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------------------------------------------ compatibility


@pytest.mark.parametrize("preset", PRESETS)
def test_what_this_version_saved_loads_forever(preset):
    """Never change the folders in tests/checkpoints: people have such files. Change the code until it reads them."""
    folder = make_checkpoints.FOLDER / preset
    recorded = load_file(folder / "recorded.safetensors")
    observations, rewards = recorded["observations"], recorded["rewards"].numpy()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    predictions = make_checkpoints.predict(model, observations)
    torch.testing.assert_close(predictions, recorded["action_preds"], rtol=0, atol=1e-5)
    for mode in ("window", "recurrent"):
        policy = DecisionMambaPolicy.from_pretrained(folder, mode, dtype=torch.float32)
        actions = make_checkpoints.play(policy, observations.numpy(), rewards)
        np.testing.assert_allclose(actions, recorded[f"actions_{mode}"].numpy(), rtol=0, atol=1e-5)


def test_checkpoints_from_before_versions_load():
    folder = ROOT / "model_cards/dema-b3ld-hopper-medium-replay"
    assert DecisionMambaPolicy.from_pretrained(folder).model.config.format_version == 1


@pytest.mark.parametrize("kind", ["mamba", "mlp"])
def test_a_newer_format_asks_for_an_upgrade(kind, tmp_path):
    change_json(save(tmp_path, kind) / "config.json", format_version=2)
    for load in (AutoConfig, AutoModel, DecisionMambaPolicy):
        with pytest.raises(ValueError, match=r"format_version=2, .* knows up to 1: upgrade hf_decision_mamba"):
            load.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------------- safetensors only


def test_pickled_weights_are_never_read(kind, tmp_path):
    save(tmp_path, kind)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no weights in model\.safetensors, the only format that is read: pickles"):
        DecisionMambaPolicy.from_pretrained(tmp_path)
    if kind != "transformer":
        model = make_model(kind)
        for path in (tmp_path, tmp_path / "pytorch_model.bin"):
            with pytest.raises(OSError, match="the only format that is read"):
                type(model).from_pretrained(path, config=model.config)


def test_asking_for_pickled_weights_is_refused(kind, tmp_path):
    with pytest.raises(ValueError, match="use_safetensors=False: pickled weights are never read"):
        DecisionMambaPolicy.from_pretrained(save(tmp_path, kind), use_safetensors=False)


def test_distributed_checkpoints_do_not_take_the_place_of_the_weights(tmp_path):
    save(tmp_path)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(OSError, match="is a distributed checkpoint"):
        DecisionMambaModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "x.bin", 5]
)
def test_an_index_cannot_name_files_elsewhere(name, kind, tmp_path):
    save(tmp_path, kind, max_shard_size=200)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json (names .*; weights must be|is not an index of weights)"):
        DecisionMambaPolicy.from_pretrained(tmp_path)


def test_a_config_cannot_name_other_weights(tmp_path):
    change_json(save(tmp_path) / "config.json", transformers_weights="../x.safetensors")
    with pytest.raises(ValueError, match="has transformers_weights, another name"):
        DecisionMambaModel.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------- weights that do not fit


WRONG_WEIGHTS = {
    "missing": ({"predict_action.bias": None}, r"1 missing \(predict_action\.bias\)"),
    "additional": ({"spare": torch.zeros(2)}, r"1 not part of the model \(spare\)"),
    "misshapen": ({"predict_action.bias": torch.zeros(3)}, r"predict_action\.bias \(3,\) instead of \(2,\)"),
    "integers": ({"predict_action.bias": torch.zeros(2, dtype=torch.int8)}, r"not floating \(predict_action\.bias\)"),
    "infinite": ({"predict_action.bias": torch.tensor([0.0, float("nan")])}, "'predict_action.bias' is not finite"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
@pytest.mark.parametrize("kind", ["mamba", "mlp"])
def test_weights_that_do_not_fit_are_named(kind, changes, message, tmp_path):
    change_weights(save(tmp_path, kind), **changes)
    for load in (AutoModel, type(make_model(kind)), DecisionMambaPolicy):
        with pytest.raises(ValueError, match=rf"The weights of {re.escape(str(tmp_path))} .*{message}"):
            load.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"embed_state.bias": None}, {"embed_state.bias": torch.zeros(3)}, {"spare": torch.zeros(1)}]
)
def test_weights_of_a_decision_transformer_are_checked_by_the_policy(changes, tmp_path):
    change_weights(save(tmp_path, "transformer"), **changes)
    with pytest.raises(ValueError, match=rf"do not match its config\.json: .*{next(iter(changes))}"):
        DecisionMambaPolicy.from_pretrained(tmp_path)


def test_a_caller_who_asks_for_them_judges_missing_weights(tmp_path):
    change_weights(save(tmp_path), **{"predict_action.bias": None})
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"predict_action.bias"} and torch.isfinite(model.predict_action.bias).all()


def test_fine_tuning_on_other_dimensions(tmp_path):
    """ignore_mismatched_sizes=True, as everywhere in transformers: what has another shape starts anew."""
    save(tmp_path)
    model = DecisionMambaModel.from_pretrained(tmp_path, act_dim=3, ignore_mismatched_sizes=True)
    assert model.predict_action.weight.shape == (3, 8)
    torch.testing.assert_close(model.embed_state.weight, make_model().embed_state.weight)


def test_a_huge_config_takes_no_memory(tmp_path):
    """40 billion parameters pass the config's own limits, but not those of a file of a few KB."""
    change_json(save(tmp_path) / "config.json", hidden_size=2**15, n_layer=6)
    with pytest.raises(ValueError, match="do not match its config"):
        AutoModel.from_pretrained(tmp_path)


def test_a_huge_decision_transformer_is_refused(tmp_path):
    change_json(save(tmp_path, "transformer") / "config.json", n_layer=10**9)
    with pytest.raises(ValueError, match="n_layer=1000000000 must be at least 1 and at most"):
        DecisionMambaPolicy.from_pretrained(tmp_path)


#: What a config may say, of any class of model, that transformers would believe: and what is said to it.
STRANGE_SETTINGS = {
    "labels without end": ({"num_labels": 2**70}, "num_labels must be a whole number of at most 65536"),
    "labels that are no number": ({"num_labels": "x"}, "num_labels must be a whole number"),
    "names that are no object": ({"id2label": [1]}, "id2label must be an object with at most 65536 entries"),
    "a list for a type": ({"dtype": []}, r"dtype=\[\] is not floating"),
    "a number for a type": ({"dtype": 2}, "dtype=2 is not floating"),
    "a function for a type": ({"torch_dtype": "compile"}, "torch_dtype=<function .*is not floating"),
    "code of the Hub": ({"_attn_implementation": "org/kernel"}, "_attn_implementation must be the name of an impl"),
    "a list of code": ({"_attn_implementation": [None]}, "_attn_implementation must be the name of an impl"),
    "another config": ({"configuration_files": ["config.4.0.0.json"]}, "has configuration_files, the names of other"),
    "other weights": (
        {"quantization_config": {"quant_method": "awq"}},
        "has quantization_config, weights that are not",
    ),
    "layers": ({"per_layer_config": {"0": {"hidden_size": 10**9}}}, "has per_layer_config, layers that differ"),
}


@pytest.mark.parametrize(("changes", "message"), STRANGE_SETTINGS.values(), ids=STRANGE_SETTINGS)
def test_strange_settings_end_in_one_error(changes, message, kind, tmp_path):
    change_json(save(tmp_path, kind) / "config.json", **changes)
    loads = [DecisionMambaPolicy] if kind == "transformer" else [DecisionMambaPolicy, type(make_model(kind))]
    for load in loads:
        with pytest.raises(ValueError, match=message):
            load.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "nothing", None, ["llama"]])
def test_a_policy_is_made_of_decision_models_only(model_type, tmp_path):
    changes = {"model_type": model_type, "num_hidden_layers": 10**9, "architectures": None}
    change_json(save(tmp_path / "a-gpt2-mamba") / "config.json", **changes)
    with pytest.raises(ValueError, match=r"model_type=.* in config\.json is no decision model"):
        DecisionMambaPolicy.from_pretrained(tmp_path / "a-gpt2-mamba")


@pytest.mark.parametrize("name", ["validate", "attribute_map", "estimated_parameters", "__class__", "to_dict"])
def test_settings_do_not_take_the_place_of_what_the_config_does(name, tmp_path):
    change_json(save(tmp_path) / "config.json", **{name: 5})
    with pytest.raises(ValueError, match=f"config.json has {name}, which is no setting; remove it"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["1", '"x"', "[]", "null", "[" * 100_000, '{"a":' * 100_000])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_of_another_kind(name, content, kind, tmp_path):
    (save(tmp_path, kind) / name).write_text(content)
    loads = [DecisionMambaPolicy] if kind == "transformer" else [DecisionMambaPolicy, type(make_model(kind))]
    for load in loads if name == "config.json" else [DecisionMambaPolicy, DecisionMambaProcessor]:
        with pytest.raises((ValueError, OSError), match=r"holds a|cannot be read|is not JSON|Can't load") as error:
            load.from_pretrained(tmp_path)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_std": 10**400}, "state_std must be a non-empty list of numbers"),
        ({"state_mean": [10**400] * STATE_DIM}, "state_mean must be a non-empty list of numbers"),
        ({"target_return": 10**400}, r"target_return=10+\.\.\.0+ must be a finite number"),
        ({"context_length": ["x" * 5000] * 5000}, r"context_length=\['x.*\] must be a whole number"),
        ({"env_id": {"x" * 5000: 1}}, "env_id=.* must be a name, or None"),
        ({"x" * 5000: 1}, "has an unknown setting 'xxx"),
    ],
)
def test_strange_settings_of_a_processor(changes, message, tmp_path):
    change_json(save(tmp_path) / "preprocessor_config.json", **changes)
    with pytest.raises(ValueError, match=message) as error:
        DecisionMambaPolicy.from_pretrained(tmp_path)
    assert len(str(error.value)) < 1000


def test_an_adapter_does_not_lead_to_another_model(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_decision_mamba, "is_peft_available", lambda: True)
    (save(tmp_path) / "adapter_config.json").write_text('{"base_model_name_or_path": "../other"}')
    with pytest.raises(OSError, match="holds an adapter, which names the model that it belongs to"):
        DecisionMambaPolicy.from_pretrained(tmp_path)


def test_a_processor_with_windows_longer_than_the_model_knows(tmp_path):
    make_model("transformer", max_ep_len=16).save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"context_length=20, but the model knows only max_ep_len=16 time steps"):
        DecisionMambaPolicy.from_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------------------- damage


def test_models_can_be_saved_again_in_another_type_and_place(tmp_path):
    half = DecisionMambaModel.from_pretrained(save(tmp_path / "a"), dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "a")
    again = AutoModel.from_pretrained(tmp_path / "a")
    assert again.dtype == torch.bfloat16 and torch.equal(again.embed_state.weight, half.embed_state.weight)
    again.save_pretrained(tmp_path / "b", max_shard_size=200)
    AutoProcessor.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert DecisionMambaPolicy.from_pretrained(tmp_path / "b").processor.to_dict() == PROCESSOR.to_dict()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_files_may_be_edited_by_hand(name, tmp_path):
    path, field = save(tmp_path) / name, "max_ep_len" if name == "config.json" else "context_length"
    content = json.loads(path.read_text())
    assert "checksum" not in content
    for old in ({}, {"checksum": "of a version that wrote one"}):
        path.write_text(json.dumps({**content, **old, field: 64}))
        policy = DecisionMambaPolicy.from_pretrained(tmp_path)
        assert getattr(policy.model.config if name == "config.json" else policy.processor, field) == 64


def test_a_damaged_processor_is_not_a_missing_one(tmp_path):
    (save(tmp_path) / "preprocessor_config.json").write_text("{")
    with pytest.raises(OSError, match=r"preprocessor_config\.json' is not a valid JSON file"):
        DecisionMambaPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "preprocessor_config.json", "model.safetensors.index.json"],
)
def test_damaged_files_load_or_fail_clearly(name, tmp_path):
    """125 cases for each file."""
    rng = random.Random(0)
    original = (save(tmp_path, max_shard_size=200 if "index" in name else 10**9) / name).read_bytes()
    names, refused = make_model().state_dict().keys(), 0
    for _ in range(125):
        (tmp_path / name).write_bytes(damaged(original, rng))
        try:
            policy = DecisionMambaPolicy.from_pretrained(tmp_path)
        except (OSError, ValueError) as error:
            assert str(tmp_path) in str(error)
            refused += 1
            continue
        weights = policy.model.state_dict()
        assert weights.keys() == names and all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert refused > 30


# --------------------------------------------------------------------------------------------------------- no pickles


def unpickling(path: Path) -> list[str]:
    """Lines of a source file that could run the code of a pickle."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if modules & {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}:
                found.append(f"{path}:{node.lineno}")
        elif isinstance(node, ast.Call):
            options = {option.arg: getattr(option.value, "value", None) for option in node.keywords}
            trusting = options.get("allow_pickle") or options.get("weights_only", True) is not True
            if trusting or (ast.unparse(node.func) == "torch.load" and "weights_only" not in options):
                found.append(f"{path}:{node.lineno}")
    return found


def test_nothing_is_unpickled():
    """`pickletools`, with which the allow-list reader reads old data sets, lists instructions and runs none."""
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "train.py"]
    assert len(files) > 30
    assert [line for path in files for line in unpickling(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import load",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x', allow_pickle=True)",
    ],
)
def test_unpickling_would_be_found(line, tmp_path):
    (tmp_path / "x.py").write_text(line)
    assert unpickling(tmp_path / "x.py") == [f"{tmp_path / 'x.py'}:1"]

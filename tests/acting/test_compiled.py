"""The network as one compiled call computes what torch computes: every preset, any size, windows and recurrence."""

from dataclasses import fields, make_dataclass

import numpy as np
import pytest
import torch
from factories import SMALL_FRAMES, drawn_model, drawn_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel
from hf_decision_mamba.acting import compiled
from hf_decision_mamba.acting.compiled import fuse
from hf_decision_mamba.model import PRESETS

COMPILED = [name for name in PRESETS if name != "gru"]  # in which torch acts
#: Fields that no preset sets, or that meet in no preset.
MIXTURES = {
    "everything of one token": {"sequence_layout": "concatenated", "embedding_activation": "tanh", "embedding_size": 9},
    "local mixers inside and outside": {"local_mixer": "conv", "local_mixer_inside": True, "share_local_mixer": True},
    "no residual, shared norms": {"mixer_residual": False, "share_norms": True, "mixer_norm_type": "layer_norm"},
    "no convolution, biases, no tanh": {"conv_kernel": 0, "use_bias": True, "action_tanh": False, "head_bias": False},
    "no gate, biases": {"use_gate": False, "use_bias": True},
    "constant step sizes": {"selective": False, "conv_kernel": 0},
    "two kinds of blocks in one": {"block_type": "mamba_mlp", "activation_function": "silu", "use_conv_bias": False},
    "time steps of previous actions": {"use_timestep_embedding": True, "embedding_activation": "gelu"},
    "Mamba-2 with biases": {"ssm": "mamba2", "use_bias": True, "head_dim": 1, "conv_kernel": 1},
    "discrete actions": {"action_type": "discrete", "token_order": ["return", "state", "action"]},
    "no condition": {"conditioning": "none", "use_timestep_embedding": True},
    "no condition, the step's own action": {"conditioning": "none", "token_order": ["state", "action"]},
    "no condition, one token": {"conditioning": "none", "sequence_layout": "concatenated", "embedding_size": 9},
    "no condition, a filter for each kind": {"conditioning": "none", "local_mixer": "conv"},
    "goals of many numbers": {"conditioning": "goal", "goal_dim": 37, "local_mixer": "linear"},
    "goals in one token": {"conditioning": "goal", "goal_dim": 2, "sequence_layout": "concatenated"},
    "discrete previous actions": {"action_type": "discrete", "embedding_size": 33, "use_timestep_embedding": True},
}
OWN_TOKEN = {"token_order": ["return", "state", "action"]}
IMAGES = {"state_type": "image", **SMALL_FRAMES}
#: Every field of the config with a value that is not its default, and what else it takes for it to matter.
CHANGED = {
    "state_dim": {"state_dim": 6},
    "act_dim": {"act_dim": 4},
    "hidden_size": {"hidden_size": 9},
    "embedding_size": {"embedding_size": None},
    "n_layer": {"n_layer": 1},
    "max_ep_len": {"max_ep_len": 39, "use_timestep_embedding": True},
    "action_tanh": {"action_tanh": False},
    "conditioning": {"conditioning": "none"},
    "goal_dim": {"conditioning": "goal", "goal_dim": 3},
    "token_order": OWN_TOKEN,
    "sequence_layout": {"sequence_layout": "concatenated"},
    "embedding_activation": {"embedding_activation": "relu"},
    "embed_layer_norm": {"embed_layer_norm": True},
    "use_timestep_embedding": {"use_timestep_embedding": True},
    "state_type": IMAGES,
    "action_type": {"action_type": "discrete"},
    "num_channels": {**IMAGES, "num_channels": 3},
    "image_size": {**IMAGES, "image_size": 44},
    "block_type": {"block_type": "transformer"},
    "ssm": {"ssm": "mamba2"},
    "use_gate": {"use_gate": False},
    "selective": {"selective": False},
    "local_mixer": {"local_mixer": "linear"},
    "local_mixer_window": {"local_mixer": "conv", "local_mixer_window": 3},
    "local_mixer_inside": {"local_mixer": "linear", "local_mixer_inside": True},
    "share_local_mixer": {"local_mixer": "conv", "share_local_mixer": True},
    "mixer_residual": {"mixer_residual": False},
    "norm_type": {"norm_type": "layer_norm"},
    "mixer_norm_type": {"mixer_norm_type": "layer_norm"},
    "share_norms": {"share_norms": True},
    "n_inner": {"block_type": "mamba_mlp", "n_inner": 7},
    "activation_function": {"block_type": "mamba_mlp", "activation_function": "tanh"},
    "predict_state_and_return": {**OWN_TOKEN, "predict_state_and_return": True},
    "head_bias": {"head_bias": False},
    "state_size": {"state_size": 3},
    "expand": {"expand": 1},
    "head_dim": {"ssm": "mamba2", "head_dim": 3},
    "conv_kernel": {"conv_kernel": 2},
    "time_step_rank": {"time_step_rank": 3},
    "time_step_min": {"time_step_min": 0.05},
    "time_step_max": {"time_step_max": 0.5},
    "time_step_floor": {"time_step_floor": 0.2},
    "use_bias": {"use_bias": True},
    "use_conv_bias": {"use_conv_bias": False},
    "residual_in_fp32": {"residual_in_fp32": False},
    "layer_norm_epsilon": {"layer_norm_epsilon": 0.1},
    "embd_pdrop": {"embd_pdrop": 0.5},
    "resid_pdrop": {"resid_pdrop": 0.5},
    "initializer_range": {"initializer_range": 1.0, "use_timestep_embedding": True},
    "scan_backend": {"scan_backend": "numba"},
    "use_cache": {"use_cache": True},
    "format_version": {},  # there is no other yet
}


def fields_of(config: type) -> list[str]:
    return [field.name for field in fields(config)]


@torch.no_grad()
def arrays(model: DecisionMambaModel, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """The arguments of `predict`, but for lengths and memory."""
    states = model.embed_state(inputs["states"]) if model.config.state_type == "image" else inputs["states"]
    condition = inputs.get(model.config.condition_input, states.new_zeros(*states.shape[:2], 0))
    return [x.numpy() for x in (states, condition, inputs["previous_actions"], inputs["timesteps"])]


def check(model: DecisionMambaModel, rows: int, steps: int, tolerance: float) -> None:
    """Windows of different lengths, then the same episodes in two chunks, against one forward pass of torch."""
    inputs, fused = drawn_steps(model, rows, steps), fuse(model)
    with torch.no_grad():
        expected = model(**inputs).action_preds.numpy()
    given = arrays(model, inputs)
    scale = max(1.0, np.abs(expected).max())

    lengths = np.arange(rows) % steps + 1
    rolled = [np.stack([np.roll(x[i], -length, axis=0) for i, length in enumerate(lengths)]) for x in given]
    windows = fused.predict(*rolled, lengths)
    np.testing.assert_allclose(windows, expected[np.arange(rows), lengths - 1], atol=tolerance * scale)

    recurrent_state, cut = fused.new_recurrent_state(rows), steps // 2
    for start, end in ((0, cut), (cut, steps)):
        if end > start:
            chunk = [x[:, start:end] for x in given]
            out = fused.predict(*chunk, np.full(rows, end - start), recurrent_state)
            np.testing.assert_allclose(out, expected[:, end - 1], atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("preset", COMPILED)
def test_every_preset(preset, dtype):
    check(drawn_model(preset, dtype), rows=3, steps=7, tolerance=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("fields", MIXTURES.values(), ids=MIXTURES)
def test_fields_that_no_preset_sets(fields):
    check(drawn_model(**fields), rows=3, steps=5, tolerance=1e-12)


@pytest.mark.parametrize("field", sorted({*fields_of(DecisionMambaConfig)} - {*fields_of(PreTrainedConfig)}))
def test_every_field_of_the_config(field):
    check(drawn_model(**CHANGED[field]), rows=2, steps=3, tolerance=1e-12)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_size(data):
    preset = data.draw(st.sampled_from([name for name in COMPILED if "atari" not in name]))
    sizes = {
        "state_dim": st.integers(1, 40),
        "act_dim": st.integers(1, 40),
        "hidden_size": st.integers(1, 70),
        "state_size": st.integers(1, 9),
        "n_layer": st.integers(1, 3),
        "local_mixer_window": st.integers(1, 8),
        "conv_kernel": st.integers(0, 8),
        "embedding_size": st.none() | st.integers(1, 70),
        "head_dim": st.just(1),
    }
    model = drawn_model(preset, **{name: data.draw(values, label=name) for name, values in sizes.items()})
    check(model, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9)), tolerance=1e-11)


def test_rows_do_not_know_of_each_other_and_one_that_is_reset_starts_over():
    model = drawn_model("dmm")
    fused, given = fuse(model), arrays(model, drawn_steps(model, rows=3, steps=6))
    step = [[x[:, t : t + 1] for x in given] for t in range(6)]
    one, together = np.ones(3, int), fused.new_recurrent_state(3)
    for t in range(3):
        fused.predict(*step[t], one, together)
    together[1] = 0
    alone = fused.new_recurrent_state(1)
    for t in range(3, 6):
        out = fused.predict(*step[t], one, together)
        np.testing.assert_array_equal(out[1:2], fused.predict(*[x[1:2] for x in step[t]], one[:1], alone))


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    monkeypatch.setattr(compiled, "WORTH_A_THREAD", 1)
    model = drawn_model("decision-mamba")
    given, lengths = arrays(model, drawn_steps(model, rows=7, steps=5)), np.array([5, 1, 3, 2, 5, 4, 1])
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            fused = fuse(model)
            state = fused.new_recurrent_state(7)
            results.append((fused.predict(*given, lengths), fused.predict(*given, lengths, state), state))
            assert fused.groups == count
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_it_holds_the_weights_of_when_it_was_made():
    model = drawn_model()
    given = arrays(model, drawn_steps(model, 1, 4))
    before = fuse(model)
    expected = before.predict(*given, np.full(1, 4))
    with torch.no_grad():
        model.predict_action.bias += 0.5
    np.testing.assert_array_equal(before.predict(*given, np.full(1, 4)), expected)
    assert np.abs(fuse(model).predict(*given, np.full(1, 4)) - expected).max() > 0.01


class TestWhatIsLeftToTorch:
    """Nothing that a user did to a model may be passed over."""

    def test_a_hook(self):
        model = drawn_model()
        model.layers[1].mixer.in_proj.register_forward_hook(lambda *_: None)
        assert fuse(model) is None

    def test_a_module_of_somebody_else(self):
        class Adapter(nn.Linear):
            pass

        model = drawn_model()
        model.predict_action = Adapter(12, 3).double()
        assert fuse(model) is None

    @pytest.mark.parametrize(
        "replace",
        [
            lambda model: setattr(model, "norm_f", nn.LayerNorm(12)),
            lambda model: setattr(model, "activation", ACT2FN["tanh"]),
            lambda model: setattr(model, "predict_action", nn.Linear(12, 2)),
            lambda model: setattr(model, "predict_action", nn.Sequential(model.predict_action, nn.Tanh())),
            lambda model: setattr(model.layers[0].mixer.conv1d, "dilation", (2,)),
            lambda model: model.layers.append(model.layers[0]),
            lambda model: nn.utils.parametrizations.weight_norm(model.predict_action),
        ],
        ids=["norm", "activation", "other sizes", "one more behind", "dilation", "a layer twice", "parametrization"],
    )
    def test_a_module_that_the_config_does_not_ask_for(self, replace):
        model = drawn_model()
        replace(model)
        assert fuse(model.double()) is None

    def test_a_module_of_somebody_who_uses_the_name_of_the_package(self):
        model = drawn_model()
        model.predict_action = type("Mine", (nn.Linear,), {"__module__": f"{compiled.__package__}.mine"})(
            12, 3
        ).double()
        assert fuse(model) is None

    def test_a_forward_of_somebody_else(self):
        model = drawn_model()
        model.predict_action.forward = lambda x: x[..., :3]
        assert fuse(model) is None

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        assert fuse(drawn_model(dtype=dtype)) is None

    def test_mixed_precision(self):
        model = drawn_model()
        model.predict_action.float()
        assert fuse(model) is None

    def test_a_gru(self):
        assert fuse(drawn_model("gru")) is None

    def test_an_activation_that_is_not_known_here(self):
        assert fuse(drawn_model("dema-post", activation_function="mish")) is None

    @pytest.mark.parametrize("backend", ["reference", "triton", "mamba_ssm"])
    def test_another_backend_when_asked_for(self, backend):
        assert fuse(drawn_model(scan_backend=backend)) is None

    def test_a_field_of_the_config_that_is_not_known_here(self):
        model = drawn_model()
        newer = make_dataclass("Newer", [("condition", str, "return")], bases=(DecisionMambaConfig,))
        model.config.__class__ = newer
        assert model.config.condition == "return" and fuse(model) is None

    @pytest.mark.parametrize("field", sorted(name for name, known in compiled.FIELDS.items() if known is not None))
    def test_a_choice_that_is_not_known_here(self, field):
        model = drawn_model()
        vars(model.config)[field] = ["return", "previous_action", "plan"] if field == "token_order" else "plan"
        assert fuse(model) is None

    def test_everything_without_numba(self, monkeypatch):
        monkeypatch.setattr(compiled, "why_no_numba", lambda: "numba is not installed")
        assert fuse(drawn_model()) is None

    def test_other_models(self):
        assert fuse(nn.Linear(2, 2)) is None

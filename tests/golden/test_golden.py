"""Our numbers against the authors' own: every parity file, in float32 (1e-5) and float64 (1e-10)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_decision_mamba import DecisionMambaCache, DecisionMambaConfig, DecisionMambaModel
from hf_decision_mamba.conversion import convert_official_checkpoint
from hf_decision_mamba.model.hidden_attention import scan_terms
from hf_decision_mamba.model.mixers_decision_mamba import DecisionMambaMixer, DecisionMambaRMSNorm, TokenStream
from hf_decision_mamba.model.selective_scan import selective_scan

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
BACKENDS = ("reference", "numba")


class Case:
    """One parity file, its floating-point tensors in the dtype under test."""

    def __init__(self, name: str, dtype: torch.dtype):
        folder = Path(__file__).parent
        self.description = json.loads((folder / f"{name}.json").read_text())
        self.dtype, self.tolerance = dtype, TOLERANCE[dtype]
        self.tensors = load_file(folder / f"{name}.safetensors")

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        group = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
        return {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in group.items()}

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return self.group("inputs/")

    def expected(self, name: str) -> torch.Tensor:
        return self.tensors[f"outputs_f64/{name}"]


@pytest.fixture(params=TOLERANCE, ids=["float32", "float64"])
def dtype(request):
    return request.param


def lengths_second(tensor: torch.Tensor) -> torch.Tensor:
    """(batch, channels, length), as the official kernels have it, to our (batch, length, channels)."""
    return tensor.transpose(1, 2) if tensor.dim() == 3 else tensor


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["scan_full", "scan_plain", "scan_extreme", "scan_len1"])
def test_scan(name, dtype, backend, assert_close):
    case = Case(name, dtype)
    inputs = {key: lengths_second(value).requires_grad_() for key, value in case.inputs.items() if key != "G"}
    y, final_state = selective_scan(**inputs, backend=backend)
    assert_close("y", lengths_second(y), case.expected("y"), case.tolerance)
    assert_close("last_state", final_state, case.expected("last_state"), case.tolerance)

    upstream = lengths_second(case.inputs["G"])
    grads = dict(zip(inputs, torch.autograd.grad((y * upstream).sum(), list(inputs.values())), strict=True))
    for key, grad in grads.items():
        assert_close(f"gradient of {key}", lengths_second(grad), case.tensors[f"grads_f64/{key}"], case.tolerance)


def mixer_and_config(case: Case) -> tuple[DecisionMambaMixer, DecisionMambaConfig]:
    sizes = case.description["constructor"]
    config = DecisionMambaConfig(
        hidden_size=sizes["d_model"],
        state_size=sizes["d_state"],
        conv_kernel=sizes["d_conv"],
        expand=sizes["expand"],
        n_layer=1,
    )
    mixer = DecisionMambaMixer(config, layer_idx=0).to(case.dtype)
    mixer.load_state_dict(case.group("weights/"))
    return mixer, config


def test_mixer_forward_and_gradients(dtype, assert_close):
    case = Case("mixer", dtype)
    mixer, config = mixer_and_config(case)
    hidden_states = case.inputs["hidden_states"].requires_grad_()
    cache = DecisionMambaCache(config, batch_size=len(hidden_states), dtype=dtype)
    y = mixer(hidden_states, TokenStream(config.token_types, cache))
    assert_close("y", y, case.expected("y"), case.tolerance)
    assert_close("ssm_state", cache.ssm_states[0], case.expected("ssm_state"), case.tolerance)
    # The official window also keeps the oldest of its inputs, which no later token sees.
    assert_close("conv_state", cache.conv_states[0].mT, case.expected("conv_state")[..., 1:], case.tolerance)

    (y * case.inputs["G"]).sum().backward()
    grads = {"hidden_states": hidden_states.grad, **{key: p.grad for key, p in mixer.named_parameters()}}
    for key, grad in grads.items():
        assert_close(f"gradient of {key}", grad, case.tensors[f"grads_f64/{key}"], case.tolerance)


@pytest.mark.parametrize("prefill", [0, 2, 10])
@torch.no_grad()
def test_mixer_steps(prefill, dtype, assert_close):
    case = Case("mixer", dtype)
    mixer, config = mixer_and_config(case)
    hidden_states = case.inputs["hidden_states"]
    cache = DecisionMambaCache(config, batch_size=len(hidden_states), dtype=dtype)

    def check_states(when: str) -> None:
        assert_close("ssm_state", cache.ssm_states[0], case.expected(f"ssm_state_{when}"), case.tolerance)
        assert_close(
            "conv_state", cache.conv_states[0].mT, case.expected(f"conv_state_{when}")[..., 1:], case.tolerance
        )

    y = []
    if prefill:
        y.append(mixer(hidden_states[:, :prefill], TokenStream(config.token_types, cache)))
        check_states(f"prefill{prefill}")
    y += [mixer(token, TokenStream(config.token_types, cache)) for token in hidden_states[:, prefill:].split(1, dim=1)]
    check_states("step")
    name = f"y_prefill{prefill}_then_step" if prefill else "y_step"
    assert_close(name, torch.cat(y, dim=1), case.expected(name), case.tolerance)


@torch.no_grad()
def test_hidden_attention(dtype, assert_close):
    case = Case("hidden_attention", dtype)
    mixer, config = mixer_and_config(case)
    tokens = TokenStream(config.token_types, scans=[])
    assert_close("y", mixer(case.inputs["hidden_states"], tokens), case.expected("y"), case.tolerance)
    terms = scan_terms(tokens.scans[0], config, mask=None)
    assert_close("Δ", terms.delta.mT, case.expected("delta_softplus"), case.tolerance)
    attention = terms.attention()
    assert_close("alpha", attention, case.expected("alpha"), case.tolerance)
    last = torch.full((attention.shape[0],), attention.shape[-1] - 1)
    assert_close("last_row", terms.attention_row(last), case.expected("last_row"), case.tolerance)
    read = (attention @ tokens.scans[0]["u"].mT[..., None])[..., 0]
    assert_close("alpha_dot_u", read, case.expected("alpha_dot_u"), case.tolerance)


def test_norms(dtype):
    case = Case("norms", dtype)
    norm = DecisionMambaRMSNorm(case.inputs["x"].shape[-1], eps=1e-5).to(dtype)
    norm.load_state_dict({"weight": case.inputs["weight"]})
    for name, x in {
        "rmsnorm": case.inputs["x"],
        "rmsnorm_after_add": case.inputs["x"] + case.inputs["residual"],
    }.items():
        expected = case.expected(name)
        # Row by row and relative: some rows are so small that only eps decides them.
        error = (norm(x).double() - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() <= case.tolerance, f"{name}: {error.max():.2e}"


def test_gated_norm(dtype):
    case = Case("norm_gated", dtype)
    norm = DecisionMambaRMSNorm(case.inputs["x"].shape[-1], eps=1e-5).to(dtype)
    norm.load_state_dict({"weight": case.inputs["weight"]})
    expected = case.expected("gated")
    error = (norm(case.inputs["x"], gate=case.inputs["z"]).double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() <= case.tolerance


def convert(case: Case, architecture: str) -> DecisionMambaModel:
    weights = case.group("weights/")
    if "unregistered_dsm_lin_weight" in case.inputs:  # the official model never saves this one
        weights["unregistered_dsm_lin_weight"] = case.inputs["unregistered_dsm_lin_weight"]
    return convert_official_checkpoint(weights, architecture, **case.description["constructor"])


def step_by_step(model: DecisionMambaModel, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The action predictions of the recurrent form, one decision at a time."""
    cache = DecisionMambaCache(model.config, batch_size=len(inputs["states"]), dtype=dtype)
    steps = range(inputs["states"].shape[1])
    outputs = [model(**{k: v[:, t : t + 1] for k, v in inputs.items()}, cache_params=cache) for t in steps]
    return torch.cat([output.action_preds for output in outputs], dim=1)


@pytest.mark.parametrize("name", ["dema_b3ld", "dema_b3ld_time", "dema_bl3d"])
@torch.no_grad()
def test_dema(name, dtype, assert_close):
    case = Case(name, dtype)
    model = convert(case, "dema")
    states, actions, returns, timesteps = (case.inputs[key] for key in ("states", "actions", "rtg", "timesteps"))

    # Evaluation alignment: the official `actions` are the previous ones.
    output = model(states, None, None, returns, timesteps, previous_actions=actions)
    assert_close("running", output.action_preds, case.expected("action_running"), case.tolerance)
    assert_close("backbone", output.last_hidden_state, case.expected("debug_running_backbone"), case.tolerance)

    # Official training alignment: pairs (R_i, a_i, s_{i+1}); return and time step are one step stale.
    output = model(states[:, 1:], None, None, returns[:, :-1], timesteps[:, :-1], previous_actions=actions[:, :-1])
    assert_close("training", output.action_preds, case.expected("action_train"), case.tolerance)

    # Official acting: zero-padded on the left up to max_length, with no mask, so the padding is part of the numbers.
    length = case.description["constructor"]["max_length"]
    for history in (3, 7):
        window = [x[:, max(0, history - length) : history] for x in (states, actions, returns, timesteps)]
        states_, actions_, returns_, timesteps_ = (
            torch.cat([x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:]), x], dim=1) for x in window
        )
        output = model(states_, None, None, returns_, timesteps_, previous_actions=actions_)
        assert_close(
            f"acting after {history}",
            output.action_preds[:, -1],
            case.expected(f"action_get_action2_hist{history}"),
            case.tolerance,
        )


@torch.no_grad()
def test_dema_recurrent(dtype, assert_close):
    case = Case("dema_b3ld_recurrent", dtype)
    model = convert(case, "dema")
    states, actions, returns, timesteps = (case.inputs[key] for key in ("states", "actions", "rtg", "timesteps"))
    output = model(states, None, None, returns, timesteps, previous_actions=actions)
    assert_close("parallel", output.action_preds, case.expected("action_parallel"), case.tolerance)

    cache = DecisionMambaCache(model.config, batch_size=len(states), dtype=dtype)
    predictions = []
    for t in range(states.shape[1]):
        now = slice(t, t + 1)
        step = {"states": states[:, now], "returns_to_go": returns[:, now], "previous_actions": actions[:, now]}
        output = model(**step, cache_params=cache)
        predictions.append(output.action_preds)
        if t in (0, states.shape[1] - 1):
            when = "after_step0" if t == 0 else "final"
            for layer in range(model.config.n_layer):
                ssm, conv = f"ssm_state_{when}_layer{layer}", f"conv_state_{when}_layer{layer}"
                assert_close(ssm, cache.ssm_states[layer], case.expected(ssm), case.tolerance)
                assert_close(conv, cache.conv_states[layer].mT, case.expected(conv)[..., 1:], case.tolerance)
    assert_close("recurrent", torch.cat(predictions, dim=1), case.expected("action_recurrent"), case.tolerance)


DECISION_TRANSFORMER_STYLE = {
    "dema_post": "dema-post",
    "dmm": "dmm",
    "dmm_mamba2": "dmm",
    "dmm_shared_mixer": "dmm",
    "dmm_gen1_conv": "dmm-gen1",
    "dmm_gen1_line": "dmm-gen1",
    "dmm_gen1_double_conv": "dmm-gen1",
    "dmm_gen1_double_line": "dmm-gen1",
    "ota": "decision-mamba",
    "ota_min": "decision-mamba",
}


@pytest.mark.parametrize("name", DECISION_TRANSFORMER_STYLE)
@torch.no_grad()
def test_decision_transformer_style(name, dtype, assert_close):
    """The gym models with tokens R, s, a: the parallel pass, steps, padding as numbers, acting."""
    case = Case(name, dtype)
    model = convert(case, DECISION_TRANSFORMER_STYLE[name])
    names = ("states", "actions", "returns_to_go", "timesteps")
    inputs = {key: case.inputs[key] for key in names}
    output = model(**inputs)
    assert_close("action", output.action_preds, case.expected("action"), case.tolerance)
    assert_close("ln_f", output.last_hidden_state, case.expected("debug_after_ln_f"), case.tolerance)
    assert_close("steps", step_by_step(model, inputs, dtype), case.expected("action"), case.tolerance)
    if name == "dema_post":
        assert_close("state", output.state_preds, case.expected("state"), case.tolerance)
        assert_close("return", output.return_preds, case.expected("ret"), case.tolerance)

    # The official models know no mask: padding is part of their numbers. With our mask, padding changes nothing.
    padded = {key: case.inputs[f"padded_{key}"] for key in names}
    assert_close("padded", model(**padded).action_preds, case.expected("action_padded"), case.tolerance)
    real = case.description["sizes"]["pad_real"]
    mask = torch.zeros(padded["timesteps"].shape)
    mask[:, -real:] = 1
    masked = model(**padded, attention_mask=mask).action_preds[:, -real:]
    tail = {key: value[:, -real:] for key, value in padded.items()}
    # Of another length, matrix products may round otherwise, by as much as the case allows.
    assert_close("masked", masked, model(**tail).action_preds, case.tolerance)
    tail = {key: value[:, -real:] for key, value in inputs.items()}
    assert_close("tail", model(**tail).action_preds, case.expected("action_unpadded_tail"), case.tolerance)

    length = case.description["constructor"]["max_length"]
    for history in (3, len(case.inputs["hist_states"])):
        window = {key: case.inputs[f"hist_{key}"][max(0, history - length) : history] for key in names}
        left = {k: torch.cat([v.new_zeros(length - len(v), *v.shape[1:]), v])[None] for k, v in window.items()}
        action = model(**left).action_preds[0, -1]
        assert_close(
            f"acting after {history}", action, case.expected(f"action_get_action_hist{history}"), case.tolerance
        )


@pytest.mark.parametrize("name", ["dema_atari", "dema_atari_bl3d"])
@torch.no_grad()
def test_dema_atari(name, dtype, assert_close):
    case = Case(name, dtype)
    model = convert(case, "dema-atari")
    states, actions, returns = case.inputs["states_uint8"], case.inputs["actions"][..., 0], case.inputs["rtgs"]
    running = {"states": states, "returns_to_go": returns, "previous_actions": actions}
    output = model(**running)
    assert_close("running", output.action_preds, case.expected("logits_running"), case.tolerance)
    assert_close("backbone", output.last_hidden_state, case.expected("debug_running_backbone"), case.tolerance)
    assert_close("steps", step_by_step(model, running, dtype), case.expected("logits_running"), case.tolerance)

    stale = {"states": states[:, 1:], "returns_to_go": returns[:, :-1], "previous_actions": actions[:, :-1]}
    assert_close("training", model(**stale).action_preds, case.expected("logits_train"), case.tolerance)


@torch.no_grad()
def test_dema_atari_post(dtype, assert_close):
    case = Case("dema_atari_post", dtype)
    model = convert(case, "dema-atari-post")
    states, actions, returns = case.inputs["states_uint8"], case.inputs["actions"][..., 0], case.inputs["rtgs"]
    inputs = {"states": states, "actions": actions, "returns_to_go": returns}
    output = model(**inputs, labels=case.inputs["targets"][..., 0])
    assert_close("training", output.action_preds, case.expected("logits_train"), case.tolerance)
    assert_close("loss", output.loss[None], case.expected("loss_train"), case.tolerance)
    # At evaluation the last action token is absent; no prediction can see it anyway.
    assert_close("evaluation", output.action_preds, case.expected("logits_eval"), case.tolerance)
    first = {key: value[:, :1] for key, value in inputs.items()}
    assert_close("first step", model(**first).action_preds, case.expected("logits_first_step"), case.tolerance)
    assert_close("steps", step_by_step(model, inputs, dtype), case.expected("logits_train"), case.tolerance)

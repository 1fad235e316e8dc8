"""What holds for every variant of the papers: padding, recurrence, causality, gradients, loading, precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_decision_mamba import DecisionMambaCache, DecisionMambaConfig, DecisionMambaModel
from hf_decision_mamba.model import PRESETS
from hf_decision_mamba.model.mixers_decision_mamba import TokenStream

STATE_DIM, ACT_DIM, IMAGE_SIZE = 5, 3, 36
SMALL = {
    "state_dim": STATE_DIM,
    "act_dim": ACT_DIM,
    "hidden_size": 16,
    "n_layer": 2,
    "state_size": 4,
    "max_ep_len": 64,
    "image_size": IMAGE_SIZE,
    "num_channels": 2,
}
# Beyond the presets: what only the first generation of DMM, DecisionTransformer's extra heads and ablations use.
VARIANTS = {
    **{name: {} for name in PRESETS},
    "dmm-conv inside, no residual": {"local_mixer_inside": True, "mixer_residual": False},
    "dmm shared mixer": {"share_local_mixer": True},
    "dmm-mamba2 with convolution": {"conv_kernel": 4},
    "decision-mamba with biases": {"use_bias": True, "mixer_norm_type": "rms_norm", "predict_state_and_return": True},
    "dema-b3ld without gate": {"use_gate": False, "use_bias": True},
    "dema-b3ld with constant steps": {"selective": False},
    "dema-post with constant steps": {"selective": False},
    "gru of interleaved tokens": {
        **{"sequence_layout": "interleaved", "token_order": ("return", "state", "action")},
        **{"block_type": "mamba_mlp", "mixer_residual": True},
    },
    "dema-b3ld with time": {"use_timestep_embedding": True, "embed_layer_norm": True},
}

# Models are shared by all tests and examples; nothing below changes one.
_models: dict[str, DecisionMambaModel] = {}


def model_of(variant: str) -> DecisionMambaModel:
    """A small model of the variant in float64 whose parameters are all non-trivial, in evaluation mode."""
    if variant not in _models:
        preset = variant.split(" ")[0]
        width = {"embedding_size": 12} if "embedding_size" in PRESETS[preset] else {}
        fields = {"predict_state_and_return": True} if variant.endswith("with all heads") else VARIANTS[variant]
        config = DecisionMambaConfig.from_preset(preset, **{**SMALL, **width, **fields})
        torch.manual_seed(0)
        model = DecisionMambaModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        _models[variant] = model.double().eval()
    return _models[variant]


SCALED = pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])


def inputs_for(
    model: DecisionMambaModel, batch: int, steps: int, seed: int = 1, scaled: bool = False
) -> dict[str, torch.Tensor]:
    """Random inputs; `scaled` adds time scales from 0.1 to 10 where there are step sizes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(batch, steps, *shape, generator=generator, dtype=torch.float64)

    image, discrete = model.config.state_type == "image", model.config.action_type == "discrete"
    frames = (2, IMAGE_SIZE, IMAGE_SIZE)
    return {
        "states": torch.rand(batch, steps, *frames, generator=generator, dtype=torch.float64)
        if image
        else draw(STATE_DIM),
        "actions": torch.randint(ACT_DIM, (batch, steps), generator=generator) if discrete else draw(ACT_DIM),
        "returns_to_go": draw(1),
        "timesteps": torch.arange(steps).expand(batch, steps),
        **({"time_scale": 10 ** (draw().sigmoid() * 2 - 1)} if scaled and model.config.ssm != "gru" else {}),
    }


def take(inputs, steps, rows=slice(None)):
    return {name: tensor[rows, steps] for name, tensor in inputs.items()}


def act_step_by_step(model, inputs, cache):
    """The recurrent policy's calls: at each decision only the previous action is known."""
    predictions = []
    previous = cache.last_actions[:, None]
    for t in range(inputs["states"].shape[1]):
        step = take(inputs, slice(t, t + 1))
        action = step.pop("actions")
        predictions.append(model(**step, previous_actions=previous, cache_params=cache).action_preds)
        previous = action
    return torch.cat(predictions, dim=1)


@pytest.fixture(params=VARIANTS)
def model(request):
    return model_of(request.param)


@settings(deadline=None, max_examples=8)
@given(data=st.data())
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_anywhere_never_changes_a_real_step(variant, data):
    model = model_of(variant)
    length = data.draw(st.integers(1, 6))
    positions = [
        sorted(data.draw(st.permutations(range(length)))[: data.draw(st.integers(0, length))])
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    inputs = inputs_for(model, len(positions), length, data.draw(st.integers(0, 99)), data.draw(st.booleans()))
    batch = {
        name: torch.full_like(tensor, math.nan if tensor.is_floating_point() else 2) for name, tensor in inputs.items()
    }
    batch["attention_mask"] = torch.zeros(len(positions), length)
    for row, index in enumerate(positions):
        batch["attention_mask"][row, index] = 1
        for name, tensor in inputs.items():
            batch[name][row, index] = tensor[row, : len(index)]
    with torch.no_grad():
        together = model(**batch).action_preds
        for row, index in enumerate(positions):
            if index:
                alone = model(**take(inputs, slice(0, len(index)), [row])).action_preds[0]
                torch.testing.assert_close(together[row, index], alone, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=6)
@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4), batch=st.integers(1, 3), scaled=st.booleans())
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_chunks_through_the_cache_equal_one_pass(variant, chunks, batch, scaled):
    model = model_of(variant)
    inputs = inputs_for(model, batch, sum(chunks), scaled=scaled)
    cache, start, predictions = DecisionMambaCache(model.config, batch, dtype=torch.float64), 0, []
    with torch.no_grad():
        for chunk in chunks:
            output = model(**take(inputs, slice(start, start + chunk)), cache_params=cache)
            predictions.append(output.action_preds)
            start += chunk
        expected = model(**inputs).action_preds
    torch.testing.assert_close(torch.cat(predictions, dim=1), expected, rtol=0, atol=1e-10)


@SCALED
def test_acting_step_by_step_equals_the_window(model, scaled):
    inputs = inputs_for(model, batch=2, steps=7, scaled=scaled)
    with torch.no_grad():
        stepped = act_step_by_step(model, inputs, DecisionMambaCache(model.config, 2, dtype=torch.float64))
        torch.testing.assert_close(stepped, model(**inputs).action_preds, rtol=0, atol=1e-10)


@SCALED
def test_rows_restart_and_advance_on_their_own(model, scaled):
    """Row 1 is reset after two steps; row 2 pauses for one call, which must leave it as it was."""
    inputs = inputs_for(model, batch=3, steps=6, scaled=scaled)
    with torch.no_grad():
        cache = model(**take(inputs, slice(0, 2)), use_cache=True).cache_params
        cache.reset([1])
        mask = torch.tensor([[1], [1], [0]])
        model(**take(inputs, slice(2, 3)), attention_mask=mask, cache_params=cache)
        late = {name: tensor[:, 3:5].clone() for name, tensor in inputs.items()}
        for name, tensor in inputs.items():
            late[name][2] = tensor[2, 2:4]
        predictions = model(**late, cache_params=cache).action_preds
        whole = model(**inputs).action_preds
        restarted = model(**take(inputs, slice(2, 5))).action_preds
    torch.testing.assert_close(predictions[0], whole[0, 3:5], rtol=0, atol=1e-10)
    torch.testing.assert_close(predictions[2], whole[2, 2:4], rtol=0, atol=1e-10)
    if not model.config.use_timestep_embedding:  # an episode that starts at time step 2 is no test of a restart
        torch.testing.assert_close(predictions[1], restarted[1, 1:], rtol=0, atol=1e-10)


@pytest.fixture(params=[name for name in VARIANTS if "gru" not in name])
def scan_model(request):
    return model_of(request.param)


def test_a_gru_has_no_step_sizes_to_scale():
    model = model_of("gru")
    with pytest.raises(ValueError, match="time_scale multiplies step sizes, and ssm='gru' has none"):
        model(**inputs_for(model, 2, 3), time_scale=torch.ones(2, 3))


def test_a_time_scale_of_one_changes_no_bit_and_another_does(scan_model):
    model = scan_model
    inputs, mask = inputs_for(model, batch=2, steps=5), torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 0]])

    def compute(**options):
        output = model(**inputs, attention_mask=mask, labels=inputs["actions"], **options)
        parameters = [p for name, p in model.named_parameters() if not name.startswith(("predict_state", "predict_r"))]
        gradients = torch.autograd.grad(output.loss, parameters)
        with torch.no_grad():
            cached = model(**inputs, attention_mask=mask, use_cache=True, output_attentions=True, **options)
        states = (*cached.cache_params.ssm_states, *cached.attentions)
        return output.loss, output.action_preds, *gradients, cached.action_preds, *states

    plain = compute()
    assert all(map(torch.equal, compute(time_scale=torch.ones(2, 5)), plain))
    changed = compute(time_scale=torch.where(torch.arange(5) == 1, 3.0, torch.ones(2, 5)))
    for found, expected in zip(changed, plain, strict=True):
        assert torch.isfinite(found).all() and not torch.equal(found, expected)


def test_a_call_without_time_scales_continues_as_with_ones(scan_model):
    model = scan_model
    inputs = inputs_for(model, batch=2, steps=6, scaled=True)
    inputs["time_scale"][:, 3:] = 1
    with torch.no_grad():
        expected = model(**inputs, use_cache=True)
        cache = model(**take(inputs, slice(0, 3)), use_cache=True).cache_params
        del inputs["time_scale"]
        for steps in (slice(3, 4), slice(4, 6)):
            found = model(**take(inputs, steps), cache_params=cache)
    torch.testing.assert_close(found.action_preds, expected.action_preds[:, 4:], rtol=0, atol=1e-10)
    torch.testing.assert_close(cache.ssm_states, expected.cache_params.ssm_states, rtol=0, atol=1e-10)


def test_no_prediction_depends_on_its_own_action_or_the_future(model):
    inputs = inputs_for(model, batch=1, steps=5)
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    t = 2
    changed["actions"][:, t:] = (changed["actions"][:, t:] + 1) % ACT_DIM
    for name in ("states", "returns_to_go"):
        changed[name][:, t + 1 :] += 1
    with torch.no_grad():
        before, after = model(**inputs).action_preds, model(**changed).action_preds
    torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1], rtol=0, atol=0)
    assert not torch.allclose(after[:, t + 1], before[:, t + 1])


@pytest.mark.parametrize("preset", PRESETS)
def test_next_states_and_returns_depend_on_the_steps_own_action_and_on_nothing_later(preset):
    model = model_of(f"{preset} with all heads")
    inputs, t = inputs_for(model, batch=2, steps=5), 2

    def predict(inputs, **options):
        with torch.no_grad():
            output = model(**inputs, **options)
        return output.state_preds, output.return_preds

    def change(names, steps):
        changed = {name: tensor.clone() for name, tensor in inputs.items()}
        for name in names:
            changed[name][:, steps] = (changed[name][:, steps] + 1) % (ACT_DIM if name == "actions" else 100)
        return changed

    expected = predict(inputs)
    assert [tuple(x.shape) for x in expected] == [(2, 5, STATE_DIM), (2, 5, 1)]
    later = predict(change(["states", "returns_to_go", "actions"], slice(t + 1, None)))
    now = predict(change(["actions"], slice(t, t + 1)))
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 0, 1, 1]])
    spread = {name: x[:, [0, 0, 1, 2, 3]].clone() for name, x in inputs.items()}
    for name, x in inputs.items():
        spread[name][1] = x[1, [0, 1, 0, 2, 3]]
    padded = predict({**spread, "attention_mask": mask})
    for known, one, other, moved in zip(expected, later, now, padded, strict=True):
        torch.testing.assert_close(one[:, : t + 1], known[:, : t + 1], rtol=0, atol=0)
        assert ((other != known).any(-1).any(0) == torch.tensor([False, False, True, True, True])).all()
        torch.testing.assert_close(moved[mask.bool()], known[:, :4].flatten(0, 1), rtol=0, atol=1e-10)

    unknown = {name: x for name, x in inputs.items() if name != "actions"}
    cache = DecisionMambaCache(model.config, 2, dtype=torch.float64)
    assert predict(unknown, previous_actions=inputs["actions"], cache_params=cache) == (None, None)


def test_gradients_agree_with_finite_differences(model):
    inputs = inputs_for(model, batch=1, steps=3)
    mask = torch.tensor([[0, 1, 1]])
    returns = inputs.pop("returns_to_go").requires_grad_()

    def loss(returns):
        return model(**inputs, returns_to_go=returns, attention_mask=mask, labels=inputs["actions"]).loss

    assert torch.autograd.gradcheck(loss, (returns,))


def test_every_parameter_receives_a_gradient(model):
    inputs = inputs_for(model, batch=2, steps=4)
    output = model(**inputs, labels=inputs["actions"])
    auxiliary = [x.square().mean() for x in (output.state_preds, output.return_preds) if x is not None]
    gradients = torch.autograd.grad(sum(auxiliary, output.loss), list(model.parameters()), allow_unused=True)
    named = zip(dict(model.named_parameters()), gradients, strict=True)
    assert [name for name, gradient in named if gradient is None or not gradient.any()] == []


def test_padding_poisons_no_gradient_and_no_state(model):
    """Padding may hold anything, NaN too: it reaches neither a weight's gradient nor the states left behind."""
    inputs = inputs_for(model, batch=2, steps=4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    poisoned = {name: tensor.clone() for name, tensor in inputs.items()}
    for tensor in poisoned.values():
        tensor[0, 2:] = math.nan if tensor.is_floating_point() else 1
    found, expected = [], []
    for results, batch in ((found, poisoned), (expected, inputs)):
        output = model(**batch, attention_mask=mask, labels=inputs["actions"], use_cache=True)
        results += [*torch.autograd.grad(output.loss, model.predict_action.weight), *output.cache_params.ssm_states]
        output = model(**batch, attention_mask=mask, labels=inputs["actions"])
        results += torch.autograd.grad(output.loss, list(model.embed_state.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_loading_initialises_what_the_file_lacks(model, tmp_path):
    """from_pretrained builds the model on the meta device: nothing may stay uninitialised or get lost."""
    model.config.save_pretrained(tmp_path)
    kept = {name: tensor for name, tensor in model.state_dict().items() if "layers.1" in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded, _ = DecisionMambaModel.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    for name, tensor in loaded.state_dict().items():
        assert torch.isfinite(tensor).all() and tensor.abs().max() < 10, name
        assert torch.equal(tensor, kept[name]) if name in kept else tensor.abs().max() > 0 or "bias" in name, name

    model.save_pretrained(tmp_path)
    loaded = DecisionMambaModel.from_pretrained(tmp_path)
    inputs = inputs_for(model, batch=1, steps=3)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).action_preds, model(**inputs).action_preds, rtol=0, atol=1e-12)


def test_bfloat16_follows_float64(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = DecisionMambaModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    inputs = inputs_for(model, batch=2, steps=4)
    with torch.no_grad():
        output, expected = half(**inputs, use_cache=True), model(**inputs).action_preds
    assert output.action_preds.dtype == torch.bfloat16
    assert output.cache_params.ssm_states[0].dtype == torch.float32
    error = (output.action_preds.double() - expected).norm() / expected.norm()
    assert error < 0.1


def test_a_gru_is_torchs_gru():
    model = model_of("gru")
    mixer, width = model.layers[0].mixer, SMALL["hidden_size"]
    theirs = torch.nn.GRU(width, width, batch_first=True, dtype=torch.float64)
    projections = {"ih": mixer.in_proj, "hh": mixer.state_proj}
    theirs.load_state_dict(
        {f"{kind}_{name}_l0": getattr(p, kind) for kind in ("weight", "bias") for name, p in projections.items()}
    )
    x = torch.randn(3, 7, width, dtype=torch.float64)
    cache = DecisionMambaCache(model.config, 3, dtype=torch.float64)
    output, (expected, state) = mixer(x, TokenStream(("step",), cache)), theirs(x)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(cache.ssm_states[0][..., 0], state[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixer(x, TokenStream(("step",))), expected, rtol=0, atol=1e-12)


def test_a_gru_says_that_it_has_no_attention():
    model = model_of("gru")
    with pytest.raises(ValueError, match="a GRU has no scan, so no hidden attention and no output_attentions"):
        model(**inputs_for(model, 1, 2), output_attentions=True)


def test_compiles_to_one_graph(model):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    inputs = inputs_for(model, batch=2, steps=3)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).action_preds, model(**inputs).action_preds)
    assert len(graphs) == 1

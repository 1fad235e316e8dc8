"""Hidden attention, its exchange, effective context and time constants, against what can be computed another way."""

import copy

import numpy as np
import pytest
import torch
from model.test_presets import SMALL, VARIANTS, inputs_for, model_of
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMLPConfig, DecisionMLPModel
from hf_decision_mamba.analysis.ablation import (
    randomize_hidden_attention,
    swap_hidden_attention,
    zero_hidden_attention,
)
from hf_decision_mamba.analysis.effective_context import effective_context
from hf_decision_mamba.analysis.hidden_attention import decay_rate, hidden_attention
from hf_decision_mamba.analysis.time_constants import time_constants
from hf_decision_mamba.model.cache_decision_mamba import NO_ACTION

MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]])  # padded behind, in front, inside, not


@pytest.fixture(params=[name for name in VARIANTS if not name.startswith("gru")])  # which has none
def model(request):
    return model_of(request.param)


def padded_batch(model) -> dict[str, torch.Tensor]:
    return {**inputs_for(model, *MASK.shape), "attention_mask": MASK}


def row_alone(batch: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row's real steps without padding."""
    real = batch["attention_mask"][row].bool()
    return {name: x[row : row + 1, real] for name, x in batch.items() if name != "attention_mask"}


# ------------------------------------------------------------------------------------------------ hidden attention


@pytest.mark.parametrize("reduce", ["abs-mean", None])
def test_hidden_attention_is_what_the_model_gives(model, reduce):
    batch = padded_batch(model)
    with torch.no_grad():
        expected = np.stack([x.numpy() for x in model(**batch, output_attentions=True).attentions])
    if reduce:
        expected = np.abs(expected).mean(2)
    every_row = hidden_attention(model, batch, reduce=reduce, last_row=False)
    np.testing.assert_allclose(every_row.weights, expected, rtol=0, atol=1e-14)

    token_types = model.config.token_types
    decision = token_types.index("state") if "state" in token_types else 0
    last = hidden_attention(model, batch, reduce=reduce)
    assert last.token_types == token_types
    for row, step in enumerate([2, 3, 3, 3]):
        query = step * len(token_types) + decision
        np.testing.assert_allclose(last.weights[:, row], expected[:, row, ..., query, :], rtol=0, atol=1e-14)


def test_by_steps_ago_counts_real_steps_from_the_decision(model):
    batch = padded_batch(model)
    ordered = hidden_attention(model, batch).by_steps_ago()
    assert ordered.shape == (model.config.n_layer, *MASK.shape, len(model.config.token_types))
    assert np.isnan(ordered[:, :3, 3]).all()
    for row in range(3):
        alone = hidden_attention(model, row_alone(batch, row)).by_steps_ago()
        np.testing.assert_allclose(ordered[:, row, :3], alone[:, 0], rtol=0, atol=1e-10)


def test_analysis_leaves_the_model_as_it_was():
    model = copy.deepcopy(model_of("dmm")).train()
    hidden_attention(model, padded_batch(model))
    effective_context(model, padded_batch(model))
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())


def test_all_rows_have_no_order_by_steps_ago():
    model = model_of("dema-bl3d")
    with pytest.raises(ValueError, match="last_row=True"):
        hidden_attention(model, padded_batch(model), last_row=False).by_steps_ago()


# ----------------------------------------------------------------------------------------------------------- decay


def test_decay_rate_of_an_exponential():
    steps = np.arange(20)
    fit = decay_rate(3 * np.exp(-0.2 * steps))
    assert fit.rate == pytest.approx(0.2) and fit.scale == pytest.approx(3) and fit.r_squared == pytest.approx(1)
    assert fit.half_life == pytest.approx(np.log(2) / 0.2)
    assert np.isnan(fit.rate_interval).all()


def test_decay_interval_covers_the_truth_and_shrinks_with_windows():
    noise = np.random.default_rng(0).normal(size=(400, 20))
    windows = np.exp(-0.2 * np.arange(20) + 0.5 * noise)
    few, many = decay_rate(windows[:25]), decay_rate(windows)
    for fit in (few, many):
        assert fit.rate_interval[0] < 0.2 < fit.rate_interval[1]
        assert fit.half_life_interval[0] < np.log(2) / 0.2 < fit.half_life_interval[1]
    assert np.ptp(many.rate_interval) < np.ptp(few.rate_interval) / 2
    assert decay_rate(windows) == many  # the same at every call


def test_decay_rate_passes_over_zeros_signs_and_missing_steps():
    curve = np.exp(-0.3 * np.arange(10))
    windows = np.stack([curve, -curve, curve])
    windows[0, 7:] = np.nan
    windows[:, 4] = 0
    fit = decay_rate(windows)
    assert fit.rate == pytest.approx(0.3) and fit.rate_interval == pytest.approx((0.3, 0.3))


def test_what_does_not_decay_has_no_half_life():
    assert decay_rate([1.0, 1.0, 1.0]).half_life == np.inf


@pytest.mark.parametrize(
    ("attention", "options", "message"),
    [
        (np.zeros((2, 5)), {}, "positive at fewer than two distances"),
        (np.ones((2, 1)), {}, "positive at fewer than two distances"),
        (np.ones((2, 3, 4)), {}, r"shape \(2, 3, 4\)"),
        ([1.0, np.inf], {}, "finite"),
        ([1.0, 0.5], {"confidence": 95}, "confidence=95"),
    ],
)
def test_what_has_no_decay_rate_is_refused(attention, options, message):
    with pytest.raises(ValueError, match=message):
        decay_rate(attention, **options)


# ------------------------------------------------------------------------------------------------- swap, randomise


def changed_parameters(model, other) -> set[str]:
    theirs = dict(other.named_parameters())
    return {name for name, tensor in model.named_parameters() if not torch.equal(tensor, theirs[name])}


def perturbed(model) -> torch.nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    return other


def test_a_swap_takes_everything_of_a_mixer_but_its_projections(model):
    other = perturbed(model)
    before = copy.deepcopy(model)
    swapped = swap_hidden_attention(model, other, layers=1)
    projections = {"in_proj", "out_proj", "norm"}
    expected = {name for name, _ in model.named_parameters() if name.startswith("layers.1.mixer.")}
    expected = {name for name in expected if name.split(".")[3] not in projections}
    if model.config.ssm == "mamba2":
        expected.add("layers.1.mixer.in_proj.weight")
    assert changed_parameters(swapped, model) == expected
    assert not changed_parameters(model, before)
    for name, tensor in swapped.named_parameters():
        if name in expected and "in_proj" not in name:
            assert torch.equal(tensor, dict(other.named_parameters())[name])


def test_a_swap_in_mamba2_takes_the_rows_of_in_proj_that_make_B_C_and_step_sizes():
    model = model_of("dmm-mamba2")
    other = perturbed(model)
    rows = 2 * model.config.intermediate_size
    swapped = swap_hidden_attention(model, other).layers[0].mixer.in_proj.weight
    assert torch.equal(swapped[:rows], model.layers[0].mixer.in_proj.weight[:rows])
    assert torch.equal(swapped[rows:], other.layers[0].mixer.in_proj.weight[rows:])


def test_environments_of_other_dimensions_can_be_swapped():
    model = model_of("dema-b3ld")
    config = DecisionMambaConfig.from_preset("dema-b3ld", **{**SMALL, "state_dim": 9, "act_dim": 6})
    swapped = swap_hidden_attention(model, DecisionMambaModel(config).double())
    with torch.no_grad():
        assert swapped(**inputs_for(model, 1, 3)).action_preds.shape == (1, 3, SMALL["act_dim"])


def test_zero_hidden_attention_is_zero(model):
    zeroed = zero_hidden_attention(model)
    assert not hidden_attention(zeroed, padded_batch(model)).weights.any()
    assert hidden_attention(model, padded_batch(model)).weights.any()


def test_randomised_parameters_are_uniform_and_repeatable():
    model = model_of("dema-b3ld")
    first, second = randomize_hidden_attention(model, seed=3), randomize_hidden_attention(model, seed=3)
    assert not changed_parameters(first, second)
    assert changed_parameters(first, randomize_hidden_attention(model, seed=4))
    drawn = torch.cat([first.layers[1].mixer.x_proj.weight.flatten(), first.layers[0].mixer.A_log.flatten()])
    assert drawn.min() >= 0 and drawn.max() < 1 and 0.4 < drawn.mean() < 0.6


def transformer() -> DecisionTransformerModel:
    config = DecisionTransformerConfig(
        state_dim=5, act_dim=3, hidden_size=16, n_layer=1, n_head=1, max_ep_len=64, resid_pdrop=0, attn_pdrop=0
    )
    torch.manual_seed(0)
    return DecisionTransformerModel(config).eval()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: zero_hidden_attention(m, layers=[0, 2]), "no layer 2; this model has layers 0 to 1"),
        (lambda m: swap_hidden_attention(m, m, layers=-1), "no layer -1"),
        (
            lambda m: swap_hidden_attention(m, model_of("dmm"), layers=0),
            r"layer 0 cannot be swapped: the model has .*x_proj.weight \(9, 32\).* other has .*x_proj.weight \(9, 16\)",
        ),
        (lambda m: swap_hidden_attention(m, transformer()), "DecisionTransformerModel has no Mamba mixers"),
        (lambda m: hidden_attention(transformer(), padded_batch(m)), "DecisionTransformerModel has no Mamba mixers"),
        (
            lambda m: hidden_attention(model_of("gru"), padded_batch(m)),
            "a GRU .* so no hidden attention and no step",
        ),
        (lambda m: hidden_attention(m, padded_batch(m), reduce="sum"), "reduce='sum' is unknown"),
        (lambda m: hidden_attention(m, {"cache_params": MASK, **padded_batch(m)}), "batch holds .*cache_params"),
        (lambda m: hidden_attention(m, {**padded_batch(m), "attention_mask": 0 * MASK}), "no real step"),
        (lambda m: effective_context(m, inputs_for(m, 2, 1)), "windows of one step"),
        (
            lambda m: effective_context(m, {**inputs_for(m, 2, 3), "actions": None}),
            "one of actions or previous_actions",
        ),
    ],
)
def test_what_cannot_be_analysed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(model_of("dema-b3ld"))


# ---------------------------------------------------------------------------------------------- effective context


def last_action(model, batch):
    action = model(**batch).action_preds[0, -1]
    return action.softmax(-1) if model.config.action_type == "discrete" else action


def distance(model, one, other) -> float:
    difference = (one - other).abs()
    return float(difference.sum() / 2 if model.config.action_type == "discrete" else difference.mean())


def test_effective_context_is_the_difference_to_a_shorter_window(model):
    batch = padded_batch(model)
    result = effective_context(model, batch)
    np.testing.assert_array_equal(result.steps_ago, [1, 2, 3])
    assert np.isnan(result.step_removed[:3, 2]).all() and np.isnan(result.older_removed[:3, 2]).all()
    for row in range(len(MASK)):
        alone = row_alone(batch, row)
        alone["previous_actions"] = alone["actions"].roll(1, dims=1)
        alone["previous_actions"][:, 0] = NO_ACTION if model.config.action_type == "discrete" else 0
        length = alone["actions"].shape[1]
        with torch.no_grad():
            whole = last_action(model, alone)
            for ago in range(1, length):
                without = [t for t in range(length) if t != length - 1 - ago]
                removed = last_action(model, {name: x[:, without] for name, x in alone.items()})
                recent = last_action(model, {name: x[:, -ago:] for name, x in alone.items()})
                expected = distance(model, removed, whole), distance(model, recent, whole)
                found = result.step_removed[row, ago - 1], result.older_removed[row, ago - 1]
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_effective_context_of_the_baselines():
    """A transformer looks back, an MLP on one step does not."""
    batch = {name: x.float() if x.is_floating_point() else x for name, x in padded_batch(model_of("dmm")).items()}
    assert (effective_context(transformer(), batch).step_removed[3] > 0).all()
    perceptron = DecisionMLPModel(DecisionMLPConfig(state_dim=5, act_dim=3, hidden_size=8))
    assert not effective_context(perceptron, batch).step_removed[3].any()


# ------------------------------------------------------------------------------------------------- time constants


def test_time_constants_of_known_step_sizes():
    model = copy.deepcopy(model_of("dema-b3ld"))
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.dt_proj.weight.zero_()
            layer.mixer.dt_proj.bias.fill_(np.log(np.expm1(0.05)))  # Δ = 0.05
            layer.mixer.A_log.copy_(torch.tensor([1.0, 2.0, 4.0, 8.0]).log().expand(layer.mixer.A_log.shape))
    found = time_constants(model, padded_batch(model), quantiles=(0, 1))
    np.testing.assert_allclose(found.step_sizes, 0.05)
    np.testing.assert_allclose(found.steps, [[20 / 8 / 3, 20 / 3]] * 2)
    assert found.tokens_per_step == 3


def test_time_constants_do_not_see_padding(model):
    batch = padded_batch(model)
    one = {name: x[:1] for name, x in batch.items()}
    found, expected = time_constants(model, one), time_constants(model, row_alone(batch, 0))
    np.testing.assert_allclose(found.step_sizes, expected.step_sizes)
    np.testing.assert_allclose(found.steps, expected.steps)
    assert found.steps.shape == (model.config.n_layer, 5) and (found.steps > 0).all()

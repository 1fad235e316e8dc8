"""output_attentions: what the scans compute, as matrices; the same wherever padding stands, and behind a cache."""

import copy

import pytest
import torch
from model.test_presets import SCALED, VARIANTS, inputs_for, model_of, take

from hf_decision_mamba import DecisionMambaCache
from hf_decision_mamba.model import mixers_decision_mamba
from hf_decision_mamba.model.hidden_attention import ScanTerms
from hf_decision_mamba.model.selective_scan import selective_scan


@pytest.fixture(params=[name for name in VARIANTS if not name.startswith("gru")])  # which has none
def model(request):
    return model_of(request.param)


def attentions_of(model, **inputs) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions


@SCALED
def test_attention_reproduces_every_scan(model, scaled, monkeypatch, assert_close):
    model, scans = copy.deepcopy(model).float(), []

    def recorded_scan(**arguments):
        scans.append(arguments)
        return selective_scan(**arguments)

    monkeypatch.setattr(mixers_decision_mamba, "selective_scan", recorded_scan)
    attentions = attentions_of(model, **inputs_for(model, batch=2, steps=7, scaled=scaled))
    assert len(attentions) == model.config.n_layer == len(scans)
    for attention, scan in zip(attentions, scans, strict=True):
        before_gate, _ = selective_scan(**{**scan, "z": None})
        by_head = scan["u"].unflatten(2, (attention.shape[1], -1))
        read = torch.einsum("bhij,bjhc->bihc", attention, by_head).flatten(2)
        assert_close("y", read + scan["D"] * scan["u"], before_gate, 1e-5)
        assert not attention.triu(1).any()


@pytest.mark.parametrize("places", [[0, 1, 2], [2, 3, 4], [0, 2, 4]], ids=["right", "left", "inside"])
@SCALED
def test_absent_tokens_are_zero_and_change_nothing(model, places, scaled):
    inputs = inputs_for(model, batch=1, steps=3, scaled=scaled)
    padded = {}
    for name, x in inputs.items():
        padded[name] = x.new_full((1, 5, *x.shape[2:]), torch.nan if x.is_floating_point() else 1)
        padded[name][:, places] = x
    mask = torch.zeros(1, 5)
    mask[:, places] = 1
    real = mask[0].bool().repeat_interleave(len(model.config.token_types))
    alone = attentions_of(model, **inputs)
    for attention, expected in zip(attentions_of(model, **padded, attention_mask=mask), alone, strict=True):
        torch.testing.assert_close(attention[:, :, real][..., real], expected, rtol=0, atol=1e-12)
        assert not attention[:, :, ~real].any() and not attention[..., ~real].any()


@SCALED
def test_behind_a_cache_it_is_the_attention_among_the_new_tokens(model, scaled):
    inputs, first = inputs_for(model, batch=2, steps=5, scaled=scaled), 2
    cache = DecisionMambaCache(model.config, 2, dtype=torch.float64)
    whole = attentions_of(model, **inputs, use_cache=True)
    attentions_of(model, **take(inputs, slice(0, first)), cache_params=cache)
    new = attentions_of(model, **take(inputs, slice(first, None)), cache_params=cache)
    start = first * len(model.config.token_types)
    for attention, expected in zip(new, whole, strict=True):
        torch.testing.assert_close(attention, expected[:, :, start:, start:], rtol=0, atol=1e-10)


def test_half_precision_gives_float32():
    model = model_of("dema-b3ld")
    inputs = inputs_for(model, batch=1, steps=4)
    for attention, expected in zip(
        attentions_of(copy.deepcopy(model).bfloat16(), **inputs), attentions_of(model, **inputs), strict=True
    ):
        assert attention.dtype == torch.float32
        assert (attention - expected).norm() < 0.1 * expected.norm()


def test_asked_for_by_config_and_otherwise_absent():
    model = copy.deepcopy(model_of("dmm"))
    inputs = inputs_for(model, batch=1, steps=2)
    with torch.no_grad():
        assert model(**inputs).attentions is None
        model.config.output_attentions = True
        assert len(model(**inputs).attentions) == model.config.n_layer


def test_training_may_look_on():
    model = model_of("dema-post")
    inputs = inputs_for(model, batch=1, steps=3)
    output = model(**inputs, labels=inputs["actions"], output_attentions=True)
    assert output.loss.requires_grad and not any(attention.requires_grad for attention in output.attentions)


def test_compiles_to_one_graph():
    model = model_of("dmm-mamba2")
    inputs = inputs_for(model, batch=1, steps=3)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = attentions_of(model, **inputs)
    torch.testing.assert_close(attentions_of(compiled, **inputs), expected, rtol=0, atol=1e-12)


def random_terms(length: int, dtype: torch.dtype) -> ScanTerms:
    """Terms with two rates, step sizes from 1e-3 to 30, decay rates up to 50."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(2, length, 3, generator=generator, dtype=torch.float64) * 4.5 - 3
    B, C = torch.randn(2, 2, length, 2, generator=generator, dtype=torch.float64)
    A = torch.tensor([[-0.1, -50.0], [-1.0, -2.0], [-1e-3, -7.0]], dtype=torch.float64)
    return ScanTerms(*(x.float().to(dtype) for x in (10**exponents, A, B, C)))


def test_long_products_neither_vanish_into_noise_nor_overflow():
    attention, expected = (random_terms(600, dtype).attention() for dtype in (torch.float32, torch.float64))
    assert torch.isfinite(attention).all()
    torch.testing.assert_close(attention.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_small_step_behind_many_large_ones_keeps_its_digits():
    """Of a running sum, 100,000 here, float32 would keep no digit of the last step."""
    delta = torch.full((1, 1001, 1), 100.0)
    delta[0, -1] = 1e-3
    terms = ScanTerms(delta, torch.tensor([[-1.0]]), torch.ones(1, 1001, 1), torch.ones(1, 1001, 1))
    expected = 100 * torch.exp(torch.tensor(-1e-3))
    torch.testing.assert_close(terms.attention()[0, 0, -1, -2], expected)
    torch.testing.assert_close(terms.attention_row(torch.tensor([1000]))[0, 0, -2], expected)


def test_one_row_is_a_row_of_the_matrix():
    terms = random_terms(40, torch.float64)
    query = torch.tensor([39, 17])
    expected = terms.attention()[torch.arange(2), :, query]
    torch.testing.assert_close(terms.attention_row(query), expected, rtol=1e-12, atol=0)

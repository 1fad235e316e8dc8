"""The scan as a torch op: backends agree, gradients are right, the choice of a backend is explained."""

import logging
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_decision_mamba.model import selective_scan
from hf_decision_mamba.model import selective_scan as scan_function
from hf_decision_mamba.model.selective_scan import choose_backend

BACKENDS = ("reference", "numba")


def draw_inputs(b=2, l=5, c=3, n=4, dtype=torch.float64, seed=0, **without):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = {
        "u": draw(b, l, c),
        "delta": draw(b, l, c),
        "A": -draw(c, n).exp(),
        "B": draw(b, l, n),
        "C": draw(b, l, n),
        "D": draw(c),
        "z": draw(b, l, c),
        "delta_bias": draw(c),
        "initial_state": draw(b, c, n),
    }
    return {name: tensor for name, tensor in inputs.items() if name not in without}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
def test_gradients_agree_with_finite_differences(backend, masked):
    inputs = {name: tensor.requires_grad_() for name, tensor in draw_inputs().items()}
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]]).bool() if masked else None

    def function(*tensors):
        return scan_function(**dict(zip(inputs, tensors, strict=True)), mask=mask, backend=backend)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@settings(deadline=None, max_examples=20)
@given(l=st.integers(1, 9), cut=st.integers(0, 9), optional=st.sets(st.sampled_from(["D", "z", "delta_bias"])))
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_equal_one_pass(backend, l, cut, optional):
    inputs = draw_inputs(l=l, **dict.fromkeys(optional))
    cut = min(cut, l)
    whole, final = scan_function(**inputs, backend=backend)
    state, parts = inputs.pop("initial_state"), []
    for piece in (slice(0, cut), slice(cut, l)):
        if piece.stop > piece.start:
            chunk = {k: v[:, piece] if k in ("u", "delta", "B", "C", "z") else v for k, v in inputs.items()}
            y, state = scan_function(**chunk, initial_state=state, backend=backend)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_absent_tokens_leave_the_state_and_later_tokens_alone(backend):
    inputs = draw_inputs(b=1, l=5)
    mask = torch.tensor([[True, False, True, False, False]])
    y, final = scan_function(**inputs, mask=mask, backend=backend)
    kept = {k: v[:, mask[0]] if k in ("u", "delta", "B", "C", "z") else v for k, v in inputs.items()}
    expected_y, expected_final = scan_function(**kept, backend=backend)
    torch.testing.assert_close(y[:, mask[0]], expected_y, rtol=0, atol=1e-12)
    torch.testing.assert_close(final, expected_final, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_op_is_well_formed(backend):
    """PyTorch's own checks: schema, fake tensors, autograd registration, tracing."""
    inputs = {name: tensor.requires_grad_() for name, tensor in draw_inputs().items()}
    mask = torch.ones(2, 5, dtype=torch.bool)
    positional = [inputs[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    arguments = (*positional, True, mask, inputs["initial_state"], backend, True)
    results = torch.library.opcheck(torch.ops.hf_decision_mamba.selective_scan.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    inputs = draw_inputs(dtype=dtype)
    y, state = scan_function(**inputs, backend=backend)
    expected, expected_state = scan_function(**{k: v.float() for k, v in inputs.items()}, backend="reference")
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y, expected.to(dtype))
    torch.testing.assert_close(state, expected_state)


def test_the_backend_is_chosen_by_device():
    assert choose_backend(torch.zeros(1)) == "numba"
    assert choose_backend(torch.zeros(1, device="meta")) == "reference"
    assert choose_backend(torch.zeros(1), "reference") == "reference"


def test_without_numba_the_reference_runs_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(sys.modules[choose_backend.__module__], "available", lambda: False)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        assert choose_backend(torch.zeros(1)) == "reference"
        with pytest.raises(ValueError, match="numba is not installed"):
            choose_backend(torch.zeros(1), "numba")


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="'fast' is unknown; choose one of"):
        selective_scan(**draw_inputs(), backend="fast")

"""The causal convolution as a torch op and its CPU kernel, against PyTorch's own convolution and autograd."""

import os
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("numba")

from hf_decision_mamba.model import causal_conv_cpu as cpu
from hf_decision_mamba.model import threads_cpu
from hf_decision_mamba.model.causal_conv import causal_conv

BACKENDS = ("reference", "numba")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def make_conv(channels: int, width: int, *, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Conv1d:
    """Random filters as the mixers hold them."""
    return nn.Conv1d(channels, channels, width, groups=channels, bias=bias).to(dtype)


def plain_conv(x: Tensor, conv: nn.Conv1d, history: int) -> Tensor:
    """What the op means: PyTorch's convolution over (b, c, l) behind zeros, without the first outputs, and SiLU."""
    padded = F.pad(x.transpose(1, 2), (conv.kernel_size[0] - 1, 0))
    return F.silu(conv(padded).transpose(1, 2)[:, history:])


def run(function, x: Tensor, conv: nn.Conv1d, history: int, dy: Tensor) -> dict[str, Tensor]:
    """Result and gradients of `function(x, conv, history)`, by name."""
    x = x.detach().requires_grad_()
    y = function(x, conv, history)
    inputs = {"x": x, **dict(conv.named_parameters())}
    gradients = torch.autograd.grad((y * dy).sum(), list(inputs.values()))
    return {"y": y.detach(), **{f"d{name}": value for name, value in zip(inputs, gradients, strict=True)}}


def assert_same_as_plain(x: Tensor, conv: nn.Conv1d, history: int = 0, backend: str = "numba") -> None:
    dy = torch.randn(x.shape[0], x.shape[1] - history, x.shape[2]).to(x.dtype)
    found = run(lambda *arguments: causal_conv(*arguments, backend), x, conv, history, dy)
    exact = nn.Conv1d(*conv.weight.shape[:1] * 2, conv.kernel_size, groups=conv.groups, bias=conv.bias is not None)
    exact.double().load_state_dict(conv.state_dict())
    for name, value in run(plain_conv, x.double(), exact, history, dy.double()).items():
        assert found[name].dtype == x.dtype and found[name].shape == value.shape, name
        error = torch.linalg.vector_norm(found[name].double() - value)
        assert error <= TOLERANCE[x.dtype] * max(torch.linalg.vector_norm(value), 1e-12), f"{name}: {error}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    b=st.integers(1, 18),  # more rows than the kernel has groups
    l=st.integers(1, 40),  # up to three chunks of tokens
    c=st.sampled_from([1, 2, 31, 32, 33, 70, 257]),
    width=st.integers(1, 8),
    bias=st.booleans(),
    with_history=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_pytorchs_convolution(dtype, b, l, c, width, bias, with_history, seed):
    torch.manual_seed(seed)
    history = width - 1 if with_history else 0
    conv = make_conv(c, width, bias=bias, dtype=dtype)
    assert_same_as_plain(torch.randn(b, l + history, c, dtype=dtype), conv, history)


@pytest.mark.parametrize(("l", "width", "history"), [(3, 20, 0), (40, 20, 19), (9, 4, 1), (1, 1, 0), (17, 2, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_filters_longer_than_the_sequence_and_parts_of_a_history(l, width, history, backend):
    assert_same_as_plain(torch.randn(2, l, 5).double(), make_conv(5, width), history, backend)


@pytest.mark.parametrize("channels", [6, 40, 300])
def test_reads_strided_inputs_where_they_lie(channels):
    conv = make_conv(channels, 4, dtype=torch.float32)
    x, dy = torch.randn(3, 18, channels), torch.ones(()).expand(3, 18, channels)  # as `y.sum().backward()` gives
    views = {
        "half of a Linear's output": torch.cat([x, x], -1).chunk(2, -1)[1],
        "channels first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "tokens first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every second token": x.repeat_interleave(2, dim=1)[:, ::2],
    }
    expected = run(causal_conv, x, conv, 0, dy)
    for kind, view in views.items():
        assert not view.is_contiguous() and torch.equal(view, x), kind
        found = run(causal_conv, view, conv, 0, dy)
        for name, value in expected.items():
            assert torch.equal(found[name], value), f"{name}, {kind}"


@settings(deadline=None, max_examples=20, derandomize=True)
@given(l=st.integers(2, 30), cut=st.integers(1, 29), width=st.integers(1, 5))
def test_chunks_behind_their_history_equal_one_pass(l, cut, width):
    cut = min(cut, l - 1)
    conv, x = make_conv(3, width), torch.randn(2, l, 3).double()
    window = F.pad(x, (0, 0, width - 1, 0))
    parts = [causal_conv(window[:, start : stop + width - 1], conv, width - 1) for start, stop in ((0, cut), (cut, l))]
    torch.testing.assert_close(torch.cat(parts, dim=1), causal_conv(x, conv), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_agree_with_finite_differences(bias):
    conv = make_conv(3, 3, bias=bias)
    tensors = (torch.randn(2, 6, 3).double().requires_grad_(), *conv.parameters())

    def function(x, *parameters):
        weight, *biases = parameters
        return torch.ops.hf_decision_mamba.causal_conv(x, weight.squeeze(1), biases[0] if biases else None, 1, "numba")

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("bias", [True, False])
def test_op_is_well_formed(bias):
    """PyTorch's own checks: schema, fake tensors, autograd registration, tracing."""
    tensors = torch.randn(2, 5, 6).double().chunk(2, -1)[0], torch.randn(3, 4).double(), torch.randn(3).double()
    x, weight, biases = (tensor.requires_grad_() for tensor in tensors)
    arguments = (x, weight, biases if bias else None, 3, "numba")
    results = torch.library.opcheck(torch.ops.hf_decision_mamba.causal_conv.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_to_one_graph(backend):
    conv, x = make_conv(4, 4), torch.randn(2, 6, 4).double()
    compiled = torch.compile(lambda x: causal_conv(x, conv, backend=backend), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), causal_conv(x, conv, backend=backend))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    conv, x = make_conv(5, 4, dtype=dtype), torch.randn(2, 6, 5).to(dtype)
    found = causal_conv(x, conv, backend="numba")
    torch.testing.assert_close(found, causal_conv(x.float(), conv.float(), backend="reference").to(dtype))


@pytest.mark.parametrize("threads_from", ["openmp", "pool"])
def test_every_number_of_threads_gives_the_same_bits(monkeypatch, threads_from):
    if threads_from == "pool":
        monkeypatch.setattr(threads_cpu, "openmp", lambda: None)
    conv, x, dy = make_conv(300, 4, dtype=torch.float32), torch.randn(19, 40, 300), torch.randn(19, 40, 300)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = run(causal_conv, x, conv, 0, dy)
    for threads in (2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for name, value in run(causal_conv, x, conv, 0, dy).items():
            assert torch.equal(value, expected[name]), (threads, name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_convolves_alone():
    code = """
    import os, torch
    torch.get_num_threads = lambda: 3
    from hf_decision_mamba.model.causal_conv_cpu import conv_forward
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(16, 40, 64, generator=g), torch.randn(64, 4, generator=g)
    expected = conv_forward(x, weight, None, 0)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as a DataLoader's worker does: torch's own operations cannot wait for threads either
        os._exit(0 if (conv_forward(x, weight, None, 0) == expected).all().item() else 1)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = run_python(textwrap.dedent(code))
    assert done.returncode == 0, done.stderr


def test_an_empty_batch_gives_empty_results():
    conv = make_conv(7, 4)
    found = run(causal_conv, torch.empty(0, 5, 7).double(), conv, 0, torch.empty(0, 5, 7).double())
    assert found["y"].shape == found["dx"].shape == (0, 5, 7)
    assert torch.equal(found["dweight"], torch.zeros_like(conv.weight))


def test_nan_is_not_hidden():
    conv, x = make_conv(3, 2, dtype=torch.float32), torch.zeros(1, 5, 3)
    x[0, 2, 1] = float("nan")
    expected = torch.zeros(1, 5, 3, dtype=torch.bool)
    expected[0, 2:4, 1] = True
    assert torch.equal(causal_conv(x, conv).isnan(), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5, 7).bfloat16()}, r"float32 or float64 tensors, x is torch\.bfloat16"),
        ({"weight": torch.zeros(6, 4)}, r"weight has shape \(6, 4\), but x of shape \(2, 5, 7\) needs \(7, 4\)"),
        ({"bias": torch.zeros(6)}, r"bias has shape \(6,\)"),
        ({"bias": torch.zeros(7).double()}, r"x is torch\.float32 and bias torch\.float64"),
        ({"history": 4}, "history=4 must be between 0 and 3"),
        ({"history": -1}, "history=-1 must be between 0 and 3"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"x": torch.zeros(2, 5, 7), "weight": torch.zeros(7, 4), "bias": torch.zeros(7), "history": 0}
    with pytest.raises(ValueError, match=message):
        cpu.conv_forward(**{**arguments, **change})


def test_a_gradient_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"dy has shape \(2, 5, 7\), but x of shape \(2, 5, 7\) needs \(2, 3, 7\)"):
        cpu.conv_backward(torch.zeros(2, 5, 7), torch.zeros(2, 5, 7), torch.zeros(7, 4), None, 2)

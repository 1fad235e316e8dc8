"""The scan as a torch op: backends agree, gradients are right, the choice of a backend is explained."""

import logging
import re
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_decision_mamba.model import mamba_ssm_cuda, selective_scan_cpu, threads_kernels
from hf_decision_mamba.model.causal_conv import causal_conv
from hf_decision_mamba.model.selective_scan import choose_backend, selective_scan
from hf_decision_mamba.model.selective_scan import selective_scan as scan_function

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


def draw_time_scale(b, l, seed=0):
    """Factors from 0.1 to 10."""
    return 10 ** (2 * torch.rand(b, l, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_gradients_agree_with_finite_differences(backend, masked, scaled):
    inputs = {name: tensor.requires_grad_() for name, tensor in draw_inputs().items()}
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]]).bool() if masked else None
    factors = {"mask": mask, "time_scale": draw_time_scale(2, 5) if scaled else None}

    def function(*tensors):
        return scan_function(**dict(zip(inputs, tensors, strict=True)), **factors, backend=backend)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@settings(deadline=None, max_examples=20)
@given(
    l=st.integers(1, 9),
    cut=st.integers(0, 9),
    optional=st.sets(st.sampled_from(["D", "z", "delta_bias"])),
    scaled=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_equal_one_pass(backend, l, cut, optional, scaled):
    inputs = draw_inputs(l=l, **dict.fromkeys(optional))
    if scaled:
        inputs["time_scale"] = draw_time_scale(2, l)
    cut = min(cut, l)
    whole, final = scan_function(**inputs, backend=backend)
    state, parts = inputs.pop("initial_state"), []
    for piece in (slice(0, cut), slice(cut, l)):
        if piece.stop > piece.start:
            along = ("u", "delta", "B", "C", "z", "time_scale")
            chunk = {k: v[:, piece] if k in along else v for k, v in inputs.items()}
            y, state = scan_function(**chunk, initial_state=state, backend=backend)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_absent_tokens_leave_the_state_and_later_tokens_alone(backend):
    inputs = draw_inputs(b=1, l=5)
    inputs["time_scale"] = draw_time_scale(1, 5)
    mask = torch.tensor([[True, False, True, False, False]])
    y, final = scan_function(**inputs, mask=mask, backend=backend)
    kept = {k: v[:, mask[0]] if k in ("u", "delta", "B", "C", "z", "time_scale") else v for k, v in inputs.items()}
    expected_y, expected_final = scan_function(**kept, backend=backend)
    torch.testing.assert_close(y[:, mask[0]], expected_y, rtol=0, atol=1e-12)
    torch.testing.assert_close(final, expected_final, rtol=0, atol=1e-12)


def with_gradients(inputs, dtype=torch.float64, **options):
    """Outputs of the scan and the gradients of their sum, in this order."""
    leaves = {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.items()}
    y, state = scan_function(**leaves, **options)
    return y, state, *torch.autograd.grad(y.sum() + state.sum(), list(leaves.values()))


@settings(deadline=None, max_examples=15)
@given(
    l=st.integers(1, 40),
    optional=st.sets(st.sampled_from(["D", "z", "delta_bias", "initial_state"])),
    masked=st.booleans(),
    delta_softplus=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_time_scale_of_one_changes_no_bit(backend, l, optional, masked, delta_softplus, dtype):
    inputs = draw_inputs(l=l, c=33, **dict.fromkeys(optional))
    if not delta_softplus:
        inputs |= {name: inputs[name].abs() for name in ("delta", "delta_bias") if name in inputs}
    mask = torch.rand(2, l, generator=torch.Generator().manual_seed(l)) < 0.6 if masked else None
    options = {"dtype": dtype, "mask": mask, "delta_softplus": delta_softplus, "backend": backend}
    plain = with_gradients(inputs, **options)
    for one in (torch.ones(2, l), torch.ones(2, l, dtype=torch.int64)):
        assert all(map(torch.equal, with_gradients(inputs, **options, time_scale=one), plain))


@settings(deadline=None, max_examples=20)
@given(
    times=st.integers(1, 12), optional=st.sets(st.sampled_from(["delta_bias", "initial_state"])), seed=st.integers(0)
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_time_scale_is_a_repetition_to_first_order(backend, times, optional, seed):
    """With x = Δ |A|, s equal tokens push Δ B u Σ_{k<s} exp(-k x) into the state, and one of s times Δ: s Δ B u.

    1 - exp(-k x) lies between 0 and k x: so the one pushes more, by no more than s (s - 1) / 2 · x Δ |B u|.
    """
    inputs = draw_inputs(l=1, seed=seed % 2**32, D=None, z=None, **dict.fromkeys(optional))
    repeated = {k: v.expand(2, times, -1) if k in ("u", "delta", "B", "C") else v for k, v in inputs.items()}
    scale = torch.full((2, 1), float(times))
    y, once = selective_scan(**inputs, time_scale=scale, backend=backend)
    _, often = selective_scan(**repeated, backend=backend)
    step = torch.nn.functional.softplus(inputs["delta"] + inputs.get("delta_bias", 0))[:, 0, :, None]
    push = step * inputs["u"][:, 0, :, None] * inputs["B"][:, 0, None]
    more, bound = (once - often) * push.sign(), times * (times - 1) / 2 * step * -inputs["A"] * push.abs()
    assert ((more > -1e-12) & (more < bound + 1e-12)).all()
    torch.testing.assert_close(y[:, 0], torch.einsum("bcn,bn->bc", once, inputs["C"][:, 0]))

    for one in (inputs, repeated):  # without an input, what remains is the decay
        one["u"] = torch.zeros_like(one["u"])
    _, once = selective_scan(**inputs, time_scale=scale, backend=backend)
    _, often = selective_scan(**repeated, backend=backend)
    torch.testing.assert_close(once, often, rtol=1e-12, atol=1e-300)
    if "initial_state" in inputs:
        decay = torch.exp(times * step * inputs["A"])
        torch.testing.assert_close(once, decay * inputs["initial_state"], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_time_scale_beyond_half_precision_is_kept(dtype):
    inputs, scale = draw_inputs(dtype=dtype), torch.full((2, 5), 1e6)
    inputs["delta"] -= 20
    y, state = selective_scan(**inputs, time_scale=scale)
    expected, expected_state = selective_scan(
        **{k: v.double() for k, v in inputs.items()}, time_scale=scale, backend="reference"
    )
    torch.testing.assert_close(state.double(), expected_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_a_time_scale_is_a_constant():
    inputs, scale = draw_inputs(), torch.ones(2, 5, requires_grad=True)
    assert not selective_scan(**inputs, time_scale=scale)[0].requires_grad
    inputs["u"].requires_grad_()
    selective_scan(**inputs, time_scale=scale)[0].sum().backward()
    assert scale.grad is None and inputs["u"].grad.any()


@pytest.mark.parametrize("name", ["mask", "time_scale"])
def test_a_time_scale_of_another_shape_is_refused(name):
    factors = {"mask": torch.ones(2, 5, dtype=torch.bool), "time_scale": torch.ones(2, 5)}
    with pytest.raises(ValueError, match=rf"^{name} has shape \(1, 5\), but u of shape \(2, 5, 3\) needs \(2, 5\)"):
        selective_scan(**draw_inputs(), **{**factors, name: factors[name][:1]}, backend="reference")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_op_is_well_formed(backend, scaled):
    """PyTorch's own checks: schema, fake tensors, autograd registration, tracing."""
    inputs = {name: tensor.requires_grad_() for name, tensor in draw_inputs().items()}
    mask = draw_time_scale(2, 5) if scaled else torch.ones(2, 5, dtype=torch.bool)
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
    monkeypatch.setattr(selective_scan_cpu, "HAS_NUMBA", False)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        assert choose_backend(torch.zeros(1)) == "reference"
        with pytest.raises(ValueError, match="numba is not installed"):
            choose_backend(torch.zeros(1), "numba")


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (lambda first, last, x, y: y.fill(0), r"\(AssertionError: Not equal to tolerance"),
        (lambda first, last, x, y: x.atomic_rmw, r"\(RuntimeError: .* has no attribute 'atomic_rmw'\)"),
    ],
    ids=["other numbers", "no such attribute"],
)
def test_with_a_numba_that_compiles_something_else_the_reference_runs_and_says_so(monkeypatch, caplog, example, reason):
    example.__name__ = "example"
    monkeypatch.setattr(threads_kernels, "example", example)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # a team is compiled of kernels alone
    selective_scan_cpu.what_is_wrong.cache_clear()
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        assert choose_backend(torch.zeros(1)) == "reference"
    monkeypatch.undo()
    selective_scan_cpu.what_is_wrong.cache_clear()
    assert choose_backend(torch.zeros(1)) == "numba"
    (line,) = caplog.messages
    assert re.search(rf"which is slow: numba \S+ does not compile as the kernels need it {reason}", line), line


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="'fast' is unknown; choose one of"):
        selective_scan(**draw_inputs(), backend="fast")


# --------------------------------------------------------------------------------- GPUs, and packages that may be there


def on_cuda(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What is asked of a tensor before a backend is chosen, of one on a GPU."""
    sizes = torch.empty(shape, dtype=dtype, device="meta")
    return types.SimpleNamespace(
        device=torch.device("cuda", 0), dtype=dtype, shape=sizes.shape, dim=sizes.dim, stride=sizes.stride
    )


class Imports:
    """Stands for importlib where mamba-ssm and causal-conv1d are in some state; notes what is imported."""

    def __init__(self, **modules: object) -> None:
        self.modules, self.imported, self.util = modules, [], self

    def find_spec(self, name: str) -> object:
        return self.modules.get(name)

    def import_module(self, name: str) -> object:
        self.imported.append(name)
        found = self.modules.get(name.split(".")[0])
        if isinstance(found, BaseException):
            raise found
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return found


@pytest.fixture
def install(monkeypatch):
    """Pretend that modules, or what their import raises, are installed."""

    def pretend(**modules: object) -> Imports:
        imports = Imports(**modules)
        monkeypatch.setattr(mamba_ssm_cuda, "importlib", imports)
        mamba_ssm_cuda.load.cache_clear()
        return imports

    yield pretend
    mamba_ssm_cuda.load.cache_clear()


def fake_scan(u, delta, A, B, C, D, z, bias, delta_softplus, return_last_state):
    """mamba-ssm's function, of the reference: channels before tokens, and all that it is picky about."""
    assert return_last_state and all(t.dtype == u.dtype for t in (delta, B, C, z))
    assert all(t.dtype == torch.float32 for t in (A, D, bias))
    u, delta, B, C, z = (t.mT for t in (u, delta, B, C, z))
    y, state = selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus, backend="reference")
    return y.mT, state


WORKING = {
    "mamba_ssm": types.SimpleNamespace(selective_scan_fn=fake_scan),
    "selective_scan_cuda": types.SimpleNamespace(),
}
NOT_WORKING = "mamba-ssm is installed but does not work with this torch"


def test_the_backend_on_a_gpu_is_triton_even_where_mamba_ssm_works(install, monkeypatch):
    imports = install(**WORKING)
    monkeypatch.setattr(sys.modules[choose_backend.__module__], "why_no_triton", lambda u: None)
    assert choose_backend(on_cuda(64, 60, 256)) == "triton"
    assert choose_backend(on_cuda(0)) == "triton"
    assert imports.imported == []


def test_on_a_gpu_without_triton_the_reference_runs_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(sys.modules[choose_backend.__module__], "why_no_triton", lambda u: "triton is somewhere else")
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        assert choose_backend(on_cuda(1)) == "reference"
    assert "which is slow: triton is somewhere else" in caplog.text


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ({}, "mamba-ssm is not installed"),
        ({"mamba_ssm": WORKING["mamba_ssm"]}, f"{NOT_WORKING} .ModuleNotFoundError: .*selective_scan_cuda"),
        (
            {**WORKING, "selective_scan_cuda": ImportError("selective_scan_cuda.so:\nundefined symbol: _ZN3c10")},
            f"{NOT_WORKING} .ImportError: selective_scan_cuda.so: undefined symbol: _ZN3c10",
        ),
        ({**WORKING, "selective_scan_cuda": OSError("libcudart.so.11.0")}, f"{NOT_WORKING} .OSError: libcudart"),
        ({**WORKING, "mamba_ssm": RuntimeError("no driver")}, f"{NOT_WORKING} .RuntimeError: no driver"),
        ({**WORKING, "mamba_ssm": types.SimpleNamespace()}, f"{NOT_WORKING} .AttributeError"),
    ],
    ids=["absent", "half installed", "another torch's", "another CUDA's", "fails", "another version"],
)
def test_what_keeps_mamba_ssm_from_running_is_told(install, modules, reason):
    install(**modules)
    with pytest.raises(ValueError, match=f"scan_backend='mamba_ssm' cannot run: {reason}"):
        choose_backend(on_cuda(1), "mamba_ssm")


def test_mamba_ssm_is_never_imported_for_cpu_tensors(install):
    imports = install(**WORKING)
    with pytest.raises(ValueError, match="scan_backend='mamba_ssm' cannot run: the tensors live on cpu"):
        choose_backend(torch.zeros(1), "mamba_ssm")
    assert choose_backend(torch.zeros(1)) == "numba"
    assert imports.imported == []


def test_mamba_ssm_is_asked_for_and_has_no_float64(install):
    install(**WORKING)
    assert choose_backend(on_cuda(1), "mamba_ssm") == "mamba_ssm"
    with pytest.raises(ValueError, match="mamba-ssm has no float64"):
        choose_backend(on_cuda(1, dtype=torch.float64), "mamba_ssm")


@pytest.mark.parametrize("without", [(), ("initial_state",)], ids=["with a state", "without"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_mamba_ssm_computes_what_it_can_and_our_kernel_the_rest(install, monkeypatch, without, scaled):
    install(**WORKING)
    monkeypatch.setattr(sys.modules[choose_backend.__module__], "why_no_mamba_ssm", lambda u: None)  # on this CPU
    inputs = draw_inputs(dtype=torch.float32, **dict.fromkeys(without))
    inputs["u"].requires_grad_()
    scale = draw_time_scale(2, 5) if scaled else None
    y, state = scan_function(**inputs, time_scale=scale, backend="mamba_ssm")
    expected, expected_state = scan_function(**inputs, time_scale=scale, backend="reference")
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_state)
    assert state.requires_grad is (not without or scaled)  # mamba-ssm's own state would have a wrong gradient


def test_a_compiled_model_stays_one_graph_where_mamba_ssm_is_asked_for(install, monkeypatch):
    install(**WORKING)
    monkeypatch.setattr(sys.modules[choose_backend.__module__], "why_no_mamba_ssm", lambda u: None)  # on this CPU
    inputs = draw_inputs(dtype=torch.float32, initial_state=None)

    def function(u):
        return scan_function(**{**inputs, "u": u}, backend="mamba_ssm")[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs["u"]), function(inputs["u"]))


@pytest.mark.parametrize(
    ("shape", "width", "history", "usable"),
    [((2, 5, 8), 4, 0, True), ((2, 5, 8), 5, 0, False), ((2, 5, 8), 4, 3, False), ((2, 5, 6), 4, 0, False)],
    ids=["usable", "filter too long", "with a history", "strides"],
)
def test_causal_conv1d_is_used_for_what_it_can_convolve(install, shape, width, history, usable):
    package = types.SimpleNamespace(causal_conv1d_fn=lambda *arguments, **options: None)
    install(causal_conv1d=package, causal_conv1d_cuda=types.SimpleNamespace())
    found = mamba_ssm_cuda.causal_conv1d(on_cuda(*shape), width, history)
    assert found is (package.causal_conv1d_fn if usable else None)
    assert mamba_ssm_cuda.causal_conv1d(torch.zeros(shape), width, history) is None


@pytest.mark.parametrize("state", ["absent", "half installed", "working"])
def test_a_convolution_beside_mamba_ssm(install, monkeypatch, state):
    def fake_conv(x, weight, bias, activation):
        assert activation == "silu"
        padded = torch.nn.functional.pad(x, (weight.shape[1] - 1, 0))
        return torch.nn.functional.silu(torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=len(weight)))

    package = types.SimpleNamespace(causal_conv1d_fn=fake_conv)
    modules = {"causal_conv1d": package, "causal_conv1d_cuda": types.SimpleNamespace()}
    install(**{"absent": {}, "half installed": {"causal_conv1d": package}, "working": modules}[state])
    asked = []

    def there(x, width, history):
        asked.append(mamba_ssm_cuda.causal_conv1d(on_cuda(*x.shape), width, history))
        return asked[-1]

    monkeypatch.setattr(sys.modules[choose_backend.__module__], "why_no_mamba_ssm", lambda u: None)
    monkeypatch.setattr(sys.modules[causal_conv.__module__], "causal_conv1d", there)
    conv, x = torch.nn.Conv1d(8, 8, 4, groups=8), torch.randn(2, 5, 8)
    found = causal_conv(x, conv, backend="mamba_ssm")
    torch.testing.assert_close(found, causal_conv(x, conv, backend="reference"))
    assert asked == [fake_conv if state == "working" else None]

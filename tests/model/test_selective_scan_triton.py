"""The Triton kernels of the scan and of the convolution against plain float64 torch.

They run on a GPU where there is one, else in Triton's interpreter, which `conftest.py` switches on. Every buffer that
they are given holds NaN beforehand. That they compile for a GPU is tested everywhere.
"""

import copy
import os
import subprocess
import sys
import textwrap
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hf_decision_mamba.model import causal_conv_triton, selective_scan_triton
from hf_decision_mamba.model.causal_conv import causal_conv
from hf_decision_mamba.model.scan_inputs import ScanInputs
from hf_decision_mamba.model.selective_scan import choose_backend, delta_factor, reference_forward, selective_scan

pytestmark = pytest.mark.skipif(
    selective_scan_triton.MISSING is not None,
    reason=f"the Triton kernels cannot run: {selective_scan_triton.MISSING}",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
#: Before the tests make them smaller.
GPU_SIZES = {name: getattr(selective_scan_triton, name) for name in ("CHUNK", "BLOCK", "GROUP", "GROUP_BACKWARD")}
CONSTANTS = ("mask", "time_scale")  # which have no gradient
OPTIONS = ("D", "z", "delta_bias", *CONSTANTS, "initial_state")


@pytest.fixture(autouse=True)
def patched_once(monkeypatch):
    """Let the interpreter patch Triton's language for a kernel, and not again for every function that it calls."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch, plain = getattr(interpreter, "_patch_lang", None), {module: module.range for module in (tl, tl.core)}

    def patch_what_is_plain(function):
        seen = [value for value in function.__globals__.values() if isinstance(value, ModuleType) and value in plain]
        patched = seen and all(module.range is not plain[module] for module in seen)
        return SimpleNamespace(restore=lambda: None) if patched else patch(function)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_what_is_plain, raising=False)


@pytest.fixture(autouse=True)
def small_and_poisoned(monkeypatch):
    """Chunks and blocks that short sequences fill several of; buffers full of NaN, and NaN behind them afterwards."""
    new_empty, fences = Tensor.new_empty, []

    def poisoned(like, *sizes, **options):
        buffer = new_empty(like, *sizes, **options)
        if type(buffer) is not Tensor or not buffer.is_floating_point():  # a fake tensor, or random states
            return buffer
        fenced = new_empty(buffer, buffer.numel() + 64).fill_(torch.nan)
        fences.append(fenced[buffer.numel() :])
        return fenced[: buffer.numel()].view(buffer.shape)

    for module in (selective_scan_triton, causal_conv_triton):
        monkeypatch.setattr(module, "CHUNK", 4)
        monkeypatch.setattr(module, "BLOCK", 4)
    for name in ("GROUP", "GROUP_BACKWARD"):
        monkeypatch.setattr(selective_scan_triton, name, 2)
    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    yield
    assert all(fence.isnan().all() for fence in fences)


def make_inputs(b=2, l=9, c=6, n=3, *, dtype=torch.float32, options=OPTIONS, seed=0):
    """Random arguments of a scan, by name; `options` names the optional ones that are given."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    optional = {
        "D": normal(c),
        "z": normal(b, l, c),
        "delta_bias": normal(c),
        "mask": (torch.rand(b, l, generator=generator) < 0.6).to(DEVICE),
        "time_scale": (10 ** (2 * torch.rand(b, l, generator=generator) - 1)).to(DEVICE),
        "initial_state": normal(b, c, n),
    }
    return {
        "u": normal(b, l, c), "delta": normal(b, l, c), "A": -torch.exp(normal(c, n)), "B": normal(b, l, n),
        "C": normal(b, l, n), **{name: value if name in options else None for name, value in optional.items()},
    }  # fmt: skip


def run_triton(inputs, dy, dfinal, delta_softplus=True):
    """Outputs and gradients of the op with its Triton backend, by name."""
    leaves = {k: t.detach().requires_grad_() if t is not None and k not in CONSTANTS else t for k, t in inputs.items()}
    y, final = selective_scan(**leaves, delta_softplus=delta_softplus, backend="triton")
    return with_gradients(leaves, y, final, dy, dfinal)


def run_exact(inputs, dy, dfinal, delta_softplus=True):
    """The same from the reference's equations in float64, differentiated by autograd."""
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    exact = {k: inputs[k].detach().double().requires_grad_() if inputs[k] is not None else None for k in names}
    *tensors, initial_state = exact.values()
    factor = delta_factor(inputs["mask"], inputs["time_scale"], torch.float64)
    return with_gradients(
        exact, *reference_forward(ScanInputs(*tensors, delta_softplus, factor, initial_state)), dy, dfinal
    )


def with_gradients(inputs, y, final, dy, dfinal):
    loss = (y * dy).sum() + (0.0 if dfinal is None else (final * dfinal).sum())
    given_ = {k: t for k, t in inputs.items() if t is not None and k not in CONSTANTS}
    gradients = torch.autograd.grad(loss, list(given_.values()), materialize_grads=True)
    return {"y": y, "final": final, **{f"d{k}": g for k, g in zip(given_, gradients, strict=True)}}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare by relative error, in the norm."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        error = torch.linalg.vector_norm(found[name].double() - value.double())
        assert error <= tolerance * max(torch.linalg.vector_norm(value.double()), 1e-6), f"{name}: {error}"


def assert_same_as_exact(inputs, *, final_gradient=True, tolerance=None, **options):
    b, l, c = inputs["u"].shape
    generator = torch.Generator().manual_seed(1)
    dtype = inputs["u"].dtype
    dy = torch.randn(b, l, c, generator=generator).to(DEVICE, dtype)
    dfinal = torch.randn(b, c, inputs["A"].shape[1], generator=generator).to(DEVICE) if final_gradient else None
    found = run_triton(inputs, dy, dfinal, **options)
    for name, value in inputs.items():
        assert value is None or name in CONSTANTS or found[f"d{name}"].dtype == value.dtype, name
    assert_close(found, run_exact(inputs, dy, dfinal, **options), tolerance or TOLERANCE[dtype])


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    b=st.integers(1, 2),
    l=st.integers(1, 10),  # up to three chunks of tokens
    c=st.integers(1, 9),  # up to three blocks of channels
    n=st.integers(1, 3),
    options=st.sets(st.sampled_from(OPTIONS)),
    delta_softplus=st.booleans(),
    final_gradient=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_equals_the_reference_in_float64(b, l, c, n, options, delta_softplus, final_gradient, dtype, seed):
    inputs = make_inputs(b, l, c, n, dtype=dtype, options=options, seed=seed)
    if not delta_softplus:
        inputs["delta"] = inputs["delta"].abs() / 4
        inputs["delta_bias"] = None
    assert_same_as_exact(inputs, final_gradient=final_gradient, delta_softplus=delta_softplus)


@pytest.mark.parametrize(("b", "l", "c", "n"), [(1, 1, 1, 1), (1, 12, 5, 4), (2, 5, 8, 1)])
def test_edges_of_chunks_and_blocks(b, l, c, n):
    assert_same_as_exact(make_inputs(b, l, c, n, dtype=torch.float64))


def test_with_the_sizes_that_a_gpu_gets(monkeypatch):
    for name, size in GPU_SIZES.items():
        monkeypatch.setattr(selective_scan_triton, name, size)
    assert_same_as_exact(make_inputs(1, 10, 33, 16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """Only what is read and written is rounded; states and parameters stay float32, as under autocast."""
    inputs = make_inputs(1, 6, 5, 2, dtype=dtype)
    for name in ("A", "D", "delta_bias", "initial_state"):
        inputs[name] = inputs[name].float()
    assert_same_as_exact(inputs, tolerance=torch.finfo(dtype).eps)
    y, state = selective_scan(**inputs, backend="triton")
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    exact = selective_scan(
        **{k: v.float() if k not in CONSTANTS else v for k, v in inputs.items()}, backend="reference"
    )[1]
    torch.testing.assert_close(state, exact)


def test_small_steps_are_not_rounded():
    """Δ = softplus(-12) is 6e-6: log(1 + exp(-12)) in float32 would have two correct digits."""
    inputs = make_inputs(1, 3, 4, 2, options=())
    inputs["delta"] = inputs["delta"] - 12
    assert_same_as_exact(inputs)


def test_absent_tokens_may_hold_anything():
    clean = make_inputs(1, 6, 5, 2)
    dirty = {name: value.clone() for name, value in clean.items()}
    for name in ("delta", "B"):
        dirty[name][~clean["mask"]] = torch.nan
    dy, dfinal = torch.ones(1, 6, 5, device=DEVICE), torch.ones(1, 5, 2, device=DEVICE)
    found = run_triton(dirty, dy, dfinal)
    for name, value in run_triton(clean, dy, dfinal).items():
        assert torch.equal(found[name], value), name
    for name in ("ddelta", "dB"):
        assert not found[name][~clean["mask"]].any(), name


def test_a_time_scale_of_one_changes_no_bit():
    every, dy, dfinal = make_inputs(1, 5, 3, 1), torch.ones(1, 5, 3, device=DEVICE), torch.ones(1, 3, 1, device=DEVICE)
    for mask in (every["mask"], None):
        plain = run_triton({**every, "mask": mask, "time_scale": None}, dy, dfinal)
        ones = run_triton({**every, "mask": mask, "time_scale": torch.ones(1, 5, device=DEVICE)}, dy, dfinal)
        for name, value in plain.items():
            assert torch.equal(ones[name], value), name


def test_reads_strided_inputs_where_they_lie():
    every = make_inputs(2, 5, 5, 2)
    views = dict(every)
    views["u"], views["z"] = torch.cat([every["u"], every["z"]], -1).chunk(2, -1)  # halves of one Linear's output
    views["delta"], views["B"], views["C"] = torch.cat([every[k] for k in ("delta", "B", "C")], -1).split([5, 2, 2], -1)
    views["A"] = every["A"].t().contiguous().t()
    channels_first = {**every, "u": every["u"].mT.contiguous().mT}
    dy = torch.ones((), device=DEVICE).expand(2, 5, 5)  # what `y.sum().backward()` gives
    expected = run_triton(every, dy, None)
    for other in (views, channels_first):
        for name, value in run_triton(other, dy, None).items():
            assert torch.equal(value, expected[name]), name


def test_chunks_of_a_sequence_equal_one_pass_and_steps():
    """A step of acting is a scan over one token from a state."""
    inputs = make_inputs(2, 6, 5, 3, dtype=torch.float64)
    y, final = selective_scan(**inputs, backend="triton")
    state, parts = inputs.pop("initial_state"), []
    for piece in (slice(0, 4), slice(4, 5), slice(5, 6)):
        along = ("u", "delta", "B", "C", "z", *CONSTANTS)
        part = {k: v[:, piece] if k in along else v for k, v in inputs.items()}
        out, state = selective_scan(**part, initial_state=state, backend="triton")
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-12)


def test_op_is_well_formed():
    """PyTorch's own checks, in mixed precision: schema, fake tensors, autograd registration, tracing."""
    inputs = make_inputs(1, 2, 2, 1, dtype=torch.bfloat16)
    inputs["A"] = inputs["A"].float()
    leaves = {k: v if k in CONSTANTS else v.detach().requires_grad_() for k, v in inputs.items()}
    positional = [leaves[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    arguments = (*positional, True, leaves["mask"], leaves["initial_state"], "triton", True)
    results = torch.library.opcheck(torch.ops.hf_decision_mamba.selective_scan.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_to_one_graph():
    inputs = make_inputs(1, 2, 2, 1)

    def function(u):
        return selective_scan(**{**inputs, "u": u}, backend="triton")[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs["u"]), function(inputs["u"]))


def test_empty_batches_give_empty_results():
    found = run_triton(make_inputs(b=0), torch.empty(0, 9, 6, device=DEVICE), None)
    assert found["y"].shape == found["du"].shape == (0, 9, 6)
    assert torch.equal(found["dA"], torch.zeros(6, 3, device=DEVICE))


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", *OPTIONS])
def test_shapes_that_do_not_fit_are_refused(name):
    inputs = make_inputs()
    inputs[name] = inputs[name][:-1]
    with pytest.raises(ValueError, match=rf"^{name} has shape .* u of shape \(2, 9, 6\) needs"):
        selective_scan(**inputs, backend="triton")


def test_without_saved_states_there_is_no_backward():
    inputs = {**make_inputs(1, 1, 1, 1), "delta_softplus": True}
    del inputs["time_scale"]
    y, final, saved = selective_scan_triton.scan_forward(ScanInputs(**inputs), need_states=False)
    with pytest.raises(ValueError, match="need_states=True"):
        selective_scan_triton.scan_backward(y, final, ScanInputs(**inputs), saved)


def test_cpu_tensors_are_for_the_interpreter_only(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend(torch.zeros(1), "triton") == "triton"
    assert choose_backend(torch.zeros(1)) != "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="scan_backend='triton' cannot run: the tensors live on cpu"):
        choose_backend(torch.zeros(1), "triton")


# ------------------------------------------------------------------------------------------------------- convolution


def plain_conv(x: Tensor, conv: nn.Conv1d, history: int) -> Tensor:
    padded = F.pad(x.mT, (conv.kernel_size[0] - 1, 0))
    return F.silu(conv(padded).mT[:, history:])


def run_conv(function, x: Tensor, conv: nn.Conv1d, history: int, dy: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    y = function(x, conv, history)
    gradients = torch.autograd.grad((y * dy).sum(), [x, *conv.parameters()])
    return {"y": y, **{f"gradient {index}": value for index, value in enumerate(gradients)}}


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    b=st.integers(1, 2),
    l=st.integers(1, 10),
    c=st.integers(1, 9),
    width=st.integers(1, 6),
    bias=st.booleans(),
    history=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_convolution_equals_pytorchs(b, l, c, width, bias, history, dtype, seed):
    torch.manual_seed(seed)
    history = min(history, width - 1)
    conv = nn.Conv1d(c, c, width, groups=c, bias=bias, dtype=dtype, device=DEVICE)
    exact = copy.deepcopy(conv).double()
    wide = torch.randn(b, l + history, 2 * c, dtype=dtype, device=DEVICE)
    x, dy = wide[..., c:], torch.randn(b, l, c, dtype=dtype, device=DEVICE)
    found = run_conv(lambda *arguments: causal_conv(*arguments, "triton"), x, conv, history, dy)
    assert all(value.dtype == dtype for value in found.values())
    assert_close(found, run_conv(plain_conv, x.double(), exact, history, dy.double()), TOLERANCE[dtype])


def test_half_precision_is_convolved_in_float32():
    conv, x = nn.Conv1d(5, 5, 4, groups=5, device=DEVICE), torch.randn(2, 6, 5, device=DEVICE).bfloat16()
    found = causal_conv(x, conv, backend="triton")
    torch.testing.assert_close(found, causal_conv(x.float(), conv, backend="reference").bfloat16())


def test_a_convolution_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"bias has shape \(6,\)"):
        causal_conv_triton.conv_forward(torch.zeros(2, 5, 7), torch.zeros(7, 4), torch.zeros(6), 0)


# ---------------------------------------------------------------------------------------------------------------- GPU


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is tested on Linux")
def test_kernels_compile_for_a_gpu_which_is_not_needed_for_that(tmp_path):
    """For compute capability 9.0; and nothing imports the kernels before."""
    code = """
    import re, sys
    from hf_decision_mamba.model import causal_conv_triton, selective_scan_triton
    assert not any(name.endswith("_triton_kernels") for name in sys.modules)
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from hf_decision_mamba.model import causal_conv_triton_kernels as conv, selective_scan_triton_kernels as scan

    def compile(kernel, **constants):
        constants |= {"FLOAT": tl.float32}
        flags = [name for name in kernel.arg_names if name.isupper() and len(name) > 1 and name not in constants]
        constants |= dict.fromkeys(flags, True)
        whole = {"l", "c", "n", "chunks", "outputs", "lead"}
        tokens = {"u", "raw", "B", "C", "z", "y", "dy", "du", "draw", "dz", "x", "dx"}
        kinds = {}
        for name in kernel.arg_names:
            integer = name in whole or re.fullmatch(r".*_[bt]", name)
            pointer = "*u8" if name == "factor" else "*bf16" if name in tokens else "*fp32"
            kinds[name] = "constexpr" if name in constants else "i32" if integer else pointer
        source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
        options = {"num_warps": 1, "enable_fp_fusion": True}
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]

    for kernel in (scan.forward, scan.backward):  # chunk and group decide how often loops are unrolled, no more
        compile(kernel, CHUNK=2, BLOCK=selective_scan_triton.BLOCK, GROUP=2)
    for kernel in (conv.forward, conv.backward_sums, conv.backward_inputs):
        compile(kernel, CHUNK=causal_conv_triton.CHUNK, BLOCK=causal_conv_triton.BLOCK, WIDTH=4)
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], timeout=300, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

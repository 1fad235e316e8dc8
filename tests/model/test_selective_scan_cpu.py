"""The CPU kernel of the selective scan against the equations, written down once more as a plain float64 loop.

The loop is differentiated by autograd, so that the kernel's hand-written backward is checked by something independent.
"""

import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python
from torch import Tensor

pytest.importorskip("numba")

from hf_decision_mamba.model import selective_scan_cpu as cpu
from hf_decision_mamba.model import threads_cpu
from hf_decision_mamba.model.scan_inputs import ScanInputs

GRADIENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def naive_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state):
    """The scan as the paper writes it, one token after the other."""
    step = delta if delta_bias is None else delta + delta_bias
    step = torch.nn.functional.softplus(step) if delta_softplus else step
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1]) if initial_state is None else initial_state
    ys = []
    for t in range(u.shape[1]):
        s = step[:, t] if mask is None else torch.where(mask[:, t, None] != 0, step[:, t] * mask[:, t, None], 0.0)
        h = torch.exp(s[..., None] * A) * h + (s * u[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1))
    y = torch.stack(ys, 1)
    y = y if D is None else y + D * u
    return (y if z is None else y * torch.nn.functional.silu(z)), h


def make_inputs(b=2, l=5, c=7, n=3, *, dtype=torch.float64, options=(), delta_softplus=True, seed=0):
    """Random arguments of a scan, by name; `options` names the optional ones that are given."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    delta = normal(b, l, c) if delta_softplus else normal(b, l, c).abs() / 4
    optional = {
        "D": normal(c),
        "z": normal(b, l, c),
        "delta_bias": normal(c) if delta_softplus else normal(c).abs() / 4,
        "mask": torch.rand(b, l, generator=generator) < 0.6,
        "initial_state": normal(b, c, n),
    }
    if b > 1:
        optional["mask"][0] = False  # a row without any token
    if "scale" in options:  # factors on Δ from a tenth to ten, in the place of the mask's ones
        optional["mask"] = torch.where(optional["mask"], 10 ** (2 * torch.rand(b, l, generator=generator) - 1), 0.0)
    given_ = {name: value if name in options else None for name, value in optional.items()}
    return {
        "u": normal(b, l, c), "delta": delta, "A": -torch.exp(normal(c, n)), "B": normal(b, l, n), "C": normal(b, l, n),
        "delta_softplus": delta_softplus, **given_,
    }  # fmt: skip


def run_kernel(inputs, dy, dfinal_state):
    """Outputs and gradients of the kernel, by name."""
    y, final_state, saved = cpu.scan_forward(ScanInputs(**inputs), need_states=True)
    assert saved.shape == cpu.saved_states_shape(*y.shape, final_state.shape[2])
    grads = cpu.scan_backward(dy, dfinal_state, ScanInputs(**inputs), saved)
    return {"y": y, "final_state": final_state, **{f"d{name}": g for name, g in zip(GRADIENTS, grads, strict=True)}}


def run_naive(inputs, dy, dfinal_state):
    """The same from the float64 loop and autograd."""
    exact = {
        name: t.detach().double().requires_grad_() if isinstance(t, Tensor) and name != "mask" else t
        for name, t in inputs.items()
    }
    y, final_state = naive_scan(**exact)
    loss = (y * dy).sum() + (0.0 if dfinal_state is None else (final_state * dfinal_state).sum())
    given_ = [name for name in GRADIENTS if exact[name] is not None]
    grads = torch.autograd.grad(loss, [exact[name] for name in given_], materialize_grads=True)
    found = dict.fromkeys((f"d{name}" for name in GRADIENTS), None)
    return {"y": y, "final_state": final_state, **found, **{f"d{n}": g for n, g in zip(given_, grads, strict=True)}}


def assert_same_as_naive(inputs, *, final_gradient=True):
    b, l, c = inputs["u"].shape
    generator = torch.Generator().manual_seed(1)
    dtype = inputs["u"].dtype
    dy = torch.randn(b, l, c, generator=generator).to(dtype)
    dfinal = torch.randn(b, c, inputs["A"].shape[1], generator=generator).to(dtype) if final_gradient else None
    found, expected = run_kernel(inputs, dy, dfinal), run_naive(inputs, dy, dfinal)
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
            continue
        assert found[name].dtype == dtype and found[name].shape == value.shape, name
        error = torch.linalg.vector_norm(found[name].double() - value)
        assert error <= TOLERANCE[dtype] * max(torch.linalg.vector_norm(value), 1e-12), f"{name}: {error}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    b=st.integers(1, 18),  # more rows than the kernel has groups
    l=st.integers(1, 40),  # up to three chunks of tokens
    c=st.sampled_from([1, 2, 31, 32, 33, 64, 70]),
    n=st.integers(1, 6),
    options=st.sets(st.sampled_from(["D", "z", "delta_bias", "mask", "scale", "initial_state"])),
    delta_softplus=st.booleans(),
    final_gradient=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_equations(dtype, b, l, c, n, options, delta_softplus, final_gradient, seed):
    inputs = make_inputs(b, l, c, n, dtype=dtype, options=options, delta_softplus=delta_softplus, seed=seed)
    assert_same_as_naive(inputs, final_gradient=final_gradient)


@pytest.mark.parametrize(("b", "l", "c", "n"), [(3, 20, 300, 16), (1, 17, 513, 2), (17, 33, 257, 1)])
def test_equals_the_equations_for_several_blocks_of_channels(b, l, c, n):
    options = ("D", "z", "delta_bias", "mask", "scale", "initial_state")
    assert_same_as_naive(make_inputs(b, l, c, n, dtype=torch.float32, options=options))


@pytest.mark.parametrize("channels", [6, 40])
def test_reads_strided_inputs_where_they_lie(channels):
    b, l, n = 3, 18, 4
    every = make_inputs(b, l, channels, n, dtype=torch.float32, options=("D", "z", "delta_bias", "initial_state"))
    u_and_z = torch.cat([every["u"], every["z"]], -1)
    delta_b_and_c = torch.cat([every["delta"], every["B"], every["C"]], -1)
    views = dict(every)
    views["u"], views["z"] = u_and_z.chunk(2, -1)  # halves of one Linear's output
    views["delta"], views["B"], views["C"] = delta_b_and_c.split([channels, n, n], -1)
    views["A"] = every["A"].t().contiguous().t()
    views["initial_state"] = every["initial_state"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not views["u"].is_contiguous() and not views["A"].is_contiguous()
    assert_same_as_naive(views)
    channels_first = {**every, "u": every["u"].transpose(1, 2).contiguous().transpose(1, 2)}  # stride(-1) != 1
    dy = torch.ones(()).expand(b, l, channels)  # what `y.sum().backward()` gives
    for name, value in run_kernel(every, dy, None).items():
        for other in (views, channels_first):
            assert torch.equal(run_kernel(other, dy, None)[name], value), name


def test_inputs_are_left_alone():
    inputs = make_inputs(dtype=torch.float32, options=("D", "z", "delta_bias", "mask", "initial_state"))
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    run_kernel(inputs, torch.ones(2, 5, 7), torch.ones(2, 7, 3))
    for name, value in before.items():
        assert torch.equal(inputs[name], value), name


@pytest.mark.parametrize("scaled", [(), ("scale",)], ids=["mask", "factors"])
def test_absent_tokens_may_hold_anything(scaled):
    options = ("D", "z", "delta_bias", "mask", "initial_state", *scaled)
    clean = make_inputs(3, 20, 40, 4, dtype=torch.float32, options=options)
    dirty = {name: value.clone() if isinstance(value, Tensor) else value for name, value in clean.items()}
    for name in ("delta", "B"):
        dirty[name][clean["mask"] == 0] = float("nan")
    dy, dfinal = torch.ones(3, 20, 40), torch.ones(3, 40, 4)
    found = run_kernel(dirty, dy, dfinal)
    for name, value in run_kernel(clean, dy, dfinal).items():
        assert torch.equal(found[name], value), name
    assert torch.equal(found["final_state"][0], clean["initial_state"][0])  # the row without any token
    for name in ("ddelta", "dB"):
        assert not found[name][clean["mask"] == 0].any(), name


def test_arithmetic_is_afterwards_as_it_was():
    """With factors on Δ numbers next to nothing are zero in the kernels, which would be slow, and nowhere else."""
    inputs = make_inputs(dtype=torch.float32, options=("mask", "scale", "initial_state"))
    inputs["delta"], inputs["A"] = torch.full_like(inputs["delta"], 30.0), torch.full_like(inputs["A"], -0.9)
    inputs["u"], inputs["mask"] = torch.zeros_like(inputs["u"]), torch.ones(2, 5)
    inputs["initial_state"] *= 2.0**-30
    found = run_kernel(inputs, torch.ones(2, 5, 7), torch.ones(2, 7, 3))
    assert all(torch.isfinite(x).all() for x in found.values() if x is not None)
    assert torch.full((64,), 1e-38).mul(0.01).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_steps_and_fast_decay_underflow_to_zero(dtype):
    inputs = make_inputs(2, 20, 33, 5, dtype=dtype, options=("D", "z", "initial_state"))
    inputs["delta"] = inputs["delta"] * 20  # softplus from 1e-26 to 60: both of its branches
    inputs["A"] = torch.linspace(-50, -0.1, 33 * 5, dtype=dtype).view(33, 5)
    assert_same_as_naive(inputs)
    inputs["delta"] = torch.full_like(inputs["delta"], 800.0)
    inputs["u"] = torch.zeros_like(inputs["u"])
    _, final_state, _ = cpu.scan_forward(ScanInputs(**inputs), need_states=False)
    assert torch.equal(final_state[:, :32], torch.zeros_like(final_state[:, :32]))  # exp(-800 * 1.6) and less


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
def test_nan_and_infinity_are_not_hidden(name):
    inputs = make_inputs(dtype=torch.float32, options=("D", "z", "delta_bias", "initial_state"))
    inputs[name] = inputs[name].clone()
    inputs[name].view(-1)[0] = float("nan")
    y, _, _ = cpu.scan_forward(ScanInputs(**inputs), need_states=False)
    assert y[0].isnan().any() and y[1:].isnan().any() == (name in ("A", "D", "delta_bias"))


def test_overflow_is_never_a_finite_number():
    inputs = make_inputs(1, 3, 2, 1, dtype=torch.float32)
    inputs["A"], inputs["delta"] = torch.full((2, 1), 100.0), torch.full((1, 3, 2), 5.0)  # exp(500)
    _, final_state, _ = cpu.scan_forward(ScanInputs(**inputs), need_states=False)
    assert not final_state.isfinite().any()


@pytest.fixture(params=["openmp", "pool"])
def threads_from(request, monkeypatch):
    """Threads of torch's OpenMP, where there is one, and threads of our own, as elsewhere."""
    if request.param == "pool":
        monkeypatch.setattr(threads_cpu, "openmp", lambda: None)


def test_every_number_of_threads_gives_the_same_bits(monkeypatch, threads_from):
    inputs = make_inputs(19, 40, 300, 8, dtype=torch.float32, options=("D", "z", "delta_bias", "mask"))
    dy = torch.randn(19, 40, 300, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = run_kernel(inputs, dy, None)
    for threads in (2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for name, value in run_kernel(inputs, dy, None).items():
            assert (value is None and expected[name] is None) or torch.equal(value, expected[name]), (threads, name)


def test_two_python_threads_may_scan_at_once(monkeypatch, threads_from):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    cases = [make_inputs(16, 40, 64, 8, dtype=torch.float32, options=("D", "z"), seed=seed) for seed in range(2)]
    dy = torch.ones(16, 40, 64)
    expected = [run_kernel(case, dy, None) for case in cases]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            for found, one in zip(pool.map(lambda case: run_kernel(case, dy, None), cases), expected, strict=True):
                assert torch.equal(found["y"], one["y"]) and torch.equal(found["dA"], one["dA"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_scans_alone():
    """A DataLoader's worker or a server's child starts with none of its parent's threads; it must not wait for them."""
    code = """
    import os, torch
    torch.get_num_threads = lambda: 3
    from hf_decision_mamba.model.selective_scan_cpu import ScanInputs, scan_forward
    g = torch.Generator().manual_seed(0)
    u, delta = torch.randn(16, 40, 64, generator=g), torch.randn(16, 40, 64, generator=g)
    A, B = -torch.rand(64, 8, generator=g), torch.randn(16, 40, 8, generator=g)
    run = lambda: scan_forward(ScanInputs(u, delta, A, B, B), False)[0]
    expected = run()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as a DataLoader's worker does: torch's own operations cannot wait for threads either
        os._exit(0 if (run() == expected).all().item() else 1)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = run_python(textwrap.dedent(code))
    assert done.returncode == 0, done.stderr


def test_without_need_states_nothing_is_saved():
    inputs = make_inputs()
    y, final_state, saved = cpu.scan_forward(ScanInputs(**inputs), need_states=False)
    assert saved.numel() == 0
    with pytest.raises(ValueError, match="need_states=True"):
        cpu.scan_backward(y, final_state, ScanInputs(**inputs), saved)


def test_an_empty_batch_gives_empty_results():
    found = run_kernel(make_inputs(b=0, l=5, options=("z",)), torch.empty(0, 5, 7).double(), None)
    assert found["y"].shape == found["du"].shape == (0, 5, 7)
    assert torch.equal(found["dA"], torch.zeros(7, 3, dtype=torch.float64))


def test_other_dtypes_are_refused():
    half = make_inputs(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"float32 or float64 tensors, u is torch\.bfloat16"):
        cpu.scan_forward(ScanInputs(**half), need_states=False)
    mixed = {**make_inputs(dtype=torch.float32), "B": torch.zeros(2, 5, 3, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"u is torch\.float32 and B torch\.float64"):
        cpu.scan_forward(ScanInputs(**mixed), need_states=False)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias", "mask", "initial_state"])
def test_shapes_that_do_not_fit_are_refused(name):
    inputs = make_inputs(options=("D", "z", "delta_bias", "mask", "initial_state"))
    inputs[name] = inputs[name][:-1]
    with pytest.raises(ValueError, match=rf"^{name} has shape .* u of shape \(2, 5, 7\) needs"):
        cpu.scan_forward(ScanInputs(**inputs), need_states=False)


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch):
    caching = pytest.importorskip("numba.core.caching")
    from hf_decision_mamba.model import selective_scan_kernels as kernels

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])  # as in a read-only installation without a home

    def double(x):
        return 2 * x

    assert kernels.compiled(double)(21) == 42


def test_kernels_are_compiled_again_when_what_they_are_made_of_has_changed(tmp_path):
    """Copies of the code, as beside a checkpoint, in which only a file that the kernels share changes, not in size."""
    code = """
    import numpy as np, sys
    sys.path.insert(0, sys.argv[1])
    from kernels_of_a_test.threads_kernels import example
    x, y = np.ones(80, np.float32), np.ones(80, np.float32)
    example(0, 2, x, y)
    print(y[0], sum(example.stats.cache_hits.values()))
    """
    package = tmp_path / "kernels_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("sizes_cpu.py", "vector_cpu.py", "threads_kernels.py"):
        shutil.copy(Path(cpu.__file__).with_name(name), package)
    stamp = (package / "threads_kernels.py").stat()
    found = []
    for lanes in ("LANES = 32", "LANES = 32", "LANES = 16"):
        sizes = package / "sizes_cpu.py"
        sizes.write_text(sizes.read_text().replace("LANES = 32", lanes))
        os.utime(sizes, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        arguments = [sys.executable, "-B", "-c", textwrap.dedent(code), str(tmp_path)]
        found.append(subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120).stdout.split())
    (first, cold), (again, warm), (other, changed) = found
    assert float(first) == float(again) == pytest.approx(33.3133, abs=1e-3)
    assert float(other) == pytest.approx(17.3133, abs=1e-3)
    assert (cold, warm, changed) == ("0", "1", "0")

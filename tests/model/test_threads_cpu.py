"""Work items on torch's threads, on threads of our own and on one: what fails in any of them reaches the caller."""

import inspect
import os
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_python

pytest.importorskip("numba")

from hf_decision_mamba.acting import compiled_kernels
from hf_decision_mamba.model import causal_conv_kernels, selective_scan_kernels, threads_cpu
from hf_decision_mamba.model.scan_inputs import ScanInputs
from hf_decision_mamba.model.selective_scan_cpu import scan_backward, scan_forward
from hf_decision_mamba.model.threads_cpu import run_items

INTEGERS = {"sizes", "strides", "program", "buffers", "indices", "timesteps", "discrete", "lengths"}
#: Arguments with which a kernel raises before it touches anything: workspaces of negative sizes, half a program.
FAILING = {
    selective_scan_kernels.forward: {"sizes": [2, 1, 1, -100, 2], "flags": [0] * 7, "strides": [0] * 10},
    selective_scan_kernels.backward: {"sizes": [2, 1, 1, -100, 2], "flags": [0] * 6, "strides": [0] * 12},
    causal_conv_kernels.forward: {"sizes": [2, 1, 1, -100, 1, 2], "strides": [0] * 2},
    causal_conv_kernels.backward: {"sizes": [2, 1, 1, -100, 1, 2], "strides": [0] * 4},
    compiled_kernels.run: {"sizes": [2, 1, 1, 1, 1, 1, 3, 2, 0, 2], "program": [0, 0, 0]},
}


@pytest.fixture(params=["openmp", "pool", "one thread"])
def threads_from(request, monkeypatch):
    """Threads of torch's OpenMP, where there is one, threads of our own, as elsewhere, and none but the caller's."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 if request.param == "one thread" else 2)
    if request.param == "pool":
        monkeypatch.setattr(threads_cpu, "openmp", lambda: None)
    return request.param


def name_of(kernel) -> str:
    return f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"


@pytest.mark.parametrize("kernel", FAILING, ids=name_of)
def test_what_a_kernel_raises_reaches_the_caller(kernel, threads_from, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    arrays, numbers = [], np.float64 if kernel is compiled_kernels.run else np.float32  # as elsewhere: compiled once
    for name in list(inspect.signature(kernel.py_func).parameters)[2:]:
        dtype = np.int64 if name in INTEGERS else np.bool_ if name == "flags" else numbers
        arrays.append(np.array(FAILING[kernel].get(name, [0]), dtype))
    with pytest.raises(RuntimeError, match=f"^The CPU kernel {name_of(kernel)} failed: ") as raised:
        run_items(kernel, 2, 2, *arrays)
    reasons = [str(raised.value.__cause__)]
    if threads_from == "openmp":  # where nothing but the number of finished items leaves a thread
        assert "2 of 2 work items did not finish" in str(raised.value)
        reasons = [str(one.exc_value) for one in printed]
        assert len(reasons) == 2
    expected = "total size of new array" if kernel is compiled_kernels.run else "negative dimensions"
    assert all(expected in reason for reason in reasons), reasons


@pytest.mark.parametrize(
    "array",
    [np.zeros(4, np.float64), np.zeros(4, np.int32), np.zeros((2, 2), np.float32), np.zeros(8, np.float32)[::2]],
    ids=["another precision", "another integer", "two dimensions", "gaps"],
)
def test_arrays_that_no_kernel_could_read_are_refused_before_it_runs(array):
    with pytest.raises(AssertionError, match="kernels take "):
        run_items(lambda *arguments: pytest.fail("it ran"), 1, 1, np.zeros(4, np.float32), array)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory as Linux does")
def test_memory_that_runs_out_is_an_error_and_no_result(threads_from, monkeypatch):
    import resource

    monkeypatch.setattr(sys, "unraisablehook", lambda raised: None)
    states = 1 << 16  # for which a workspace takes half a gigabyte, and all that is given and returned a megabyte
    u, A, B = torch.ones(2, 1, 1), torch.ones(1, states), torch.ones(2, 1, states)
    few, many = ScanInputs(u, u, A[:, :2], B[..., :2], B[..., :2]), ScanInputs(u, u, A, B, B)
    y, final_state, saved = scan_forward(few, True)
    scan_backward(y, final_state, few, saved)  # compiled, and on threads that are there
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), hard))
    try:
        with pytest.raises((MemoryError, RuntimeError), match=r"selective_scan_kernels\.forward failed: "):
            scan_forward(many, True)
        with pytest.raises((MemoryError, RuntimeError), match=r"selective_scan_kernels\.backward failed: "):
            scan_backward(y, None, many, torch.empty(2, 1, 32 * states))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_kernels_stay_inside_their_arrays():
    """Every kernel's property tests once more with kernels that check all that they read and write.

    In float64, which all three ask for, so that each compiles once: a kernel's indices are those of float32.
    """
    code = """
    import numpy as np, pytest
    names = ("model/test_selective_scan_cpu.py::test_equals_the_equations[dtype1]",
             "acting/test_compiled.py::test_any_size",
             "model/test_causal_conv.py::test_equals_pytorchs_convolution[dtype1]")
    done = pytest.main(["-q", "-n0", "-p", "no:cacheprovider", *(f"tests/{name}" for name in names)])
    from hf_decision_mamba.model.causal_conv_kernels import forward, input_backward, workspace
    x, one = np.zeros(40), np.zeros(1)
    sizes, strides = np.array([1, 1, 40, 1, 1, 1]), np.zeros(2, np.int64)
    forward(0, 1, sizes, strides, x, x, x, x)
    for outside in ((x, x, x, x[:39]), (x[:39], x, x, x), (x, one, x, x)):
        with pytest.raises(IndexError):
            forward(0, 1, sizes, strides, *outside)
    w = workspace(4, x)  # whose arrays lie one behind another, and have 19 rows of tokens here
    input_backward(w, 18, 32, x, 0)
    for row in (2, 19):
        with pytest.raises(IndexError):
            input_backward(w, row, 32, x, 0)
    raise SystemExit(done)
    """
    root = Path(__file__).parents[2]
    done = run_python(
        textwrap.dedent(code),
        environment={**os.environ, "DECISION_MAMBA_CHECK_BOUNDS": "1", "NUMBA_OPT": "1"},
        folder=root,
    )
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr

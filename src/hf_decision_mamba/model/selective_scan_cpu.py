# Copyright 2026
"""The selective scan on CPU tensors, forward and backward: buffers, threads and the call of the numba kernels.

It makes training and acting fast where there is neither a GPU nor a compiler. Equations: Gu & Dao, "Mamba" (arXiv
2312.00752), algorithm 2. Nothing here imports numba until a scan runs.
"""

import functools
import importlib.util
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from .scan_inputs import ScanInputs
from .sizes_cpu import BLOCK, CHUNK, LANES, MAX_GROUPS, whole_lanes
from .threads_cpu import as_flat_array, as_flat_view, placeholder, run_items

WORTH_A_THREAD = 1 << 16  # state updates (b·l·c·n)
HAS_NUMBA = importlib.util.find_spec("numba") is not None  # a constant, which torch.compile can look at


def why_no_numba() -> str | None:
    """Say why the kernels cannot run on this machine, None if they can; import numba where it is, and try it once."""
    if not HAS_NUMBA:
        return "numba is not installed (pip install numba)"
    return None if torch.compiler.is_compiling() else what_is_wrong()


@functools.cache
def what_is_wrong() -> str | None:
    """Say what keeps numba from making of an example what the kernels rely on; None if nothing does."""
    x = np.linspace(-3, 3, 80, dtype=np.float32)
    y = np.full_like(x, np.nan)
    rows = [row[j : j + LANES] for row in x.reshape(2, 40) for j in range(0, 40, LANES)]
    expected = [np.logaddexp(row, 0) + x[40 * (k // 2)] * row.sum() for k, row in enumerate(rows)]
    try:
        from .threads_kernels import example

        run_items(example, 2, 2, x, y)
        np.testing.assert_allclose(y, np.concatenate(expected), rtol=1e-5, atol=1e-5)
    except Exception as error:  # whatever another numba may raise
        words = " ".join(str(error).split())[:200]
        return f"numba {version('numba')} does not compile as the kernels need it ({type(error).__name__}: {words})"
    return None


def saved_states_shape(b: int, l: int, c: int, n: int) -> tuple[int, ...]:
    """Return the shape of what `scan_forward` saves: the state before each chunk, in the kernels' layout."""
    return b, -(-l // CHUNK), whole_lanes(c) * n


def scan_forward(inputs: ScanInputs, need_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan a batch of sequences on the CPU, all float32 or all float64, any strides.

    Returns:
        y (b, l, c), the state after the last token (b, c, n), and the states that `scan_backward` needs
        (`saved_states_shape`, or (0,) without `need_states`).

    Raises:
        ValueError: the tensors are not all float32 or all float64, or their shapes do not fit together.
    """
    from .selective_scan_kernels import forward

    b, l, c, n, _ = sizes = _sizes(inputs)
    u, (arrays, strides) = inputs.u, _arrays(inputs)
    y, final_state = u.new_empty(b, l, c), u.new_empty(b, c, n)
    saved = u.new_empty(saved_states_shape(b, l, c, n) if need_states else (0,))
    has_D, has_z, has_factor, has_initial = (
        x is not None for x in (inputs.D, inputs.z, inputs.mask, inputs.initial_state)
    )
    flags = np.array([has_D, has_z, inputs.delta_softplus, has_factor, _scaled(inputs), has_initial, need_states])
    results = (as_flat_array(x, u) for x in (inputs.initial_state, y, final_state, saved))
    _run(forward, sizes, flags, strides, *arrays, *results)
    return y, final_state, saved


def scan_backward(
    dy: Tensor, dfinal_state: Tensor | None, inputs: ScanInputs, saved_states: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of (u, delta, A, B, C, D, z, delta_bias, initial_state), None where the input is None.

    `dy` (b, l, c) and `dfinal_state` (b, c, n) are the gradients of `scan_forward`'s results; the rest are its
    arguments and what it saved.

    Raises:
        ValueError: as `scan_forward`, or no states were saved.
    """
    from .selective_scan_kernels import backward

    b, l, c, n, groups = sizes = _sizes(inputs, dy, dfinal_state)
    if saved_states.shape != saved_states_shape(b, l, c, n):
        raise ValueError("The scan has saved no states for its backward: run scan_forward with need_states=True.")
    u, (arrays, strides), (dy_, *dy_strides) = inputs.u, _arrays(inputs), as_flat_view(dy)
    du, ddelta = u.new_empty(b, l, c), u.new_empty(b, l, c)
    dz = None if inputs.z is None else u.new_empty(b, l, c)
    dinitial = None if inputs.initial_state is None else u.new_empty(b, c, n)
    dA, dD, dbias = (np.empty((groups, *shape), dy_.dtype) for shape in ((c, n), (c,), (c,)))
    dB, dC = (np.empty((-(-c // BLOCK), b, l, n), dy_.dtype) for _ in range(2))
    given = [inputs.mask is not None, _scaled(inputs), dfinal_state is not None, dinitial is not None]
    dfinal, saved = as_flat_array(dfinal_state, u), as_flat_array(saved_states, u)
    du_, ddelta_, dz_, dinitial_ = (as_flat_array(x, u) for x in (du, ddelta, dz, dinitial))
    _run(
        backward, sizes, np.array([dz is not None, inputs.delta_softplus, *given]),
        np.array([*strides, *dy_strides], np.int64), dy_, dfinal, *arrays, saved, du_, ddelta_, dA.ravel(), dB.ravel(),
        dC.ravel(), dD.ravel(), dz_, dbias.ravel(), dinitial_,
    )  # fmt: skip
    # numpy adds the parts up in their order, and they depend on the shapes only: so does every bit of the result.
    gA, gB, gC, gD, gbias = (torch.from_numpy(part.sum(axis=0)) for part in (dA, dB, dC, dD, dbias))
    no_D, no_bias = inputs.D is None, inputs.delta_bias is None
    return du, ddelta, gA, gB, gC, None if no_D else gD, dz, None if no_bias else gbias, dinitial


def _sizes(
    inputs: ScanInputs, dy: Tensor | None = None, dfinal_state: Tensor | None = None
) -> tuple[int, int, int, int, int]:
    """Return b, l, c, n and the number of groups that the batch is split into; refuse what does not fit."""
    dtype = inputs.u.dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"The CPU kernel of the scan takes float32 or float64 tensors, u is {dtype}: convert it.")
    b, l, c, n = inputs.sizes(dy, dfinal_state)
    for name, tensor in inputs.tensors(dy, dfinal_state).items():
        if name != "mask" and tensor.dtype != dtype:
            raise ValueError(f"The scan's tensors must share one dtype, but u is {dtype} and {name} {tensor.dtype}.")
    return b, l, c, n, min(b, MAX_GROUPS)


def _scaled(inputs: ScanInputs) -> bool:
    """Tell whether there are factors on Δ other than 0 and 1."""
    return inputs.mask is not None and inputs.mask.is_floating_point()


def _arrays(inputs: ScanInputs) -> tuple[list[np.ndarray], np.ndarray]:
    """Make the kernels' arrays (u, delta, A log2(e), B, C, D, z, bias, factor) and strides (u, delta, B, C, z)."""
    u = inputs.u
    views = [as_flat_view(x) for x in (u, inputs.delta, inputs.B, inputs.C)]
    views.append((placeholder(u.dtype), 0, 0) if inputs.z is None else as_flat_view(inputs.z))
    u_, delta_, B_, C_, z_ = (view[0] for view in views)
    rate = as_flat_array(inputs.A, u) * u_.dtype.type(np.log2(np.e))
    zeros = np.zeros(u.shape[2], u_.dtype)
    D_, bias = (zeros if x is None else as_flat_array(x, u) for x in (inputs.D, inputs.delta_bias))
    factor = as_flat_array(None if inputs.mask is None else inputs.mask.to(u.dtype), u)
    strides = np.array([stride for view in views for stride in view[1:]], np.int64)
    return [u_, delta_, rate, B_, C_, D_, z_, bias, factor], strides


def _run(kernel: Callable[..., None], sizes: tuple[int, int, int, int, int], *arguments: np.ndarray) -> None:
    """Run every work item of a kernel."""
    b, l, c, n, groups = sizes
    items, threads = groups * -(-c // BLOCK), b * l * c * n // WORTH_A_THREAD
    run_items(kernel, items, threads, np.array(sizes, np.int64), *arguments)

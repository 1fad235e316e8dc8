# Copyright 2026
"""The selective scan on CPU tensors, forward and backward: buffers, threads and the call of the numba kernels.

It makes training and acting fast where there is neither a GPU nor a compiler. Equations: Gu & Dao, "Mamba" (arXiv
2312.00752), algorithm 2. Nothing here imports numba until a scan runs.
"""

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .sizes_cpu import BLOCK, CHUNK, MAX_GROUPS, whole_lanes
from .threads_cpu import as_flat_array, as_flat_view, placeholder, run_items

WORTH_A_THREAD = 1 << 16  # state updates (b·l·c·n)
_HAS_NUMBA = importlib.util.find_spec("numba") is not None  # a constant, which torch.compile can look at


def available() -> bool:
    """Whether numba is installed; does not import it."""
    return _HAS_NUMBA


def saved_states_shape(b: int, l: int, c: int, n: int) -> tuple[int, ...]:
    """Shape of what `scan_forward` saves for the backward: the state before each chunk, in the kernels' layout."""
    return b, -(-l // CHUNK), whole_lanes(c) * n


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    mask: Tensor | None,
    initial_state: Tensor | None,
    need_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan a batch of sequences; arguments as `selective_scan`, on the CPU, all float32 or all float64, any strides.

    Returns:
        y (b, l, c), the state after the last token (b, c, n), and the states that `scan_backward` needs
        (`saved_states_shape`, or (0,) without `need_states`).

    Raises:
        ValueError: the tensors are not all float32 or all float64, or their shapes do not fit together.
    """
    from .selective_scan_kernels import forward

    b, l, c, n, _ = sizes = _sizes(
        u, A, mask, delta=delta, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state
    )
    inputs, strides = _inputs(u, delta, A, B, C, D, z, delta_bias, mask)
    y, final_state = u.new_empty(b, l, c), u.new_empty(b, c, n)
    saved = u.new_empty(saved_states_shape(b, l, c, n) if need_states else (0,))
    given = (D is not None, z is not None, delta_softplus, mask is not None, initial_state is not None, need_states)
    initial = as_flat_array(initial_state, u)
    outputs = as_flat_array(y, u), as_flat_array(final_state, u), as_flat_array(saved, u)
    _run(forward, sizes, np.array(given), strides, *inputs, initial, *outputs)
    return y, final_state, saved


def scan_backward(
    dy: Tensor,
    dfinal_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    mask: Tensor | None,
    initial_state: Tensor | None,
    saved_states: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients for (u, delta, A, B, C, D, z, delta_bias, initial_state), None where the input is None.

    `dy` (b, l, c) and `dfinal_state` (b, c, n) are the gradients of `scan_forward`'s results; the rest are its
    arguments and what it saved.

    Raises:
        ValueError: as `scan_forward`, or no states were saved.
    """
    from .selective_scan_kernels import backward

    optional = {"D": D, "z": z, "delta_bias": delta_bias, "initial_state": initial_state}
    b, l, c, n, groups = sizes = _sizes(u, A, mask, delta=delta, B=B, C=C, dy=dy, dfinal_state=dfinal_state, **optional)
    if saved_states.shape != saved_states_shape(b, l, c, n):
        raise ValueError("The scan has saved no states for its backward: run scan_forward with need_states=True.")
    inputs, strides = _inputs(u, delta, A, B, C, D, z, delta_bias, mask)
    dy_flat, *dy_strides = as_flat_view(dy)
    du, ddelta = u.new_empty(b, l, c), u.new_empty(b, l, c)
    dz = None if z is None else u.new_empty(b, l, c)
    dinitial = None if initial_state is None else u.new_empty(b, c, n)
    dtype = inputs[0].dtype
    dA, dD, dbias = (np.empty((groups, *shape), dtype) for shape in ((c, n), (c,), (c,)))
    dB, dC = (np.empty((-(-c // BLOCK), b, l, n), dtype) for _ in range(2))
    given = (z is not None, delta_softplus, mask is not None, dfinal_state is not None, dinitial is not None)
    dfinal, saved = as_flat_array(dfinal_state, u), as_flat_array(saved_states, u)
    du_, ddelta_, dz_, dinitial_ = (as_flat_array(t, u) for t in (du, ddelta, dz, dinitial))
    _run(
        backward, sizes, np.array(given), np.array([*strides, *dy_strides], np.int64), dy_flat, dfinal, *inputs, saved,
        du_, ddelta_, dA.ravel(), dB.ravel(), dC.ravel(), dD.ravel(), dz_, dbias.ravel(), dinitial_,
    )  # fmt: skip
    # numpy adds the parts up in their order, and they depend on the shapes only: so does every bit of the result.
    gA, gB, gC, gD, gbias = (torch.from_numpy(part.sum(axis=0)) for part in (dA, dB, dC, dD, dbias))
    return du, ddelta, gA, gB, gC, None if D is None else gD, dz, None if delta_bias is None else gbias, dinitial


def check_shapes(u: Tensor, A: Tensor, mask: Tensor | None, **others: Tensor | None) -> tuple[int, int, int, int]:
    """b, l, c and n; refuses tensors whose shapes do not fit together, which kernels cannot.

    Raises:
        ValueError: a shape that does not fit; it names the tensor.
    """
    (b, l, c), n = u.shape, A.shape[-1]
    if mask is not None and mask.shape != (b, l):
        raise ValueError(f"mask has shape {tuple(mask.shape)}, but u of shape {tuple(u.shape)} needs {(b, l)}.")
    shapes: dict[str, tuple[int, ...]] = {
        "A": (c, n), "B": (b, l, n), "C": (b, l, n), "D": (c,), "delta_bias": (c,),
        "initial_state": (b, c, n), "dfinal_state": (b, c, n),
    }  # fmt: skip
    for name, tensor in {"A": A, **others}.items():
        shape = shapes.get(name, (b, l, c))
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but u of shape {tuple(u.shape)} needs {shape}.")
    return b, l, c, n


def _sizes(u: Tensor, A: Tensor, mask: Tensor | None, **others: Tensor | None) -> tuple[int, int, int, int, int]:
    """b, l, c, n and the number of groups that the batch is split into; refuses what does not fit."""
    if u.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"The CPU kernel of the scan takes float32 or float64 tensors, u is {u.dtype}: convert it.")
    b, l, c, n = check_shapes(u, A, mask, **others)
    for name, tensor in {"A": A, **others}.items():
        if tensor is not None and tensor.dtype != u.dtype:
            raise ValueError(f"The scan's tensors must share one dtype, but u is {u.dtype} and {name} {tensor.dtype}.")
    return b, l, c, n, min(b, MAX_GROUPS)


def _inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    mask: Tensor | None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The kernels' arrays (u, delta, A log2(e), B, C, D, z, bias, mask), and the strides of u, delta, B, C, z."""
    (u_, *u_s), (delta_, *delta_s), (B_, *B_s), (C_, *C_s) = (as_flat_view(t) for t in (u, delta, B, C))
    z_, *z_s = (placeholder(u.dtype), 0, 0) if z is None else as_flat_view(z)
    rate = as_flat_array(A, u) * u_.dtype.type(np.log2(np.e))
    zeros = np.zeros(u.shape[2], u_.dtype)
    D_, bias = (zeros if t is None else as_flat_array(t, u) for t in (D, delta_bias))
    mask_ = placeholder(torch.bool) if mask is None else mask.detach().to(torch.bool).contiguous().numpy().ravel()
    return [u_, delta_, rate, B_, C_, D_, z_, bias, mask_], np.array([*u_s, *delta_s, *B_s, *C_s, *z_s], np.int64)


def _run(kernel: Callable[..., None], sizes: tuple[int, int, int, int, int], *arguments: np.ndarray) -> None:
    """Run every work item of a kernel."""
    b, l, c, n, groups = sizes
    items, threads = groups * -(-c // BLOCK), b * l * c * n // WORTH_A_THREAD
    run_items(kernel, items, threads, np.array(sizes, np.int64), *arguments)

# Copyright 2026
"""The selective scan on CPU tensors, forward and backward: buffers, threads and the call of the numba kernels.

It makes training and acting fast where there is neither a GPU nor a compiler. Equations: Gu & Dao, "Mamba" (arXiv
2312.00752), algorithm 2. Nothing here imports numba until a scan runs.
"""

import ctypes
import functools
import importlib.util
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

LANES, BLOCK, CHUNK = 32, 256, 16  # as the kernels have them, whose import would import numba
MAX_GROUPS = 16  # groups of batch rows: bounds the memory of partial sums and sets the threads that can help
WORTH_A_THREAD = 1 << 16  # state updates (b·l·c·n)
_HAS_NUMBA = importlib.util.find_spec("numba") is not None  # a constant, which torch.compile can look at


def available() -> bool:
    """Whether numba is installed; does not import it."""
    return _HAS_NUMBA


def saved_states_shape(b: int, l: int, c: int, n: int) -> tuple[int, ...]:
    """Shape of what `scan_forward` saves for the backward: the state before each chunk, in the kernels' layout."""
    return b, -(-l // CHUNK), -(-c // LANES) * LANES * n


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
    initial = _whole(initial_state, u)
    outputs = _whole(y, u), _whole(final_state, u), _whole(saved, u)
    _run(forward, sizes, np.array(sizes, np.int64), np.array(given), strides, *inputs, initial, *outputs)
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
    dy_flat, *dy_strides = _flat(dy)
    du, ddelta = u.new_empty(b, l, c), u.new_empty(b, l, c)
    dz = None if z is None else u.new_empty(b, l, c)
    dinitial = None if initial_state is None else u.new_empty(b, c, n)
    dtype = inputs[0].dtype
    dA, dD, dbias = (np.empty((groups, *shape), dtype) for shape in ((c, n), (c,), (c,)))
    dB, dC = (np.empty((-(-c // BLOCK), b, l, n), dtype) for _ in range(2))
    given = (z is not None, delta_softplus, mask is not None, dfinal_state is not None, dinitial is not None)
    _run(
        backward, sizes, np.array(sizes, np.int64), np.array(given), np.array([*strides, *dy_strides], np.int64),
        dy_flat, _whole(dfinal_state, u), *inputs, _whole(saved_states, u), _whole(du, u), _whole(ddelta, u),
        dA.ravel(), dB.ravel(), dC.ravel(), dD.ravel(), _whole(dz, u), dbias.ravel(), _whole(dinitial, u),
    )  # fmt: skip
    # numpy adds the parts up in their order, and they depend on the shapes only: so does every bit of the result.
    gA, gB, gC, gD, gbias = (torch.from_numpy(part.sum(axis=0)) for part in (dA, dB, dC, dD, dbias))
    return du, ddelta, gA, gB, gC, None if D is None else gD, dz, None if delta_bias is None else gbias, dinitial


def _sizes(u: Tensor, A: Tensor, mask: Tensor | None, **others: Tensor | None) -> tuple[int, int, int, int, int]:
    """b, l, c, n and the number of groups that the batch is split into; refuses what does not fit (kernels cannot)."""
    if u.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"The CPU kernel of the scan takes float32 or float64 tensors, u is {u.dtype}: convert it.")
    (b, l, c), n = u.shape, A.shape[-1]
    if mask is not None and mask.shape != (b, l):
        raise ValueError(f"mask has shape {tuple(mask.shape)}, but u of shape {tuple(u.shape)} needs {(b, l)}.")
    shapes: dict[str, tuple[int, ...]] = {
        "A": (c, n), "B": (b, l, n), "C": (b, l, n), "D": (c,), "delta_bias": (c,),
        "initial_state": (b, c, n), "dfinal_state": (b, c, n),
    }  # fmt: skip
    for name, tensor in {"A": A, **others}.items():
        shape = shapes.get(name, (b, l, c))
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but u of shape {tuple(u.shape)} needs {shape}.")
        if tensor.dtype != u.dtype:
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
    (u_, *u_s), (delta_, *delta_s), (B_, *B_s), (C_, *C_s) = (_flat(t) for t in (u, delta, B, C))
    z_, *z_s = (_nothing(u.dtype), 0, 0) if z is None else _flat(z)
    rate = _whole(A, u) * u_.dtype.type(np.log2(np.e))
    zeros = np.zeros(u.shape[2], u_.dtype)
    D_, bias = (zeros if t is None else _whole(t, u) for t in (D, delta_bias))
    mask_ = _nothing(torch.bool) if mask is None else mask.detach().to(torch.bool).contiguous().numpy().ravel()
    return [u_, delta_, rate, B_, C_, D_, z_, bias, mask_], np.array([*u_s, *delta_s, *B_s, *C_s, *z_s], np.int64)


def _flat(tensor: Tensor) -> tuple[np.ndarray, int, int]:
    """The memory that a (b, l, x) tensor spans, from its first number to its last, and its first two strides."""
    tensor = tensor.detach()
    if tensor.stride(2) != 1:
        tensor = tensor.contiguous()
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((span if tensor.numel() else 0,), (1,)).numpy()
    return flat, tensor.stride(0), tensor.stride(1)


def _whole(tensor: Tensor | None, like: Tensor) -> np.ndarray:
    """A tensor as one flat array: a view if it is contiguous."""
    if tensor is None:
        return _nothing(like.dtype)
    return tensor.detach().contiguous().view(-1).numpy()


@functools.cache
def _nothing(dtype: torch.dtype) -> np.ndarray:
    """Stands for a tensor that is not there; the kernels do not touch it."""
    return torch.zeros(1, dtype=dtype).numpy()


def _run(kernel: Callable[..., None], sizes: tuple[int, int, int, int, int], *arguments: np.ndarray) -> None:
    """Run every work item of a kernel, on no more threads than torch uses.

    They are torch's own threads where its OpenMP can be reached. Any others would fight with them for the cores: after
    each operation of torch they wait for the next one for some milliseconds, wide awake.
    """
    b, l, c, n, groups = sizes
    items = groups * -(-c // BLOCK)
    threads = 1 if _forked else min(torch.get_num_threads(), items, b * l * c * n // WORTH_A_THREAD)
    if threads <= 1:
        return kernel(0, items, *arguments)
    if (parallel := _openmp()) is None:
        return _run_on_pool(kernel, items, threads, arguments)

    from .selective_scan_kernels import team_address

    call = np.array([0, items, *(x for array in arguments for x in (array.ctypes.data, array.size))], np.int64)
    parallel(team_address(kernel, arguments[-1].dtype.name), call.ctypes.data, threads, 0)
    return None


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """The entry of the OpenMP runtime that runs a function on its team of threads; None if there is no such runtime.

    torch loads libgomp on Linux; Intel's and LLVM's runtimes there have the same entry.
    """
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # another runtime, or another operating system
        return None
    parallel.argtypes, parallel.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return parallel


def _run_on_pool(kernel: Callable[..., None], items: int, threads: int, arguments: tuple[np.ndarray, ...]) -> None:
    """Run the work items on threads of our own; whoever is free takes the next one."""
    left = deque(range(items))

    def work() -> None:
        while left:
            try:
                item = left.popleft()
            except IndexError:  # another thread has just taken the last one
                return
            kernel(item, item + 1, *arguments)

    others = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="selective-scan")


# A forked child inherits the books of its parent's threads but not the threads: to wait for them is to hang.
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)

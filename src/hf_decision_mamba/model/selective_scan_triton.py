# Copyright 2026
"""The selective scan on GPU tensors, forward and backward: buffers and the call of the Triton kernels.

torch brings Triton, which compiles the kernels at their first call; for its own launcher Triton wants a C compiler, but
no CUDA toolkit. Nothing here imports triton until a scan runs. Equations: Gu & Dao, "Mamba" (arXiv 2312.00752),
algorithm 2.
"""

import importlib.util
import math
import os
import shutil
from typing import Any

import torch
from torch import Tensor

from .scan_inputs import ScanInputs

CHUNK = 8  # tokens between two saved states; with 16 the backward would need more registers than there are
GROUP, GROUP_BACKWARD = 16, 8  # states in registers at a time, where that many divide them
BLOCK = 32  # channels of a program, one for each thread of a warp


def _what_is_missing() -> str | None:
    """Say what this installation lacks for the kernels, without importing triton."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if torch.torch_version.TorchVersion(torch.__version__) < "2.7":
        return f"the kernels need Triton 3.3, which comes with torch 2.7, and this is torch {torch.__version__}"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler for its launcher, and finds neither gcc nor clang"
    return None


MISSING = _what_is_missing()  # a constant, which torch.compile can look at


def why_no_triton(u: Tensor) -> str | None:
    """Say why the Triton kernels cannot run on a tensor, None if they can, without importing triton.

    On a CPU only Triton's interpreter runs them, for tests: `TRITON_INTERPRET=1`.
    """
    if MISSING is not None:
        return MISSING
    if u.device.type == "cuda" or (u.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return f"the tensors live on {u.device}"


def saved_states_shape(b: int, l: int, c: int, n: int) -> tuple[int, ...]:
    """Return the shape of what `scan_forward` saves for the backward: the state behind each chunk but the last one."""
    return b, max(1, -(-l // CHUNK)) - 1, n, c


def scan_forward(inputs: ScanInputs, need_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan a batch of sequences of floating point numbers of any precision and strides.

    States and sums are float32, or float64 if u is.

    Returns:
        y (b, l, c) in the dtype of u, the state after the last token (b, c, n), and the states that `scan_backward`
        needs (`saved_states_shape`, or (0,) without `need_states`).

    Raises:
        ValueError: shapes do not fit together.
    """
    from .selective_scan_triton_kernels import forward

    (b, l, c, n), u = inputs.sizes(), inputs.u
    given, strides, options = _given(inputs)
    sizes, grid = _sizes(b, l, c, n)
    exact = torch.promote_types(u.dtype, torch.float32)
    y, final_state = u.new_empty(b, l, c), u.new_empty(b, c, n, dtype=exact)
    saved = u.new_empty(saved_states_shape(b, l, c, n) if need_states else 0, dtype=exact)
    groups = _groups(n, GROUP)
    waiting = saved.new_empty((b, l, c) if groups["SEVERAL"] else 0)
    with torch.cuda.device_of(u):
        forward[grid](*given, y, final_state, saved, waiting, *sizes, *strides, **options, **groups, SAVE=need_states)
    return y, final_state, saved


def scan_backward(
    dy: Tensor, dfinal_state: Tensor | None, inputs: ScanInputs, saved_states: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of (u, delta, A, B, C, D, z, delta_bias, initial_state), None where the input is None.

    `dy` (b, l, c) and `dfinal_state` (b, c, n) are the gradients of `scan_forward`'s results; the rest are its
    arguments and what it saved. Every gradient has the dtype of what it is for.

    Raises:
        ValueError: as `scan_forward`, or no states were saved.
    """
    from .selective_scan_triton_kernels import backward

    b, l, c, n = inputs.sizes(dy, dfinal_state)
    if saved_states.shape != saved_states_shape(b, l, c, n):
        raise ValueError("The scan has saved no states for its backward: run scan_forward with need_states=True.")
    u, delta, A, B, C, D, z, delta_bias, _, _, initial_state = inputs
    given, strides, options = _given(inputs)
    sizes, grid = _sizes(b, l, c, n)
    dy = by_channel(dy)
    du, ddelta = u.new_empty(b, l, c), delta.new_empty(b, l, c)
    dz = u if z is None else z.new_empty(b, l, c)
    dinitial = None if initial_state is None else initial_state.new_empty(b, c, n)
    room = saved_states.new_empty
    groups = _groups(n, GROUP_BACKWARD)
    waiting = room((3, b, l, c) if groups["SEVERAL"] else 0)
    dA, dD, dbias, dB, dC = room(b, n, c), room(b, c), room(b, c), room(grid[1], b, l, n), room(grid[1], b, l, n)
    with torch.cuda.device_of(u):
        backward[grid](
            dy, u if dfinal_state is None else dfinal_state.contiguous(), *given, saved_states, waiting,
            du, ddelta, dA, dB, dC, dD, dz, dbias, u if dinitial is None else dinitial,
            *sizes, *strides, *dy.stride()[:2], **options, **groups, HAS_DFINAL=dfinal_state is not None,
        )  # fmt: skip

    def total(parts: Tensor, like: Tensor | None) -> Tensor | None:
        return None if like is None else parts.sum(0).to(like.dtype)

    gA = dA.sum(0).mT.to(A.dtype).contiguous()
    gz = None if z is None else dz
    return du, ddelta, gA, total(dB, B), total(dC, C), total(dD, D), gz, total(dbias, delta_bias), dinitial


def by_channel(x: Tensor) -> Tensor:
    """Return x with its channels side by side and rows of less than 2³¹ numbers: x itself if it is so."""
    return x if x.stride(-1) == 1 and x.shape[1] * x.stride(1) < 2**31 else x.contiguous()


def _sizes(b: int, l: int, c: int, n: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Return l, c, n and the number of chunks; and the kernels' grid."""
    return (l, c, n, max(1, -(-l // CHUNK))), (b, -(-c // BLOCK))


def _groups(n: int, at_most: int) -> dict[str, Any]:
    """Choose how many states are in a group, and tell whether there are several groups."""
    group = math.gcd(n, at_most)
    return {"GROUP": group, "SEVERAL": n > group}


def _given(inputs: ScanInputs) -> tuple[list[Tensor], list[int], dict[str, Any]]:
    """Order the kernels' inputs, u for what is not there; the strides of u, delta, B, C, z; the options."""
    from .selective_scan_triton_kernels import tl

    u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state = inputs
    strided = [u if x is None else by_channel(x) for x in (u, delta, B, C, z)]
    u_, delta_, B_, C_, z_ = strided
    D_, bias, initial = (u if x is None else x.contiguous() for x in (D, delta_bias, initial_state))
    factor = u if mask is None else mask.contiguous()
    factor = factor.view(torch.uint8) if factor.dtype == torch.bool else factor
    options = {
        "HAS_D": D is not None,
        "HAS_Z": z is not None,
        "HAS_BIAS": delta_bias is not None,
        "SOFTPLUS": delta_softplus,
        "HAS_FACTOR": mask is not None,
        "HAS_INITIAL": initial_state is not None,
        "FLOAT": tl.float64 if u.dtype == torch.float64 else tl.float32,
        "CHUNK": min(CHUNK, 1 << (u.shape[1] - 1).bit_length()) if u.shape[1] else 1,
        "BLOCK": BLOCK,
        "num_warps": 1,
        "enable_fp_fusion": True,
    }
    strides = [stride for x in strided for stride in x.stride()[:2]]
    return [u_, delta_, A.contiguous(), B_, C_, D_, z_, bias, factor, initial], strides, options

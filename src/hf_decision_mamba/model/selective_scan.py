# Copyright 2026
"""The selective state-space scan of Mamba: one differentiable torch op, several backends.

The reference reads like the equations and runs on every device; `selective_scan_cpu` is the compiled CPU kernel.
Source: Gu & Dao, "Mamba" (arXiv 2312.00752), algorithm 2, with a state carried in and out so that sequences may come in
chunks.

Symbols, as in the paper: b batch, l length, c channels, n state size; u input, Δ step size, A decay rates, B input map,
C output map, D skip, z gate, h state.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from .selective_scan_cpu import available, saved_states_shape, scan_backward, scan_forward

logger = logging.get_logger(__name__)

BACKENDS = ("reference", "numba")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    mask: Tensor | None = None,
    initial_state: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t`, `y_t = (C_t · h_t + D u_t) · SiLU(z_t)` over a sequence.

    Half-precision inputs are computed in float32; float64 stays. Differentiable once in every tensor but `mask`.

    Args:
        u, delta, z: (b, l, c). `Δ = softplus(delta + delta_bias)`, without softplus when `delta_softplus` is false.
        A: (c, n), negative.
        B, C: (b, l, n).
        D, delta_bias: (c,).
        mask: (b, l) bool; where false the token is absent: its Δ is exactly 0, so the state passes it unchanged.
        initial_state: (b, c, n); zeros when not given.
        backend: `"reference"`, `"numba"`, or None to choose the fastest that fits device and dtype.

    Returns:
        y (b, l, c) in the dtype of `u`, and the state after the last token (b, c, n), float32 or float64.

    Raises:
        ValueError: an unknown backend, or one that cannot run on the tensors' device.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    required = [t.to(dtype) for t in (u, delta, A, B, C)]
    optional = [None if t is None else t.to(dtype) for t in (D, z, delta_bias, initial_state)]
    *skip_gate_bias, initial_state = optional
    backend = choose_backend(required[0], backend)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*required, *optional))
    y, final_state, _ = _scan(*required, *skip_gate_bias, delta_softplus, mask, initial_state, backend, needs_grad)
    return y.to(u.dtype), final_state


def choose_backend(u: Tensor, backend: str | None = None) -> str:
    """Name the backend that a scan over `u` uses; a `backend` asked for is checked and returned."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"scan_backend={backend!r} is unknown; choose one of {BACKENDS} or None.")
    if backend == "reference":
        return backend
    on_cpu, has_numba = u.device.type == "cpu", available()
    if on_cpu and has_numba:
        return "numba"
    if backend == "numba":
        reason = "numba is not installed (pip install numba)" if on_cpu else f"the tensors live on {u.device}"
        raise ValueError(f"scan_backend='numba' cannot run: {reason}. Use scan_backend=None to choose by device.")
    if u.device.type != "meta" and not torch.compiler.is_compiling():
        why = f"no kernel for {u.device.type} tensors" if has_numba else "numba is not installed (pip install numba)"
        logger.warning_once(f"The selective scan runs on its plain torch reference, which is slow: {why}.")
    return "reference"


# ------------------------------------------------------------------------------------------------------- reference


def reference_forward(
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
) -> tuple[Tensor, Tensor]:
    """The scan in plain torch, one token at a time; arguments as `selective_scan`, all of one dtype."""
    step = _step_sizes(delta, delta_bias, delta_softplus, mask)
    y, states = _unrolled_states(u, step, A, B, C, initial_state)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z)
    return y, states[-1]


def reference_backward(
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
) -> tuple[Tensor | None, ...]:
    """Gradients for (u, delta, A, B, C, D, z, delta_bias, initial_state), None for absent ones."""
    step = _step_sizes(delta, delta_bias, delta_softplus, mask)
    y, states = _unrolled_states(u, step, A, B, C, initial_state)

    dz = None
    if z is not None:
        gate = torch.sigmoid(z)
        ungated = y if D is None else y + D * u
        dz = dy * ungated * gate * (1 + z * (1 - gate))
        dy = dy * z * gate
    dD = None if D is None else (dy * u).sum((0, 1))
    du = torch.zeros_like(u) if D is None else dy * D

    dstep, dA, dB, dC = torch.zeros_like(step), torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
    dh = torch.zeros_like(states[0]) if dfinal_state is None else dfinal_state.clone()
    for t in reversed(range(u.shape[1])):
        decay = torch.exp(step[:, t, :, None] * A)
        dh = dh + dy[:, t, :, None] * C[:, t, None, :]
        dC[:, t] = torch.einsum("bcn,bc->bn", states[t + 1], dy[:, t])
        dB[:, t] = torch.einsum("bcn,bc->bn", dh, step[:, t] * u[:, t])
        dinput = torch.einsum("bcn,bn->bc", dh, B[:, t])  # gradient of Δ_t u_t
        dexponent = dh * states[t] * decay  # gradient of Δ_t A
        du[:, t] += dinput * step[:, t]
        dstep[:, t] = dinput * u[:, t] + (dexponent * A).sum(-1)
        dA += torch.einsum("bcn,bc->cn", dexponent, step[:, t])
        dh = dh * decay

    if mask is not None:
        dstep = dstep * mask[..., None]
    ddelta = dstep
    if delta_softplus:
        shifted = delta if delta_bias is None else delta + delta_bias
        ddelta = dstep * torch.where(shifted > 20, torch.ones_like(shifted), torch.sigmoid(shifted))
    dbias = None if delta_bias is None else ddelta.sum((0, 1))
    return du, ddelta, dA, dB, dC, dD, dz, dbias, None if initial_state is None else dh


def _step_sizes(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, mask: Tensor | None) -> Tensor:
    """Δ (b, l, c): positive step sizes, exactly zero where a token is absent."""
    step = delta if delta_bias is None else delta + delta_bias
    step = F.softplus(step) if delta_softplus else step
    return step if mask is None else step * mask[..., None]


def _unrolled_states(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """C_t · h_t (b, l, c), and the states h_{-1}, h_0, ..., h_{l-1}, each (b, c, n)."""
    states = [u.new_zeros(u.shape[0], u.shape[2], A.shape[1]) if initial_state is None else initial_state]
    readout = torch.empty_like(u, memory_format=torch.contiguous_format)
    for t in range(u.shape[1]):
        decay = torch.exp(step[:, t, :, None] * A)
        h = decay * states[-1] + (step[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        readout[:, t] = torch.einsum("bcn,bn->bc", h, C[:, t])
        states.append(h)
    return readout, states


# ---------------------------------------------------------------------------------------------------- the torch op
# One custom op, so that autograd keeps a single node and torch.compile and torch.export see a single call.

# The code that came with a checkpoint may run beside the package, or beside another revision of itself. Every copy has
# ops of its own: to register a name again would destroy the op that another copy calls.
NAMESPACE = "hf_decision_mamba"
if __package__ != "hf_decision_mamba.model":
    NAMESPACE += "_" + hashlib.sha256(str(__package__).encode()).hexdigest()[:16]


@torch.library.custom_op(f"{NAMESPACE}::selective_scan", mutates_args=())
def _scan(
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
    backend: str,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state)
    if backend == "numba":
        return scan_forward(*inputs, needs_grad)
    y, final_state = reference_forward(*inputs)
    return y, final_state.clone() if final_state is initial_state else final_state, u.new_empty(0)


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state, backend, needs_grad):
    b, l, c = u.shape
    saved = (0,)
    if needs_grad and backend == "numba":
        saved = saved_states_shape(b, l, c, A.shape[1])
    return u.new_empty(b, l, c), u.new_empty(b, c, A.shape[1]), u.new_empty(saved)


@torch.library.custom_op(f"{NAMESPACE}::selective_scan_backward", mutates_args=())
def _scan_backward(
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
    saved: Tensor,
    backend: str,
) -> list[Tensor]:
    inputs = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state)
    if backend == "numba":
        grads = scan_backward(dy, dfinal_state, *inputs, saved)
    else:
        grads = reference_backward(dy, dfinal_state, *inputs)
    return [grad for grad in grads if grad is not None]


@_scan_backward.register_fake
def _(dy, dfinal_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state, saved, backend):
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs if t is not None]


def _setup_context(ctx, inputs, output):
    *tensors, delta_softplus, mask, initial_state, backend, _ = inputs
    ctx.save_for_backward(*tensors, mask, initial_state, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # zeros for `saved` would be as large as it is
    ctx.delta_softplus, ctx.backend = delta_softplus, backend


def _backward(ctx, dy, dfinal_state, _):
    *tensors, mask, initial_state, saved = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    grads = _scan_backward(dy, dfinal_state, *tensors, ctx.delta_softplus, mask, initial_state, saved, ctx.backend)
    present = iter(grads)
    *grads, dinitial = (None if t is None else next(present) for t in (*tensors, initial_state))
    return *grads, None, None, dinitial, None, None


_scan.register_autograd(_backward, setup_context=_setup_context)

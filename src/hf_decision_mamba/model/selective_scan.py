# Copyright 2026
"""The selective state-space scan of Mamba: one differentiable torch op, several backends.

The reference reads like the equations and runs on every device; `selective_scan_cpu` has the kernels for CPUs,
`selective_scan_triton` those for GPUs; `mamba_ssm_cuda` calls mamba-ssm's.
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

from .mamba_ssm_cuda import mamba_ssm_scan, why_no_mamba_ssm
from .scan_inputs import ScanInputs
from .selective_scan_cpu import saved_states_shape as numba_shape
from .selective_scan_cpu import scan_backward as numba_backward
from .selective_scan_cpu import scan_forward as numba_forward
from .selective_scan_cpu import why_no_numba
from .selective_scan_triton import saved_states_shape as triton_shape
from .selective_scan_triton import scan_backward as triton_backward
from .selective_scan_triton import scan_forward as triton_forward
from .selective_scan_triton import why_no_triton

logger = logging.get_logger(__name__)

BACKENDS = ("reference", "numba", "triton", "mamba_ssm")
_FORWARD = {"numba": numba_forward, "triton": triton_forward}
_BACKWARD = {"numba": numba_backward, "triton": triton_backward}
_SAVED_SHAPE = {"numba": numba_shape, "triton": triton_shape}


# ------------------------------------------------------------------------------------------------------- reference


def reference_forward(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Scan in plain torch, one token at a time; all tensors of one dtype."""
    u, raw, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state = inputs
    delta = effective_delta(raw, delta_bias, delta_softplus, mask)
    y, states = _unrolled_states(u, delta, A, B, C, initial_state)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z)
    return y, states[-1]


def effective_delta(raw: Tensor, delta_bias: Tensor | None, delta_softplus: bool, mask: Tensor | None) -> Tensor:
    """Compute Δ (b, l, c): positive step sizes times the mask's factor, exactly zero where a token is absent."""
    delta = raw if delta_bias is None else raw + delta_bias
    delta = F.softplus(delta) if delta_softplus else delta
    return delta if mask is None else delta * mask[..., None]


def delta_factor(mask: Tensor | None, time_scale: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Give mask and time scale (b, l) as the one factor on Δ that backends take: the mask itself without a scale."""
    if time_scale is None:
        return mask
    factor = time_scale.detach().to(dtype)
    return factor if mask is None else factor.masked_fill(~mask.bool(), 0)


def _unrolled_states(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Compute C_t · h_t (b, l, c), and the states h_{-1}, h_0, ..., h_{l-1}, each (b, c, n)."""
    states = [u.new_zeros(u.shape[0], u.shape[2], A.shape[1]) if initial_state is None else initial_state]
    readouts = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        h = decay * states[-1] + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        readouts.append(torch.einsum("bcn,bn->bc", h, C[:, t]))
        states.append(h)
    return torch.stack(readouts, dim=1) if readouts else torch.zeros_like(u), states


def reference_backward(dy: Tensor, dfinal_state: Tensor | None, inputs: ScanInputs) -> tuple[Tensor | None, ...]:
    """Return the gradients of (u, delta, A, B, C, D, z, delta_bias, initial_state), None for absent ones."""
    u, raw, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state = inputs
    delta = effective_delta(raw, delta_bias, delta_softplus, mask)
    y, states = _unrolled_states(u, delta, A, B, C, initial_state)

    dz = None
    if z is not None:
        gate = torch.sigmoid(z)
        ungated = y if D is None else y + D * u
        dz = dy * ungated * gate * (1 + z * (1 - gate))
        dy = dy * z * gate
    dD = None if D is None else (dy * u).sum((0, 1))
    du = torch.zeros_like(u) if D is None else dy * D

    ddelta, dA, dB, dC = torch.zeros_like(delta), torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
    dh = torch.zeros_like(states[0]) if dfinal_state is None else dfinal_state.clone()
    for t in reversed(range(u.shape[1])):
        decay = torch.exp(delta[:, t, :, None] * A)
        dh = dh + dy[:, t, :, None] * C[:, t, None, :]
        dC[:, t] = torch.einsum("bcn,bc->bn", states[t + 1], dy[:, t])
        dB[:, t] = torch.einsum("bcn,bc->bn", dh, delta[:, t] * u[:, t])
        dinput = torch.einsum("bcn,bn->bc", dh, B[:, t])  # gradient of Δ_t u_t
        dexponent = dh * states[t] * decay  # gradient of Δ_t A
        du[:, t] += dinput * delta[:, t]
        ddelta[:, t] = dinput * u[:, t] + (dexponent * A).sum(-1)
        dA += torch.einsum("bcn,bc->cn", dexponent, delta[:, t])
        dh = dh * decay

    if mask is not None:
        ddelta = ddelta * mask[..., None]
    if delta_softplus:
        shifted = raw if delta_bias is None else raw + delta_bias
        ddelta = ddelta * torch.where(shifted > 20, torch.ones_like(shifted), torch.sigmoid(shifted))
    dbias = None if delta_bias is None else ddelta.sum((0, 1))
    return du, ddelta, dA, dB, dC, dD, dz, dbias, None if initial_state is None else dh


# ---------------------------------------------------------------------------------------- the choice of a backend


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
    time_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t`, `y_t = (C_t · h_t + D u_t) · SiLU(z_t)` over a sequence.

    Half-precision inputs are computed in float32; float64 stays. Differentiable once in every tensor but `mask` and
    `time_scale`, which are constants.

    Args:
        u, delta, z: (b, l, c). `Δ = softplus(delta + delta_bias)`, without softplus when `delta_softplus` is false.
        A: (c, n), negative.
        B, C: (b, l, n).
        D, delta_bias: (c,).
        mask: (b, l) bool; where false the token is absent: its Δ is exactly 0, so the state passes it unchanged.
        initial_state: (b, c, n); zeros when not given.
        backend: `"reference"`, `"numba"`, `"triton"`, `"mamba_ssm"`, or None to choose the fastest for the device.
            mamba-ssm has no mask, no time scale, no initial state and no torch.compile: such calls run on the device's
            own kernel.
        time_scale: (b, l), positive: a factor on each token's Δ, behind softplus. A token whose Δ is multiplied by s
            moves the state as s equal tokens would: in its decay exactly, in its input to first order in Δ A.

    Returns:
        y (b, l, c) in the dtype of `u`, and the state after the last token (b, c, n), float32 or float64. No gradient
        flows back from mamba-ssm's state.

    Raises:
        ValueError: an unknown backend, one that cannot run on the tensors' device, or a time scale of another shape.
    """
    backend = choose_backend(u, backend)
    if time_scale is not None:
        for name, factor in (("mask", mask), ("time_scale", time_scale)):
            if factor is not None and factor.shape != u.shape[:2]:
                has = f"{name} has shape {tuple(factor.shape)}"
                raise ValueError(f"{has}, but u of shape {tuple(u.shape)} needs {tuple(u.shape[:2])}.")
        mask = delta_factor(mask, time_scale, torch.promote_types(u.dtype, torch.float32))
    if backend == "mamba_ssm":
        if mask is None and initial_state is None:
            return mamba_ssm_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        backend = own_backend(u)
    inputs: tuple[Tensor | None, ...] = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    if backend != "triton":  # whose kernels convert what they read
        dtype = torch.promote_types(u.dtype, torch.float32)
        inputs = tuple(None if t is None else t.to(dtype) for t in inputs)
    *tensors, initial_state = inputs
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y, final_state, _ = _scan(*tensors, delta_softplus, mask, initial_state, backend, needs_grad)
    return y.to(u.dtype), final_state


def choose_backend(u: Tensor, backend: str | None = None) -> str:
    """Name the backend that a scan over `u` uses; a `backend` asked for is checked and returned."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"scan_backend={backend!r} is unknown; choose one of {BACKENDS} or None.")
    if torch.compiler.is_compiling() and backend in (None, "mamba_ssm"):
        return own_backend(u)  # a call of mamba-ssm would break the graph
    if backend is not None:
        reason = _why_not(backend, u)
        if reason is not None:
            advice = "Use scan_backend=None to choose by device."
            raise ValueError(f"scan_backend={backend!r} cannot run: {reason}. {advice}")
        return backend
    return own_backend(u)


def own_backend(u: Tensor) -> str:
    """Name the fastest backend of this package for the device of `u`."""
    kernel = {"cpu": "numba", "cuda": "triton"}.get(u.device.type)
    reason = f"no kernel for {u.device.type} tensors" if kernel is None else _why_not(kernel, u)
    if kernel is not None and reason is None:
        return kernel
    if u.device.type != "meta" and not torch.compiler.is_compiling():
        logger.warning_once(f"The selective scan runs on its plain torch reference, which is slow: {reason}.")
    return "reference"


def _why_not(backend: str, u: Tensor) -> str | None:
    """Say why a backend cannot run on a tensor; None if it can."""
    if backend == "triton":
        return why_no_triton(u)
    if backend == "mamba_ssm":
        return why_no_mamba_ssm(u)
    if backend == "numba":
        return why_no_numba() if u.device.type == "cpu" else f"the tensors live on {u.device}"
    return None


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
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state)
    if backend in _FORWARD:
        return _FORWARD[backend](inputs, needs_grad)
    y, final_state = reference_forward(inputs)
    return y, final_state.clone() if final_state is initial_state else final_state, u.new_empty(0)


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state, backend, needs_grad):
    b, l, c = u.shape
    saved = (0,)
    if needs_grad and backend in _SAVED_SHAPE:
        saved = _SAVED_SHAPE[backend](b, l, c, A.shape[1])
    exact = torch.promote_types(u.dtype, torch.float32)
    return u.new_empty(b, l, c), u.new_empty(b, c, A.shape[1], dtype=exact), u.new_empty(saved, dtype=exact)


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
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, initial_state)
    if backend in _BACKWARD:
        grads = _BACKWARD[backend](dy, dfinal_state, inputs, saved)
    else:
        grads = reference_backward(dy, dfinal_state, inputs)
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

# Copyright 2026
"""The short causal convolution of Mamba and its SiLU: one differentiable torch op, several backends.

Source: Gu & Dao, "Mamba" (arXiv 2312.00752), figure 3; a window of earlier tokens may come first, so that sequences may
come in chunks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .causal_conv_cpu import conv_backward as numba_backward
from .causal_conv_cpu import conv_forward as numba_forward
from .causal_conv_triton import conv_backward as triton_backward
from .causal_conv_triton import conv_forward as triton_forward
from .mamba_ssm_cuda import causal_conv1d
from .selective_scan import NAMESPACE, choose_backend, own_backend

_FORWARD = {"numba": numba_forward, "triton": triton_forward}
_BACKWARD = {"numba": numba_backward, "triton": triton_backward}


def causal_conv(x: Tensor, conv: nn.Conv1d, history: int = 0, backend: str | None = None) -> Tensor:
    """Compute SiLU of a causal depthwise convolution: a token sees as many tokens up to itself as the filter is wide.

    The kernels for CPUs and GPUs compute half-precision inputs in float32.

    Args:
        x: (b, l, c); before its first token there are zeros.
        conv: its filters (c, 1, width) and biases (c,).
        history: how many of the first tokens are only seen and have no output, at most width - 1.
        backend: as in `selective_scan`; `"reference"` is PyTorch's own convolution, `"mamba_ssm"` that of causal-conv1d
            where it is installed and the filter has 2 to 4 tokens and no history, else the device's own.

    Returns:
        (b, l - history, c) in the dtype of x.
    """
    backend = choose_backend(x, backend)
    if backend == "mamba_ssm":
        backend, function = own_backend(x), causal_conv1d(x, conv.kernel_size[0], history)
        if function is not None:
            weight, bias = (None if t is None else t.to(x.dtype) for t in (conv.weight.squeeze(1), conv.bias))
            return function(x.mT, weight, bias, activation="silu").mT
    if backend == "reference":
        padding = conv.kernel_size[0] - 1 - history
        return F.silu(conv_over_tokens(F.pad(x, (0, 0, padding, 0)), conv.weight, conv.bias))
    dtype, weight, bias = x.dtype, conv.weight.squeeze(1), conv.bias
    if backend != "triton":  # whose kernels convert what they read
        exact = torch.promote_types(dtype, torch.float32)
        x, weight, bias = x.to(exact), weight.to(exact), None if bias is None else bias.to(exact)
    return _conv(x, weight, bias, history, backend).to(dtype)


def conv_over_tokens(window: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Convolve window (b, k - 1 + l, c) with weight (d, c / groups, k): every `stride`-th output, (b, ..., d).

    As a two-dimensional convolution of height one, (b, l, c) is already in its channels-last layout: no copy.
    """
    x, groups = window.mT.unsqueeze(2), window.shape[2] // weight.shape[1]
    return F.conv2d(x, weight.unsqueeze(2), bias, stride=(1, stride), groups=groups).squeeze(2).mT


# ---------------------------------------------------------------------------------------------------- the torch op


@torch.library.custom_op(f"{NAMESPACE}::causal_conv", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, history: int, backend: str) -> Tensor:
    return _FORWARD[backend](x, weight, bias, history)


@_conv.register_fake
def _(x, weight, bias, history, backend):
    return x.new_empty(x.shape[0], x.shape[1] - history, x.shape[2])


@torch.library.custom_op(f"{NAMESPACE}::causal_conv_backward", mutates_args=())
def _conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, history: int, backend: str
) -> list[Tensor]:
    return [grad for grad in _BACKWARD[backend](dy, x, weight, bias, history) if grad is not None]


@_conv_backward.register_fake
def _(dy, x, weight, bias, history, backend):
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weight, bias) if t is not None]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.history, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy):
    dx, dweight, *dbias = _conv_backward(dy, *ctx.saved_tensors, ctx.history, ctx.backend)
    return dx, dweight, dbias[0] if dbias else None, None, None


_conv.register_autograd(_backward, setup_context=_setup_context)

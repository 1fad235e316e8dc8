# Copyright 2026
"""The causal convolution on GPU tensors, forward and backward: buffers and the call of the Triton kernels.

Convolution, bias and SiLU in one pass over memory. Nothing here imports triton until a convolution runs.
"""

from typing import Any

import torch
from torch import Tensor

from .causal_conv_cpu import check_shapes
from .selective_scan_triton import by_channel

CHUNK, BLOCK = 16, 64  # tokens and channels of a program


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, history: int) -> Tensor:
    """Compute SiLU of the causal depthwise convolution of x; arguments and result as `causal_conv`.

    x (b, l, c) may have any strides; the tensors may differ in precision. Sums are float32, or float64 if x is.

    Raises:
        ValueError: shapes do not fit together.
    """
    from .causal_conv_triton_kernels import forward

    b, l, c, width = check_shapes(x, weight, bias, history)
    x = by_channel(x)
    y = x.new_empty(b, l - history, c)
    with torch.cuda.device_of(x):
        forward[_grid(b, l - history, c)](
            x, weight.contiguous(), x if bias is None else bias.contiguous(), y,
            l, c, l - history, width - 1 - history, *x.stride()[:2], HAS_BIAS=bias is not None, **_options(x, width),
        )  # fmt: skip
    return y


def conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, history: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute gradients for (x, weight, bias) from the result's dy (b, l - history, c); None where the input is None.

    Raises:
        ValueError: as `conv_forward`.
    """
    from .causal_conv_triton_kernels import backward_inputs, backward_sums

    b, l, c, width = check_shapes(x, weight, bias, history, dy)
    x, dy, weight = by_channel(x), by_channel(dy), weight.contiguous()
    outputs, lead = l - history, width - 1 - history
    exact = torch.promote_types(x.dtype, torch.float32)
    grid = _grid(b, outputs, c)
    dx, dsum = x.new_empty(b, l, c), x.new_empty(b, outputs, c, dtype=exact)
    dweight, dbias = (x.new_empty(b * grid[1], *shape, dtype=exact) for shape in ((width, c), (c,)))
    options = _options(x, width)
    with torch.cuda.device_of(x):
        backward_sums[grid](
            dy, x, weight, x if bias is None else bias.contiguous(), dsum, dweight, dbias,
            l, c, outputs, lead, *x.stride()[:2], *dy.stride()[:2], HAS_BIAS=bias is not None, **options,
        )  # fmt: skip
        backward_inputs[_grid(b, l, c)](dsum, weight, dx, l, c, outputs, lead, **options)
    # Added up by torch in a fixed order: atomic additions would vary from run to run.
    gbias = None if bias is None else dbias.sum(0).to(bias.dtype)
    return dx, dweight.sum(0).mT.to(weight.dtype).contiguous(), gbias


def _grid(b: int, tokens: int, c: int) -> tuple[int, int, int]:
    return b, -(-tokens // CHUNK), -(-c // BLOCK)


def _options(x: Tensor, width: int) -> dict[str, Any]:
    """Return what the calls of all kernels have in common."""
    from .causal_conv_triton_kernels import tl

    precision = tl.float64 if x.dtype == torch.float64 else tl.float32
    return {"WIDTH": width, "FLOAT": precision, "CHUNK": CHUNK, "BLOCK": BLOCK, "enable_fp_fusion": True}

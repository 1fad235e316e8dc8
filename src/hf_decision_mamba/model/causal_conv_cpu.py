# Copyright 2026
"""The causal convolution on CPU tensors, forward and backward: buffers, threads and the call of the numba kernels.

Convolution, bias and SiLU in one pass over memory: PyTorch's own needs padded copies and one pass for each. Nothing
here imports numba until a convolution runs.
"""

import numpy as np
import torch
from torch import Tensor

from .sizes_cpu import BLOCK, MAX_GROUPS
from .threads_cpu import as_flat_array, as_flat_view, run_items

WORTH_A_THREAD = 1 << 16  # multiplications (b·l·c·width)


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, history: int) -> Tensor:
    """Compute SiLU of the causal depthwise convolution of x; arguments and result as `causal_conv`.

    x (b, l, c) may have any strides; all tensors are on the CPU, all float32 or all float64.

    Raises:
        ValueError: the tensors are not all float32 or all float64, or their shapes do not fit together.
    """
    from .causal_conv_kernels import forward

    sizes = _sizes(x, weight, bias, history)
    y = x.new_empty(x.shape[0], x.shape[1] - history, x.shape[2])
    x_, *strides = as_flat_view(x)
    filters, outputs = as_flat_array(weight, x), as_flat_array(y, x)
    run_items(forward, *_work(sizes), sizes, np.array(strides), x_, filters, _biases(x, bias), outputs)
    return y


def conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, history: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute gradients for (x, weight, bias) from the result's dy (b, l - history, c); None where the input is None.

    Raises:
        ValueError: as `conv_forward`.
    """
    from .causal_conv_kernels import backward

    sizes = _sizes(x, weight, bias, history, dy)
    (dy_, *dy_strides), (x_, *x_strides) = as_flat_view(dy), as_flat_view(x)
    dx = x.new_empty(x.shape)
    dweight, dbias = (np.empty((sizes[-1], *shape), x_.dtype) for shape in (weight.shape, weight.shape[:1]))
    run_items(
        backward, *_work(sizes), sizes, np.array([*x_strides, *dy_strides]), dy_, x_, as_flat_array(weight, x),
        _biases(x, bias), as_flat_array(dx, x), dweight.ravel(), dbias.ravel(),
    )  # fmt: skip
    # numpy adds the parts up in their order, and they depend on the shapes only: so does every bit of the result.
    gweight, gbias = (torch.from_numpy(part.sum(axis=0)) for part in (dweight, dbias))
    return dx, gweight, None if bias is None else gbias


def check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, history: int, dy: Tensor | None = None
) -> tuple[int, int, int, int]:
    """Return b, l, c and the filters' width; refuse what does not fit together, which kernels cannot.

    Raises:
        ValueError: a shape or a history that does not fit.
    """
    (b, l, c), width = x.shape, weight.shape[-1]
    if not 0 <= history <= min(l, width - 1):
        raise ValueError(f"history={history} must be between 0 and {min(l, width - 1)}, for {l} tokens, width {width}.")
    for name, tensor, shape in (("weight", weight, (c, width)), ("bias", bias, (c,)), ("dy", dy, (b, l - history, c))):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but x of shape {tuple(x.shape)} needs {shape}.")
    return b, l, c, width


def _sizes(x: Tensor, weight: Tensor, bias: Tensor | None, history: int, dy: Tensor | None = None) -> np.ndarray:
    """Return the kernels' sizes, the number of groups that the batch is split into last; refuse what does not fit."""
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"The CPU kernel of the convolution takes float32 or float64 tensors, x is {x.dtype}.")
    b, l, c, width = check_shapes(x, weight, bias, history, dy)
    for name, tensor in (("weight", weight), ("bias", bias), ("dy", dy)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"The tensors must share one dtype, but x is {x.dtype} and {name} {tensor.dtype}.")
    return np.array([b, l, c, width, l - history, min(b, MAX_GROUPS)], np.int64)


def _work(sizes: np.ndarray) -> tuple[int, int]:
    """Count the work items, and the threads that they are worth."""
    b, l, c, width, _, groups = sizes.tolist()
    return groups * -(-c // BLOCK), b * l * c * width // WORTH_A_THREAD


def _biases(x: Tensor, bias: Tensor | None) -> np.ndarray:
    return as_flat_array(x.new_zeros(x.shape[2]) if bias is None else bias, x)

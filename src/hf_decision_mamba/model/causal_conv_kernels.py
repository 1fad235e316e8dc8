# Copyright 2026
"""The numba kernels of the causal convolution on a CPU, one forward and one backward; `causal_conv_cpu` calls them.

A token's output is SiLU of a sum over a window of the tokens up to it, channel by channel. The backward computes that
sum again, so that nothing but the inputs need be saved. Importing this module imports numba.
"""

from typing import NamedTuple

import numpy as np

from .sizes_cpu import BLOCK, CHUNK, LANES
from .vector_cpu import (
    allocate_arrays,
    clear,
    compiled,
    constant,
    inlined,
    load,
    read,
    read_tiles,
    sigmoid,
    store,
    write,
    write_tiles,
)

# Output t sees the tokens t - lead ... t - lead + width - 1 of x, of which those that do not exist are zero; `lead` is
# width - 1 where every token of x has an output, and less where the first ones have none.


class Workspace(NamedTuple):
    """What a work item has of its block of channels."""

    bias: np.ndarray  # [BLOCK]
    dbias: np.ndarray  # [BLOCK]
    filter: np.ndarray  # [BLOCK / LANES, width, LANES]
    dfilter: np.ndarray  # [BLOCK / LANES, width, LANES]
    seen: np.ndarray  # [width - 1 + CHUNK, BLOCK] what a chunk's outputs see of x
    dsum: (
        np.ndarray
    )  # [width - 1 + CHUNK, BLOCK] the gradients of their sums, behind those of the width - 1 outputs before the chunk


@compiled
def workspace(width, like):
    """Allocate a workspace of the precision of `like`."""
    channels, tiles, rows = (BLOCK,), (BLOCK // LANES, width, LANES), (width - 1 + CHUNK, BLOCK)
    return Workspace(*allocate_arrays((channels, channels, tiles, tiles, rows, rows), like))


@compiled
def read_channels(w, count, c0, weight, bias):
    """Read the filters and biases of the block's channels."""
    read_tiles(w.filter, count, weight, c0 * w.filter.shape[1])
    clear(w.bias)
    for j in range(count):
        w.bias[j] = bias[c0 + j]


@compiled
def read_rows(rows, first, last, count, length, array, at, stride):
    """Fill the rows with the tokens [first, last) of array[at:], zero outside [0, length)."""
    for t in range(first, last):
        for j in range(0, count, LANES):
            inside = 0 <= t < length
            store(rows, (t - first, j), read(array, at + t * stride + j, count - j) if inside else constant(array, 0))


@inlined
def convolve(w, t, j):
    """Sum over the window that starts at row `t` of what is seen, for the channels at `j`."""
    total, taps = load(w.bias, j), w.filter[j // LANES]
    for k in range(len(taps)):
        total = total + load(taps, (k, 0)) * load(w.seen, (t + k, j))
    return total


@compiled
def forward(first, last, sizes, strides, x, weight, bias, y):
    """Compute work items [first, last) of the forward pass.

    Arrays are flat. `sizes`: b, tokens of x, channels, width, outputs, groups of batch rows. `strides`: of batch and
    token in x.
    """
    batch, length, channels, width, outputs, groups = sizes
    x_b, x_t = strides
    lead = width - 1 - (length - outputs)
    w = workspace(width, x)
    for item in range(first, last):
        c0, group = item // groups * BLOCK, item % groups
        count = min(BLOCK, channels - c0)
        read_channels(w, count, c0, weight, bias)
        for i in range(group * batch // groups, (group + 1) * batch // groups):
            for start in range(0, outputs, CHUNK):
                stop = min(start + CHUNK, outputs)
                read_rows(w.seen, start - lead, stop - lead + width - 1, count, length, x, i * x_b + c0, x_t)
                for t in range(start, stop):
                    to = (i * outputs + t) * channels + c0
                    for j in range(0, count, LANES):
                        total = convolve(w, t - start, j)
                        write(y, to + j, count - j, total * sigmoid(total))


@compiled
def backward(first, last, sizes, strides, dy, x, weight, bias, dx, dweight, dbias):
    """Compute work items [first, last) of the backward pass; arguments as `forward`'s.

    `strides`: also of dy, last. dweight and dbias are sums over one group of batch rows each, [group, ...].
    """
    batch, length, channels, width, outputs, groups = sizes
    x_b, x_t, dy_b, dy_t = strides
    lead = width - 1 - (length - outputs)
    w = workspace(width, x)
    before = width - 1
    for item in range(first, last):
        c0, group = item // groups * BLOCK, item % groups
        count = min(BLOCK, channels - c0)
        read_channels(w, count, c0, weight, bias)
        clear(w.dfilter)
        clear(w.dbias)
        for i in range(group * batch // groups, (group + 1) * batch // groups):
            clear(w.dsum[:before])
            # Outputs that do not exist, with gradients of zero, are the last to see the last tokens of x.
            for start in range(0, outputs + width - 1, CHUNK):
                stop = min(start + CHUNK, outputs + width - 1)
                read_rows(w.seen, start - lead, stop - lead + width - 1, count, length, x, i * x_b + c0, x_t)
                read_rows(w.dsum[before:], start, stop, count, outputs, dy, i * dy_b + c0, dy_t)
                sums_backward(w, stop - start, count)
                for t in range(max(start, lead), min(stop, lead + length)):
                    to = (i * length + t - lead) * channels + c0
                    input_backward(w, before + t - start, count, dx, to)
                for k in range(before):
                    for j in range(0, count, LANES):
                        store(w.dsum, (k, j), load(w.dsum, (stop - start + k, j)))
        write_tiles(w.dfilter, count, dweight, (group * channels + c0) * width)
        for j in range(count):
            dbias[group * channels + c0 + j] = w.dbias[j]


@compiled
def sums_backward(w, tokens, count):
    """Turn the gradients of a chunk's outputs into those of their sums; add to those of filters and biases."""
    before = w.filter.shape[1] - 1
    for j in range(0, count, LANES):
        dbias = load(w.dbias, j)
        for t in range(tokens):
            total = convolve(w, t, j)
            s = sigmoid(total)
            d = load(w.dsum, (before + t, j)) * (s * (1.0 + total * (1.0 - s)))
            store(w.dsum, (before + t, j), d)
            dbias = dbias + d
        store(w.dbias, j, dbias)
        for k in range(before + 1):
            tap = j // LANES, k, 0
            dtap = load(w.dfilter, tap)
            for t in range(tokens):
                dtap = dtap + load(w.dsum, (before + t, j)) * load(w.seen, (t + k, j))
            store(w.dfilter, tap, dtap)


@compiled
def input_backward(w, row, count, dx, to):
    """Compute a token's dx: it is first in the window of the output at dsum[row], k-th in that k rows before."""
    for j in range(0, count, LANES):
        d, taps = constant(dx, 0), w.filter[j // LANES]
        for k in range(len(taps)):
            d = d + load(taps, (k, 0)) * load(w.dsum, (row - k, j))
        write(dx, to + j, count - j, d)

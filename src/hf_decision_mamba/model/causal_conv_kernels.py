# Copyright 2026
"""The numba kernels of the causal convolution on a CPU, one forward and one backward; `causal_conv_cpu` calls them.

A token's output is SiLU of a sum over a window of the tokens up to it, channel by channel. The backward computes that
sum again, so that nothing but the inputs need be saved. Importing this module imports numba.
"""

from .sizes_cpu import BLOCK, CHUNK, LANES
from .vector_cpu import (
    allocate,
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

# ---------------------------------------------------------------------------------------------- a work item's workspace
# Output t sees the tokens t - lead ... t - lead + width - 1 of x, of which those that do not exist are zero; `lead` is
# width - 1 where every token of x has an output, and less where the first ones have none. A `row` holds one number for
# each channel of the block. The filters are tiles [BLOCK / LANES, width, LANES].

BIAS = 0  # row
DBIAS = BIAS + BLOCK  # row
FIXED = DBIAS + BLOCK
# The number of these rows grows with the filters' width: they start at FIXED + width times the following.
FILTER = 0  # tiles
DFILTER = FILTER + BLOCK  # tiles: gradient of the filters
GROWING = DFILTER + BLOCK
# Behind all these, width - 1 + CHUNK rows twice: what the chunk's outputs see of x (SEEN), and the gradients of their
# sums, behind those of the width - 1 outputs before the chunk (DSUM).


@compiled
def workspace(width, like):
    """Allocate the workspace; return it, and where SEEN and DSUM start in it."""
    seen = FIXED + GROWING * width
    rows = (width - 1 + CHUNK) * BLOCK
    return allocate(seen + 2 * rows, like), seen, seen + rows


@compiled
def read_channels(w, width, count, c0, weight, bias):
    """Read the filters and biases of the block's channels."""
    read_tiles(w, FIXED + FILTER * width, width, count, weight, c0 * width)
    clear(w, BIAS, BLOCK)
    for j in range(count):
        w[BIAS + j] = bias[c0 + j]


@compiled
def read_rows(w, rows, first, last, count, length, array, at, stride):
    """Fill the rows from w[rows] on with the tokens [first, last) of array[at:], zero outside [0, length)."""
    for t in range(first, last):
        row = rows + (t - first) * BLOCK
        if 0 <= t < length:
            for j in range(0, count, LANES):
                store(w, row + j, read(array, at + t * stride + j, count - j))
        else:
            clear(w, row, BLOCK)


@inlined
def convolve(w, row, j, taps, width):
    """Sum over a window whose first row is w[row:], for the channels at `j`, whose filters are w[taps:]."""
    total = load(w, BIAS + j)
    for k in range(width):
        total = total + load(w, taps + k * LANES) * load(w, row + k * BLOCK + j)
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
    w, seen, _ = workspace(width, x)
    for item in range(first, last):
        c0, group = item // groups * BLOCK, item % groups
        count = min(BLOCK, channels - c0)
        read_channels(w, width, count, c0, weight, bias)
        for i in range(group * batch // groups, (group + 1) * batch // groups):
            for start in range(0, outputs, CHUNK):
                stop = min(start + CHUNK, outputs)
                read_rows(w, seen, start - lead, stop - lead + width - 1, count, length, x, i * x_b + c0, x_t)
                for t in range(start, stop):
                    row, to = seen + (t - start) * BLOCK, (i * outputs + t) * channels + c0
                    for j in range(0, count, LANES):
                        total = convolve(w, row, j, FIXED + (FILTER + j) * width, width)
                        write(y, to + j, count - j, total * sigmoid(total))


@compiled
def backward(first, last, sizes, strides, dy, x, weight, bias, dx, dweight, dbias):
    """Compute work items [first, last) of the backward pass; arguments as `forward`'s.

    `strides`: also of dy, last. dweight and dbias are sums over one group of batch rows each, [group, ...].
    """
    batch, length, channels, width, outputs, groups = sizes
    x_b, x_t, dy_b, dy_t = strides
    lead = width - 1 - (length - outputs)
    w, seen, dsum = workspace(width, x)
    before, dfilter = (width - 1) * BLOCK, FIXED + DFILTER * width
    for item in range(first, last):
        c0, group = item // groups * BLOCK, item % groups
        count = min(BLOCK, channels - c0)
        read_channels(w, width, count, c0, weight, bias)
        clear(w, dfilter, BLOCK * width)
        clear(w, DBIAS, BLOCK)
        for i in range(group * batch // groups, (group + 1) * batch // groups):
            clear(w, dsum, before)
            # Outputs that do not exist, with gradients of zero, are the last to see the last tokens of x.
            for start in range(0, outputs + width - 1, CHUNK):
                stop = min(start + CHUNK, outputs + width - 1)
                read_rows(w, seen, start - lead, stop - lead + width - 1, count, length, x, i * x_b + c0, x_t)
                read_rows(w, dsum + before, start, stop, count, outputs, dy, i * dy_b + c0, dy_t)
                sums_backward(w, stop - start, count, width, seen, dsum + before)
                for t in range(max(start, lead), min(stop, lead + length)):
                    to = (i * length + t - lead) * channels + c0
                    input_backward(w, dsum + before + (t - start) * BLOCK, count, width, dx, to)
                for at in range(0, before, LANES):
                    store(w, dsum + at, load(w, dsum + (stop - start) * BLOCK + at))
        write_tiles(w, dfilter, width, count, dweight, (group * channels + c0) * width)
        for j in range(count):
            dbias[group * channels + c0 + j] = w[DBIAS + j]


@compiled
def sums_backward(w, tokens, count, width, seen, dsum):
    """Turn the gradients of a chunk's outputs into those of their sums; add to those of filters and biases."""
    for j in range(0, count, LANES):
        dbias = load(w, DBIAS + j)
        for row in range(0, tokens * BLOCK, BLOCK):
            total = convolve(w, seen + row, j, FIXED + (FILTER + j) * width, width)
            s = sigmoid(total)
            d = load(w, dsum + row + j) * (s * (1.0 + total * (1.0 - s)))
            store(w, dsum + row + j, d)
            dbias = dbias + d
        store(w, DBIAS + j, dbias)
        for k in range(width):
            tap = FIXED + (DFILTER + j) * width + k * LANES
            dtap = load(w, tap)
            for row in range(0, tokens * BLOCK, BLOCK):
                dtap = dtap + load(w, dsum + row + j) * load(w, seen + row + k * BLOCK + j)
            store(w, tap, dtap)


@compiled
def input_backward(w, row, count, width, dx, to):
    """Compute a token's dx: it is first in the window of the output at w[row], k-th in that k rows before."""
    for j in range(0, count, LANES):
        d, taps = constant(w, 0), FIXED + (FILTER + j) * width
        for k in range(width):
            d = d + load(w, taps + k * LANES) * load(w, row - k * BLOCK + j)
        write(dx, to + j, count - j, d)

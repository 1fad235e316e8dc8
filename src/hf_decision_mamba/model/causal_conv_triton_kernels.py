# Copyright 2026
"""The Triton kernels of the causal convolution; `causal_conv_triton` calls them.

Output t sees the tokens t - lead ... t - lead + width - 1 of x, of which those that do not exist are zero; `lead` is
width - 1 where every token of x has an output, and less where the first ones have none. Importing this module imports
triton.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the GPU kernels of Decision Mamba need triton: pip install triton") from error


@triton.jit
def read_tokens(x, tokens, stride, count, channels, inside, FLOAT: tl.constexpr):
    """Read numbers (tokens, channels), zero where the token does not exist."""
    there = ((tokens >= 0) & (tokens < count))[:, None] & inside[None, :]
    return tl.load(x + tokens[:, None] * stride + channels[None, :], mask=there, other=0.0).to(FLOAT)


@triton.jit
def convolve(
    x, tokens, x_t, l, lead, weight, bias, channels, inside, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr,
    FLOAT: tl.constexpr,
):  # fmt: skip
    """Sum over the windows of the outputs `tokens`, before SiLU."""
    total = tl.zeros([tokens.shape[0], channels.shape[0]], FLOAT)
    if HAS_BIAS:
        total += tl.load(bias + channels, mask=inside, other=0.0).to(FLOAT)[None, :]
    for k in range(WIDTH):
        tap = tl.load(weight + channels * WIDTH + k, mask=inside, other=0.0).to(FLOAT)
        total += tap[None, :] * read_tokens(x, tokens - lead + k, x_t, l, channels, inside, FLOAT)
    return total


@triton.jit
def forward(
    x, weight, bias, y, l, c, outputs, lead, x_b, x_t,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, FLOAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run the forward pass; grid (b, chunks of outputs, blocks of channels).

    x_b and x_t are the strides of batch and token in x. Without gaps: weight (c, WIDTH), bias (c,), y (b, outputs, c).
    """
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK).to(tl.int64)
    channels = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < c
    total = convolve(x + row * x_b, tokens, x_t, l, lead, weight, bias, channels, inside, WIDTH, HAS_BIAS, FLOAT)
    there = (tokens < outputs)[:, None] & inside[None, :]
    tl.store(y + (row * outputs + tokens)[:, None] * c + channels[None, :], total * tl.sigmoid(total), mask=there)


@triton.jit
def backward_sums(
    dy, x, weight, bias, dsum, dweight, dbias, l, c, outputs, lead, x_b, x_t, dy_b, dy_t,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, FLOAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute gradients of the sums before SiLU, dsum (b, outputs, c), and of filters and biases; grid as `forward`'s.

    dweight (b, chunks, WIDTH, c) and dbias (b, chunks, c) are to be added up over batch and chunks.
    """
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK).to(tl.int64)
    channels = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < c
    total = convolve(x + row * x_b, tokens, x_t, l, lead, weight, bias, channels, inside, WIDTH, HAS_BIAS, FLOAT)
    gate = tl.sigmoid(total)
    d = read_tokens(dy + row * dy_b, tokens, dy_t, outputs, channels, inside, FLOAT)
    d *= gate * (1.0 + total * (1.0 - gate))
    there = (tokens < outputs)[:, None] & inside[None, :]
    tl.store(dsum + (row * outputs + tokens)[:, None] * c + channels[None, :], d, mask=there)
    part = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(dbias + part * c + channels, tl.sum(d, 0), mask=inside)
    for k in range(WIDTH):
        seen = read_tokens(x + row * x_b, tokens - lead + k, x_t, l, channels, inside, FLOAT)
        tl.store(dweight + (part * WIDTH + k) * c + channels, tl.sum(d * seen, 0), mask=inside)


@triton.jit
def backward_inputs(
    dsum, weight, dx, l, c, outputs, lead,
    WIDTH: tl.constexpr, FLOAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute dx (b, l, c) from dsum; grid (b, chunks of tokens, blocks of channels)."""
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK).to(tl.int64)
    channels = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < c
    total = tl.zeros([CHUNK, BLOCK], FLOAT)
    for k in range(WIDTH):
        tap = tl.load(weight + channels * WIDTH + k, mask=inside, other=0.0).to(FLOAT)
        seen_by = read_tokens(dsum + row * outputs * c, tokens + lead - k, c, outputs, channels, inside, FLOAT)
        total += tap[None, :] * seen_by
    there = (tokens < l)[:, None] & inside[None, :]
    tl.store(dx + (row * l + tokens)[:, None] * c + channels[None, :], total, mask=there)

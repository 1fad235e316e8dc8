# Copyright 2026
"""The numba kernels of the selective scan on a CPU, one forward and one backward; `selective_scan_cpu` calls them.

Equations: Gu & Dao, "Mamba" (arXiv 2312.00752), algorithm 2. The backward recomputes the states of a chunk of tokens
from the state saved at its start. Importing this module imports numba.
"""

from .sizes_cpu import BLOCK, CHUNK, LANES
from .vector_cpu import (
    FLUSHING,
    LN2,
    allocate,
    clear,
    compiled,
    constant,
    exchange_mode,
    exp2,
    fill,
    load,
    read,
    read_tiles,
    sigmoid,
    softplus,
    softplus_slope,
    store,
    total,
    write,
    write_tiles,
)

# ---------------------------------------------------------------------------------------------- a work item's workspace
# A `row` holds one number for each channel of the block, for each token of a chunk: [CHUNK, BLOCK]. A `tile` holds
# LANES channels for each n: [BLOCK / LANES, n, LANES]. A `map` holds one number for each n and token: [CHUNK, n].

ROW = CHUNK * BLOCK
FACTOR = 0  # (CHUNK,) on the token's Δ, 0 where it is absent
SKIP = FACTOR + LANES * -(-CHUNK // LANES)  # (BLOCK,) D
BIAS = SKIP + BLOCK  # (BLOCK,) the bias of Δ
DELTA = BIAS + BLOCK  # row: Δ
PUSH = DELTA + ROW  # row: Δ u, what the input pushes into the state
READOUT = PUSH + ROW  # row: C · h
SLOPE = READOUT + ROW  # row: derivative of Δ, of softplus times the factor; from here on for the backward only
DDELTA = SLOPE + ROW  # row: gradient of Δ, the part through exp(Δ A), divided by ln 2
DPUSH = DDELTA + ROW
DREADOUT = DPUSH + ROW
DGATE = DREADOUT + ROW  # row: gradient of z / (C · h + D u)
DSKIP = DGATE + ROW  # (BLOCK,)
DBIAS = DSKIP + BLOCK  # (BLOCK,)
FIXED = DBIAS + BLOCK
# The size of these grows with n: they start at FIXED + n times the following.
RATE = 0  # tile: A log2(e)
STATE = RATE + BLOCK  # tile: h of the last token, or in the backward its gradient
MAP_B = STATE + BLOCK  # map
MAP_C = MAP_B + CHUNK  # map
DRATE = MAP_C + CHUNK  # tile: gradient of A; from here on for the backward only
DMAP_B = DRATE + BLOCK
DMAP_C = DMAP_B + CHUNK
DECAY = DMAP_C + CHUNK  # [CHUNK, n, LANES] exp(Δ A) of one tile
PAST = DECAY + CHUNK * LANES  # [CHUNK + 1, n, LANES] h of one tile, the one before the chunk first
GROWING = PAST + (CHUNK + 1) * LANES


@compiled
def read_channels(w, states, count, c0, rate, D, bias):
    """Read what the block's channels have in common for all rows of the batch."""
    read_tiles(w, FIXED + RATE * states, states, count, rate, c0 * states)
    clear(w, SKIP, BLOCK)
    clear(w, BIAS, BLOCK)
    for j in range(count):
        w[SKIP + j], w[BIAS + j] = D[c0 + j], bias[c0 + j]


@compiled
def read_maps(w, tokens, states, has_factor, factor, at, B, at_B, B_t, C, at_C, C_t):
    """Read B, C and the factors on Δ of a chunk; B is zero where the token is absent, whatever stands there."""
    map_B, map_C = FIXED + MAP_B * states, FIXED + MAP_C * states
    for k in range(tokens):
        w[FACTOR + k] = factor[at + k] if has_factor else 1
        absent = w[FACTOR + k] == 0
        for n in range(states):
            w[map_B + k * states + n] = 0 if absent else B[at_B + k * B_t + n]
            w[map_C + k * states + n] = C[at_C + k * C_t + n]


@compiled
def read_deltas(w, tokens, count, use_softplus, backward, raw, at_raw, raw_t, u, at_u, u_t):
    """Compute the rows Δ, Δ u and, if `backward`, its slope of a chunk; `raw` is before softplus; zero where absent."""
    for k in range(tokens):
        for j in range(0, count, LANES):
            row, left = k * BLOCK + j, count - j
            delta = push = slope = constant(w, 0)
            if w[FACTOR + k] != 0:
                delta = read(raw, at_raw + k * raw_t + j, left) + load(w, BIAS + j)
                slope = constant(w, 1)
                if use_softplus:
                    slope = softplus_slope(delta)
                    delta = softplus(delta)
                delta, slope = delta * w[FACTOR + k], slope * w[FACTOR + k]
                push = delta * read(u, at_u + k * u_t + j, left)
            store(w, DELTA + row, delta)
            store(w, PUSH + row, push)
            if backward:
                store(w, SLOPE + row, slope)


# -------------------------------------------------------------------------------------------------------------- forward


@compiled
def scan_tile(w, j, tokens, states):
    """Carry the states of the vector of channels at `j` through a chunk; fills its row READOUT."""
    tile = j * states
    rate, state = FIXED + RATE * states + tile, FIXED + STATE * states + tile
    map_B, map_C = FIXED + MAP_B * states, FIXED + MAP_C * states
    for k in range(tokens):
        row = k * BLOCK + j
        delta, push, readout = load(w, DELTA + row), load(w, PUSH + row), constant(w, 0)
        for n in range(states):
            decay = exp2(delta * load(w, rate + n * LANES))
            h = decay * load(w, state + n * LANES) + push * fill(w, map_B + k * states + n)
            store(w, state + n * LANES, h)
            readout = readout + h * fill(w, map_C + k * states + n)
        store(w, READOUT + row, readout)


@compiled
def write_outputs(w, tokens, count, has_D, has_z, u, at_u, u_t, z, at_z, z_t, y, to, channels):
    """Write y = (C · h + D u) · SiLU(z) of a chunk."""
    for k in range(tokens):
        for j in range(0, count, LANES):
            left = count - j
            out = load(w, READOUT + k * BLOCK + j)
            if has_D:
                out = out + load(w, SKIP + j) * read(u, at_u + k * u_t + j, left)
            if has_z:
                gate = read(z, at_z + k * z_t + j, left)
                out = out * (gate * sigmoid(gate))
            write(y, to + k * channels + j, left, out)


@compiled
def forward(first, last, sizes, flags, strides, u, delta, rate, B, C, D, z, bias, factor, initial, y, final, saved):
    """Compute work items [first, last) of the forward pass.

    Arrays are flat. `sizes`: b, l, c, n, groups of batch rows. `flags`: D, z, softplus, factor, scaled, initial, saved.
    `strides`: of batch and token in u, delta, B, C, z. `rate` is A log2(e); `saved` [b, chunk, tiles] is the state
    before each chunk.
    """
    batch, length, channels, states, groups = sizes
    has_D, has_z, use_softplus, has_factor, scaled, has_initial, save = flags
    u_b, u_t, delta_b, delta_t, B_b, B_t, C_b, C_t, z_b, z_t = strides
    chunks, padded = (length + CHUNK - 1) // CHUNK, (channels + LANES - 1) // LANES * LANES
    w = allocate(FIXED + GROWING * states, u)
    mode = exchange_mode(FLUSHING) if scaled else 0  # factors far from 1 leave many numbers that are next to nothing
    state = FIXED + STATE * states
    for item in range(first, last):
        c0, group = item // groups * BLOCK, item % groups
        count = min(BLOCK, channels - c0)
        read_channels(w, states, count, c0, rate, D, bias)
        for i in range(group * batch // groups, (group + 1) * batch // groups):
            if has_initial:
                read_tiles(w, state, states, count, initial, (i * channels + c0) * states)
            else:
                clear(w, state, BLOCK * states)
            for start in range(0, length, CHUNK):
                tokens = min(CHUNK, length - start)
                at_u, at_delta = i * u_b + start * u_t + c0, i * delta_b + start * delta_t + c0
                at_B, at_C = i * B_b + start * B_t, i * C_b + start * C_t
                read_maps(w, tokens, states, has_factor, factor, i * length + start, B, at_B, B_t, C, at_C, C_t)
                read_deltas(w, tokens, count, use_softplus, False, delta, at_delta, delta_t, u, at_u, u_t)
                to_saved = ((i * chunks + start // CHUNK) * padded + c0) * states
                for j in range(0, count, LANES):
                    if save:
                        for at in range(j * states, (j + LANES) * states, LANES):
                            store(saved, to_saved + at, load(w, state + at))
                    scan_tile(w, j, tokens, states)
                at_z, to = i * z_b + start * z_t + c0, (i * length + start) * channels + c0
                write_outputs(w, tokens, count, has_D, has_z, u, at_u, u_t, z, at_z, z_t, y, to, channels)
            write_tiles(w, state, states, count, final, (i * channels + c0) * states)
    if scaled:
        exchange_mode(mode)


# ------------------------------------------------------------------------------------------------------------- backward


@compiled
def rescan_tile(w, j, tokens, states):
    """Scan as `scan_tile`, from PAST[0] on and keeping every decay and state of the chunk."""
    size = states * LANES
    rate = FIXED + RATE * states + j * states
    decays, past = FIXED + DECAY * states, FIXED + PAST * states
    map_B, map_C = FIXED + MAP_B * states, FIXED + MAP_C * states
    for k in range(tokens):
        row = k * BLOCK + j
        delta, push, readout = load(w, DELTA + row), load(w, PUSH + row), constant(w, 0)
        for n in range(states):
            at = k * size + n * LANES
            decay = exp2(delta * load(w, rate + n * LANES))
            h = decay * load(w, past + at) + push * fill(w, map_B + k * states + n)
            store(w, decays + at, decay)
            store(w, past + at + size, h)
            readout = readout + h * fill(w, map_C + k * states + n)
        store(w, READOUT + row, readout)


@compiled
def scan_tile_backward(w, j, tokens, states):
    """Carry the gradient of the states backwards through the chunk that `rescan_tile` has just filled in."""
    size, tile = states * LANES, j * states
    rate, drate = FIXED + RATE * states + tile, FIXED + DRATE * states + tile
    dstate = FIXED + STATE * states + tile
    decays, past = FIXED + DECAY * states, FIXED + PAST * states
    for k in range(tokens - 1, -1, -1):
        row = k * BLOCK + j
        map_B, map_C = FIXED + MAP_B * states + k * states, FIXED + MAP_C * states + k * states
        dmap_B, dmap_C = FIXED + DMAP_B * states + k * states, FIXED + DMAP_C * states + k * states
        delta, push, dreadout = load(w, DELTA + row), load(w, PUSH + row), load(w, DREADOUT + row)
        ddelta = dpush = constant(w, 0)
        for n in range(states):
            lane, at = n * LANES, k * size + n * LANES
            dh = load(w, dstate + lane) + dreadout * fill(w, map_C + n)
            w[dmap_C + n] += total(dreadout * load(w, past + at + size))
            w[dmap_B + n] += total(dh * push)
            dpush = dpush + dh * fill(w, map_B + n)
            dh = dh * load(w, decays + at)
            store(w, dstate + lane, dh)
            dexponent = dh * load(w, past + at)
            store(w, drate + lane, load(w, drate + lane) + dexponent * delta)
            ddelta = ddelta + dexponent * load(w, rate + lane)
        store(w, DDELTA + row, ddelta)
        store(w, DPUSH + row, dpush)


@compiled
def read_gradients(w, tokens, count, has_z, dy, at_dy, dy_t, z, at_z, z_t):
    """Compute the rows DREADOUT and, with a gate, DGATE of a chunk."""
    for k in range(tokens):
        for j in range(0, count, LANES):
            row, left = k * BLOCK + j, count - j
            g = read(dy, at_dy + k * dy_t + j, left)
            if has_z:
                gate = read(z, at_z + k * z_t + j, left)
                s = sigmoid(gate)
                store(w, DGATE + row, g * (s * (1.0 + gate * (1.0 - s))))
                g = g * (gate * s)
            store(w, DREADOUT + row, g)


@compiled
def write_gradients(w, tokens, count, has_z, u, at_u, u_t, du, ddelta, dz, to, channels):
    """Write a chunk's gradients of u, delta and z, from its rows; and add its shares of those of D and the bias."""
    for k in range(tokens):
        for j in range(0, count, LANES):
            row, left, at = k * BLOCK + j, count - j, to + k * channels + j
            input_, g, dpush = read(u, at_u + k * u_t + j, left), load(w, DREADOUT + row), load(w, DPUSH + row)
            write(du, at, left, dpush * load(w, DELTA + row) + load(w, SKIP + j) * g)
            if has_z:
                ungated = load(w, READOUT + row) + load(w, SKIP + j) * input_
                write(dz, at, left, ungated * load(w, DGATE + row))
            dx = constant(w, 0)
            if w[FACTOR + k] != 0:
                dx = (dpush * input_ + load(w, DDELTA + row) * LN2) * load(w, SLOPE + row)
            write(ddelta, at, left, dx)
            store(w, DBIAS + j, load(w, DBIAS + j) + dx)
            store(w, DSKIP + j, load(w, DSKIP + j) + g * input_)


@compiled
def backward(
    first, last, sizes, flags, strides, dy, dfinal, u, delta, rate, B, C, D, z, bias, factor, saved,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial,
):  # fmt: skip
    """Compute work items [first, last) of the backward pass; arguments as `forward`'s.

    `flags`: z, softplus, factor, scaled, dfinal, dinitial. `strides`: also of dy, last. dA, dD, dbias are sums over one
    group of batch rows each, [group, ...]; dB and dC over one block of channels each, [block, ...].
    """
    batch, length, channels, states, groups = sizes
    has_z, use_softplus, has_factor, scaled, has_dfinal, has_initial = flags
    u_b, u_t, delta_b, delta_t, B_b, B_t, C_b, C_t, z_b, z_t, dy_b, dy_t = strides
    chunks, padded = (length + CHUNK - 1) // CHUNK, (channels + LANES - 1) // LANES * LANES
    w = allocate(FIXED + GROWING * states, u)
    mode = exchange_mode(FLUSHING) if scaled else 0
    dstate, drate, past = FIXED + STATE * states, FIXED + DRATE * states, FIXED + PAST * states
    dmap_B, dmap_C = FIXED + DMAP_B * states, FIXED + DMAP_C * states
    for item in range(first, last):
        block, group = item // groups, item % groups
        c0 = block * BLOCK
        count = min(BLOCK, channels - c0)
        read_channels(w, states, count, c0, rate, D, bias)
        clear(w, drate, BLOCK * states)
        clear(w, DSKIP, BLOCK)
        clear(w, DBIAS, BLOCK)
        for i in range(group * batch // groups, (group + 1) * batch // groups):
            if has_dfinal:
                read_tiles(w, dstate, states, count, dfinal, (i * channels + c0) * states)
            else:
                clear(w, dstate, BLOCK * states)
            for chunk in range(chunks - 1, -1, -1):
                start = chunk * CHUNK
                tokens = min(CHUNK, length - start)
                at_u, at_delta = i * u_b + start * u_t + c0, i * delta_b + start * delta_t + c0
                at_dy, at_z = i * dy_b + start * dy_t + c0, i * z_b + start * z_t + c0
                at_B, at_C = i * B_b + start * B_t, i * C_b + start * C_t
                read_maps(w, tokens, states, has_factor, factor, i * length + start, B, at_B, B_t, C, at_C, C_t)
                read_deltas(w, tokens, count, use_softplus, True, delta, at_delta, delta_t, u, at_u, u_t)
                read_gradients(w, tokens, count, has_z, dy, at_dy, dy_t, z, at_z, z_t)
                clear(w, dmap_B, CHUNK * states)
                clear(w, dmap_C, CHUNK * states)
                at_saved = ((i * chunks + chunk) * padded + c0) * states
                for j in range(0, count, LANES):
                    for at in range(0, LANES * states, LANES):
                        store(w, past + at, load(saved, at_saved + j * states + at))
                    rescan_tile(w, j, tokens, states)
                    scan_tile_backward(w, j, tokens, states)
                to = ((block * batch + i) * length + start) * states
                for at in range(tokens * states):
                    dB[to + at], dC[to + at] = w[dmap_B + at], w[dmap_C + at]
                to = (i * length + start) * channels + c0
                write_gradients(w, tokens, count, has_z, u, at_u, u_t, du, ddelta, dz, to, channels)
            if has_initial:
                write_tiles(w, dstate, states, count, dinitial, (i * channels + c0) * states)
        write_tiles(w, drate, states, count, dA, (group * channels + c0) * states)
        for j in range(count):
            dD[group * channels + c0 + j], dbias[group * channels + c0 + j] = w[DSKIP + j], w[DBIAS + j]
    if scaled:
        exchange_mode(mode)

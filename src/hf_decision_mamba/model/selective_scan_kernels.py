# Copyright 2026
"""The numba kernels of the selective scan on a CPU, one forward and one backward; `selective_scan_cpu` calls them.

Equations: Gu & Dao, "Mamba" (arXiv 2312.00752), algorithm 2. The backward recomputes the states of a chunk of tokens
from the state saved at its start. Importing this module imports numba.
"""

from typing import NamedTuple

import numpy as np

from .sizes_cpu import BLOCK, CHUNK, LANES
from .vector_cpu import (
    FLUSHING,
    LN2,
    allocate_arrays,
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


class Workspace(NamedTuple):
    """What a work item has of its block of channels. A `tile` holds LANES channels for each n."""

    factor: np.ndarray  # [CHUNK] of a chunk of tokens: on the token's Δ, 0 where it is absent
    skip: np.ndarray  # [BLOCK] D
    bias: np.ndarray  # [BLOCK] of Δ
    dskip: np.ndarray  # [BLOCK]
    dbias: np.ndarray  # [BLOCK]
    delta: np.ndarray  # [CHUNK, BLOCK] Δ
    push: np.ndarray  # [CHUNK, BLOCK] Δ u, what the input pushes into the state
    readout: np.ndarray  # [CHUNK, BLOCK] C · h
    slope: np.ndarray  # [CHUNK, BLOCK] derivative of Δ, of softplus times the factor
    ddelta: np.ndarray  # [CHUNK, BLOCK] gradient of Δ, the part through exp(Δ A), divided by ln 2
    dpush: np.ndarray  # [CHUNK, BLOCK]
    dreadout: np.ndarray  # [CHUNK, BLOCK]
    dgate: np.ndarray  # [CHUNK, BLOCK] gradient of z / (C · h + D u)
    B: np.ndarray  # [CHUNK, n]
    C: np.ndarray  # [CHUNK, n]
    dB: np.ndarray  # [CHUNK, n]
    dC: np.ndarray  # [CHUNK, n]
    rate: np.ndarray  # [BLOCK / LANES, n, LANES] A log2(e)
    state: np.ndarray  # [BLOCK / LANES, n, LANES] h of the last token, or in the backward its gradient
    drate: np.ndarray  # [BLOCK / LANES, n, LANES] gradient of A
    decay: np.ndarray  # [CHUNK, n, LANES] exp(Δ A) of one tile
    past: np.ndarray  # [CHUNK + 1, n, LANES] h of one tile, the one before the chunk first


@compiled
def workspace(states, like):
    """Allocate a workspace of the precision of `like`."""
    channels, rows, maps, tiles = (BLOCK,), (CHUNK, BLOCK), (CHUNK, states), (BLOCK // LANES, states, LANES)
    shapes = (
        (CHUNK,), channels, channels, channels, channels, rows, rows, rows, rows, rows, rows, rows, rows,
        maps, maps, maps, maps, tiles, tiles, tiles, (CHUNK, states, LANES), (CHUNK + 1, states, LANES),
    )  # fmt: skip
    return Workspace(*allocate_arrays(shapes, like))


@compiled
def read_channels(w, count, c0, rate, D, bias):
    """Read what the block's channels have in common for all rows of the batch."""
    read_tiles(w.rate, count, rate, c0 * w.rate.shape[1])
    clear(w.skip)
    clear(w.bias)
    for j in range(count):
        w.skip[j], w.bias[j] = D[c0 + j], bias[c0 + j]


@compiled
def read_maps(w, tokens, has_factor, factor, at, B, at_B, B_t, C, at_C, C_t):
    """Read B, C and the factors on Δ of a chunk; B is zero where the token is absent, whatever stands there."""
    for k in range(tokens):
        w.factor[k] = factor[at + k] if has_factor else 1
        absent = w.factor[k] == 0
        for n in range(w.B.shape[1]):
            w.B[k, n] = 0 if absent else B[at_B + k * B_t + n]
            w.C[k, n] = C[at_C + k * C_t + n]


@compiled
def read_deltas(w, tokens, count, use_softplus, backward, raw, at_raw, raw_t, u, at_u, u_t):
    """Compute the rows Δ, Δ u and, if `backward`, its slope of a chunk; `raw` is before softplus; zero where absent."""
    for k in range(tokens):
        for j in range(0, count, LANES):
            left = count - j
            delta = push = slope = constant(raw, 0)
            if w.factor[k] != 0:
                delta = read(raw, at_raw + k * raw_t + j, left) + load(w.bias, j)
                slope = constant(raw, 1)
                if use_softplus:
                    slope = softplus_slope(delta)
                    delta = softplus(delta)
                delta, slope = delta * w.factor[k], slope * w.factor[k]
                push = delta * read(u, at_u + k * u_t + j, left)
            store(w.delta, (k, j), delta)
            store(w.push, (k, j), push)
            if backward:
                store(w.slope, (k, j), slope)


# -------------------------------------------------------------------------------------------------------------- forward


@compiled
def scan_tile(w, j, tokens):
    """Carry the states of the vector of channels at `j` through a chunk; fills its row of readouts."""
    rate, state = w.rate[j // LANES], w.state[j // LANES]
    for k in range(tokens):
        delta, push, readout = load(w.delta, (k, j)), load(w.push, (k, j)), constant(rate, 0)
        for n in range(len(rate)):
            decay = exp2(delta * load(rate, (n, 0)))
            h = decay * load(state, (n, 0)) + push * fill(w.B, (k, n))
            store(state, (n, 0), h)
            readout = readout + h * fill(w.C, (k, n))
        store(w.readout, (k, j), readout)


@compiled
def write_outputs(w, tokens, count, has_D, has_z, u, at_u, u_t, z, at_z, z_t, y, to, channels):
    """Write y = (C · h + D u) · SiLU(z) of a chunk."""
    for k in range(tokens):
        for j in range(0, count, LANES):
            left = count - j
            out = load(w.readout, (k, j))
            if has_D:
                out = out + load(w.skip, j) * read(u, at_u + k * u_t + j, left)
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
    w = workspace(states, u)
    mode = exchange_mode(FLUSHING) if scaled else 0  # factors far from 1 leave many numbers that are next to nothing
    for item in range(first, last):
        c0, group = item // groups * BLOCK, item % groups
        count = min(BLOCK, channels - c0)
        read_channels(w, count, c0, rate, D, bias)
        for i in range(group * batch // groups, (group + 1) * batch // groups):
            if has_initial:
                read_tiles(w.state, count, initial, (i * channels + c0) * states)
            else:
                clear(w.state)
            for start in range(0, length, CHUNK):
                tokens = min(CHUNK, length - start)
                at_u, at_delta = i * u_b + start * u_t + c0, i * delta_b + start * delta_t + c0
                at_B, at_C = i * B_b + start * B_t, i * C_b + start * C_t
                read_maps(w, tokens, has_factor, factor, i * length + start, B, at_B, B_t, C, at_C, C_t)
                read_deltas(w, tokens, count, use_softplus, False, delta, at_delta, delta_t, u, at_u, u_t)
                to_saved = ((i * chunks + start // CHUNK) * padded + c0) * states
                for j in range(0, count, LANES):
                    if save:
                        for n in range(states):
                            store(saved, to_saved + j * states + n * LANES, load(w.state, (j // LANES, n, 0)))
                    scan_tile(w, j, tokens)
                at_z, to = i * z_b + start * z_t + c0, (i * length + start) * channels + c0
                write_outputs(w, tokens, count, has_D, has_z, u, at_u, u_t, z, at_z, z_t, y, to, channels)
            write_tiles(w.state, count, final, (i * channels + c0) * states)
    if scaled:
        exchange_mode(mode)


# ------------------------------------------------------------------------------------------------------------- backward


@compiled
def rescan_tile(w, j, tokens):
    """Scan as `scan_tile`, from past[0] on and keeping every decay and state of the chunk."""
    rate = w.rate[j // LANES]
    for k in range(tokens):
        delta, push, readout = load(w.delta, (k, j)), load(w.push, (k, j)), constant(rate, 0)
        for n in range(len(rate)):
            decay = exp2(delta * load(rate, (n, 0)))
            h = decay * load(w.past, (k, n, 0)) + push * fill(w.B, (k, n))
            store(w.decay, (k, n, 0), decay)
            store(w.past, (k + 1, n, 0), h)
            readout = readout + h * fill(w.C, (k, n))
        store(w.readout, (k, j), readout)


@compiled
def scan_tile_backward(w, j, tokens):
    """Carry the gradient of the states backwards through the chunk that `rescan_tile` has just filled in."""
    rate, drate, dstate = w.rate[j // LANES], w.drate[j // LANES], w.state[j // LANES]
    for k in range(tokens - 1, -1, -1):
        delta, push, dreadout = load(w.delta, (k, j)), load(w.push, (k, j)), load(w.dreadout, (k, j))
        ddelta = dpush = constant(rate, 0)
        for n in range(len(rate)):
            dh = load(dstate, (n, 0)) + dreadout * fill(w.C, (k, n))
            w.dC[k, n] += total(dreadout * load(w.past, (k + 1, n, 0)))
            w.dB[k, n] += total(dh * push)
            dpush = dpush + dh * fill(w.B, (k, n))
            dh = dh * load(w.decay, (k, n, 0))
            store(dstate, (n, 0), dh)
            dexponent = dh * load(w.past, (k, n, 0))
            store(drate, (n, 0), load(drate, (n, 0)) + dexponent * delta)
            ddelta = ddelta + dexponent * load(rate, (n, 0))
        store(w.ddelta, (k, j), ddelta)
        store(w.dpush, (k, j), dpush)


@compiled
def read_gradients(w, tokens, count, has_z, dy, at_dy, dy_t, z, at_z, z_t):
    """Compute the rows of dreadout and, with a gate, of dgate of a chunk."""
    for k in range(tokens):
        for j in range(0, count, LANES):
            left = count - j
            g = read(dy, at_dy + k * dy_t + j, left)
            if has_z:
                gate = read(z, at_z + k * z_t + j, left)
                s = sigmoid(gate)
                store(w.dgate, (k, j), g * (s * (1.0 + gate * (1.0 - s))))
                g = g * (gate * s)
            store(w.dreadout, (k, j), g)


@compiled
def write_gradients(w, tokens, count, has_z, u, at_u, u_t, du, ddelta, dz, to, channels):
    """Write a chunk's gradients of u, delta and z, from its rows; and add its shares of those of D and the bias."""
    for k in range(tokens):
        for j in range(0, count, LANES):
            left, at = count - j, to + k * channels + j
            input_, g, dpush = read(u, at_u + k * u_t + j, left), load(w.dreadout, (k, j)), load(w.dpush, (k, j))
            write(du, at, left, dpush * load(w.delta, (k, j)) + load(w.skip, j) * g)
            if has_z:
                ungated = load(w.readout, (k, j)) + load(w.skip, j) * input_
                write(dz, at, left, ungated * load(w.dgate, (k, j)))
            dx = constant(u, 0)
            if w.factor[k] != 0:
                dx = (dpush * input_ + load(w.ddelta, (k, j)) * LN2) * load(w.slope, (k, j))
            write(ddelta, at, left, dx)
            store(w.dbias, j, load(w.dbias, j) + dx)
            store(w.dskip, j, load(w.dskip, j) + g * input_)


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
    w = workspace(states, u)
    mode = exchange_mode(FLUSHING) if scaled else 0
    for item in range(first, last):
        block, group = item // groups, item % groups
        c0 = block * BLOCK
        count = min(BLOCK, channels - c0)
        read_channels(w, count, c0, rate, D, bias)
        clear(w.drate)
        clear(w.dskip)
        clear(w.dbias)
        for i in range(group * batch // groups, (group + 1) * batch // groups):
            if has_dfinal:
                read_tiles(w.state, count, dfinal, (i * channels + c0) * states)
            else:
                clear(w.state)
            for chunk in range(chunks - 1, -1, -1):
                start = chunk * CHUNK
                tokens = min(CHUNK, length - start)
                at_u, at_delta = i * u_b + start * u_t + c0, i * delta_b + start * delta_t + c0
                at_dy, at_z = i * dy_b + start * dy_t + c0, i * z_b + start * z_t + c0
                at_B, at_C = i * B_b + start * B_t, i * C_b + start * C_t
                read_maps(w, tokens, has_factor, factor, i * length + start, B, at_B, B_t, C, at_C, C_t)
                read_deltas(w, tokens, count, use_softplus, True, delta, at_delta, delta_t, u, at_u, u_t)
                read_gradients(w, tokens, count, has_z, dy, at_dy, dy_t, z, at_z, z_t)
                clear(w.dB)
                clear(w.dC)
                at_saved = ((i * chunks + chunk) * padded + c0) * states
                for j in range(0, count, LANES):
                    for n in range(states):
                        store(w.past, (0, n, 0), load(saved, at_saved + j * states + n * LANES))
                    rescan_tile(w, j, tokens)
                    scan_tile_backward(w, j, tokens)
                to = ((block * batch + i) * length + start) * states
                for k in range(tokens):
                    for n in range(states):
                        dB[to + k * states + n], dC[to + k * states + n] = w.dB[k, n], w.dC[k, n]
                to = (i * length + start) * channels + c0
                write_gradients(w, tokens, count, has_z, u, at_u, u_t, du, ddelta, dz, to, channels)
            if has_initial:
                write_tiles(w.state, count, dinitial, (i * channels + c0) * states)
        write_tiles(w.drate, count, dA, (group * channels + c0) * states)
        for j in range(count):
            dD[group * channels + c0 + j], dbias[group * channels + c0 + j] = w.dskip[j], w.dbias[j]
    if scaled:
        exchange_mode(mode)

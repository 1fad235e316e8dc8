# Copyright 2026
"""The Triton kernels of the selective scan, one forward and one backward; `selective_scan_triton` calls them.

A program is one warp: it walks one row of the batch, a channel in each thread, so that a readout needs no sum over
threads. A group of states at a time goes through all tokens in registers; where there are more states than a group has,
what the groups add up waits in memory. Tokens are taken in chunks, whose loops are unrolled: their numbers are in
registers too, one tuple entry for each. The backward goes from the last chunk to the first, and computes the states
inside of a chunk again, from the one that the forward has saved. A thread reads back from memory only what is its own.

Equations: Gu & Dao, "Mamba" (arXiv 2312.00752), algorithm 2. A token that is absent, or behind the end, has step size
0: it decays nothing, adds nothing, and the state passes it. Importing this module imports triton.
"""

# Triton adds tuples, but does not unpack them.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the GPU kernels of Decision Mamba need triton: pip install triton") from error

LOG2E = tl.constexpr(1.4426950408889634)

# ------------------------------------------------------------------------------------------------------------- elements


@triton.jit
def softplus(x):
    """Compute log(1 + exp(x)), x itself above 20 as in PyTorch."""
    e = tl.exp(tl.minimum(x, 20.0))
    # What 1 + e loses by rounding, log(1 + e) must not lose (Kahan).
    rounded = 1.0 + e
    change = rounded - 1.0
    log1p = tl.where(change == 0.0, e, tl.log(rounded) * (e / tl.where(change == 0.0, 1.0, change)))
    return tl.where(x > 20.0, x, log1p)


@triton.jit
def read(first, there, FLOAT: tl.constexpr):
    """Read numbers in the precision that is computed in, zero where there is none."""
    return tl.load(first, mask=there, other=0.0).to(FLOAT)


@triton.jit
def read_channels(values, channels, inside, GIVEN: tl.constexpr, FLOAT: tl.constexpr):
    """Read one number for each channel, zeros when not given."""
    numbers = tl.zeros(channels.shape, FLOAT)
    if GIVEN:
        numbers = read(values + channels, inside, FLOAT)
    return numbers


@triton.jit
def read_factor(factor, at, here, HAS_FACTOR: tl.constexpr, FLOAT: tl.constexpr):
    """Read the factor on a token's Δ, 0 where it is absent or not there."""
    scale = tl.where(here, 1.0, 0.0).to(FLOAT)
    if HAS_FACTOR:
        scale = read(factor + at, here, FLOAT)
    return scale


@triton.jit
def where_if(there, channels, c):
    """Tell which channels a token has: all if it is there, else none."""
    return channels < tl.where(there, c, 0)


@triton.jit
def read_delta(first, known, shift, scale, SOFTPLUS: tl.constexpr, HAS_FACTOR: tl.constexpr, FLOAT: tl.constexpr):
    """Compute a token's Δ and the slope of softplus times the factor; zero where absent, whatever stands there."""
    delta = read(first, known, FLOAT) + shift
    slope = tl.full(delta.shape, 1.0, FLOAT)
    if SOFTPLUS:
        slope = tl.where(delta > 20.0, 1.0, tl.sigmoid(delta))
        delta = softplus(delta)
    if HAS_FACTOR:
        delta *= scale
        slope *= scale
    return tl.where(known, delta, 0.0), tl.where(known, slope, 0.0)


@triton.jit
def read_entering(chunk, initial, at_state, saved, at_saved, channels, c, GIVEN: tl.constexpr, FLOAT: tl.constexpr):
    """Read the state that enters a chunk: what the forward has saved, for the first chunk what was given or zeros."""
    state = tl.load(saved + at_saved, mask=where_if(chunk > 0, channels, c), other=0.0)
    if GIVEN:
        state += read(initial + at_state, where_if(chunk == 0, channels, c), FLOAT)
    return state


@triton.jit
def read_waiting(waiting, at, here, first, begin, channels, c, SEVERAL: tl.constexpr):
    """Read what the groups of states before have left at a token; `begin` for the first group."""
    numbers = begin
    if SEVERAL:
        left = tl.load(waiting + at, mask=where_if(here & (first > 0), channels, c), other=0.0)
        numbers = tl.where(first > 0, left, begin)
    return numbers


# -------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def forward(
    u, raw, A, B, C, D, z, bias, factor, initial, y, final, saved, waiting,
    l, c, n, chunks, u_b, u_t, raw_b, raw_t, B_b, B_t, C_b, C_t, z_b, z_t,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_FACTOR: tl.constexpr,
    HAS_INITIAL: tl.constexpr, SAVE: tl.constexpr, FLOAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, SEVERAL: tl.constexpr,
):  # fmt: skip
    """Run the forward pass; grid (b, blocks of channels).

    x_b and x_t are the strides of batch and token in x. Without gaps: A (c, n), D, bias (c,), factor (b, l), initial
    and final (b, c, n), y (b, l, c); with SAVE saved (b, chunks - 1, n, c), the state behind each chunk but the last
    one; with SEVERAL groups waiting (b, l, c), the sums of the readouts of the groups before.
    """
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < c
    skip = read_channels(D, channels, inside, HAS_D, FLOAT)
    shift = read_channels(bias, channels, inside, HAS_BIAS, FLOAT)
    for first in range(0, n, GROUP):
        at_state = (row * c + channels) * n + first
        rates, states = (), ()
        for k in tl.static_range(GROUP):
            rates = rates + (read(A + channels * n + first + k, inside, FLOAT) * LOG2E,)
            states = states + (read_channels(initial + k, at_state, inside, HAS_INITIAL, FLOAT),)

        for chunk in range(chunks):
            start = chunk * CHUNK
            presents, deltas, pushes, outs = (), (), (), ()
            for t in tl.static_range(CHUNK):
                here = start + t < l
                there = where_if(here, channels, c)
                scale = read_factor(factor, row * l + start + t, here, HAS_FACTOR, FLOAT)
                present = scale != 0.0
                known = where_if(present, channels, c)
                at_raw = raw + row * raw_b + (start + t) * raw_t + channels
                delta, _ = read_delta(at_raw, known, shift, scale, SOFTPLUS, HAS_FACTOR, FLOAT)
                x = read(u + row * u_b + (start + t) * u_t + channels, there, FLOAT)
                at = (row * l + start + t) * c + channels
                presents = presents + (present,)
                deltas = deltas + (delta,)
                pushes = pushes + (tl.where(known, delta * x, 0.0),)
                outs = outs + (read_waiting(waiting, at, here, first, skip * x, channels, c, SEVERAL),)

            sums = ()
            for t in tl.static_range(CHUNK):
                out = outs[t]
                after = ()
                for k in tl.static_range(GROUP):
                    b = read(B + row * B_b + (start + t) * B_t + first + k, presents[t], FLOAT)
                    readout = read(C + row * C_b + (start + t) * C_t + first + k, start + t < l, FLOAT)
                    h = tl.exp2(deltas[t] * rates[k]) * states[k] + pushes[t] * b
                    out += h * readout
                    after = after + (h,)
                states = after
                sums = sums + (out,)

            for t in tl.static_range(CHUNK):
                at = (row * l + start + t) * c + channels
                out = sums[t]
                if SEVERAL:
                    tl.store(waiting + at, out, mask=where_if((start + t < l) & (first + GROUP < n), channels, c))
                there = where_if((start + t < l) & (first + GROUP == n), channels, c)
                if HAS_Z:
                    gate = read(z + row * z_b + (start + t) * z_t + channels, there, FLOAT)
                    out *= gate * tl.sigmoid(gate)
                tl.store(y + at, out, mask=there)
            if SAVE:
                for k in tl.static_range(GROUP):
                    at_saved = ((row * (chunks - 1) + chunk) * n + first + k) * c + channels
                    tl.store(saved + at_saved, states[k], mask=where_if(chunk < chunks - 1, channels, c))

        for k in tl.static_range(GROUP):
            tl.store(final + at_state + k, states[k], mask=inside)


@triton.jit
def backward(
    dy, dfinal, u, raw, A, B, C, D, z, bias, factor, initial, saved, waiting,
    du, draw, dA, dB, dC, dD, dz, dbias, dinitial,
    l, c, n, chunks, u_b, u_t, raw_b, raw_t, B_b, B_t, C_b, C_t, z_b, z_t, dy_b, dy_t,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_FACTOR: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_DFINAL: tl.constexpr, FLOAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, SEVERAL: tl.constexpr,
):  # fmt: skip
    """Run the backward pass; grid and arguments as `forward`'s.

    Results without gaps, to be added up over their first index: dA (b, n, c), dD and dbias (b, c), dB and dC (blocks of
    channels, b, l, n). Atomic additions would need less memory, but their order, and with it the result, would vary.
    With SEVERAL groups waiting (3, b, l, c): the readouts of the groups before, and two sums of gradients.
    """
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < c
    skip = read_channels(D, channels, inside, HAS_D, FLOAT)
    shift = read_channels(bias, channels, inside, HAS_BIAS, FLOAT)
    none = tl.zeros([BLOCK], FLOAT)
    dskip = none
    dshift = none
    size = rows * l * c
    for first in range(0, n, GROUP):
        at_state = (row * c + channels) * n + first
        rates, drates, dstates = (), (), ()
        for k in tl.static_range(GROUP):
            rates = rates + (read(A + channels * n + first + k, inside, FLOAT),)
            drates = drates + (none,)
            dstates = dstates + (read_channels(dfinal + k, at_state, inside, HAS_DFINAL, FLOAT),)

        for done in range(chunks):
            chunk = chunks - 1 - done
            start = chunk * CHUNK
            presents, deltas, slopes, xs, pushes, douts, dgates = (), (), (), (), (), (), ()
            outs, ddeltas, dpushes = (), (), ()
            for t in tl.static_range(CHUNK):
                here = start + t < l
                there = where_if(here, channels, c)
                scale = read_factor(factor, row * l + start + t, here, HAS_FACTOR, FLOAT)
                present = scale != 0.0
                known = where_if(present, channels, c)
                at_raw = raw + row * raw_b + (start + t) * raw_t + channels
                delta, slope = read_delta(at_raw, known, shift, scale, SOFTPLUS, HAS_FACTOR, FLOAT)
                x = read(u + row * u_b + (start + t) * u_t + channels, there, FLOAT)
                dout = read(dy + row * dy_b + (start + t) * dy_t + channels, there, FLOAT)
                if HAS_Z:
                    gate = read(z + row * z_b + (start + t) * z_t + channels, there, FLOAT)
                    opening = tl.sigmoid(gate)
                    dgates = dgates + (dout * opening * (1.0 + gate * (1.0 - opening)),)
                    dout *= gate * opening
                at = (row * l + start + t) * c + channels
                presents = presents + (present,)
                deltas = deltas + (delta,)
                slopes = slopes + (slope,)
                xs = xs + (x,)
                pushes = pushes + (tl.where(known, delta * x, 0.0),)
                douts = douts + (dout,)
                outs = outs + (read_waiting(waiting, at, here, first, skip * x, channels, c, SEVERAL),)
                ddeltas = ddeltas + (read_waiting(waiting + size, at, here, first, none, channels, c, SEVERAL),)
                dpushes = dpushes + (read_waiting(waiting + 2 * size, at, here, first, none, channels, c, SEVERAL),)
            entered = ()
            for k in tl.static_range(GROUP):
                at_saved = ((row * (chunks - 1) + chunk - 1) * n + first + k) * c + channels
                state = read_entering(chunk, initial + k, at_state, saved, at_saved, channels, c, HAS_INITIAL, FLOAT)
                entered = entered + (state,)

            drates_after, dstates_after = (), ()
            for k in tl.static_range(GROUP):
                at_map = ((tl.program_id(1) * rows + row) * l + start) * n + first + k
                h = entered[k]
                bs, readouts, decays, pasts, dreadouts, sums = (), (), (), (), (), ()
                for t in tl.static_range(CHUNK):
                    b = read(B + row * B_b + (start + t) * B_t + first + k, presents[t], FLOAT)
                    readout = read(C + row * C_b + (start + t) * C_t + first + k, start + t < l, FLOAT)
                    decay = tl.exp2(deltas[t] * (rates[k] * LOG2E))
                    pasts = pasts + (h,)
                    h = decay * h + pushes[t] * b
                    bs = bs + (b,)
                    readouts = readouts + (readout,)
                    decays = decays + (decay,)
                    sums = sums + (outs[t] + h * readout,)
                    dreadouts = dreadouts + (tl.sum(douts[t] * h),)
                outs = sums

                dh = dstates[k]
                drate = drates[k]
                delta_sums, push_sums, dbs = (), (), ()
                for t in tl.static_range(CHUNK - 1, -1, -1):
                    dh += douts[t] * readouts[t]
                    dexponent = dh * pasts[t] * decays[t]
                    drate += dexponent * deltas[t]
                    delta_sums = (ddeltas[t] + dexponent * rates[k],) + delta_sums
                    push_sums = (dpushes[t] + dh * bs[t],) + push_sums
                    dbs = (tl.sum(dh * pushes[t]),) + dbs
                    dh *= decays[t]
                ddeltas = delta_sums
                dpushes = push_sums
                drates_after = drates_after + (drate,)
                dstates_after = dstates_after + (dh,)
                for t in tl.static_range(CHUNK):
                    tl.store(dC + at_map + t * n, dreadouts[t], mask=start + t < l)
                    tl.store(dB + at_map + t * n, dbs[t], mask=start + t < l)
            drates = drates_after
            dstates = dstates_after

            for t in tl.static_range(CHUNK):
                at = (row * l + start + t) * c + channels
                if SEVERAL:
                    there = where_if((start + t < l) & (first + GROUP < n), channels, c)
                    tl.store(waiting + at, outs[t], mask=there)
                    tl.store(waiting + size + at, ddeltas[t], mask=there)
                    tl.store(waiting + 2 * size + at, dpushes[t], mask=there)
                there = where_if((start + t < l) & (first + GROUP == n), channels, c)
                if HAS_Z:
                    tl.store(dz + at, outs[t] * dgates[t], mask=there)
                tl.store(du + at, douts[t] * skip + dpushes[t] * deltas[t], mask=there)
                dshifted = (ddeltas[t] + dpushes[t] * xs[t]) * slopes[t]
                dshifted = tl.where(where_if(presents[t] & (first + GROUP == n), channels, c), dshifted, 0.0)
                tl.store(draw + at, dshifted, mask=there)
                dskip += tl.where(there, douts[t] * xs[t], 0.0)
                dshift += dshifted

        for k in tl.static_range(GROUP):
            tl.store(dA + (row * n + first + k) * c + channels, drates[k], mask=inside)
            if HAS_INITIAL:
                tl.store(dinitial + at_state + k, dstates[k], mask=inside)
    tl.store(dD + row * c + channels, dskip, mask=inside)
    tl.store(dbias + row * c + channels, dshift, mask=inside)

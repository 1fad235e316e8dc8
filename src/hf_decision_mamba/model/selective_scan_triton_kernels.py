# Copyright 2026
"""The Triton kernels of the selective scan, one forward and one backward; `selective_scan_triton` calls them.

A program is one warp: it walks one row of the batch, a channel in each thread, a chunk of tokens at a time, and for
each chunk one state number after the other. So a readout needs no sum over threads, and registers hold a chunk's
numbers, one tuple entry for each token, whose loops are unrolled. Between chunks the states go through memory. The
backward walks from the last chunk to the first, and computes the states inside of a chunk again.

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
    """log(1 + exp(x)), x itself above 20 as in PyTorch."""
    e = tl.exp(tl.minimum(x, 20.0))
    # What 1 + e loses by rounding, log(1 + e) must not lose (Kahan).
    rounded = 1.0 + e
    change = rounded - 1.0
    log1p = tl.where(change == 0.0, e, tl.log(rounded) * (e / tl.where(change == 0.0, 1.0, change)))
    return tl.where(x > 20.0, x, log1p)


@triton.jit
def read(first, there, FLOAT: tl.constexpr):
    """Numbers in the precision that is computed in, zero where there is none."""
    return tl.load(first, mask=there, other=0.0).to(FLOAT)


@triton.jit
def read_channels(values, channels, inside, GIVEN: tl.constexpr, FLOAT: tl.constexpr):
    """One number for each channel, zeros when not given."""
    numbers = tl.zeros(channels.shape, FLOAT)
    if GIVEN:
        numbers = read(values + channels, inside, FLOAT)
    return numbers


@triton.jit
def read_present(mask, at, here, MASKED: tl.constexpr):
    """Whether a token is there and not absent."""
    present = here
    if MASKED:
        present = here & (tl.load(mask + at, mask=here, other=0) != 0)
    return present


@triton.jit
def where_if(there, channels, c):
    """Which channels a token has: all if it is there, else none."""
    return channels < tl.where(there, c, 0)


@triton.jit
def read_step(first, known, shift, SOFTPLUS: tl.constexpr, FLOAT: tl.constexpr):
    """Δ and dΔ / d delta of a token, zero where it is absent, whatever stands there."""
    step = read(first, known, FLOAT) + shift
    slope = tl.full(step.shape, 1.0, FLOAT)
    if SOFTPLUS:
        slope = tl.where(step > 20.0, 1.0, tl.sigmoid(step))
        step = softplus(step)
    return tl.where(known, step, 0.0), tl.where(known, slope, 0.0)


@triton.jit
def read_carried(outermost, given, at_given, left, at_left, inside, GIVEN: tl.constexpr, FLOAT: tl.constexpr):
    """What enters a chunk: for the outermost one what was given or zeros, else what the chunk before has left."""
    carried = tl.zeros(inside.shape, FLOAT)
    if outermost:
        if GIVEN:
            carried = read(given + at_given, inside, FLOAT)
    else:
        carried = tl.load(left + at_left, mask=inside, other=0.0)
    return carried


# -------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def forward(
    u, delta, A, B, C, D, z, bias, mask, initial, y, final, saved,
    l, c, n, chunks, u_b, u_t, delta_b, delta_t, B_b, B_t, C_b, C_t, z_b, z_t,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
    HAS_INITIAL: tl.constexpr, SAVE: tl.constexpr, FLOAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The forward pass; grid (b, blocks of channels).

    x_b and x_t are the strides of batch and token in x. Without gaps: A (c, n), D, bias (c,), mask (b, l), initial and
    final (b, c, n), y (b, l, c); saved (b, slots, n, c), the state behind each chunk but the last one with SAVE, else
    two slots in turn.
    """
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < c
    skip = read_channels(D, channels, inside, HAS_D, FLOAT)
    shift = read_channels(bias, channels, inside, HAS_BIAS, FLOAT)
    slots = chunks - 1 if SAVE else 2
    for chunk in range(chunks):
        start = chunk * CHUNK
        presents, steps, pushes, outs = (), (), (), ()
        for t in tl.static_range(CHUNK):
            here = start + t < l
            present = read_present(mask, row * l + start + t, here, MASKED)
            known = where_if(present, channels, c)
            at_delta = delta + row * delta_b + (start + t) * delta_t + channels
            step, _ = read_step(at_delta, known, shift, SOFTPLUS, FLOAT)
            x = read(u + row * u_b + (start + t) * u_t + channels, where_if(here, channels, c), FLOAT)
            presents = presents + (present,)
            steps = steps + (step,)
            pushes = pushes + (tl.where(known, step * x, 0.0),)
            outs = outs + (skip * x,)

        before = (row * slots + (chunk - 1 if SAVE else (chunk + 1) % 2)) * n
        after = (row * slots + (chunk if SAVE else chunk % 2)) * n
        for k in range(n):
            at_state = (row * c + channels) * n + k
            at_saved = (before + k) * c + channels
            rate = read(A + channels * n + k, inside, FLOAT) * LOG2E
            h = read_carried(chunk == 0, initial, at_state, saved, at_saved, inside, HAS_INITIAL, FLOAT)
            sums = ()
            for t in tl.static_range(CHUNK):
                b = read(B + row * B_b + (start + t) * B_t + k, presents[t], FLOAT)
                readout = read(C + row * C_b + (start + t) * C_t + k, start + t < l, FLOAT)
                h = tl.exp2(steps[t] * rate) * h + pushes[t] * b
                sums = sums + (outs[t] + h * readout,)
            outs = sums
            if chunk == chunks - 1:
                tl.store(final + at_state, h, mask=inside)
            else:
                tl.store(saved + (after + k) * c + channels, h, mask=inside)

        for t in tl.static_range(CHUNK):
            there = where_if(start + t < l, channels, c)
            out = outs[t]
            if HAS_Z:
                gate = read(z + row * z_b + (start + t) * z_t + channels, there, FLOAT)
                out *= gate * tl.sigmoid(gate)
            tl.store(y + (row * l + start + t) * c + channels, out, mask=there)
        tl.debug_barrier()  # the next chunk reads what this one has stored


@triton.jit
def backward(
    dy, dfinal, u, delta, A, B, C, D, z, bias, mask, initial, saved, left,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial,
    l, c, n, chunks, u_b, u_t, delta_b, delta_t, B_b, B_t, C_b, C_t, z_b, z_t, dy_b, dy_t,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_DFINAL: tl.constexpr, FLOAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The backward pass; grid and arguments as `forward`'s.

    Results without gaps, to be added up over their first index: dA (b, n, c), dD and dbias (b, c), dB and dC (blocks of
    channels, b, l, n). Atomic additions would need less memory, but their order, and with it the result, would vary.
    Room for the gradients that pass from chunk to chunk: left (2, b, n, c).
    """
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < c
    skip = read_channels(D, channels, inside, HAS_D, FLOAT)
    shift = read_channels(bias, channels, inside, HAS_BIAS, FLOAT)
    dskip = tl.zeros([BLOCK], FLOAT)
    dshift = tl.zeros([BLOCK], FLOAT)
    for done in range(chunks):
        chunk = chunks - 1 - done
        start = chunk * CHUNK
        presents, steps, slopes, xs, pushes, douts, dgates = (), (), (), (), (), (), ()
        outs, dsteps, dpushes = (), (), ()
        for t in tl.static_range(CHUNK):
            here = start + t < l
            there = where_if(here, channels, c)
            present = read_present(mask, row * l + start + t, here, MASKED)
            known = where_if(present, channels, c)
            at_delta = delta + row * delta_b + (start + t) * delta_t + channels
            step, slope = read_step(at_delta, known, shift, SOFTPLUS, FLOAT)
            x = read(u + row * u_b + (start + t) * u_t + channels, there, FLOAT)
            dout = read(dy + row * dy_b + (start + t) * dy_t + channels, there, FLOAT)
            if HAS_Z:
                gate = read(z + row * z_b + (start + t) * z_t + channels, there, FLOAT)
                opening = tl.sigmoid(gate)
                dgates = dgates + (dout * opening * (1.0 + gate * (1.0 - opening)),)
                dout *= gate * opening
            presents = presents + (present,)
            steps = steps + (step,)
            slopes = slopes + (slope,)
            xs = xs + (x,)
            pushes = pushes + (tl.where(known, step * x, 0.0),)
            douts = douts + (dout,)
            outs = outs + (skip * x,)
            dsteps = dsteps + (tl.zeros([BLOCK], FLOAT),)
            dpushes = dpushes + (tl.zeros([BLOCK], FLOAT),)

        for k in range(n):
            at_state = (row * c + channels) * n + k
            at_left = (row * n + k) * c + channels
            at_saved = ((row * (chunks - 1) + chunk - 1) * n + k) * c + channels
            at_map = ((tl.program_id(1) * rows + row) * l + start) * n + k
            a = read(A + channels * n + k, inside, FLOAT)

            h = read_carried(chunk == 0, initial, at_state, saved, at_saved, inside, HAS_INITIAL, FLOAT)
            bs, readouts, decays, pasts, sums = (), (), (), (), ()
            for t in tl.static_range(CHUNK):
                b = read(B + row * B_b + (start + t) * B_t + k, presents[t], FLOAT)
                readout = read(C + row * C_b + (start + t) * C_t + k, start + t < l, FLOAT)
                decay = tl.exp2(steps[t] * (a * LOG2E))
                pasts = pasts + (h,)
                h = decay * h + pushes[t] * b
                bs = bs + (b,)
                readouts = readouts + (readout,)
                decays = decays + (decay,)
                sums = sums + (outs[t] + h * readout,)
                tl.store(dC + at_map + t * n, tl.sum(douts[t] * h), mask=start + t < l)
            outs = sums

            at_slot = (done + 1) % 2 * rows * n * c + at_left
            dh = read_carried(done == 0, dfinal, at_state, left, at_slot, inside, HAS_DFINAL, FLOAT)
            drate = tl.zeros([BLOCK], FLOAT)
            if done > 0:
                drate = tl.load(dA + at_left, mask=inside, other=0.0)
            step_sums, push_sums = (), ()
            for t in tl.static_range(CHUNK - 1, -1, -1):
                dh += douts[t] * readouts[t]
                dexponent = dh * pasts[t] * decays[t]
                drate += dexponent * steps[t]
                step_sums = (dsteps[t] + dexponent * a,) + step_sums
                push_sums = (dpushes[t] + dh * bs[t],) + push_sums
                tl.store(dB + at_map + t * n, tl.sum(dh * pushes[t]), mask=start + t < l)
                dh *= decays[t]
            dsteps = step_sums
            dpushes = push_sums
            tl.store(dA + at_left, drate, mask=inside)
            if chunk > 0:
                tl.store(left + done % 2 * rows * n * c + at_left, dh, mask=inside)
            elif HAS_INITIAL:
                tl.store(dinitial + at_state, dh, mask=inside)

        for t in tl.static_range(CHUNK):
            there = where_if(start + t < l, channels, c)
            at = (row * l + start + t) * c + channels
            if HAS_Z:
                tl.store(dz + at, outs[t] * dgates[t], mask=there)
            tl.store(du + at, douts[t] * skip + dpushes[t] * steps[t], mask=there)
            dstep = tl.where(where_if(presents[t], channels, c), (dsteps[t] + dpushes[t] * xs[t]) * slopes[t], 0.0)
            tl.store(ddelta + at, dstep, mask=there)
            dskip += douts[t] * xs[t]
            dshift += dstep
        tl.debug_barrier()  # the next chunk reads what this one has stored
    tl.store(dD + row * c + channels, dskip, mask=inside)
    tl.store(dbias + row * c + channels, dshift, mask=inside)

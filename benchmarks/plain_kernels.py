"""The scan, the convolution and a fused decision's hot loops as plain numba: the yardstick of `cpu_kernels.py`.

The same polynomials over the same tiles as the package's kernels, but every vector is a loop over WIDE or LANES
neighbouring numbers, without branches, which LLVM vectorises if it can. They know no masks, gaps or optional inputs.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.extending import intrinsic

from hf_decision_mamba.model.sizes_cpu import CHUNK, LANES

WIDE = 128  # channels of a loop: the fastest of 32, 64, 128
F, LN2 = np.float32, float(np.log(2.0))
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc"}}
plain, inlined = njit(cache=True, **OPTIONS), njit(forceinline=True, **OPTIONS)

# Every function takes float32 arrays without gaps. A loop that writes to several rows is split up, because LLVM checks
# at most a few pairs of rows for overlaps and else gives up on vectorising.


@intrinsic
def power_of_two(typingctx, shifted):
    """2**n, where the lowest bits of the float `shifted` hold the integer n."""

    def codegen(context, builder, signature, args):
        integer = ir.IntType(32)
        n = builder.add(builder.bitcast(args[0], integer), integer(127))
        return builder.bitcast(builder.shl(n, integer(23)), context.get_value_type(shifted))

    return shifted(shifted), codegen


@inlined
def exp2(x):
    x = min(max(x, F(-127.0)), F(128.0))
    shifted = x + F(12582912.0)
    f = x - (shifted - F(12582912.0))
    p = F(0.0013390863364671234) + f * F(0.0001545316294512069)
    p = F(0.05550357114219078) + f * (F(0.009618082557277852) + f * p)
    p = F(1.0) + f * (F(0.6931471880262288) + f * (F(0.24022650760568126) + f * p))
    return p * power_of_two(shifted)


@inlined
def sigmoid(x):
    e = exp2(-abs(x) * F(1.0 / LN2))
    return (e if x < 0 else F(1.0)) / (F(1.0) + e)


@inlined
def softplus(x):
    e = exp2(-abs(x) * F(1.0 / LN2))
    s = e / (F(2.0) + e)
    q = s * s
    p = F(0.40024595230703747) + q * (F(0.27965157745197267) + q * F(0.2815777836310908))
    return x if x > F(20.0) else max(x, F(0.0)) + s * (F(2.000000007681759) + q * (F(0.6666632164137777) + q * p))


# ------------------------------------------------------------------------------------------------------------- the scan


@plain
def read_deltas(raw, bias, u, delta, push):
    for j in range(WIDE):
        delta[j] = softplus(raw[j] + bias[j])
    for j in range(WIDE):
        push[j] = delta[j] * u[j]


@plain
def scan_token(delta, push, rate, before, state, readout, b, c):
    for j in range(WIDE):
        readout[j] = 0
    for n in range(len(b)):
        a, past, h = rate[n], before[n], state[n]
        for j in range(WIDE):
            h[j] = exp2(delta[j] * a[j]) * past[j] + push[j] * b[n]
        for j in range(WIDE):
            readout[j] += h[j] * c[n]


@plain
def scan_forward(u, raw, A, B, C, D, z, bias, y, final, saved):
    """u, raw, z, y (b, l, c); A (c, n); B, C (b, l, n); final (b, c, n); saved (b, chunks, c / WIDE, n, WIDE)."""
    rows, length, channels = u.shape
    rate, state = np.empty((A.shape[1], WIDE), u.dtype), np.empty((A.shape[1], WIDE), u.dtype)
    delta, push, readout = np.empty(WIDE, u.dtype), np.empty(WIDE, u.dtype), np.empty(WIDE, u.dtype)
    for tile in range(channels // WIDE):
        to = slice(tile * WIDE, (tile + 1) * WIDE)
        rate[:] = A[to].T * F(1.0 / LN2)
        for i in range(rows):
            state[:] = 0
            for t in range(length):
                if t % CHUNK == 0:
                    saved[i, t // CHUNK, tile] = state
                read_deltas(raw[i, t, to], bias[to], u[i, t, to], delta, push)
                scan_token(delta, push, rate, state, state, readout, B[i, t], C[i, t])
                x, gate, out, skip = u[i, t, to], z[i, t, to], y[i, t, to], D[to]
                for j in range(WIDE):
                    out[j] = (readout[j] + skip[j] * x[j]) * (gate[j] * sigmoid(gate[j]))
            final[i, to] = state.T


@plain
def scan_token_backward(delta, push, dreadout, rate, drate, dstate, past, state, b, c, db, dc, ddelta, dpush):
    for j in range(WIDE):
        ddelta[j] = 0
        dpush[j] = 0
    for n in range(len(b)):
        a, da, dh, before, h = rate[n], drate[n], dstate[n], past[n], state[n]
        sum_b = sum_c = F(0)
        for j in range(WIDE):
            sum_c += dreadout[j] * h[j]
        for j in range(WIDE):
            dh[j] += dreadout[j] * c[n]
            sum_b += dh[j] * push[j]
        for j in range(WIDE):
            dpush[j] += dh[j] * b[n]
        for j in range(WIDE):
            dh[j] *= exp2(delta[j] * a[j])
        for j in range(WIDE):
            da[j] += dh[j] * before[j] * delta[j]
        for j in range(WIDE):
            ddelta[j] += dh[j] * before[j] * a[j]
        db[n] += sum_b
        dc[n] += sum_c


@plain
def scan_backward(dy, u, raw, A, B, C, D, z, bias, saved, du, draw, dA, dB, dC, dD, dz, dbias):
    """The gradients of `scan_forward`'s inputs; dA, dB, dC, dD, dbias hold zeros before."""
    rows, length, channels = u.shape
    shape = A.shape[1], WIDE
    rate, drate, dstate = np.empty(shape, u.dtype), np.empty(shape, u.dtype), np.empty(shape, u.dtype)
    states, row = np.empty((CHUNK + 1, *shape), u.dtype), (CHUNK, WIDE)
    deltas, pushes, readouts = np.empty(row, u.dtype), np.empty(row, u.dtype), np.empty(row, u.dtype)
    dreadout, ddelta, dpush = np.empty(WIDE, u.dtype), np.empty(WIDE, u.dtype), np.empty(WIDE, u.dtype)
    for tile in range(channels // WIDE):
        to = slice(tile * WIDE, (tile + 1) * WIDE)
        rate[:] = A[to].T * F(1.0 / LN2)
        drate[:] = 0
        skip, shift, dskip, dshift = D[to], bias[to], dD[to], dbias[to]
        for i in range(rows):
            dstate[:] = 0
            for start in range((length - 1) // CHUNK * CHUNK, -1, -CHUNK):
                stop = min(start + CHUNK, length)
                states[0] = saved[i, start // CHUNK, tile]
                for t in range(start, stop):
                    k = t - start
                    read_deltas(raw[i, t, to], shift, u[i, t, to], deltas[k], pushes[k])
                    scan_token(
                        deltas[k], pushes[k], rate, states[k], states[k + 1], readouts[k], B[i, t], C[i, t]
                    )  # fmt: skip
                for t in range(stop - 1, start - 1, -1):
                    k = t - start
                    x, gate, g, delta = u[i, t, to], z[i, t, to], dy[i, t, to], deltas[k]
                    for j in range(WIDE):
                        s = sigmoid(gate[j])
                        dreadout[j] = g[j] * gate[j] * s
                    scan_token_backward(
                        delta, pushes[k], dreadout, rate, drate, dstate, states[k], states[k + 1], B[i, t], C[i, t],
                        dB[i, t], dC[i, t], ddelta, dpush,
                    )  # fmt: skip
                    out, dgate, before, of_raw = readouts[k], dz[i, t, to], raw[i, t, to], draw[i, t, to]
                    dx = du[i, t, to]
                    for j in range(WIDE):
                        s = sigmoid(gate[j])
                        dgate[j] = (out[j] + skip[j] * x[j]) * g[j] * (s * (F(1.0) + gate[j] * (F(1.0) - s)))
                    for j in range(WIDE):
                        dx[j] = dpush[j] * delta[j] + skip[j] * dreadout[j]
                    for j in range(WIDE):
                        a = before[j] + shift[j]
                        slope = F(1.0) if a > F(20.0) else sigmoid(a)
                        of_raw[j] = (dpush[j] * x[j] + ddelta[j] * F(LN2)) * slope
                    for j in range(WIDE):
                        dshift[j] += of_raw[j]
                    for j in range(WIDE):
                        dskip[j] += dreadout[j] * x[j]
        dA[to] += drate.T


# ------------------------------------------------------------------------------------------------------ the convolution


@plain
def convolve(x, t, to, taps, bias, total):
    """The sum over the window of token t, `taps` (width, WIDE), before SiLU."""
    for j in range(WIDE):
        total[j] = bias[j]
    for k in range(max(0, len(taps) - 1 - t), len(taps)):
        tap, seen = taps[k], x[t - len(taps) + 1 + k, to]
        for j in range(WIDE):
            total[j] += tap[j] * seen[j]


@plain
def conv_forward(x, weight, bias, y):
    """x, y (b, l, c), weight (c, width), bias (c,)."""
    rows, length, channels = x.shape
    total = np.empty(WIDE, x.dtype)
    for tile in range(channels // WIDE):
        to = slice(tile * WIDE, (tile + 1) * WIDE)
        taps = weight[to].T.copy()
        for i in range(rows):
            for t in range(length):
                convolve(x[i], t, to, taps, bias[to], total)
                out = y[i, t, to]
                for j in range(WIDE):
                    out[j] = total[j] * sigmoid(total[j])


@plain
def conv_backward(dy, x, weight, bias, dx, dweight, dbias):
    """The gradients of `conv_forward`'s inputs; dweight and dbias hold zeros before."""
    rows, length, channels = x.shape
    width = weight.shape[1]
    total, sums = np.empty(WIDE, x.dtype), np.empty((length, WIDE), x.dtype)
    for tile in range(channels // WIDE):
        to = slice(tile * WIDE, (tile + 1) * WIDE)
        taps = weight[to].T.copy()
        dtaps, dshift = np.zeros_like(taps), dbias[to]
        for i in range(rows):
            for t in range(length):
                convolve(x[i], t, to, taps, bias[to], total)
                d, g = sums[t], dy[i, t, to]
                for j in range(WIDE):
                    s = sigmoid(total[j])
                    d[j] = g[j] * (s * (F(1.0) + total[j] * (F(1.0) - s)))
                for j in range(WIDE):
                    dshift[j] += d[j]
                for k in range(max(0, width - 1 - t), width):
                    dtap, seen = dtaps[k], x[i, t - width + 1 + k, to]
                    for j in range(WIDE):
                        dtap[j] += d[j] * seen[j]
            for t in range(length):
                out = dx[i, t, to]
                for j in range(WIDE):
                    out[j] = 0
                for k in range(max(0, width - length + t), width):
                    tap, d = taps[k], sums[t + width - 1 - k]
                    for j in range(WIDE):
                        out[j] += tap[j] * d[j]
        dweight[to] += dtaps.T


# ------------------------------------------------------------------------------ in the place of `compiled_kernels`' own


@plain
def linear(work, x, x_stride, y, y_stride, rows, width, weights, inputs, weight, bias):
    """As the package's, but that W is read as [input, output], the fastest layout for plain loops."""
    matrix, shift = weights[weight : weight + inputs * width].reshape(inputs, width), weights[bias : bias + width]
    for r in range(rows):
        a, out = work[x + r * x_stride : x + r * x_stride + inputs], work[y + r * y_stride : y + r * y_stride + width]
        for k in range(width):
            out[k] = shift[k]
        for i in range(inputs):
            line, factor = matrix[i], a[i]
            for k in range(width):
                out[k] += factor * line[k]


@plain
def scan(work, x, x_stride, y, width, raw, B, B_stride, C, C_stride, weights, rate, skip, tokens, states, absent,
         memory, where):  # fmt: skip
    for j in range(0, width, LANES):
        a = weights[rate + j * states : rate + (j + LANES) * states].reshape(states, LANES)
        h = memory[where + j * states : where + (j + LANES) * states].reshape(states, LANES)
        for t in range(absent, tokens):
            delta, value = work[raw + t * width + j :], work[x + t * x_stride + j :]
            out, factor = work[y + t * width + j :], weights[skip + j :]
            for k in range(LANES):
                delta[k] = softplus(delta[k])
                out[k] = factor[k] * value[k]
            for n in range(states):
                b, c = work[B + t * B_stride + n], work[C + t * C_stride + n]
                rates, state = a[n], h[n]
                for k in range(LANES):
                    state[k] = exp2(delta[k] * rates[k]) * state[k] + delta[k] * value[k] * b
                for k in range(LANES):
                    out[k] += state[k] * c

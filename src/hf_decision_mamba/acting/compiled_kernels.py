# Copyright 2026
"""The numba kernels of `compiled`: a whole network, written down as a program, over the steps of one episode.

A buffer is a number of rows, one for each step or each token. A row is read and written in whole vectors; what stands
behind its real width is arbitrary, but finite. Importing this module imports numba.
"""

import math

import numpy as np

from ..model.sizes_cpu import LANES
from ..model.vector_cpu import compiled, constant, exp2, fill, load, sigmoid, softplus, store, total

# An instruction is a line of integers: what to do with buffer x, to buffer y, for which rows, and parameters a ... g.
# Weights, and what is remembered of an episode, are given by where they start.
LINEAR = 0  # y = W x + b             a: inputs; b: W in tiles [vector of outputs, input, LANES]; c: b
LOOKUP = 1  # y = table[index] (+ y)  a: which index; b: table; c: whether to add
ACTIVATE = 2  # y = f(y)              a: f
NORM = 3  # y = norm(x) w + b         a: width; b: w; c: b of a LayerNorm, -1 in an RMSNorm
ADD = 4  # y = y + x
COPY = 5  # y = x
GATE = 6  # y = y SiLU(x)
HISTORY = 7  # y = the rows before x, x   a: number of rows before; b: where they are remembered
CONV = 8  # y = depthwise filter of x     a: taps; b: filters [type of token, tap, channel]; c: biases [type, channel]
SCAN = 9  # y = selective scan of x       a, b, c: buffers of Δ before softplus, B, C; d: rate; e: skip; f: states; g: h

OPERATION, X, Y, ROWS, PARAMETERS = 0, 1, 2, 3, 4
LINE = PARAMETERS + 7
EACH_STEP, EACH_TOKEN, LAST = 0, 1, 2  # LAST: the one at which the action of the last step is read
RELU, GELU, SILU, TANH = 0, 1, 2, 3
TIMESTEPS, TIMESTEPS_BEFORE, ACTIONS = 0, 1, 2

# A line of the table of buffers: it starts at OFFSET + GROWTH · steps, its rows are STRIDE apart and WIDTH wide.
OFFSET, GROWTH, STRIDE, WIDTH = 0, 1, 2, 3
BUFFER = 4
STATES, CONDITION, PREVIOUS_ACTIONS, PREDICTION = 0, 1, 2, 3  # the buffers of inputs and output
STARTED = 0  # where it is remembered whether the episode has begun; what is remembered is zero in front of it


@compiled
def linear(work, x, x_stride, y, y_stride, rows, width, weights, inputs, weight, bias):
    for j in range(0, width, LANES):
        tile, start = weight + j * inputs, load(weights, bias + j)
        r = 0
        while r + 3 <= rows:
            first, second, third = x + r * x_stride, x + (r + 1) * x_stride, x + (r + 2) * x_stride
            a = b = c = start
            for i in range(inputs):
                column = load(weights, tile + i * LANES)
                a = a + fill(work, first + i) * column
                b = b + fill(work, second + i) * column
                c = c + fill(work, third + i) * column
            to = y + r * y_stride + j
            store(work, to, a)
            store(work, to + y_stride, b)
            store(work, to + 2 * y_stride, c)
            r += 3
        while r < rows:
            at, i = x + r * x_stride, 0
            a, b, c, d = start, constant(work, 0), constant(work, 0), constant(work, 0)
            while i + 4 <= inputs:  # four sums, because each has to wait for its last addition
                a = a + fill(work, at + i) * load(weights, tile + i * LANES)
                b = b + fill(work, at + i + 1) * load(weights, tile + (i + 1) * LANES)
                c = c + fill(work, at + i + 2) * load(weights, tile + (i + 2) * LANES)
                d = d + fill(work, at + i + 3) * load(weights, tile + (i + 3) * LANES)
                i += 4
            while i < inputs:
                a = a + fill(work, at + i) * load(weights, tile + i * LANES)
                i += 1
            store(work, y + r * y_stride + j, (a + b) + (c + d))
            r += 1


@compiled
def lookup(work, index, y, y_stride, width, weights, table, add):
    for s in range(len(index)):
        for j in range(0, width, LANES):
            to = y + s * y_stride + j
            value = load(work, to) if add else constant(work, 0)
            if index[s] >= 0:
                value = value + load(weights, table + index[s] * width + j)
            store(work, to, value)


@compiled
def activate(work, y, y_stride, rows, width, function):
    for r in range(rows):
        for j in range(y + r * y_stride, y + r * y_stride + width, LANES):
            if function == SILU:
                value = load(work, j)
                store(work, j, value * sigmoid(value))
                continue
            for i in range(j, j + LANES):
                if function == RELU:
                    work[i] = max(work[i], 0)
                elif function == GELU:
                    work[i] = work[i] * 0.5 * (1 + math.erf(work[i] * math.sqrt(0.5)))
                else:
                    work[i] = math.tanh(work[i])


@compiled
def mean_of(work, at, width, center):
    """Average (x - center)^2, or x itself where `center` is NaN, over the real width of a row."""
    whole = width - width % LANES
    sums, rest = constant(work, 0), 0.0
    for j in range(0, whole, LANES):
        value = load(work, at + j)
        if not math.isnan(center):
            value = (value - center) * (value - center)
        sums = sums + value
    for j in range(whole, width):
        rest += work[at + j] if math.isnan(center) else (work[at + j] - center) ** 2
    return (total(sums) + rest) / width


@compiled
def norm(work, x, y, stride, rows, row, width, weights, weight, bias, epsilon):
    for r in range(rows):
        at, to = x + r * stride, y + r * stride
        center = 0.0 if bias < 0 else mean_of(work, at, width, np.nan)
        scale = 1 / math.sqrt(mean_of(work, at, width, center) + epsilon)
        for j in range(0, row, LANES):
            value = (load(work, at + j) - center) * scale * load(weights, weight + j)
            if bias >= 0:
                value = value + load(weights, bias + j)
            store(work, to + j, value)


@compiled
def history(work, x, y, width, tokens, count, absent, recurrent, where):
    for j in range(0, count * width, LANES):
        store(work, y + j, load(recurrent, where + j))
    for j in range(0, tokens * width, LANES):
        store(work, y + count * width + j, constant(work, 0) if absent and j < width else load(work, x + j))
    for j in range(0, count * width, LANES):
        store(recurrent, where + j, load(work, y + tokens * width + j))


@compiled
def conv(work, x, y, width, tokens, types, taps, weights, weight, bias):
    for t in range(tokens):
        token_type = t % types
        for j in range(0, width, LANES):
            out = load(weights, bias + token_type * width + j)
            for tap in range(taps):
                factor = load(weights, weight + (token_type * taps + tap) * width + j)
                out = out + load(work, x + (t + tap) * width + j) * factor
            store(work, y + t * width + j, out)


@compiled
def scan(work, x, x_stride, y, width, raw, B, B_stride, C, C_stride, weights, rate, skip, tokens, states, absent,
         recurrent, where):  # fmt: skip
    """Scan with states and rate, which is A log2(e), in tiles [vector of channels, state, LANES]."""
    for j in range(0, width, LANES):
        tile, state = rate + j * states, where + j * states
        for t in range(absent, tokens):
            delta, value = softplus(load(work, raw + t * width + j)), load(work, x + t * x_stride + j)
            push, out = delta * value, load(weights, skip + j) * value
            for n in range(states):
                h = exp2(delta * load(weights, tile + n * LANES)) * load(recurrent, state + n * LANES)
                h = h + push * fill(work, B + t * B_stride + n)
                store(recurrent, state + n * LANES, h)
                out = out + h * fill(work, C + t * C_stride + n)
            store(work, y + t * width + j, out)


@compiled
def run_steps(program, buffers, weights, epsilon, work, indices, recurrent, steps, types, decision, cut):
    """Run the program over the steps of one episode whose inputs stand in their buffers.

    `types`: tokens of one step; `decision`: at which of them its action is read; `cut`: whether the first one is the
    previous action, which is absent when an episode begins. `recurrent`: the episode's recurrent state; it moves on.
    """
    tokens, absent = steps * types, int(cut and recurrent[STARTED] == 0)
    starts = buffers[:, OFFSET] + buffers[:, GROWTH] * steps
    for line in program:
        operation, x, y = line[OPERATION], starts[line[X]], starts[line[Y]]
        x_stride, y_stride, width = buffers[line[X], STRIDE], buffers[line[Y], STRIDE], buffers[line[Y], WIDTH]
        a, b, c, d, e, f, g = line[4], line[5], line[6], line[7], line[8], line[9], line[10]
        rows = steps if line[ROWS] == EACH_STEP else tokens
        if line[ROWS] == LAST:
            last = tokens - types + decision
            x, y, rows = x + last * x_stride, y + last * y_stride, 1
        if operation == LINEAR:
            linear(work, x, x_stride, y, y_stride, rows, width, weights, a, b, c)
        elif operation == LOOKUP:
            lookup(work, indices[a, :steps], y, y_stride, width, weights, b, c != 0)
        elif operation == ACTIVATE:
            activate(work, y, y_stride, rows, width, a)
        elif operation == NORM:
            norm(work, x, y, y_stride, rows, width, a, weights, b, c, epsilon)
        elif operation == HISTORY:
            history(work, x, y, width, tokens, a, absent, recurrent, b)
        elif operation == CONV:
            conv(work, x, y, width, tokens, types, a, weights, b, c)
        elif operation == SCAN:
            scan(
                work, x, x_stride, y, width, starts[a], starts[b], buffers[b, STRIDE], starts[c], buffers[c, STRIDE],
                weights, d, e, tokens, f, absent, recurrent, g,
            )  # fmt: skip
        else:
            for r in range(rows):
                for j in range(0, width, LANES):
                    value, to = load(work, x + r * x_stride + j), y + r * y_stride + j
                    if operation == ADD:
                        value = value + load(work, to)
                    elif operation == GATE:
                        value = load(work, to) * (value * sigmoid(value))
                    store(work, to, value)


@compiled
def run(first, last, sizes, program, buffers, indices, timesteps, discrete, lengths, numbers, weights, recurrent,
        states, condition, actions, out, work):  # fmt: skip
    """Compute work items [first, last): groups of rows of a batch, over each row's last `lengths` steps; fill `out`.

    Arrays are flat. `sizes`: rows, steps, numbers in a state, in what is asked for, in a continuous action and in what
    is predicted, tokens of a step, which of them decides, whether the first may be absent, groups. `numbers`: the
    norms' epsilon.
    """
    rows, steps, state_dim, condition_dim, act_dim, out_dim, types, decision, cut, groups = sizes
    lines, table = program.reshape(-1, LINE), buffers.reshape(-1, BUFFER)
    own_work, own_indices, state_size = len(work) // groups, len(indices) // groups, len(recurrent) // rows
    for group in range(first, last):
        w = work[group * own_work : (group + 1) * own_work]
        index = indices[group * own_indices : (group + 1) * own_indices].reshape(3, -1)
        for row in range(group * rows // groups, (group + 1) * rows // groups):
            length = lengths[row]
            starts = table[: PREDICTION + 1, OFFSET] + table[: PREDICTION + 1, GROWTH] * length
            for s in range(length):
                step = row * steps + steps - length + s
                to_state = starts[STATES] + s * table[STATES, STRIDE]
                for j in range(state_dim):
                    w[to_state + j] = states[step * state_dim + j]
                to_condition = starts[CONDITION] + s * table[CONDITION, STRIDE]
                for j in range(condition_dim):
                    w[to_condition + j] = condition[step * condition_dim + j]
                to_action = starts[PREVIOUS_ACTIONS] + s * table[PREVIOUS_ACTIONS, STRIDE]
                for j in range(act_dim):
                    w[to_action + j] = actions[step * act_dim + j]
                index[TIMESTEPS, s], index[TIMESTEPS_BEFORE, s] = timesteps[step], max(timesteps[step] - 1, 0)
                index[ACTIONS, s] = discrete[step]
            own = recurrent[row * state_size : (row + 1) * state_size]
            run_steps(lines, table, weights, numbers[0], w, index, own, length, types, decision, cut != 0)
            own[STARTED] = 1
            at = starts[PREDICTION] + ((length - 1) * types + decision) * table[PREDICTION, STRIDE]
            for j in range(out_dim):
                out[row * out_dim + j] = w[at + j]

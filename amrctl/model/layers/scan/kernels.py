"""The loops of the selective scan and of the short causal convolution on a CPU, compiled by numba.

All inner loops run over neighbouring channels, so that they become SIMD without sums across lanes; the state
of a block of channels stays in the first-level cache. Arrays of frames are float32, float64 or bfloat16
given as its bits (uint16); everything else, and all arithmetic, is float32 (float64 for float64). Each
kernel does jobs `first` to `last` of its count and writes only what belongs to them, so any number of
threads gives the same bits. Exponents saturate at 2 ** -126 and 2 ** 127.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from amrctl.arithmetic import _exp2, _narrow, _sigmoid, _softplus, _wide
from amrctl.compiled import compiling

# sums may be regrouped into SIMD lanes; NaN and infinity keep their meaning
compiled = compiling(error_model="numpy", fastmath={"contract", "reassoc", "nsz"})

WIDTH = 128  # channels of a block
EVERY = 16  # frames between two kept states
Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]

# Scratch rows hold several vectors of one block side by side, at these offsets: from one base address the
# compiler sees that they do not overlap, and needs few checks before it uses SIMD.
_X, _RAW, _STEP, _PUSH, _Y, _G, _OF_STEP, _OF_PUSH = (i * WIDTH for i in range(8))  # of a frame
_RATE, _CARRY, _OF_RATE = (i * WIDTH for i in range(3))  # of a state
_AFTER, _DECAY = (i * WIDTH for i in range(2))  # of a state at a frame
_SKIP, _BIAS, _OF_SKIP, _OF_BIAS = (i * WIDTH for i in range(4))  # of a block


@compiled
def _enter(u: Array, delta: Array, soft: bool, block: Array, line: Array) -> None:
    """One frame's step sizes, what they push into the states, and the start of the sum of the output."""
    for d in range(u.size):
        line[_X + d] = _wide(u[d])
    for d in range(u.size):
        line[_RAW + d] = _wide(delta[d])
    if soft:
        for d in range(u.size):
            line[_RAW + d] += block[_BIAS + d]
            line[_STEP + d] = _softplus(line[_RAW + d])
    else:
        for d in range(u.size):
            line[_RAW + d] += block[_BIAS + d]
            line[_STEP + d] = line[_RAW + d]
    for d in range(u.size):
        line[_PUSH + d] = line[_STEP + d] * line[_X + d]
        line[_Y + d] = block[_SKIP + d] * line[_X + d]


@compiled
def scan_forward(
    first: int,
    last: int,
    frames: Arrays,
    matrices: Arrays,
    rows: Arrays,
    flags: tuple[bool, bool],
    out: Array,
    marks: Array,
) -> None:
    """Outputs [B, T, D], and the state before every `EVERY`-th frame but the first if `marks` has room.

    `frames` = (u, delta, z) [B, T, D], `matrices` = (A log2(e) [N, D], B and C [B, T, N]), `rows` = (D, bias)
    [D], `flags` = (is there a gate z, does delta go through softplus). Jobs: B x blocks of channels.
    """
    u, delta, z = frames
    states, channels = matrices[0].shape
    blocks = (channels + WIDTH - 1) // WIDTH
    kind = matrices[0].dtype
    rate, h = np.zeros((2, states, WIDTH), kind)
    line = np.zeros(8 * WIDTH, kind)
    block = np.zeros(4 * WIDTH, kind)
    for job in range(first, last):
        b, j = job // blocks, job % blocks * WIDTH
        w = min(WIDTH, channels - j)
        block[_SKIP : _SKIP + w] = rows[0][j : j + w]
        block[_BIAS : _BIAS + w] = rows[1][j : j + w]
        rate[:, :w] = matrices[0][:, j : j + w]
        h[:] = 0
        for t in range(u.shape[1]):
            if marks.size and t and t % EVERY == 0:
                marks[b, t // EVERY - 1, :, j : j + w] = h[:, :w]
            _enter(u[b, t, j : j + w], delta[b, t, j : j + w], flags[1], block, line)
            for n in range(states):
                into, back = matrices[1][b, t, n], matrices[2][b, t, n]
                hn, rn = h[n], rate[n]
                for d in range(w):
                    state = _exp2(line[_STEP + d] * rn[d]) * hn[d] + line[_PUSH + d] * into
                    hn[d] = state
                    line[_Y + d] += state * back
            if flags[0]:
                gate = z[b, t, j : j + w]
                for d in range(w):
                    g = _wide(gate[d])
                    line[_Y + d] *= g * _sigmoid(g)
            row = out[b, t, j : j + w]
            for d in range(w):
                row[d] = _narrow(line[_Y + d], row[d])


@compiled
def scan_backward(
    first: int,
    last: int,
    frames: Arrays,
    matrices: Arrays,
    rows: Arrays,
    flags: tuple[bool, bool],
    grad: Array,
    marks: Array,
    d_frames: Arrays,
    d_matrices: Arrays,
    d_rows: Arrays,
) -> None:
    """Gradients of `scan_forward` for `grad` [B, T, D]; arguments and jobs are the same.

    The states of `EVERY` frames at a time are computed again from `marks`. `d_frames` are like `frames`;
    `d_matrices` = [B, N, D], and twice [blocks, B, T, N]; `d_rows` = twice [B, D]: each job's own share of
    the sums, to be added up afterwards in a fixed order.
    """
    u, delta, z = frames
    states, channels = matrices[0].shape
    blocks = (channels + WIDTH - 1) // WIDTH
    kind = matrices[0].dtype
    lines = np.zeros((EVERY, 8 * WIDTH), kind)
    cells = np.zeros((EVERY + 1, states, 2 * WIDTH), kind)  # the first one holds the state before the chunk
    state_rows = np.zeros((states, 3 * WIDTH), kind)
    block = np.zeros(4 * WIDTH, kind)
    for job in range(first, last):
        b, j = job // blocks, job % blocks * WIDTH
        w = min(WIDTH, channels - j)
        block[:] = 0
        block[_SKIP : _SKIP + w] = rows[0][j : j + w]
        block[_BIAS : _BIAS + w] = rows[1][j : j + w]
        state_rows[:] = 0
        state_rows[:, _RATE : _RATE + w] = matrices[0][:, j : j + w]
        for chunk in range((u.shape[1] - 1) // EVERY, -1, -1):
            start = chunk * EVERY
            stop = min(start + EVERY, u.shape[1])
            if chunk:
                cells[0, :, :w] = marks[b, chunk - 1, :, j : j + w]
            else:
                cells[0] = 0
            for t in range(start, stop):
                line = lines[t - start]
                _enter(u[b, t, j : j + w], delta[b, t, j : j + w], flags[1], block, line)
                for n in range(states):
                    into, back = matrices[1][b, t, n], matrices[2][b, t, n]
                    row, before, now = state_rows[n], cells[t - start, n], cells[t - start + 1, n]
                    for d in range(w):
                        now[_DECAY + d] = _exp2(line[_STEP + d] * row[_RATE + d])
                    for d in range(w):
                        state = now[_DECAY + d] * before[_AFTER + d] + line[_PUSH + d] * into
                        now[_AFTER + d] = state
                        line[_Y + d] += state * back
                coming = grad[b, t, j : j + w]
                for d in range(w):
                    line[_G + d] = _wide(coming[d])
                if flags[0]:
                    _gate_backward(z[b, t, j : j + w], line, d_frames[2][b, t, j : j + w])
            for t in range(stop - 1, start - 1, -1):
                line = lines[t - start]
                for d in range(w):
                    line[_OF_STEP + d] = 0
                    line[_OF_PUSH + d] = 0
                for n in range(states):
                    into, back = matrices[1][b, t, n], matrices[2][b, t, n]
                    row, before, now = state_rows[n], cells[t - start, n], cells[t - start + 1, n]
                    of_into, of_back = kind.type(0), kind.type(0)
                    for d in range(w):
                        r = row[_CARRY + d] + line[_G + d] * back
                        of_back += line[_G + d] * now[_AFTER + d]
                        of_into += r * line[_PUSH + d]
                        line[_OF_PUSH + d] += r * into
                        q = r * now[_DECAY + d]
                        row[_CARRY + d] = q
                        q *= before[_AFTER + d]
                        row[_OF_RATE + d] += q * line[_STEP + d]
                        line[_OF_STEP + d] += q * row[_RATE + d]
                    d_matrices[1][j // WIDTH, b, t, n] = of_into
                    d_matrices[2][j // WIDTH, b, t, n] = of_back
                _leave(flags[1], block, line, d_frames[0][b, t, j : j + w], d_frames[1][b, t, j : j + w])
        d_rows[0][b, j : j + w] = block[_OF_SKIP : _OF_SKIP + w]
        d_rows[1][b, j : j + w] = block[_OF_BIAS : _OF_BIAS + w]
        d_matrices[0][b, :, j : j + w] = state_rows[:, _OF_RATE : _OF_RATE + w]


@compiled
def _gate_backward(z: Array, line: Array, d_z: Array) -> None:
    """Through y SiLU(z): the gradient in `line` becomes that of y."""
    one = line.dtype.type(1)
    for d in range(z.size):
        gate = _wide(z[d])
        share = _sigmoid(gate)
        slope = share + gate * share * (one - share)
        d_z[d] = _narrow(line[_G + d] * line[_Y + d] * slope, z[d])
        line[_G + d] *= gate * share


@compiled
def _leave(soft: bool, block: Array, line: Array, d_u: Array, d_delta: Array) -> None:
    """From one frame's sums over the states to its gradients in u and delta; `_enter` backwards."""
    ln2 = line.dtype.type(0.6931471805599453)  # the exponent was of 2, not of e
    for d in range(d_u.size):
        x, g = line[_X + d], line[_G + d]
        block[_OF_SKIP + d] += g * x
        line[_OF_STEP + d] = line[_OF_STEP + d] * ln2 + line[_OF_PUSH + d] * x
        line[_OF_PUSH + d] = line[_OF_PUSH + d] * line[_STEP + d] + g * block[_SKIP + d]
    if soft:
        for d in range(d_u.size):
            line[_OF_STEP + d] *= _sigmoid(line[_RAW + d])
    for d in range(d_u.size):
        block[_OF_BIAS + d] += line[_OF_STEP + d]
        d_delta[d] = _narrow(line[_OF_STEP + d], d_delta[d])
    for d in range(d_u.size):
        d_u[d] = _narrow(line[_OF_PUSH + d], d_u[d])


@compiled
def _convolve(x: Array, weight: Array, bias: Array, b: int, j: int, w: int, t: int, y: Array) -> None:
    """`y` = the convolution at frame t, channels j to j + w."""
    taps = weight.shape[0]
    y[:w] = bias[j : j + w]
    for k in range(max(0, taps - 1 - t), taps):
        row, tap = x[b, t - taps + 1 + k, j : j + w], weight[k, j : j + w]
        for d in range(w):
            y[d] += tap[d] * _wide(row[d])


@compiled
def conv_forward(first: int, last: int, x: Array, weight: Array, bias: Array, out: Array) -> None:
    """SiLU of the causal convolution of each channel: `x`, `out` [B, T, D], `weight` [K, D], `bias` [D].

    The last tap meets the frame itself. Jobs as in `scan_forward`.
    """
    _, length, channels = x.shape
    blocks = (channels + WIDTH - 1) // WIDTH
    y = np.zeros(WIDTH, weight.dtype)
    for job in range(first, last):
        b, j = job // blocks, job % blocks * WIDTH
        w = min(WIDTH, channels - j)
        for t in range(length):
            _convolve(x, weight, bias, b, j, w, t, y)
            row = out[b, t, j : j + w]
            for d in range(w):
                row[d] = _narrow(y[d] * _sigmoid(y[d]), row[d])


@compiled
def conv_backward(
    first: int,
    last: int,
    x: Array,
    weight: Array,
    bias: Array,
    grad: Array,
    d_x: Array,
    d_weight: Array,
    d_bias: Array,
) -> None:
    """Gradients of `conv_forward`; `d_weight` [B, K, D] and `d_bias` [B, D] are each recording's share."""
    _, length, channels = x.shape
    taps = weight.shape[0]
    blocks = (channels + WIDTH - 1) // WIDTH
    kind = weight.dtype
    g = np.zeros((length + taps - 1, WIDTH), kind)  # of the convolution's result, zero after the end
    y, of_bias = np.zeros((2, WIDTH), kind)
    of_weight = np.zeros((taps, WIDTH), kind)
    for job in range(first, last):
        b, j = job // blocks, job % blocks * WIDTH
        w = min(WIDTH, channels - j)
        of_weight[:] = 0
        of_bias[:] = 0
        for t in range(length):
            _convolve(x, weight, bias, b, j, w, t, y)
            g_t, coming = g[t], grad[b, t, j : j + w]
            for d in range(w):
                share = _sigmoid(y[d])
                g_t[d] = _wide(coming[d]) * (share + y[d] * share * (kind.type(1) - share))
                of_bias[d] += g_t[d]
            for k in range(max(0, taps - 1 - t), taps):
                row, tap = x[b, t - taps + 1 + k, j : j + w], of_weight[k]
                for d in range(w):
                    tap[d] += g_t[d] * _wide(row[d])
        for t in range(length):
            y[:] = 0
            for k in range(taps):
                g_t, tap = g[t + taps - 1 - k], weight[k, j : j + w]
                for d in range(w):
                    y[d] += tap[d] * g_t[d]
            row = d_x[b, t, j : j + w]
            for d in range(w):
                row[d] = _narrow(y[d], row[d])
        d_bias[b, j : j + w] = of_bias[:w]
        d_weight[b, :, j : j + w] = of_weight[:, :w]


@compiled
def add_shares(shares: Array, total: Array) -> None:
    """`total` [K] = the sum of `shares` [S, K], one share after the other."""
    total[:] = 0
    for i in range(shares.shape[0]):
        share = shares[i]
        for k in range(total.size):
            total[k] += share[k]

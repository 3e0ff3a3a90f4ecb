"""What lies between the matrix products of a frozen network on a CPU, each a compiled loop on one thread.

Numbers that products take and give are float32, or bfloat16 as their bits (uint16); everything is computed
in float32, and the sum that runs through a network stays float32 throughout. Products come without their
bias: the loop that reads them adds it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from amrctl.arithmetic import _exp2, _exp_down, _helper, _narrow, _ordered, _sigmoid, _wide
from amrctl.compiled import compiling

_F = np.float32
_ZERO, _HALF, _ONE, _TWO = _F(0), _F(0.5), _F(1), _F(2)
_ROOT, _LOG2E = _F(math.sqrt(0.5)), _F(math.log2(math.e))
# sums of exponentials between these are exact: no exponent was large, and one at least not small
_LEAST, _MOST = _F(1e-8), _F(1e10)
# erf(x) = 1 - t (A1 + t (A2 + ...)) exp(-x^2), t = 1 / (1 + P x), x >= 0: Abramowitz and Stegun 7.1.26,
# off by 1.5e-7 at most
_P = _F(0.3275911)
_A1, _A2, _A3, _A4, _A5 = (
    _F(0.254829592),
    _F(-0.284496736),
    _F(1.421413741),
    _F(-1.453152027),
    _F(1.061405429),
)
# the normal distribution less one half, x (B0 + B1 x^2 + ...) up to |x| = 4.5, where it is 1/2: x times it is
# off by 7e-5 at most, less than what storing a bfloat16 loses
_EDGE = _F(4.5)
_B0, _B1, _B2 = _F(0.39870859552486915), _F(-0.06597729333760155), _F(0.009580657602889585)
_B3, _B4, _B5 = _F(-0.0010362528458986088), _F(8.120950556428458e-05), _F(-4.431659376005339e-06)
_B6, _B7, _B8 = _F(1.58024212864401e-07), _F(-3.2838673318171537e-09), _F(2.999952954815624e-11)
_MARGIN = 256  # numbers
_compiled = compiling(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@_helper
def _gelu(x: Any, like: Any) -> Any:
    """GELU, as exact as it is stored beside `like`."""
    if like == types.uint16:

        def rough(x: Any, like: Any) -> Any:
            y = x if x < _EDGE else _EDGE
            y = y if y > -_EDGE else -_EDGE
            q = y * y
            p = _B8 * q + _B7
            p = p * q + _B6
            p = p * q + _B5
            p = p * q + _B4
            p = p * q + _B3
            p = p * q + _B2
            p = p * q + _B1
            p = p * q + _B0
            share = p * y + _HALF
            share = share if share > _ZERO else _ZERO
            return x * share

        return rough

    def gelu(x: Any, like: Any) -> Any:
        y = abs(x) * _ROOT
        t = _ONE / (_ONE + _P * y)
        p = _A5 * t + _A4
        p = p * t + _A3
        p = p * t + _A2
        p = p * t + _A1
        left = _HALF * p * t * _exp_down(y * y)  # the weight of the tail beyond |x|
        return x * (left if x < _ZERO else _ONE - left)

    return gelu


@_compiled
def _scratch(size: int) -> np.ndarray:
    """A row for what a sum is taken over, far from all other arrays.

    Where two arrays lie closer than some vectors, compiled loops take one number at a time, and a sum has
    another order: rows would depend on where memory was free.
    """
    return np.empty(size + 2 * _MARGIN, np.float32)[_MARGIN : _MARGIN + size]


@_compiled
def norm(
    x: np.ndarray, order: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, out: np.ndarray
) -> None:
    """Row j of `out` = row `order[j]` of `x` [rows, C], of mean 0 and variance 1, times `weight` + `bias`."""
    width = x.shape[1]
    share = _ONE / _F(width)
    row = _scratch(width)
    for j in range(out.shape[0]):
        r = order[j]
        mean, square = _ZERO, _ZERO
        for c in range(width):
            value = _wide(x[r, c])
            row[c] = value
            mean += value
        mean *= share
        for c in range(width):
            square += (row[c] - mean) ** 2
        scale = _ONE / np.sqrt(square * share + _F(eps))
        for c in range(width):
            out[j, c] = _narrow((row[c] - mean) * scale * weight[c] + bias[c], out[j, c])


@_compiled
def add(x: np.ndarray, order: np.ndarray, more: np.ndarray, plus: np.ndarray) -> None:
    """Add row j of `more`, and `plus` [C], to row `order[j]` of `x` [rows, C] float32."""
    for j in range(more.shape[0]):
        r = order[j]
        for c in range(x.shape[1]):
            x[r, c] += _wide(more[j, c]) + plus[c]


@_compiled
def add_norm(
    x: np.ndarray,
    order: np.ndarray,
    more: np.ndarray,
    plus: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    out: np.ndarray,
    keep: bool,
) -> None:
    """`add`, then `norm` of the sums; with `keep` the normed rows take the place of the sums in `x`."""
    width = x.shape[1]
    share = _ONE / _F(width)
    row = _scratch(width)
    for j in range(out.shape[0]):
        r = order[j]
        mean, square = _ZERO, _ZERO
        for c in range(width):
            value = x[r, c] + (_wide(more[j, c]) + plus[c])
            row[c] = value
            mean += value
        mean *= share
        for c in range(width):
            square += (row[c] - mean) ** 2
        scale = _ONE / np.sqrt(square * share + _F(eps))
        if keep:
            for c in range(width):
                value = (row[c] - mean) * scale * weight[c] + bias[c]
                x[r, c] = value
                out[j, c] = _narrow(value, out[j, c])
        else:
            for c in range(width):
                x[r, c] = row[c]
                out[j, c] = _narrow((row[c] - mean) * scale * weight[c] + bias[c], out[j, c])


@_compiled
def gelu(x: np.ndarray, plus: np.ndarray) -> None:
    """GELU of `x` + `plus`, [rows, C] and [C], in place."""
    for j in range(x.shape[0]):
        for c in range(x.shape[1]):
            x[j, c] = _narrow(_gelu(_wide(x[j, c]) + plus[c], x[j, c]), x[j, c])


@_compiled
def norm_gelu(
    x: np.ndarray, plus: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, out: np.ndarray
) -> None:
    """GELU of the normed rows of `x` + `plus`, [rows, C] and [C]; `out` may be `x`."""
    width = x.shape[1]
    share = _ONE / _F(width)
    row = _scratch(width)
    for j in range(x.shape[0]):
        mean, square = _ZERO, _ZERO
        for c in range(width):
            value = _wide(x[j, c]) + plus[c]
            row[c] = value
            mean += value
        mean *= share
        for c in range(width):
            square += (row[c] - mean) ** 2
        scale = _ONE / np.sqrt(square * share + _F(eps))
        for c in range(width):
            value = (row[c] - mean) * scale * weight[c] + bias[c]
            out[j, c] = _narrow(_gelu(value, out[j, c]), out[j, c])


@_compiled
def shift(rows: np.ndarray, by: np.ndarray) -> None:
    """Add `by` [C] to the first C columns of `rows` in place."""
    for j in range(rows.shape[0]):
        for c in range(by.size):
            rows[j, c] = _narrow(_wide(rows[j, c]) + by[c], rows[j, c])


@_compiled
def _steady(row: np.ndarray) -> np.float32:
    """exp(x - the largest) of `row` in place; returns their sum."""
    top = _ordered(row[0])
    for j in range(1, row.size):
        top = max(top, _ordered(row[j]))
    most, total = _ordered(top), _ZERO
    for j in range(row.size):
        e = _exp_down(row[j] - most)
        row[j] = e
        total += e
    return total


@_compiled
def soften_windows(scores: np.ndarray, table: np.ndarray, kinds: np.ndarray, scale: float) -> None:
    """Softmax of `scale * scores[w, head] + table[kinds[w], head]` in place.

    `scores` [windows, heads, T, T]; `table` [K, heads, T, T] float32. The largest number of a row is looked
    for only where the sum of exponentials is far from 1.
    """
    windows, heads, queries, keys = scores.shape
    row = _scratch(keys)
    factor = _F(scale)
    for w in range(windows):
        kind = kinds[w]
        for head in range(heads):
            for i in range(queries):
                total = _ZERO
                for j in range(keys):
                    x = _wide(scores[w, head, i, j]) * factor + table[kind, head, i, j]
                    e = _exp2(x * _LOG2E)
                    row[j] = e
                    total += e
                if not _LEAST < total < _MOST:
                    for j in range(keys):
                        row[j] = _wide(scores[w, head, i, j]) * factor + table[kind, head, i, j]
                    total = _steady(row)
                share = _ONE / total
                for j in range(keys):
                    scores[w, head, i, j] = _narrow(row[j] * share, scores[w, head, i, j])


@_compiled
def soften_gated(
    scores: np.ndarray,
    both: np.ndarray,
    plus: np.ndarray,
    constant: np.ndarray,
    table: np.ndarray,
    scale: float,
) -> None:
    """Softmax of `scale * scores + gate * table[head]` in place, with WavLM's gate of each query and head.

    `scores` [windows, heads, T, T]; the last 2 x heads columns of `both` [windows x T, columns] plus `plus`
    are what the two sigmoids of each head take; `constant` [heads]; `table` [heads, T, T] float32.
    """
    windows, heads, queries, keys = scores.shape
    row = _scratch(keys)
    factor = _F(scale)
    for w in range(windows):
        for head in range(heads):
            c = both.shape[1] - 2 * (heads - head)
            for i in range(queries):
                first = _sigmoid(_F(_wide(both[w * queries + i, c]) + plus[c]))
                second = _sigmoid(_F(_wide(both[w * queries + i, c + 1]) + plus[c + 1]))
                gate = first * (second * constant[head] - _ONE) + _TWO
                total = _ZERO
                for j in range(keys):
                    x = _wide(scores[w, head, i, j]) * factor + gate * table[head, i, j]
                    e = _exp2(x * _LOG2E)
                    row[j] = e
                    total += e
                if not _LEAST < total < _MOST:
                    for j in range(keys):
                        row[j] = _wide(scores[w, head, i, j]) * factor + gate * table[head, i, j]
                    total = _steady(row)
                share = _ONE / total
                for j in range(keys):
                    scores[w, head, i, j] = _narrow(row[j] * share, scores[w, head, i, j])


@_compiled
def patches(
    mel: np.ndarray,
    places: np.ndarray,
    shares: np.ndarray,
    factor: np.ndarray,
    plus: np.ndarray,
    length: int,
    side: int,
    out: np.ndarray,
) -> None:
    """HTSAT's image of `mel` [frames, bands] as patches of `side` x `side`: `out` [patches, side * side].

    Column t of the stretched spectrogram is the sum of the frames `places[t]` [4], each `shares[t]` times,
    then times `factor` and `plus` [bands]. Parts of `length` columns stand below each other.
    """
    bands, columns = mel.shape[1], places.shape[0]
    row = np.empty(bands, np.float32)
    for t in range(columns):
        row[:] = _ZERO
        for k in range(places.shape[1]):
            frame, share = places[t, k], shares[t, k]
            for b in range(bands):
                row[b] += share * mel[frame, b]
        part, column = t // length, t % length
        for b in range(bands):
            line = part * bands + b
            patch = line // side * (length // side) + column // side
            out[patch, line % side * side + column % side] = row[b] * factor[b] + plus[b]


@_compiled
def waves(samples: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, out: np.ndarray) -> None:
    """A convolution of one channel and GELU: `samples` [S] to `out` [T, C]; `weight` [taps, C]."""
    taps, width = weight.shape
    row = _scratch(width)
    for t in range(out.shape[0]):
        for c in range(width):
            row[c] = bias[c]
        for k in range(taps):
            sample = samples[t * stride + k]
            for c in range(width):
                row[c] += sample * weight[k, c]
        for c in range(width):
            out[t, c] = _narrow(_gelu(row[c], out[t, c]), out[t, c])


@_compiled
def waves_norm(
    samples: np.ndarray,
    filters: np.ndarray,
    first: np.ndarray,
    stride: int,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    out: np.ndarray,
) -> None:
    """As `waves`, each row of `filters` [taps, C] and `first` [C] normed before GELU."""
    taps, width = filters.shape
    row = np.empty((1, width), np.float32)
    for t in range(out.shape[0]):
        row[:] = _ZERO
        for k in range(taps):
            sample = samples[t * stride + k]
            for c in range(width):
                row[0, c] += sample * filters[k, c]
        norm_gelu(row, first, weight, bias, eps, out[t : t + 1])

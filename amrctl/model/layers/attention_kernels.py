"""Mask, softmax and dropout of attention weights in one compiled loop, and their gradient in another.

Apart, they read and write an array of queries x keys many times, which on a CPU takes longer than the
matrix products beside them. The dropped elements are those of `kernels.dropout` with the same key.
"""

from __future__ import annotations

import numpy as np

from amrctl.arithmetic import _exp_down, _narrow, _ordered, _wide
from amrctl.compiled import compiling
from amrctl.model.layers.kernels import BLOCK, draw

_LEAST = np.float32(-87.0)  # exp of less is 0
_compiled = compiling(fastmath={"contract", "reassoc", "nsz"})


@_compiled
def softmax_dropout(
    scores: np.ndarray,
    seen: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
    key: int,
    cut: int,
    scale: float,
    unit: int,
    first: int,
    last: int,
) -> None:
    """Softmax over the keys that may be seen into `weights`, and with dropout into `out`.

    `scores`, `weights`, `out` [rows, keys] of one type (bfloat16 as bits); `seen` [groups, keys] bool, a
    group for equally many rows; an element goes when its 16 bits are below `cut`. Does the units `first` to
    `last`, each of `unit` rows, which are whole blocks of draws.
    """
    rows, keys = scores.shape
    shared = rows // len(seen)
    blocks = unit * keys // BLOCK
    keep = np.empty(blocks * BLOCK, np.uint32)
    row = np.full(keys, _wide(scores[0, 0]))
    factor, zero, low = row.dtype.type(scale), row.dtype.type(0), row.dtype.type(-np.inf)
    for u in range(first, last):
        for b in range(blocks):
            draw(key, u * blocks + b, keep[b * BLOCK : (b + 1) * BLOCK], cut)
        for r in range(u * unit, min((u + 1) * unit, rows)):
            at = (r - u * unit) * keys
            kept, visible = keep[at : at + keys], seen[r // shared]
            given, weight, dropped = scores[r], weights[r], out[r]
            top = _ordered(low)
            for i in range(keys):
                value = _wide(given[i]) if visible[i] else low
                row[i] = value
                top = max(top, _ordered(value))
            most, total = _ordered(top), zero
            for i in range(keys):
                x = row[i] - most
                e = _exp_down(x)
                e = zero if x < _LEAST else e
                row[i] = e
                total += e
            share = row.dtype.type(1) / total
            for i in range(keys):
                value = row[i] * share
                weight[i] = _narrow(value, weight[i])
                dropped[i] = _narrow(value * factor if kept[i] else zero, dropped[i])


@_compiled
def softmax_dropout_backward(
    weights: np.ndarray,
    grad: np.ndarray,
    out: np.ndarray,
    dropped: np.ndarray,
    key: int,
    cut: int,
    scale: float,
    unit: int,
    first: int,
    last: int,
) -> None:
    """Gradient in the scores into `out`, from the `weights` and the gradient `grad` of what was left of them.

    That goes into `dropped` again. `out` may be `grad`.
    """
    rows, keys = weights.shape
    blocks = unit * keys // BLOCK
    keep = np.empty(blocks * BLOCK, np.uint32)
    row = np.full(keys, _wide(weights[0, 0]))
    factor, zero = row.dtype.type(scale), row.dtype.type(0)
    for u in range(first, last):
        for b in range(blocks):
            draw(key, u * blocks + b, keep[b * BLOCK : (b + 1) * BLOCK], cut)
        for r in range(u * unit, min((u + 1) * unit, rows)):
            at = (r - u * unit) * keys
            kept = keep[at : at + keys]
            given, weight, found, left = grad[r], weights[r], out[r], dropped[r]
            total = zero
            for i in range(keys):
                g = _wide(given[i]) * factor if kept[i] else zero
                row[i] = g
                total += g * _wide(weight[i])
            for i in range(keys):
                left[i] = _narrow(_wide(weight[i]) * factor if kept[i] else zero, left[i])
            for i in range(keys):
                found[i] = _narrow((row[i] - total) * _wide(weight[i]), found[i])

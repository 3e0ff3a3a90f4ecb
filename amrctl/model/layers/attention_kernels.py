"""Mask, softmax and dropout of attention weights in one compiled loop, and their gradient in another.

Apart, they read and write an array of queries x keys many times, which on a CPU takes longer than the
matrix products beside them. The dropped elements are those of `kernels.dropout` with the same key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from amrctl.arithmetic import _exp_down, _narrow, _wide
from amrctl.compiled import compiling
from amrctl.model.layers.kernels import BLOCK, draw

_LEAST = np.float32(-87.0)  # exp of less is 0
_compiled = compiling(fastmath={"contract", "reassoc", "nsz"})


def _highest(row: Any) -> Any:
    """The largest number of an array."""
    raise NotImplementedError("only compiled code calls this")


# leave to ignore a NaN makes this SIMD; the NaN itself stays in the row and spoils it, as it should
@overload(_highest, jit_options={"fastmath": {"nnan", "nsz"}}, strict=False)
def _highest_of(row: Any) -> Any:
    def highest(row: Any) -> Any:
        most = row[0]
        for i in range(1, row.size):
            most = max(most, row[i])
        return most

    return highest


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
            visible = seen[r // shared]
            for i in range(keys):
                value = _wide(scores[r, i])
                row[i] = value if visible[i] else low
            most = _highest(row)
            total = zero
            for i in range(keys):
                x = row[i] - most
                e = _exp_down(x)
                e = zero if x < _LEAST else e
                row[i] = e
                total += e
            share = row.dtype.type(1) / total
            for i in range(keys):
                weight = row[i] * share
                weights[r, i] = _narrow(weight, weights[r, i])
                out[r, i] = _narrow(weight * factor if keep[at + i] else zero, out[r, i])


@_compiled
def softmax_dropout_backward(
    weights: np.ndarray,
    grad: np.ndarray,
    out: np.ndarray,
    key: int,
    cut: int,
    scale: float,
    unit: int,
    first: int,
    last: int,
) -> None:
    """Gradient in the scores into `out`, from the `weights` and the gradient of what was dropped from."""
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
            total = zero
            for i in range(keys):
                g = _wide(grad[r, i]) * factor if keep[at + i] else zero
                row[i] = g
                total += g * _wide(weights[r, i])
            for i in range(keys):
                out[r, i] = _narrow((row[i] - total) * _wide(weights[r, i]), out[r, i])

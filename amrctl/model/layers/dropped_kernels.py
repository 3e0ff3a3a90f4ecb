"""Dropout in one compiled loop with what stands before or behind it, and their gradients; numbers may be
bfloat16 as bits.

The dropped elements are those of `kernels.dropout` with the same key: one goes when its 16 bits are below
`cut`. Arrays are flat, and `first` to `last` are blocks of them.
"""

from __future__ import annotations

import numpy as np

from amrctl.arithmetic import _narrow, _wide
from amrctl.compiled import compiling
from amrctl.model.layers.kernels import BLOCK, _part, draw

_compiled = compiling(fastmath={"contract", "nsz"})


@_compiled
def prelu_dropout(
    x: np.ndarray, out: np.ndarray, slope: float, key: int, cut: int, scale: float, first: int, last: int
) -> None:
    """Dropout of PReLU of `x` into `out`."""
    keep = np.empty(BLOCK, np.uint32)
    wide = np.full(1, _wide(x[0]))  # of the type that is computed in
    zero, steep, factor = wide.dtype.type(0), wide.dtype.type(slope), wide.dtype.type(scale)
    for block in range(first, last):
        draw(key, block, keep, cut)
        given, found = _part(x, block), _part(out, block)
        for i in range(given.size):
            value = _wide(given[i])
            value = (value if value > zero else value * steep) * factor
            found[i] = _narrow(value if keep[i] else zero, found[i])


@_compiled
def prelu_dropout_backward(
    x: np.ndarray,
    grad: np.ndarray,
    out: np.ndarray,
    slopes: np.ndarray,
    slope: float,
    key: int,
    cut: int,
    scale: float,
    first: int,
    last: int,
) -> None:
    """Gradient in `x` into `out`, and in the one slope into `slopes`, a number for each block."""
    keep = np.empty(BLOCK, np.uint32)
    products = np.full(BLOCK, _wide(x[0]))
    zero, steep, factor = products.dtype.type(0), products.dtype.type(slope), products.dtype.type(scale)
    for block in range(first, last):
        draw(key, block, keep, cut)
        given, of, found = _part(x, block), _part(grad, block), _part(out, block)
        for i in range(given.size):
            value = _wide(given[i])
            kept = _wide(of[i]) * factor if keep[i] else zero
            found[i] = _narrow(kept if value > zero else kept * steep, found[i])
            products[i] = zero if value > zero else kept * value
        for i in range(given.size, BLOCK):
            products[i] = zero
        width = BLOCK // 2
        while width > 0:  # halves onto each other: SIMD, and the rounding of a pairwise sum
            for i in range(width):
                products[i] += products[width + i]
            width //= 2
        slopes[block] = products[0]


@_compiled
def add_dropout(
    x: np.ndarray,
    branch: np.ndarray,
    out: np.ndarray,
    key: int,
    cut: int,
    scale: float,
    first: int,
    last: int,
) -> None:
    """`x` and dropout of `branch` into `out`."""
    keep = np.empty(BLOCK, np.uint32)
    wide = np.full(1, _wide(out[0]))  # of the type that is computed in
    zero, factor = wide.dtype.type(0), wide.dtype.type(scale)
    for block in range(first, last):
        draw(key, block, keep, cut)
        given, more, found = _part(x, block), _part(branch, block), _part(out, block)
        for i in range(given.size):
            value = _wide(more[i]) * factor if keep[i] else zero
            found[i] = _narrow(_wide(given[i]) + value, found[i])

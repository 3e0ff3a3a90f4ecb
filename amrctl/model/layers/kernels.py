"""Loops that torch does in several passes, or slowly, on a CPU: dropout, powers of a rotation.

Random bits are a hash of a key and a counter (SplitMix64: Steele, Lea and Flood, 2014), so that a
mask is made again from its key in the backward pass instead of being stored. One 64-bit word serves
four elements. Half-precision numbers come as their bits (uint16, bfloat16).
"""

from __future__ import annotations

import numpy as np

from amrctl.arithmetic import _narrow, _wide
from amrctl.compiled import compiled

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_WORDS = 64
BLOCK = 4 * _WORDS  # elements; inside a block all loops run over neighbours, so that they become SIMD
_SHIFT30, _SHIFT27, _SHIFT31 = np.uint64(30), np.uint64(27), np.uint64(31)
_LOW16 = np.uint64(0xFFFF)


@compiled
def draw(key: int, block: int, keep: np.ndarray, cut: int) -> None:
    """`keep[i]` = 1 where element i of this block stays, else 0."""
    base = np.uint64(key) + np.uint64(block * _WORDS) * _STEP
    least = np.uint32(cut)
    for k in range(_WORDS):
        z = base + np.uint64(k) * _STEP
        z = (z ^ (z >> _SHIFT30)) * _MIX1
        z = (z ^ (z >> _SHIFT27)) * _MIX2
        z = z ^ (z >> _SHIFT31)
        for quarter in range(4):
            bits = np.uint32((z >> np.uint64(16 * quarter)) & _LOW16)
            keep[quarter * _WORDS + k] = bits >= least


@compiled
def _part(x: np.ndarray, block: int) -> np.ndarray:
    """One block of a flat array. A loop over all of a view has no index to check, so it becomes SIMD."""
    return x[block * BLOCK : (block + 1) * BLOCK]


@compiled
def dropout(x: np.ndarray, out: np.ndarray, key: int, cut: int, scale: float, first: int, last: int) -> None:
    """`out = x * scale` where an element stays, else 0; blocks `first` to `last` of flat arrays.

    An element goes when its 16 bits are below `cut`. `out` may be of another type than `x`.
    """
    keep = np.empty(BLOCK, np.uint32)
    wide = np.full(1, _wide(x[0]))  # of the type that is computed in
    zero, factor = wide.dtype.type(0), wide.dtype.type(scale)
    for block in range(first, last):
        draw(key, block, keep, cut)
        given, found = _part(x, block), _part(out, block)
        for i in range(given.size):
            found[i] = _narrow(_wide(given[i]) * factor if keep[i] else zero, found[i])


@compiled
def power_sums(cos: np.ndarray, sin: np.ndarray, real: np.ndarray, imaginary: np.ndarray) -> None:
    """Add up cosines and sines of 1, 2, .. K times an angle over the rows.

    `cos` and `sin` [n, S] of the angles; `real` and `imaginary` [K, S] are added to.
    """
    c, s = np.empty(BLOCK, cos.dtype), np.empty(BLOCK, cos.dtype)
    for start in range(0, cos.shape[1], BLOCK):
        count = min(BLOCK, cos.shape[1] - start)
        for row in range(cos.shape[0]):
            first_c, first_s = cos[row, start : start + count], sin[row, start : start + count]
            for i in range(count):
                c[i], s[i] = first_c[i], first_s[i]
            for k in range(real.shape[0]):
                sum_c, sum_s = real[k, start : start + count], imaginary[k, start : start + count]
                for i in range(count):
                    sum_c[i] += c[i]
                    sum_s[i] += s[i]
                    turned = c[i] * first_c[i] - s[i] * first_s[i]
                    s[i] = s[i] * first_c[i] + c[i] * first_s[i]
                    c[i] = turned


@compiled
def power_sums_backward(
    cos: np.ndarray, sin: np.ndarray, of_cos: np.ndarray, of_sin: np.ndarray, out: np.ndarray
) -> None:
    """`out` [n, S] = sum over k of of_sin[k] cos(k angle) - of_cos[k] sin(k angle); as in `power_sums`."""
    c, s, total = np.empty(BLOCK, cos.dtype), np.empty(BLOCK, cos.dtype), np.empty(BLOCK, cos.dtype)
    for start in range(0, cos.shape[1], BLOCK):
        count = min(BLOCK, cos.shape[1] - start)
        for row in range(cos.shape[0]):
            first_c, first_s = cos[row, start : start + count], sin[row, start : start + count]
            for i in range(count):
                c[i], s[i], total[i] = first_c[i], first_s[i], 0
            for k in range(of_cos.shape[0]):
                wanted_c, wanted_s = of_cos[k, start : start + count], of_sin[k, start : start + count]
                for i in range(count):
                    total[i] += wanted_s[i] * c[i] - wanted_c[i] * s[i]
                    turned = c[i] * first_c[i] - s[i] * first_s[i]
                    s[i] = s[i] * first_c[i] + c[i] * first_s[i]
                    c[i] = turned
            for i in range(count):
                out[row, start + i] = total[i]

"""Functions of one number for compiled loops: stored formats, and exponentials that become SIMD."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

_F = np.float32
_MAGIC, _LOW, _HIGH = _F(12582912.0), _F(-126.0), _F(127.0)
_LOG2E, _LN2 = _F(math.log2(math.e)), _F(math.log(2.0))
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(math.log(2.0) - 0.693359375)
# interpolation of 2 ** f at the Chebyshev nodes of [-1/2, 1/2]: relative error 1e-7
_C0, _C1, _C2 = _F(1.00000008), _F(0.69314719), _F(0.24022107)
_C3, _C4, _C5 = _F(0.05550357), _F(0.00967603), _F(0.00133909)
# log(1 + z) = 2 (s + s^3 / 3 + s^5 / 5 ...), s = z / (2 + z) <= 1/3
_L1, _L3, _L5, _L7 = _F(2.0), _F(2 / 3), _F(2 / 5), _F(2 / 7)
_L9, _L11, _L13 = _F(2 / 9), _F(2 / 11), _F(2 / 13)
_ZERO, _ONE, _TWO = _F(0), _F(1), _F(2)


def _helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register what `function` returns for the types of its arguments as what its name does in a kernel.

    Only contraction is allowed in helpers: the rounding trick must stay as it is written.
    """

    def stub(*args: Any) -> Any:
        raise TypeError(f"{function.__name__} is for compiled loops")

    overload(stub, jit_options={"fastmath": {"contract"}, "error_model": "numpy"}, strict=False)(function)
    return stub


@_helper
def _wide(x: Any) -> Any:
    """A stored number for arithmetic."""
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@_helper
def _narrow(x: Any, like: Any) -> Any:
    """`x` as it is stored beside `like`; bfloat16 rounds to the nearest, ties to even."""
    if like != types.uint16:
        return lambda x, like: x

    def rounded(x: Any, like: Any) -> Any:
        bits = np.float32(x).view(np.uint32)
        bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(bits >> np.uint32(16))

    return rounded


@_helper
def _ordered(x: Any) -> Any:
    """The bits of a float as a whole number: larger for larger floats, and back from such a number.

    The largest whole number of a row is SIMD everywhere, unlike the largest float, whose NaNs are in the way.
    """
    if x == types.float32:
        return lambda x: _turned(np.float32(x).view(np.int32))
    if x == types.float64:
        return lambda x: _turned(np.float64(x).view(np.int64))
    if x == types.int32:
        return lambda x: np.int32(_turned(x)).view(np.float32)
    return lambda x: np.int64(_turned(x)).view(np.float64)


@_helper
def _turned(bits: Any) -> Any:
    """Turn the magnitude of negative floats, so that their bits sort."""
    if bits == types.int32:
        return lambda bits: np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return lambda bits: np.int64(bits ^ ((bits >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF)))


@_helper
def _power(fraction: Any, shifted: Any) -> Any:
    """2 ** (fraction + n), where the low bits of `shifted` hold the whole number n."""

    def power(fraction: Any, shifted: Any) -> Any:
        p = _C5 * fraction + _C4
        p = p * fraction + _C3
        p = p * fraction + _C2
        p = p * fraction + _C1
        p = p * fraction + _C0
        bits = np.float32(p).view(np.int32) + (np.float32(shifted).view(np.int32) << np.int32(23))
        return np.int32(bits).view(np.float32)

    return power


@_helper
def _exp2(x: Any) -> Any:
    """2 ** x."""
    if x == types.float64:
        return lambda x: math.exp(x * 0.6931471805599453)

    def exp2(x: Any) -> Any:
        x = _LOW if x < _LOW else x
        x = _HIGH if x > _HIGH else x  # a NaN passes both and all that follows
        shifted = x + _MAGIC
        return _power(x - (shifted - _MAGIC), shifted)

    return exp2


@_helper
def _exp_down(x: Any) -> Any:
    """exp(-|x|)."""
    if x == types.float64:
        return lambda x: math.exp(-abs(x))

    def exp_down(x: Any) -> Any:
        x = -abs(x)
        x = x if x > -_F(87.0) else (-_F(87.0) if x <= -_F(87.0) else x)
        shifted = x * _LOG2E + _MAGIC
        whole = shifted - _MAGIC
        return _power(((x - whole * _LN2_HIGH) - whole * _LN2_LOW) * _LOG2E, shifted)

    return exp_down


@_helper
def _sigmoid(x: Any) -> Any:
    if x == types.float64:
        return lambda x: 1.0 / (1.0 + math.exp(-x))

    def sigmoid(x: Any) -> Any:
        small = _exp_down(x)
        return (_ONE if x >= _ZERO else small) / (_ONE + small)

    return sigmoid


@_helper
def _softplus(x: Any) -> Any:
    if x == types.float64:
        return lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))

    def softplus(x: Any) -> Any:
        z = _exp_down(x)
        s = z / (_TWO + z)
        q = s * s
        p = _L13 * q + _L11
        p = p * q + _L9
        p = p * q + _L7
        p = p * q + _L5
        p = p * q + _L3
        p = p * q + _L1
        return (_ZERO if x < _ZERO else x) + p * s

    return softplus

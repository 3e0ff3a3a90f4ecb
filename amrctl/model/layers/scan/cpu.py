"""The scan and the convolution on a CPU: the compiled loops of `kernels.py` with their gradients.

Instead of all states (length x channels x states) only every 16th is kept; the backward pass computes the
others again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from amrctl.model.layers.scan import kernels
from amrctl.model.layers.threads import spread


def _array(x: Tensor) -> np.ndarray:
    """The memory of a contiguous tensor; bfloat16 as its bits."""
    x = x.detach()
    array: np.ndarray = (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
    return array


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(_array(x) for x in tensors)


def _jobs(x: Tensor) -> int:
    return x.shape[0] * _blocks(x)


def _blocks(x: Tensor) -> int:
    return -(-x.shape[2] // kernels.WIDTH)


class Scan(torch.autograd.Function):
    """(u, delta, z, A, B, C, D, bias, gated, soft) → [B, T, D], all contiguous; see `selective_scan`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        u, delta, z, a, b, c, skip, bias, gated, soft = inputs
        batch, length, width = u.shape
        rate = (a.detach() * math.log2(math.e)).t().contiguous()
        kept = (length - 1) // kernels.EVERY if any(ctx.needs_input_grad) else 0
        marks = rate.new_empty(batch, kept, rate.shape[0], width)
        out = torch.empty_like(u)
        frames, matrices, rows = _arrays(u, delta, z), _arrays(rate, b, c), _arrays(skip, bias)
        to, states = _arrays(out, marks)
        spread(
            _jobs(u),
            lambda first, last: kernels.scan_forward(
                first, last, frames, matrices, rows, (gated, soft), to, states
            ),
        )
        ctx.save_for_backward(u, delta, z, rate, b, c, skip, bias, marks)
        ctx.flags = (gated, soft)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, z, rate, b, c, skip, bias, marks = ctx.saved_tensors
        batch, length, width = u.shape
        states = rate.shape[0]
        gated, _ = ctx.flags
        d_u, d_delta = torch.empty_like(u), torch.empty_like(delta)
        d_z = torch.empty_like(z) if gated else z
        d_rate = rate.new_empty(batch, states, width)
        d_b, d_c = rate.new_empty(2, _blocks(u), batch, length, states)
        d_skip, d_bias = rate.new_empty(2, batch, width)
        frames, matrices, rows = _arrays(u, delta, z), _arrays(rate, b, c), _arrays(skip, bias)
        coming, kept = _arrays(grad.to(u.dtype).contiguous(), marks)
        d_frames, d_matrices = _arrays(d_u, d_delta, d_z), _arrays(d_rate, d_b, d_c)
        d_rows = _arrays(d_skip, d_bias)
        spread(
            _jobs(u),
            lambda first, last: kernels.scan_backward(
                first, last, frames, matrices, rows, ctx.flags, coming, kept, d_frames, d_matrices, d_rows
            ),
        )
        sums = (added(d_rate).t(), added(d_b), added(d_c), added(d_skip), added(d_bias))
        return d_u, d_delta, d_z if gated else None, *sums, None, None


class Convolution(torch.autograd.Function):
    """(x [B, T, D], weight [D, K], bias [D]) → SiLU of the causal convolution, [B, T, D]; x contiguous."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, weight, bias = inputs
        taps = weight.detach().t().contiguous()
        out = torch.empty_like(x)
        arrays = _arrays(x, taps, bias, out)
        spread(_jobs(x), lambda first, last: kernels.conv_forward(first, last, *arrays))
        ctx.save_for_backward(x, taps, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, taps, bias = ctx.saved_tensors
        d_x = torch.empty_like(x)
        d_taps = taps.new_empty(x.shape[0], *taps.shape)
        d_bias = taps.new_empty(x.shape[0], x.shape[2])
        arrays = _arrays(x, taps, bias, grad.to(x.dtype).contiguous(), d_x, d_taps, d_bias)
        spread(_jobs(x), lambda first, last: kernels.conv_backward(first, last, *arrays))
        return d_x, added(d_taps).t(), added(d_bias)


def added(shares: Tensor) -> Tensor:
    """Sum over the first dimension, one share after the other: the order does not depend on threads."""
    total = torch.empty_like(shares[0])
    kernels.add_shares(_array(shares.view(len(shares), -1)), _array(total.view(-1)))
    return total


def narrow(x: Tensor) -> Tensor:
    """Contiguous, and float32 if it is float16: the kernels know bfloat16, float32 and float64."""
    return (x.float() if x.dtype == torch.float16 else x).contiguous()


def scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None,
    bias: Tensor,
    soft: bool,
) -> Tensor:
    """`selective_scan` on a CPU; bfloat16 and float32 compute in float32, float64 in float64."""
    kind = torch.float64 if u.dtype == torch.float64 else torch.float32
    u = narrow(u)
    delta = delta.to(u.dtype).contiguous()
    gate = u if z is None else z.to(u.dtype).contiguous()
    inner = [x.to(kind).contiguous() for x in (a, b, c, d, bias)]
    out: Tensor = Scan.apply(u, delta, gate, *inner, z is not None, soft)  # type: ignore[no-untyped-call]
    return out


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`causal_conv` on a CPU."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    inner = (weight.to(kind), bias.to(kind).contiguous())
    out: Tensor = Convolution.apply(narrow(x), *inner)  # type: ignore[no-untyped-call]
    return out

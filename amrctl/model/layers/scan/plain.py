"""The scan in plain torch operations, for any device; also the cross-check of the others.

Inside a chunk of 32 frames the recurrence is solved by doubling (Hillis and Steele, 1986): five rounds of
products of decays, which never exceed 1. Chunks are recomputed in the backward pass, so that memory holds
the states of one chunk at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK = 32


def _chunk(h: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """States [B, D, N] before → outputs [B, K, D] and states after the K frames of a chunk."""
    decay = torch.exp(delta[..., None] * a)
    state = (delta * u)[..., None] * b[:, :, None]
    state = torch.cat((state[:, :1] + decay[:, :1] * h[:, None], state[:, 1:]), dim=1)
    reach = 1
    while reach < u.shape[1]:
        grown = state[:, reach:] + decay[:, reach:] * state[:, :-reach]
        state = torch.cat((state[:, :reach], grown), dim=1)
        decay = torch.cat((decay[:, :reach], decay[:, reach:] * decay[:, :-reach]), dim=1)
        reach *= 2
    return (state * c[:, :, None]).sum(-1), state[:, -1]


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
    """`selective_scan`; half precision computes in float32."""
    kind = torch.float64 if u.dtype == torch.float64 else torch.float32
    wide, delta, a, b, c, d, bias = (x.to(kind) for x in (u, delta, a, b, c, d, bias))
    delta = delta + bias
    if soft:
        delta = functional.softplus(delta)
    h = wide.new_zeros(u.shape[0], u.shape[2], a.shape[1])
    outs = []
    for start in range(0, u.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        out, h = checkpoint(
            _chunk, h, wide[:, part], delta[:, part], a, b[:, part], c[:, part], use_reentrant=False
        )
        outs.append(out)
    y = torch.cat(outs, dim=1) + wide * d
    if z is not None:
        y = y * functional.silu(z.to(kind))
    return y.to(u.dtype)


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`causal_conv` by the library's grouped convolution."""
    taps = weight.shape[1]
    padded = functional.pad(x.transpose(1, 2), (taps - 1, 0))
    y = functional.conv1d(padded, weight[:, None].to(x.dtype), bias.to(x.dtype), groups=x.shape[2])
    return functional.silu(y).transpose(1, 2)

"""Dropout that costs a CPU little more than reading its input.

The library draws one Bernoulli variate per element and stores the mask; here one key is drawn from
the global generator, and a hash of key and place decides (16 bits each, see `kernels`), forward and
again backward. The rate is a multiple of 1/65536 and the scale is exact for it. Other devices use
the library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional


def dropped(shape: torch.Size, p: float) -> Tensor:
    """Draw a CPU bool mask, True (drop) with probability `round(p * 65536) / 65536`."""
    return _masked(torch.ones(shape), _key(), _cut(p)) == 0


def _cut(p: float) -> int:
    return round(p * 65536)


def _key() -> int:
    return int(torch.empty((), dtype=torch.int64).random_(-(2**63), None).item()) % 2**64


def _masked(x: Tensor, key: int, cut: int) -> Tensor:
    """`x` with its dropped elements zeroed and the others scaled; contiguous."""
    from amrctl.model.layers import kernels

    x = x.detach().contiguous()
    out = torch.empty_like(x)
    how = (np.uint64(key), np.uint32(cut), 1.0 / (1.0 - cut / 65536))
    if x.dtype == torch.bfloat16:
        kernels.dropout_bfloat16(_bits(x), _bits(out), *how)
    else:
        kernels.dropout(x.view(-1).numpy(), out.view(-1).numpy(), *how)
    return out


def _bits(x: Tensor) -> npt.NDArray[np.uint16]:
    """The bits of bfloat16 numbers, flat; numpy has no such type."""
    return x.view(torch.uint16).view(-1).numpy()


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.key, ctx.cut = _key(), _cut(p)
        return _masked(x, ctx.key, ctx.cut)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _masked(grads[0], ctx.key, ctx.cut), None


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Inverted dropout of any shape; the identity when not training or `p` is 0."""
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, p)
    dropped_x: Tensor = _Drop.apply(x, p)  # type: ignore[no-untyped-call]
    return dropped_x


class Dropout(nn.Module):
    """`drop` as a module."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p, self.training)

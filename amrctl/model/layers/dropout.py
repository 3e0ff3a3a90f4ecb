"""Dropout whose mask is cheap to draw on a CPU.

The library draws one Bernoulli variate per element; here one 64-bit draw of the global generator
serves four elements (16 bits each), so that the mask costs less than the product it masks. The
rate is a multiple of 1/65536 and the scale is exact for it. Other devices use the library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def dropped(shape: torch.Size, p: float) -> Tensor:
    """Draw a CPU bool mask, True (drop) with probability `round(p * 65536) / 65536`."""
    count = shape.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    cut = -32768 + round(p * 65536)
    below = torch.lt(words.view(torch.int16)[:count], cut)
    return below.reshape(shape)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask = dropped(x.shape, p)
        ctx.save_for_backward(mask)
        scale = 1.0 / (1.0 - round(p * 65536) / 65536)
        ctx.scale = scale
        return (x * scale).masked_fill_(mask, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (grads[0] * ctx.scale).masked_fill_(mask, 0.0), None


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

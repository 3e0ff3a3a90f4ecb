"""Dropout that costs a CPU little more than reading its input.

The library draws one Bernoulli variate per element and stores the mask; here one key is drawn from
the global generator, and a hash of key and place decides (16 bits each, see `kernels`), forward and
again backward. The rate is a multiple of 1/65536 and the scale is exact for it. Other devices use
the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from amrctl.model.layers.stacking import folded, stacked
from amrctl.model.layers.threads import spread_elements

_APART = 0xD1342543DE82EF95  # odd, and far from small multiples of the counter's step


@dataclass(frozen=True)
class Draws:
    """What decides which elements go: a key of 64 bits from the global generator, and a threshold for 16.

    Plain integers: the compiler of `train.compile` stumbles over numpy's.
    """

    key: int
    cut: int

    @classmethod
    def new(cls, p: float) -> Draws:
        """Draw a key; elements go with probability `round(p * 65536) / 65536`."""
        key = torch.empty((), dtype=torch.int64).random_(-(2**63), None).item()
        return cls(int(key), round(p * 65536))

    def part(self, number: int) -> Draws:
        """The draws of one of several parts; of part 0 these."""
        return Draws((self.key + number * _APART + 2**63) % 2**64 - 2**63, self.cut)

    @property
    def scale(self) -> float:
        """What the elements that stay are multiplied by."""
        return 1.0 / (1.0 - self.cut / 65536)


def dropped(shape: torch.Size, p: float) -> Tensor:
    """Draw a CPU bool mask, True (drop) with probability `round(p * 65536) / 65536`."""
    return _masked(torch.ones(shape), Draws.new(p)) == 0


def _masked(x: Tensor, draws: Draws) -> Tensor:
    """`x` with its dropped elements zeroed and the others scaled; contiguous."""
    from amrctl.model.layers import kernels

    x = x.detach().contiguous()
    out = torch.empty_like(x)
    if x.numel():
        by_blocks(kernels.dropout, [flat(x), flat(out)], draws)
    return out


def by_blocks(run: Any, given: list[Any], draws: Draws) -> None:
    """Call a loop that drops, `run(*given, key, cut, scale, first, last)`, on all blocks, over threads.

    The first of `given` is a flat array as long as any; it is not empty.
    """
    from amrctl.model.layers.kernels import BLOCK

    how = (*given, draws.key, draws.cut, draws.scale)
    spread_elements(given[0].size, BLOCK, lambda first, last: run(*how, first, last))


def flat(x: Tensor) -> npt.NDArray[Any]:
    """The memory of a contiguous tensor as a flat array; of bfloat16 the bits, as numpy has no such type."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).view(-1).numpy()


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.draws = Draws.new(p)
        return _masked(x, ctx.draws)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _masked(grads[0], ctx.draws), None


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Inverted dropout of any shape; the identity when not training or `p` is 0."""
    if not training or p == 0.0:
        return x
    if stacked(x):
        return folded(lambda y: drop(y, p, True), x)
    if x.device.type != "cpu":
        return functional.dropout(x, p)
    dropped_x: Tensor = _Drop.apply(x, p)  # type: ignore[no-untyped-call]
    return dropped_x


def branch_dropout(p: float, drop_path: float | None) -> nn.Module:
    """What a residual layer does to its branches: `DropPath` where a rate for it is given, else `Dropout`."""
    return Dropout(p) if drop_path is None else DropPath(drop_path)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016) by row of the batch: a branch is dropped whole or scaled.

    `p` is the chance of the former; the scale 1 / (1 - p) keeps the mean.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.p
        return x * (kept.to(x.dtype) / (1.0 - self.p))


class Dropout(nn.Module):
    """`drop` as a module."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p, self.training)

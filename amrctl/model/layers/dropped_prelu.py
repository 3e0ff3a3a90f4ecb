"""PReLU and dropout on a CPU as one compiled loop, and their gradient as another (`prelu_kernels`).

Between the products of a feed-forward network lie the largest arrays of a step; apart, the two read and write
them twice, and the library's gradient of PReLU takes many times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from amrctl.model.layers.activation import PReLU
from amrctl.model.layers.dropout import Draws, Dropout, flat
from amrctl.model.layers.stacking import stacked
from amrctl.model.layers.threads import spread_elements


def prelu_dropped(x: Tensor, prelu: PReLU, dropout: Dropout) -> Tensor:
    """`dropout(prelu(x))`, any shape; the loops are for training."""
    loops = dropout.training and torch.is_grad_enabled() and x.device.type == "cpu" and x.numel() > 0
    if loops and not torch.compiler.is_compiling() and not stacked(x):
        out: Tensor = _Dropped.apply(x, prelu.weight, dropout.p)  # type: ignore[no-untyped-call]
    else:
        out = dropout(prelu(x))
    return out


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, p: float) -> Tensor:
        from amrctl.model.layers import kernels, prelu_kernels

        x = x.detach().contiguous()
        ctx.draws = Draws.new(p) if p else Draws(0, 0)
        ctx.save_for_backward(x, slope)
        out = torch.empty_like(x)
        arrays, how = (flat(x), flat(out)), _how(slope, ctx.draws)
        run: Any = prelu_kernels.prelu_dropout
        spread_elements(x.numel(), kernels.BLOCK, lambda first, last: run(*arrays, *how, first, last))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        from amrctl.model.layers import kernels, prelu_kernels

        x, slope = ctx.saved_tensors
        out = torch.empty_like(x)
        # a sum for each block, added up here: the order does not depend on threads
        sums = np.empty(-(-x.numel() // kernels.BLOCK))
        arrays, how = (flat(x), flat(grads[0].contiguous()), flat(out), sums), _how(slope, ctx.draws)
        run: Any = prelu_kernels.prelu_dropout_backward
        spread_elements(x.numel(), kernels.BLOCK, lambda first, last: run(*arrays, *how, first, last))
        return out, slope.new_full((1,), float(sums.sum())), None


def _how(slope: Tensor, draws: Draws) -> tuple[float, int, int, float]:
    return slope.item(), draws.key, draws.cut, draws.scale

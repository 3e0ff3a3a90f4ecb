"""The branches of a transformer layer on a CPU: dropout in one compiled loop with what stands beside it.

PReLU before it, inside a feed-forward network, and the sum behind it, into which a branch goes. Apart, they
read and write the largest arrays of a step several times, in bfloat16 with a copy in float32 between; and the
library's gradient of PReLU takes many times as long as the loop. Loops and what they drop: `dropped_kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amrctl.model.layers.activation import PReLU
from amrctl.model.layers.dropout import Draws, Dropout, by_blocks, flat
from amrctl.model.layers.stacking import stacked


def prelu_dropped(x: Tensor, prelu: PReLU, dropout: Dropout) -> Tensor:
    """`dropout(prelu(x))`, any shape; float32, float64 or bfloat16 on a CPU."""
    if _has_loops(x):
        p = dropout.p if dropout.training else 0.0
        out: Tensor = _DroppedPReLU.apply(x, prelu.weight, p)  # type: ignore[no-untyped-call]
    else:
        out = dropout(prelu(x))
    return out


def add_dropped(x: Tensor, branch: Tensor, dropout: nn.Module) -> Tensor:
    """`x + dropout(branch)`, any shape, of the wider type; `dropout` is what `branch_dropout` gives."""
    is_loop = isinstance(dropout, Dropout) and dropout.training and dropout.p > 0
    if is_loop and x.shape == branch.shape and _has_loops(x) and not stacked(branch):
        out: Tensor = _Added.apply(x, branch, dropout.p)  # type: ignore[no-untyped-call]
    else:
        out = x + dropout(branch)
    return out


def _has_loops(x: Tensor) -> bool:
    """Whether a loop is worth it: on a CPU, where a gradient may be wanted."""
    here = torch.is_grad_enabled() and x.device.type == "cpu" and x.numel() > 0
    return here and not torch.compiler.is_compiling() and not stacked(x)


class _DroppedPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, p: float) -> Tensor:
        from amrctl.model.layers import dropped_kernels

        x, out = x.detach().contiguous(), torch.empty(x.shape, dtype=x.dtype)
        ctx.draws = Draws.new(p) if p else Draws(0, 0)
        ctx.save_for_backward(x, slope)
        by_blocks(dropped_kernels.prelu_dropout, [flat(x), flat(out), slope.item()], ctx.draws)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        from amrctl.model.layers import dropped_kernels
        from amrctl.model.layers.kernels import BLOCK

        x, slope = ctx.saved_tensors
        out = torch.empty_like(x)
        # a sum for each block, added up here: the order does not depend on threads
        sums = np.empty(-(-x.numel() // BLOCK))
        given = [flat(x), flat(grads[0].contiguous()), flat(out), sums, slope.item()]
        by_blocks(dropped_kernels.prelu_dropout_backward, given, ctx.draws)
        return out, slope.new_full((1,), float(sums.sum())), None


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, p: float) -> Tensor:
        from amrctl.model.layers import dropped_kernels

        ctx.draws, ctx.dtype = Draws.new(p), branch.dtype
        out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
        given = [flat(x.detach().contiguous()), flat(branch.detach().contiguous()), flat(out)]
        by_blocks(dropped_kernels.add_dropout, given, ctx.draws)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        from amrctl.model.layers import kernels

        grad = grads[0].contiguous()
        out = torch.empty(grad.shape, dtype=ctx.dtype)
        by_blocks(kernels.dropout, [flat(grad), flat(out)], ctx.draws)
        return grad, out, None

"""Activations with a learned parameter.

PReLU (He et al. 2015): its backward pass is one loop on a CPU; the library's takes many times as long.
Swish (Ramachandran et al. 2017) as in the Yokohama report (DCASE 2026 Task 6), section 2.7, eq. 1. Ours:
one beta for each place, and it starts at 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from amrctl.model.layers.dropout import flat
from amrctl.model.layers.stacking import stacked
from amrctl.model.layers.threads import spread_elements


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, slope)
        return functional.prelu(x, slope.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        from amrctl.model.layers import kernels

        x, slope = ctx.saved_tensors
        out = torch.empty_like(x)
        given, grad, found = flat(x), flat(grads[0].contiguous()), flat(out)
        half = x.dtype == torch.bfloat16
        run: Any = kernels.prelu_backward_bfloat16 if half else kernels.prelu_backward
        factor = slope.item()
        # a sum for each block, added up here: the order does not depend on threads
        sums = np.empty(-(-x.numel() // kernels.BLOCK), np.float32 if half else given.dtype)
        spread_elements(
            x.numel(),
            kernels.BLOCK,
            lambda first, last: run(given, grad, factor, found, sums, first, last),
        )
        return out, slope.new_full((1,), float(sums.sum(dtype=np.float64)))


class PReLU(nn.PReLU):
    """`torch.nn.PReLU` with one slope: the same parameter, the same numbers."""

    def __init__(self) -> None:
        super().__init__(num_parameters=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or stacked(x):
            return functional.prelu(x, self.weight.to(x.dtype))
        y: Tensor = _PReLU.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return y


class Swish(nn.Module):
    """x sigmoid(beta x) with one learned beta; any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta.to(x.dtype) * x)


def swish_(module: nn.Module) -> None:
    """Put a `Swish` of its own in the place of every ReLU and PReLU within `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.ReLU, nn.PReLU)):
                setattr(parent, name, Swish())

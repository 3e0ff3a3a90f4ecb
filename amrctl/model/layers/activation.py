"""PReLU (He et al. 2015) whose backward pass is one loop on a CPU; the library's takes many times as long."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        half = x.dtype == torch.bfloat16
        given, grad, found = (
            (t.view(torch.uint16) if half else t).view(-1).numpy() for t in (x, grads[0].contiguous(), out)
        )
        run = kernels.prelu_backward_bfloat16 if half else kernels.prelu_backward
        return out, slope.new_full((1,), run(given, grad, slope.item(), found))


class PReLU(nn.PReLU):
    """`torch.nn.PReLU` with one slope: the same parameter, the same numbers."""

    def __init__(self) -> None:
        super().__init__(num_parameters=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return functional.prelu(x, self.weight.to(x.dtype))
        y: Tensor = _PReLU.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return y

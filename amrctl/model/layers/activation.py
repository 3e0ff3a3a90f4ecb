"""Activations with a learned parameter.

PReLU (He et al. 2015) is the library's; `dropped_branch` has it with the dropout behind it.
Swish (Ramachandran et al. 2017) as in the Yokohama report (DCASE 2026 Task 6), section 2.7, eq. 1. Ours:
one beta for each place, and it starts at 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class PReLU(nn.PReLU):
    """`torch.nn.PReLU` with one slope: the same parameter, the same numbers, under autocast too."""

    def __init__(self) -> None:
        super().__init__(num_parameters=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.prelu(x, self.weight.to(x.dtype))


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

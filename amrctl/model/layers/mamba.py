"""The Mamba block: input projection, short convolution, selective scan, gate, output projection.

Source: Gu and Dao, Mamba (2023), section 3.4; parameters are named, shaped and initialised as in their
`mamba_ssm.Mamba`, so that weights load from and into it by name. A detector's Xavier pass must not touch
them: A would lose its time scales.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from amrctl.model.layers.scan import causal_conv, selective_scan

_STEP_MIN, _STEP_MAX, _STEP_FLOOR = 1e-3, 1e-1, 1e-4


class Mamba(nn.Module):
    """[B, T, H] → [B, T, H], each frame from itself and earlier ones; `expand` x H inner channels."""

    def __init__(self, width: int, state: int = 16, conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner = expand * width
        self.state, self.rank = state, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        with torch.no_grad():
            bound = self.rank**-0.5
            self.dt_proj.weight.uniform_(-bound, bound)
            low, high = math.log(_STEP_MIN), math.log(_STEP_MAX)
            step = torch.exp(torch.rand(inner) * (high - low) + low).clamp(min=_STEP_FLOOR)
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus gives the step again

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, H]; returns [B, T, H]."""
        inner = self.D.shape[0]
        # two products instead of one that is cut: the halves come contiguous
        u = functional.linear(x, self.in_proj.weight[:inner])
        z = functional.linear(x, self.in_proj.weight[inner:])
        assert self.conv1d.bias is not None
        u = causal_conv(u, self.conv1d.weight[:, 0], self.conv1d.bias)
        step, b, c = self.x_proj(u).split((self.rank, self.state, self.state), dim=-1)
        delta = functional.linear(step, self.dt_proj.weight)
        a = -torch.exp(self.A_log.float())
        y = selective_scan(u, delta, a, b, c, self.D, z, self.dt_proj.bias, True)
        out: Tensor = self.out_proj(y)
        return out

"""Foreground head: two logits per query, index 0 foreground, index 1 background (QD-DETR)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from amrctl.model.types import Decoded, Dims, Memory, Output
from amrctl.registry import ComponentConfig, component


class ForegroundConfig(ComponentConfig):
    kind: Literal["foreground"] = "foreground"


@component("heads", "foreground", ForegroundConfig)
class Foreground(nn.Module):
    """Writes `output.logits` [S, B, N, 2]."""

    def __init__(self, config: ForegroundConfig, dims: Dims) -> None:
        super().__init__()
        self.linear = nn.Linear(dims.hidden, 2)

    def forward(self, memory: Memory, decoded: Decoded, output: Output) -> None:
        output.logits = self.linear(decoded.states)

"""Saliency head: how much each frame agrees with the summary token (QD-DETR)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from amrctl.model.types import Decoded, Dims, Memory, Output
from amrctl.registry import ComponentConfig, component


class SaliencyConfig(ComponentConfig):
    kind: Literal["saliency"] = "saliency"


@component("heads", "saliency", SaliencyConfig)
class Saliency(nn.Module):
    """Writes `output.saliency` [B, T]: inner product of two projections over sqrt(H)."""

    def __init__(self, config: SaliencyConfig, dims: Dims) -> None:
        super().__init__()
        self.frame = nn.Linear(dims.hidden, dims.hidden)
        self.whole = nn.Linear(dims.hidden, dims.hidden)
        self.scale = 1.0 / math.sqrt(dims.hidden)

    def curve(self, memory: Memory) -> Tensor:
        """The saliency of every frame, [B, T] float32, raw."""
        product: Tensor = (self.frame(memory.audio) * self.whole(memory.summary)[:, None]).float().sum(-1)
        return product * self.scale

    def forward(self, memory: Memory, decoded: Decoded, output: Output) -> None:
        output.saliency = self.curve(memory)

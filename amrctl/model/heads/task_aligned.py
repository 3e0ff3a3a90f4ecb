"""Task-aligned heads: span, class and IoU from features that all three share.

Source: Yokohama, DCASE 2026 Task 6, section 2.6: intermediate features are shared by all heads, and a head
for the IoU of the window is added, so that the three agree. Left open there, ours: a trunk of two linear
layers, one linear layer per head after it, one class logit (sigmoid). It takes the place of the heads
`foreground` and `span`. The IoU head learns by L1 (section 3.1; see `losses.iou_quality`): matched windows
only, the IoU detached, weight 1. The report's class loss is `varifocal`. Ranking is by the class
(`foreground`); the score `product` multiplies it with the IoU.
"""

from __future__ import annotations

from itertools import chain
from typing import Literal

from pydantic import Field
from torch import nn

from amrctl import registry
from amrctl.model.layers.spans import logit
from amrctl.model.types import Decoded, Dims, LossTerm, Memory, Output
from amrctl.registry import ComponentConfig, component

NAME = "task-aligned"


class TaskAlignedConfig(ComponentConfig):
    kind: Literal["task-aligned"] = "task-aligned"
    layers: int = Field(2, ge=1, description="linear layers of the trunk")
    iou: bool = Field(True, description="the head for the IoU; false: class and span alone")
    weight: float = Field(1.0, ge=0, description="of the L1 between IoU and what that head says")


@component("heads", NAME, TaskAlignedConfig)
class TaskAligned(nn.Module):
    """Writes `output.logits` [S, B, N, 1], `output.spans` [S, B, N, 2], `output.quality` [S, B, N] logits."""

    replaces: tuple[str, ...] = ("foreground", "span")

    def __init__(self, config: TaskAlignedConfig, dims: Dims) -> None:
        super().__init__()
        self.weight = config.weight
        width = dims.hidden
        blocks = ((nn.Linear(width, width), nn.ReLU()) for _ in range(config.layers))
        self.trunk = nn.Sequential(*chain.from_iterable(blocks))
        self.foreground = nn.Linear(width, 1)
        self.span = nn.Linear(width, 2)
        self.iou = nn.Linear(width, 1) if config.iou else None
        if config.iou:
            self.replaces = (*self.replaces, "quality")

    def forward(self, memory: Memory, decoded: Decoded, output: Output) -> None:
        shared = self.trunk(decoded.states)
        output.logits = self.foreground(shared)
        output.spans = (self.span(shared).float() + logit(decoded.references)).sigmoid()
        if self.iou is not None:
            output.quality = self.iou(shared)[..., 0]

    def loss_terms(self) -> list[LossTerm]:
        if self.iou is None:
            return []
        # losses stand above the model, which may not import them
        return [registry.find("losses", "quality").build.of_head(self.weight, "l1")]  # type: ignore[attr-defined]

"""Quality head: how well a query's window will fit, apart from what it is sure to have heard.

Source: Guangzhou, DCASE 2026 Task 6, section 3.5: query state, boundary confidence and span width give
a candidate's quality. Left open there, ours: the boundary confidence is the start probability at
the window's start times the end probability at its end, read between frames; it and the width are
detached, so that quality is not improved by moving what it judges; a two-layer perceptron; the loss
(`losses.iou_quality`). Without the head `boundary` the confidence is 1 everywhere. The score
`quality-blend` uses it at inference (eq. 6).

QAM-DETR (Chung-Ang University), DCASE 2026 Task 6, section 2.3, has a branch that estimates the IoU of
matched windows from the query state: `reads: state`, `loss: l1`, and the score `product` (eq. 2).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from amrctl import registry
from amrctl.errors import RecipeError
from amrctl.model.layers.feedforward import MLP
from amrctl.model.layers.windows import boundary_confidence
from amrctl.model.types import Decoded, Dims, LossTerm, Memory, Output
from amrctl.registry import ComponentConfig, component

NAME = "quality"


class QualityConfig(ComponentConfig):
    kind: Literal["quality"] = "quality"
    layers: int = Field(2, ge=1, description="linear layers of the head")
    weight: float = Field(1.0, ge=0, description="of the loss against the IoU")
    reads: Literal["window", "state"] = Field(
        "window", description="window: query state, boundary confidence and width; state: the first alone"
    )
    loss: Literal["cross-entropy", "l1"] = Field(
        "cross-entropy", description="over all queries, unmatched 0; l1: of the sigmoid, over matched ones"
    )


@component("heads", NAME, QualityConfig)
class Quality(nn.Module):
    """Writes `output.quality` [S, B, N], logits."""

    def __init__(self, config: QualityConfig, dims: Dims) -> None:
        super().__init__()
        self.weight, self.loss, self.window = config.weight, config.loss, config.reads == "window"
        self.mlp = MLP(dims.hidden + 2 * self.window, dims.hidden, 1, config.layers)

    def forward(self, memory: Memory, decoded: Decoded, output: Output) -> None:
        if output.spans is None:
            raise RecipeError("model.heads: 'quality' needs the head 'span' before it")
        given = decoded.states
        if self.window:
            confidence = boundary_confidence(output.boundary, output.spans, memory.audio_mask)
            width = output.spans[..., 1].detach()
            given = torch.cat((given, torch.stack((confidence, width), dim=-1)), dim=-1)
        output.quality = self.mlp(given)[..., 0]

    def loss_terms(self) -> list[LossTerm]:
        # losses stand above the model, which may not import them
        of_head = registry.find("losses", "quality").build.of_head  # type: ignore[attr-defined]
        return [of_head(self.weight, self.loss)]

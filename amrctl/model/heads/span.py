"""Span head: a correction of each layer's reference span, in logits (QD-DETR)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from amrctl.model.layers.feedforward import MLP
from amrctl.model.layers.spans import logit
from amrctl.model.types import Decoded, Dims, Memory, Output
from amrctl.registry import ComponentConfig, component


class SpanConfig(ComponentConfig):
    kind: Literal["span"] = "span"


@component("heads", "span", SpanConfig)
class Span(nn.Module):
    """Writes `output.spans` [S, B, N, 2], (centre, width) in 0..1."""

    def __init__(self, config: SpanConfig, dims: Dims) -> None:
        super().__init__()
        self.mlp = MLP(dims.hidden, dims.hidden, 2, 3)

    def forward(self, memory: Memory, decoded: Decoded, output: Output) -> None:
        output.spans = (self.mlp(decoded.states).float() + logit(decoded.references)).sigmoid()

"""Span evidence adapter: looks into each predicted window once more, and corrects it.

Source: Guangzhou, DCASE 2026 Task 6, section 3.6, eq. 7: from query state q, audio evidence e pooled
inside the window, q * e, boundary confidence, span width, foreground margin and span saliency, a small
network predicts residual corrections of logits and spans; its last layer starts at zero, so that
it fits a checkpoint trained without it. Left open there, ours: pooling weights with soft edges (half a
frame, `edge`), so that a gradient reaches the window's ends; the same weights pool the saliency
curve; boundary confidence as in the head `quality`; one hidden layer of the model's width; spans
are corrected before the sigmoid. The corrected values take the place of the last decoder layer's, so that
matching, every loss and every score see them. All weights train; `freeze` trains the adapter alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from amrctl.errors import RecipeError
from amrctl.model.layers.feedforward import MLP
from amrctl.model.layers.windows import boundary_confidence, margin, shift, weighted_mean, window_weights
from amrctl.model.types import Decoded, Dims, Memory, Output
from amrctl.registry import ComponentConfig, component

NAME = "span-evidence"


class SpanEvidenceConfig(ComponentConfig):
    kind: Literal["span-evidence"] = "span-evidence"
    edge: float = Field(0.5, gt=0, description="softness of a window's edges when pooling, in frames")
    freeze: bool = Field(False, description="train only this part (needs --init)")


@component("refine", NAME, SpanEvidenceConfig)
class SpanEvidence(nn.Module):
    """Corrects `output.logits[-1]` and `output.spans[-1]`."""

    identity_when_zero = ("mlp.layers.1.weight", "mlp.layers.1.bias")
    # the last layer is 0 before the first step, so nothing flows back through it
    zero_gradient = ("mlp.layers.0.weight", "mlp.layers.0.bias")

    def __init__(self, config: SpanEvidenceConfig, dims: Dims) -> None:
        super().__init__()
        self.edge = config.edge
        self.freezes_rest = config.freeze
        self.mlp = MLP(3 * dims.hidden + 4, dims.hidden, 4, 2)
        nn.init.zeros_(self.mlp.last.weight)
        nn.init.zeros_(self.mlp.last.bias)

    def forward(self, memory: Memory, decoded: Decoded, output: Output) -> None:
        if output.logits is None or output.logits.shape[-1] != 2 or output.spans is None:
            raise RecipeError(f"model.refine: '{NAME}' needs the heads 'foreground' (two logits) and 'span'")
        if output.saliency is None:
            raise RecipeError(f"model.refine: '{NAME}' needs the head 'saliency'")
        if output.refined is not None:
            raise RecipeError(f"model.refine: '{NAME}' corrects the decoder's own windows; put it first")
        mask, spans, logits = memory.audio_mask, output.spans[-1].float(), output.logits[-1]
        weights = window_weights(spans, mask, self.edge)
        query, evidence = decoded.states[-1].float(), weighted_mean(memory.audio, weights, mask)
        numbers = (
            boundary_confidence(output.boundary, spans, mask),
            spans[..., 1],
            margin(logits.float()),
            weighted_mean(output.saliency[..., None], weights, mask)[..., 0],
        )
        given = torch.cat((query, evidence, query * evidence, torch.stack(numbers, dim=-1)), dim=-1)
        of_logits, of_spans = self.mlp(given).float().chunk(2, -1)
        output.logits = torch.cat((output.logits[:-1], (logits + of_logits)[None]))
        output.spans = torch.cat((output.spans[:-1], shift(spans, of_spans)[None]))

"""Span re-ranking: how much the audio within a query's window resembles the sentence.

Source: KAIST, DCASE 2026 Task 6, section 3.2, eq. 3: cosine of the projected mean of the memory over
the window and of the projected mean of the text, moved to 0..1, against foreground / background. The
report names matched queries; its code counts all of them, unmatched ones as background (`queries`).
Windows are detached, the memory is not, so that the term teaches the encoder. Pooling is in the real
frames of each recording; with `compat: official` in padded ones, as released. The score `span-rerank`
blends it with the foreground at inference.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.model.layers.pooling import masked_mean, window_mean
from amrctl.model.types import Decoded, Dims, LossTerm, Matches, Memory, Output
from amrctl.registry import ComponentConfig, component

NAME = "span-rerank"
_EPS = 1e-6  # keeps the logarithms of the cross-entropy finite


class SpanRerankConfig(ComponentConfig):
    kind: Literal["span-rerank"] = "span-rerank"
    weight: float = Field(0.5, ge=0, description="of the cross-entropy")
    queries: Literal["all", "matched"] = Field(
        "all", description="which queries count; unmatched ones are background"
    )


class Resemblance:
    """Binary cross-entropy of the resemblance (0..1) against 1 for matched queries, 0 for the others."""

    name, all_layers = NAME, False

    def __init__(self, weight: float, queries: Literal["all", "matched"]) -> None:
        self.weight, self.queries = weight, queries

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        likeness = output.extras[NAME].float().clamp(_EPS, 1 - _EPS)
        if self.queries == "matched":
            found = likeness[matches.row, matches.query]
            return -matches.mean(found.log()) if len(found) else likeness.sum() * 0.0
        return functional.binary_cross_entropy(likeness, matches.found(likeness).to(likeness.dtype))


@component("heads", NAME, SpanRerankConfig)
class SpanRerank(nn.Module):
    """Writes `output.extras["span-rerank"]` [B, N] float32 in 0..1, of the last decoder layer's windows."""

    def __init__(self, config: SpanRerankConfig, dims: Dims) -> None:
        super().__init__()
        self.config, self.official = config, dims.official
        self.span = nn.Linear(dims.hidden, dims.hidden)
        self.text = nn.Linear(dims.hidden, dims.hidden)

    def forward(self, memory: Memory, decoded: Decoded, output: Output) -> None:
        if output.spans is None:
            raise RecipeError(f"model.heads: '{NAME}' needs the head 'span' before it")
        spans = output.spans[-1].detach()
        lengths = memory.audio_mask.sum(1)
        if self.official:
            lengths = torch.full_like(lengths, memory.audio_mask.shape[1])
        window = functional.normalize(self.span(window_mean(memory.audio, lengths, spans)).float(), dim=-1)
        whole = functional.normalize(self.text(masked_mean(memory.text, memory.text_mask)).float(), dim=-1)
        output.extras[NAME] = 0.5 * ((window * whole[:, None]).sum(-1) + 1.0)

    def loss_terms(self) -> list[LossTerm]:
        return [Resemblance(self.config.weight, self.config.queries)]

"""Several feature streams a side: each is projected, and a scalar gate says how much of it is added.

Source: QAM-DETR (Chung-Ang University), DCASE 2026 Task 6 report, section 2.1, eq. 1: the main stream plus
sigmoid(gate) times each auxiliary one, one gate a stream, the same for all frames or tokens; audio and text
alike. Left open there, ours: gates start at 0 (a half of each stream); every stream has input blocks like the
main one's; TEF stands beside the main audio stream only, before its projection; an auxiliary text stream,
whose tokenizer cuts differently, is read between its tokens at the places of the main stream's tokens.
(Auxiliary audio comes on the main stream's frames: `amrctl.data.streams`.)

With one stream a side this is `projection`; so it is to the bit where every gate is closed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from amrctl.data.batch import Batch
from amrctl.model.layers.feedforward import input_blocks
from amrctl.model.tokens.projection import Projection, ProjectionOptions
from amrctl.model.types import Dims, Tokens
from amrctl.registry import component


class GatedStreamsConfig(ProjectionOptions):
    kind: Literal["gated-streams"] = "gated-streams"


class Gated(nn.Module):
    """sigmoid(gate) * input blocks of one auxiliary stream, `[..., width]` → `[..., hidden]`."""

    def __init__(self, width: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.blocks = input_blocks(width, hidden, layers, dropout)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gate.sigmoid() * self.blocks(x)
        return out


def at_places_of(rows: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """`rows` [B, K, H] read linearly between its real tokens, at the centres of as many as `wanted` has.

    `mask` [B, K] and `wanted` [B, L], bool, real tokens first. Token i of n lies at (i + 0.5) / n; beyond
    the first and the last centre their values hold. Returns [B, L, H], 0 where `wanted` is False.
    """
    have, want = mask.sum(1, keepdim=True), wanted.sum(1, keepdim=True).clamp(min=1)
    i = torch.arange(wanted.shape[1], device=rows.device)
    # (i + 0.5) * have / want - 0.5 in whole numbers, so that equal lengths meet each token exactly
    doubled = ((2 * i + 1) * have - want).clamp(min=0)
    doubled = torch.minimum(doubled, 2 * want * (have - 1).clamp(min=0))
    low = torch.div(doubled, 2 * want, rounding_mode="floor")
    share = ((doubled - 2 * want * low) / (2 * want)).to(rows.dtype)[..., None]
    high = torch.minimum(low + 1, (have - 1).clamp(min=0))

    def row(index: Tensor) -> Tensor:
        return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))

    return (row(low) * (1 - share) + row(high) * share).masked_fill(~wanted[..., None], 0.0)


@component("tokens", "gated-streams", GatedStreamsConfig)
class GatedStreams(Projection):
    """`projection` of the main streams, plus the gated others; parameters of the main ones as there."""

    def __init__(self, config: GatedStreamsConfig, dims: Dims) -> None:
        super().__init__(config, replace(dims, audio=dims.audio[:1], text=dims.text[:1]))

        def gated(widths: tuple[int, ...]) -> nn.ModuleList:
            return nn.ModuleList(Gated(w, dims.hidden, config.layers, config.dropout) for w in widths)

        self.more_audio, self.more_text = gated(dims.audio[1:]), gated(dims.text[1:])

    def forward(self, batch: Batch) -> Tokens:
        """Project all streams of `batch` and add them up."""
        tokens = super().forward(batch)
        audio, text = tokens.audio, tokens.text
        for part, stream in zip(self.more_audio, batch.heard.audio[1:], strict=True):
            audio = audio + batch.spread(part(stream))
        for part, stream, mask in zip(self.more_text, batch.text[1:], batch.text_mask[1:], strict=True):
            text = text + at_places_of(part(stream), mask, tokens.text_mask)
        return replace(tokens, audio=audio, text=text)

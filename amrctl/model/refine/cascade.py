"""Cascade refinement: a second look at the frames around each window moves its span a little.

Source: KAIST, DCASE 2026 Task 6, section 3.5, eq. 6. The query's last state attends to the memory's
frames in its window widened by `margin` frames, which carry a learned code of their place in the crop;
a head that starts at zero says delta = kappa tanh(W h), and s' = clip(s + delta). State, span and memory
are detached; `detach_memory: false` lets the gradient into the encoder, as the released code does.
Crops are in the real frames of each recording (with `compat: official` in padded ones, as released);
places beyond the table share its last row.

No crop is ever copied: with k(t) = K m_t + K r_(t - first), logits and values of a crop are those of the
whole memory, masked, plus those of the place table, shifted. The arithmetic is that of the gathered crop.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.model.layers.attention import join_heads, require_heads, split_heads
from amrctl.model.layers.dropout import Dropout
from amrctl.model.layers.feedforward import xavier_
from amrctl.model.layers.spans import giou, to_start_end
from amrctl.model.types import Decoded, Dims, LossTerm, Matches, Memory, Output
from amrctl.registry import ComponentConfig, component

NAME = "cascade"


class CascadeConfig(ComponentConfig):
    kind: Literal["cascade"] = "cascade"
    margin: int = Field(10, ge=0, description="frames by which a crop reaches beyond its window, each side")
    kappa: float = Field(0.05, gt=0, le=1, description="largest correction, in recordings")
    weight: float = Field(1.0, ge=0, description="in units of the recipe's span and giou")
    heads: int = Field(4, ge=1)
    inner: int | None = Field(None, ge=1, description="feed-forward width; default 2 x hidden")
    dropout: float = Field(0.1, ge=0, lt=1)
    places: int = Field(400, ge=1, description="rows of the table of places in a crop")
    detach_memory: bool = Field(True, description="keep the gradient out of the encoder")


class _Refined:
    """L1 or generalised IoU of the refined spans under the first stage's matches."""

    all_layers = False

    def __init__(self, unit: Literal["span", "giou"], weight: float) -> None:
        self.name, self.unit, self.weight = f"{NAME}.{unit}", unit, weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        if output.refined is None or batch.targets is None:
            raise RuntimeError("cascade needs refined spans and labelled queries")
        found = output.refined[matches.row, matches.query].float()
        if not len(found):
            return output.refined.sum() * 0.0
        wanted = batch.targets.spans[matches.row, matches.moment]
        if self.unit == "span":
            return matches.mean((found - wanted).abs())
        return matches.mean(1.0 - giou(to_start_end(found), to_start_end(wanted)))


def crops(spans: Tensor, lengths: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """First frame of each window's crop and the frame after its last, int64 [B, N] each.

    `spans` [B, N, 2]; `lengths` [B]: frames that span 1.0 stands for. A crop holds every frame that
    its window touches (one at least) and `margin` more on each side, within the recording.
    """
    n = lengths[:, None]
    edges = to_start_end(spans.float()).clamp(0, 1) * n[..., None]
    first = edges[..., 0].floor().long().minimum(n - 1)
    last = edges[..., 1].ceil().long().maximum(first + 1).minimum(n)
    return (first - margin).clamp(min=0), (last + margin).minimum(n)


class CropAttention(nn.Module):
    """Each query attends to its own run of frames; frame t of a run from a has place t - a."""

    def __init__(self, width: int, heads: int, places: int, dropout: float) -> None:
        super().__init__()
        require_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias would shift all logits of a query alike
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        xavier_(self)
        for part in (self.query, self.value, self.out):
            nn.init.zeros_(part.bias)
        self.places = nn.Embedding(places, width)

    def forward(self, query: Tensor, audio: Tensor, seen: Tensor, place: Tensor) -> Tensor:
        """`query` [B, N, H], `audio` [B, T, H], `seen` [B, N, T] bool; `place` [B, N, T] int64, whose
        values beyond the table mean its last row. Returns [B, N, H]."""
        rows = min(self.places.num_embeddings, audio.shape[1])
        table = self.places.weight[:rows]
        place = place.clamp(0, rows - 1)[:, None].expand(-1, self.heads, -1, -1)
        q = split_heads(self.query(query), self.heads) / math.sqrt(query.shape[-1] // self.heads)
        keys, table_keys = self._keys(self.key(audio)), self._keys(self.key(table[None]))
        logits = torch.matmul(q, keys) + torch.matmul(q, table_keys).gather(-1, place)
        logits = logits.float().masked_fill(~seen[:, None], float("-inf"))
        weights = self.dropout(logits.softmax(-1))
        # how much of the attention falls on each place: [B, heads, N, rows]
        share = weights.new_zeros(*weights.shape[:3], rows).scatter_add(-1, place, weights)
        values = split_heads(self.value(audio), self.heads)
        # the table's rows are added to frames, so the bias is in `values` already
        table_values = split_heads(functional.linear(table, self.value.weight)[None], self.heads)
        mixed = torch.matmul(weights.to(values.dtype), values)
        mixed = mixed + torch.matmul(share.to(values.dtype), table_values)
        out: Tensor = self.out(join_heads(mixed))
        return out

    def _keys(self, x: Tensor) -> Tensor:
        return split_heads(x, self.heads).transpose(-1, -2)


@component("refine", NAME, CascadeConfig)
class Cascade(nn.Module):
    """Writes `output.refined` [B, N, 2]: the last layer's spans, each moved by at most kappa."""

    identity_when_zero = ("delta.weight", "delta.bias")
    # the head starts at zero, so before the first step nothing flows back through it
    zero_gradient = (
        "attention.query.weight",
        "attention.query.bias",
        "attention.key.weight",
        "attention.value.weight",
        "attention.value.bias",
        "attention.out.weight",
        "attention.out.bias",
        "attention.places.weight",
        "norm1.weight",
        "norm1.bias",
        "linear1.weight",
        "linear1.bias",
        "linear2.weight",
        "linear2.bias",
        "norm2.weight",
        "norm2.bias",
    )

    def __init__(self, config: CascadeConfig, dims: Dims) -> None:
        super().__init__()
        self.config, self.official = config, dims.official
        width, inner = dims.hidden, config.inner or 2 * dims.hidden
        self.attention = CropAttention(width, config.heads, config.places, config.dropout)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(config.dropout)
        self.delta = nn.Linear(width, 2)
        nn.init.zeros_(self.delta.weight)
        nn.init.zeros_(self.delta.bias)

    def forward(self, memory: Memory, decoded: Decoded, output: Output) -> None:
        if output.spans is None:
            raise RecipeError(f"model.refine: '{NAME}' needs the head 'span'")
        spans = output.spans[-1].detach()
        audio = memory.audio.detach() if self.config.detach_memory else memory.audio
        lengths = memory.audio_mask.sum(1)
        if self.official:
            lengths = torch.full_like(lengths, audio.shape[1])
        first, after = crops(spans, lengths, self.config.margin)
        place = torch.arange(audio.shape[1], device=audio.device) - first[..., None]
        seen = (place >= 0) & (place < (after - first)[..., None]) & memory.audio_mask[:, None]
        if self.official:  # a crop may lie in the padding altogether
            seen[..., 0] |= ~seen.any(-1)
        state = decoded.states[-1].detach()
        x = self.norm1(state + self.attention(state, audio, seen, place))
        inner = self.dropout(functional.gelu(self.linear1(x)))
        x = self.norm2(x + self.linear2(inner))
        delta = self.config.kappa * torch.tanh(self.delta(x).float())
        output.refined = (spans + delta).clamp(0, 1)

    def loss_terms(self) -> list[LossTerm]:
        return [_Refined(unit, self.config.weight) for unit in ("span", "giou")]

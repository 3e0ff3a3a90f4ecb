"""Adaptive cross-attention: frames look at words and dummies, and take from the words alone.

Source: CG-DETR (Moon et al., 2023, arXiv 2311.08835), adaptive cross-attention and moment-adaptive
saliency detector, as in its released code and lighthouse's port. Attention has no input projections;
the dummies of `dummy-tokens` (without that component there are none) take a share of each frame's
attention and give nothing back, so that the share of the words says how much the sentence concerns the
frame. That share is taught by the saliency labels (`attention-saliency`). The summary token is made of
the recording and learned prompts (`model/layers/saliency_token.py`) and passes through the same layers,
without anything to look at.

What differs from the released code: its mask fault (see `text-to-audio`), its means over padding and its
dropped rank term come back with `compat: official` only; and a share of 1 for a mismatched sentence, or a
share that the labels contradict, costs at most -log(1e-6) instead of infinity, or 100.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.model.fusion.dummy_tokens import NAME as DUMMIES
from amrctl.model.fusion.dummy_tokens import POSITION
from amrctl.model.fusion.text_to_audio import released_mask
from amrctl.model.layers.attention import join_heads, key_mask, require_heads, split_heads
from amrctl.model.layers.cross_layer import CrossLayer
from amrctl.model.layers.dropout import drop
from amrctl.model.layers.feedforward import xavier_
from amrctl.model.layers.options import LayerConfig
from amrctl.model.layers.pooling import off_diagonal_cosine
from amrctl.model.layers.saliency import apart, hinge, mean_of, mismatched, rank_rows
from amrctl.model.layers.saliency_token import SaliencyToken
from amrctl.model.types import Dims, LossTerm, Matches, Output, Tokens
from amrctl.registry import component

NAME = "adaptive-cross-attention"
SHARE = f"{NAME}.share"
PROMPTS = f"{NAME}.prompts"
_LEAST = 1e-6  # what the dummies keep at least, inside the logarithm


class AdaptiveConfig(LayerConfig):
    kind: Literal["adaptive-cross-attention"] = "adaptive-cross-attention"
    layers: int = Field(2, ge=1)
    prompts: int = Field(10, ge=1, description="learned vectors that the summary token is made of")
    top: int = Field(2, ge=1, description="how many of them a recording uses")
    margin: float = Field(0.2, ge=0, description="of the hinge between shares inside and outside")
    weight: float = Field(1.0, ge=0, description="of the term that teaches the words' share")
    apart: float = Field(1.0, ge=0, description="weight of the term that keeps the prompts apart")

    @model_validator(mode="after")
    def _enough(self) -> AdaptiveConfig:
        if self.top > self.prompts:
            raise ValueError("top cannot be more than prompts")
        return self


class AdaptiveAttention(nn.Module):
    """Multi-head attention without input projections whose first keys have no values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        require_heads(width, heads)
        self.heads, self.dropout = heads, dropout
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`query` [B, T, H], `key` [B, D + L, H], `value` [B, L, H]: of the last keys; `mask` as in `attend`.

        Returns [B, T, H] and the weights [B, T, D + L] float32, the mean over heads before dropout.
        """
        scale = 1.0 / math.sqrt(query.shape[-1] // self.heads)
        q, k, v = (split_heads(x, self.heads) for x in (query * scale, key, value))
        scores = torch.matmul(q, k.transpose(-1, -2)).float()
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        kept = drop(weights, self.dropout, self.training)[..., -value.shape[1] :]
        out: Tensor = self.out_proj(join_heads(torch.matmul(kept.to(v.dtype), v)))
        return out, weights.mean(1)


class AdaptiveLayer(CrossLayer):
    """Adaptive attention in a `CrossLayer`."""

    self_attn: AdaptiveAttention

    def __init__(self, width: int, heads: int, inner: int, dropout: float, drop_path: float | None) -> None:
        super().__init__(AdaptiveAttention(width, heads, dropout), width, inner, dropout, drop_path)

    def forward(
        self, audio: Tensor, position: Tensor, key: Tensor, value: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The changed audio [B, T, H] and the attention weights (see `AdaptiveAttention`)."""
        seen, weights = self.self_attn(audio + position, key, value, mask)
        return self.update(audio, seen), weights

    def alone(self, x: Tensor) -> Tensor:
        """The layer for `x` [B, T, H] that has nothing to look at: attention gives its output bias."""
        return self.update(x, self.self_attn.out_proj.bias.expand_as(x))


class Orthogonal:
    """Mean absolute cosine of different prompts."""

    name, all_layers = "orthogonal-prompts", False

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        return off_diagonal_cosine(output.extras[PROMPTS][0])


class AttentionSaliency:
    """Hinge, rank and negative pairs of the words' share, as of the saliency, and its cross-entropy.

    `official`: means count padding, and pairs without a mismatched sentence have no rank term beside
    others that have one.
    """

    name, all_layers = "attention-saliency", False

    def __init__(self, weight: float, margin: float, official: bool) -> None:
        self.weight, self.margin, self.official = weight, margin, official

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        share, real, targets = output.extras[SHARE], batch.audio_mask, batch.targets
        if targets is None:
            return share.sum() * 0.0
        other, paired = mismatched(output, targets, SHARE)
        total = hinge(share, targets.positives, targets.negatives, targets.pair_mask, self.margin)
        # a share that floats round to 0 or 1 has a slope of 1e12, which is noise behind a softmax
        told = share if self.official else share.clamp(_LEAST, 1 - _LEAST)
        wrong = functional.binary_cross_entropy(told, targets.saliency, reduction="none")
        total = total + (wrong.mean() if self.official else mean_of(wrong, real))
        rows = rank_rows(share, other, targets.saliency, real, real & paired[:, None])
        if self.official:
            rows = rows.masked_fill(paired.any() & ~paired, 0.0)
        total = total + apart(rows, paired)
        if other is not None:
            rest = (1.0 - other).clamp(min=0.0 if self.official else _LEAST)
            cost = -torch.log(rest.masked_fill(~real | ~paired[:, None], 1.0))
            total = total + mean_of(cost.sum(1), paired)
        return total


@component("fusion", NAME, AdaptiveConfig)
class AdaptiveCrossAttention(nn.Module):
    """Changes the audio and makes the summary token. Writes `extras`, each float32:

    `adaptive-cross-attention` [B, T, D + L], the attention weights, D dummies first, mean over heads and
    layers; `.share` [B, T] in 0..1, the words' part of it; `.prompts` [B, prompts, H].
    """

    unread = ("tokens.summary", "tokens.summary_position")  # it makes its own

    def __init__(self, config: AdaptiveConfig, dims: Dims) -> None:
        super().__init__()
        width = dims.hidden
        self.config, self.official = config, dims.official
        self.layers = nn.ModuleList(
            AdaptiveLayer(width, config.heads, config.inner_width(width), config.dropout, config.drop_path)
            for _ in range(config.layers)
        )
        xavier_(self)
        self.saliency_token = SaliencyToken(width, config.prompts, config.top)

    def forward(self, tokens: Tokens) -> Tokens:
        text, real = tokens.text, tokens.text_mask
        dummies = tokens.extras.get(DUMMIES, text[:, :0])
        count = dummies.shape[1]
        key = text
        if count:
            key = torch.cat((dummies + tokens.extras[POSITION], text), dim=1)
            real = functional.pad(real, (count, 0), value=True)
        mask = key_mask(real)
        if self.official:
            mask = released_mask(tokens.audio_mask, real, self.config.heads)
        audio, all_weights = tokens.audio, []
        for layer in self.layers:
            audio, weights = layer(audio, tokens.audio_position, key, text, mask)
            all_weights.append(weights)
        seen = torch.stack(all_weights).mean(0)
        share = seen[..., count:].sum(-1).clamp(0, 1)
        summary = self.saliency_token(tokens.audio, tokens.audio_mask, share.detach())[:, None]
        for layer in self.layers:
            assert isinstance(layer, AdaptiveLayer)
            summary = layer.alone(summary)
        prompts = self.saliency_token.prompts.float().expand(len(text), -1, -1)
        return replace(
            tokens,
            audio=audio,
            summary=summary[:, 0],
            summary_position=self.saliency_token.position.expand(len(text), -1),
            extras={**tokens.extras, NAME: seen, SHARE: share, PROMPTS: prompts},
        )

    def loss_terms(self) -> list[LossTerm]:
        config = self.config
        return [
            AttentionSaliency(config.weight, config.margin, self.official),
            Orthogonal(config.apart),
        ]

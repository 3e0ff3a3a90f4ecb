"""3-way cross-attention: audio and sentence change each other before the audio is encoded.

Source: QAM-DETR (Chung-Ang University), DCASE 2026 Task 6 report, section 2.1, after CAD (Nadeem et al., WACV
2024): the audio attends to the text, the text attends to that audio, and what comes of it updates the audio.
It stands in place of the text-to-audio encoder. Left open there, ours: one round of the three; each step is
attention with 8 heads and a feed-forward half, both residual and normalised afterwards; frames carry their
position as queries and as keys, tokens have none. The changed text goes on with the audio.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from amrctl.model.layers.attention import MultiheadAttention, key_mask
from amrctl.model.layers.dropout import Dropout
from amrctl.model.layers.dropped_branch import add_dropped
from amrctl.model.layers.feedforward import Feedforward, xavier_
from amrctl.model.types import Dims, Tokens
from amrctl.registry import ComponentConfig, component


class ThreeWayConfig(ComponentConfig):
    kind: Literal["three-way"] = "three-way"
    layers: int = Field(1, ge=1, description="rounds of the three steps")
    heads: int = Field(8, ge=1)
    inner: int | None = Field(None, ge=1, description="feed-forward width; default 4 x hidden")
    dropout: float = Field(0.1, ge=0, lt=1)


class Step(nn.Module):
    """x = norm1(x + attention); out = norm2(x + feedforward(x))."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiheadAttention(width, heads, dropout)
        self.feedforward = Feedforward(width, inner, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """`x`, `query` [B, Tq, H]; `key`, `value` [B, Tk, H]; `mask` as in `attend`; [B, Tq, H]."""
        x = self.norm1(add_dropped(x, self.attention(query, key, value, mask), self.dropout))
        out: Tensor = self.norm2(add_dropped(x, self.feedforward(x), self.dropout))
        return out


class ThreeWayRound(nn.Module):
    """Text to audio, audio to text, and the result to audio."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.hear = Step(width, heads, inner, dropout)
        self.reread = Step(width, heads, inner, dropout)
        self.update = Step(width, heads, inner, dropout)

    def forward(self, tokens: Tokens) -> Tokens:
        audio, text, position = tokens.audio, tokens.text, tokens.audio_position
        frames, words = key_mask(tokens.audio_mask), key_mask(tokens.text_mask)
        audio = self.hear(audio, audio + position, text, text, words)
        text = self.reread(text, text, audio + position, audio, frames)
        audio = self.update(audio, audio + position, text, text, words)
        return replace(tokens, audio=audio, text=text)


@component("fusion", "three-way", ThreeWayConfig)
class ThreeWay(nn.Module):
    """`layers` rounds; audio and text change."""

    def __init__(self, config: ThreeWayConfig, dims: Dims) -> None:
        super().__init__()
        inner = config.inner or 4 * dims.hidden
        self.layers = nn.ModuleList(
            ThreeWayRound(dims.hidden, config.heads, inner, config.dropout) for _ in range(config.layers)
        )
        xavier_(self)

    def forward(self, tokens: Tokens) -> Tokens:
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens

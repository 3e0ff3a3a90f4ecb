"""Text-to-audio cross-attention: every audio frame looks at the sentence.

Source: QD-DETR (Moon et al., CVPR 2023), section 3.2, in its DCASE 2026 form: the feed-forward
half normalises its input but its residual does not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amrctl.model.layers.attention import MultiheadAttention, key_mask
from amrctl.model.layers.dropout import Dropout
from amrctl.model.layers.feedforward import Feedforward, xavier_
from amrctl.model.types import Dims, Tokens
from amrctl.registry import ComponentConfig, component


class TextToAudioConfig(ComponentConfig):
    kind: Literal["text-to-audio"] = "text-to-audio"
    layers: int = Field(2, ge=1)
    heads: int = Field(8, ge=1)
    inner: int | None = Field(None, ge=1, description="feed-forward width; default 4 x hidden")
    dropout: float = Field(0.1, ge=0, lt=1)


class TextToAudioLayer(nn.Module):
    """x = audio + attention; out = norm2(x + feedforward(norm1(x)))."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.feedforward = Feedforward(width, inner, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, audio: Tensor, position: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """`audio`, `position` [B, T, H]; `text` [B, L, H]; `mask` as in `attend`; [B, T, H]."""
        x = audio + self.dropout(self.self_attn(audio + position, text, text, mask))
        out: Tensor = self.norm2(x + self.dropout(self.feedforward(self.norm1(x))))
        return out


def released_mask(audio_mask: Tensor, text_mask: Tensor, heads: int) -> Tensor:
    """The released code's mask, [B, heads, T, L] bool, True = may be seen.

    It tiles a per-item mask head-major and reads it item-major, so that head h of item b uses the
    lengths of item (b * heads + h) mod B: a frame beyond that item's end cannot see tokens beyond
    that item's last. Only `compat: official` wants this.
    """
    size = audio_mask.shape[0]
    rows = torch.arange(size * heads, device=audio_mask.device).view(size, heads) % size
    hidden = (~audio_mask)[rows][:, :, :, None] & (~text_mask)[rows][:, :, None, :]
    return ~hidden & text_mask[:, None, None, :]


@component("fusion", "text-to-audio", TextToAudioConfig)
class TextToAudio(nn.Module):
    """`layers` text-to-audio layers; only the audio changes."""

    def __init__(self, config: TextToAudioConfig, dims: Dims) -> None:
        super().__init__()
        inner = config.inner or 4 * dims.hidden
        self.heads, self.official = config.heads, dims.official
        self.layers = nn.ModuleList(
            TextToAudioLayer(dims.hidden, config.heads, inner, config.dropout) for _ in range(config.layers)
        )
        xavier_(self)

    def forward(self, tokens: Tokens) -> Tokens:
        mask = key_mask(tokens.text_mask)
        if self.official:
            mask = released_mask(tokens.audio_mask, tokens.text_mask, self.heads)
        audio = tokens.audio
        for layer in self.layers:
            audio = layer(audio, tokens.audio_position, tokens.text, mask)
        return replace(tokens, audio=audio)

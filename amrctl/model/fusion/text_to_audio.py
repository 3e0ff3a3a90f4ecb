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
from amrctl.model.layers.cross_layer import CrossLayer
from amrctl.model.layers.feedforward import xavier_
from amrctl.model.layers.options import LayerConfig
from amrctl.model.types import Dims, Tokens
from amrctl.registry import component


class TextToAudioConfig(LayerConfig):
    kind: Literal["text-to-audio"] = "text-to-audio"
    layers: int = Field(2, ge=1)


class TextToAudioLayer(CrossLayer):
    """Attention with input projections, in a `CrossLayer`."""

    def __init__(
        self, width: int, heads: int, inner: int, dropout: float, drop_path: float | None = None
    ) -> None:
        super().__init__(MultiheadAttention(width, heads, dropout), width, inner, dropout, drop_path)

    def forward(self, audio: Tensor, position: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """`audio`, `position` [B, T, H]; `text` [B, L, H]; `mask` as in `attend`; [B, T, H]."""
        return self.update(audio, self.self_attn(audio + position, text, text, mask))


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
        inner = config.inner_width(dims.hidden)
        self.heads, self.official = config.heads, dims.official
        self.layers = nn.ModuleList(
            TextToAudioLayer(dims.hidden, config.heads, inner, config.dropout, config.drop_path)
            for _ in range(config.layers)
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

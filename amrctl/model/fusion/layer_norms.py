"""Layer norms of audio and text, one each, before they meet in cross-attention.

Source: Yokohama, DCASE 2026 Task 6, section 2.7. It stands right before the cross-attention in `fusion`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from torch import nn

from amrctl.model.types import Dims, Tokens
from amrctl.registry import ComponentConfig, component

NAME = "layer-norms"


class LayerNormsConfig(ComponentConfig):
    kind: Literal["layer-norms"] = "layer-norms"


@component("fusion", NAME, LayerNormsConfig)
class LayerNorms(nn.Module):
    """norm(audio) and another norm(text)."""

    companions: ClassVar[dict[str, tuple[str, ...]]] = {
        "fusion": ("text-to-audio",)
    }  # or what else reads the text

    def __init__(self, config: LayerNormsConfig, dims: Dims) -> None:
        super().__init__()
        self.audio = nn.LayerNorm(dims.hidden)
        self.text = nn.LayerNorm(dims.hidden)

    def forward(self, tokens: Tokens) -> Tokens:
        return replace(tokens, audio=self.audio(tokens.audio), text=self.text(tokens.text))

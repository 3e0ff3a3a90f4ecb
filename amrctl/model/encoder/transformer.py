"""Transformer encoder over the summary token and the audio frames (DETR, Carion et al. 2020)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from amrctl.model.layers.attention import key_mask
from amrctl.model.layers.encoder_layer import EncoderLayer
from amrctl.model.layers.feedforward import xavier_
from amrctl.model.types import Dims, Memory
from amrctl.registry import ComponentConfig, component


class TransformerConfig(ComponentConfig):
    kind: Literal["transformer"] = "transformer"
    layers: int = Field(2, ge=1)
    heads: int = Field(8, ge=1)
    inner: int | None = Field(None, ge=1, description="feed-forward width; default 4 x hidden")
    dropout: float = Field(0.1, ge=0, lt=1)


@component("encoder", "transformer", TransformerConfig)
class Transformer(nn.Module):
    """Self-attention over [summary | audio]; the text passes through."""

    def __init__(self, config: TransformerConfig, dims: Dims) -> None:
        super().__init__()
        inner = config.inner or 4 * dims.hidden
        self.layers = nn.ModuleList(
            EncoderLayer(dims.hidden, config.heads, inner, config.dropout) for _ in range(config.layers)
        )
        xavier_(self)

    def forward(self, memory: Memory) -> Memory:
        x = torch.cat((memory.summary[:, None], memory.audio), dim=1)
        position = torch.cat((memory.summary_position[:, None], memory.audio_position), dim=1)
        real = torch.nn.functional.pad(memory.audio_mask, (1, 0), value=True)
        mask = None if real.device.type == "cpu" and bool(real.all()) else key_mask(real)  # no wait on a GPU
        for layer in self.layers:
            x = layer(x, position, mask)
        return replace(memory, summary=x[:, 0], audio=x[:, 1:])

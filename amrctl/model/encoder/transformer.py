"""Transformer encoder over the summary token and the audio frames (DETR, Carion et al. 2020)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from amrctl.model.layers.attention import padding_mask
from amrctl.model.layers.encoder_layer import Registers, encoder_layers
from amrctl.model.layers.feedforward import xavier_
from amrctl.model.layers.options import LayerConfig
from amrctl.model.types import Dims, Memory
from amrctl.registry import component


class TransformerConfig(LayerConfig):
    kind: Literal["transformer"] = "transformer"
    layers: int = Field(2, ge=1)
    registers: int = Field(0, ge=0, description="learned tokens beside the sequence, dropped afterwards")


@component("encoder", "transformer", TransformerConfig)
class Transformer(nn.Module):
    """Self-attention over [summary | audio]; the text passes through."""

    def __init__(self, config: TransformerConfig, dims: Dims) -> None:
        super().__init__()
        self.layers = encoder_layers(config, dims.hidden, config.layers)
        xavier_(self)
        self.registers = Registers(dims.hidden, config.registers) if config.registers else None

    def forward(self, memory: Memory) -> Memory:
        x = torch.cat((memory.summary[:, None], memory.audio), dim=1)
        position = torch.cat((memory.summary_position[:, None], memory.audio_position), dim=1)
        real = torch.nn.functional.pad(memory.audio_mask, (1, 0), value=True)
        if self.registers is not None:
            x, position, real = self.registers(x, position, real)
        mask = padding_mask(real)
        for layer in self.layers:
            x = layer(x, position, mask)
        return replace(memory, summary=x[:, 0], audio=x[:, 1 : memory.audio.shape[1] + 1])

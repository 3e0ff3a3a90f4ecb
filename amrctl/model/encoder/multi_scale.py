"""Multi-scale temporal fusion: every frame also sees coarser views of its surroundings.

Source: QAM-DETR (Chung-Ang University), DCASE 2026 Task 6 report, section 2.2: after the temporal encoder,
down-sampled representations are brought back to the original resolution, combined with the original one, and
the result is added to it. Left open there, ours: factors 2 and 4; average pooling over the real frames of
each recording; a linear layer with GELU at each coarse scale; linear up-sampling between the centres of the
coarse frames; one linear layer over all scales side by side; layer norm after the residual sum. The number
of frames never changes; the summary token and the text pass through.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import nn
from torch.nn import functional

from amrctl.model.layers.dropout import Dropout
from amrctl.model.layers.feedforward import xavier_
from amrctl.model.layers.scales import pool, upsample_weights
from amrctl.model.types import Dims, Memory
from amrctl.registry import ComponentConfig, component


class MultiScaleConfig(ComponentConfig):
    kind: Literal["multi-scale"] = "multi-scale"
    factors: tuple[int, ...] = Field((2, 4), min_length=1, description="frames that become one, a scale each")
    dropout: float = Field(0.1, ge=0, lt=1)

    @field_validator("factors")
    @classmethod
    def _coarser(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 2 or len(set(value)) < len(value):
            raise ValueError("factors must be different whole numbers from 2 on")
        return value


@component("encoder", "multi-scale", MultiScaleConfig)
class MultiScale(nn.Module):
    """norm(audio + fuse([audio | up(gelu(linear(pool(audio)))) of each factor]))."""

    def __init__(self, config: MultiScaleConfig, dims: Dims) -> None:
        super().__init__()
        width = dims.hidden
        self.factors = config.factors
        self.scales = nn.ModuleList(nn.Linear(width, width) for _ in config.factors)
        self.fuse = nn.Linear((1 + len(config.factors)) * width, width)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(width)
        xavier_(self)

    def forward(self, memory: Memory) -> Memory:
        audio, lengths = memory.audio, memory.audio_mask.sum(1)
        views = [audio]
        for factor, linear in zip(self.factors, self.scales, strict=True):
            coarse, _ = pool(audio, memory.audio_mask, factor)
            context = functional.gelu(linear(coarse))
            weights = upsample_weights(lengths, audio.shape[1], factor)
            views.append(torch.matmul(weights.to(context.dtype), context))
        fused = self.fuse(torch.cat(views, dim=-1))
        return replace(memory, audio=self.norm(audio + self.dropout(fused)))

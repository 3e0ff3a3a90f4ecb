"""Temporal-difference fusion of the encoder's output.

Source: Yokohama, DCASE 2026 Task 6, section 2.2; see `layers.temporal_difference`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from amrctl.model.layers.temporal_difference import TemporalDifference
from amrctl.model.types import Dims, Memory
from amrctl.registry import ComponentConfig, component

NAME = "temporal-difference"


class TemporalDifferenceConfig(ComponentConfig):
    kind: Literal["temporal-difference"] = "temporal-difference"


@component("encoder", NAME, TemporalDifferenceConfig)
class EncodedDifference(TemporalDifference):
    """Changes the audio; leaves it in `extras["second-difference"]` and what came in in
    `extras["encoder-output"]`, both [B, T, H]."""

    def __init__(self, config: TemporalDifferenceConfig, dims: Dims) -> None:
        super().__init__(dims.hidden)

    def forward(self, memory: Memory) -> Memory:
        audio = self.fuse(memory.audio, memory.audio_mask)
        extras = {**memory.extras, "encoder-output": memory.audio, "second-difference": audio}
        return replace(memory, audio=audio, extras=extras)

"""Temporal-difference fusion of the projected audio, before the sentence is looked at.

Source: Yokohama, DCASE 2026 Task 6, section 2.2; see `layers.temporal_difference`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from amrctl.model.layers.temporal_difference import TemporalDifference
from amrctl.model.types import Dims, Tokens
from amrctl.registry import ComponentConfig, component

NAME = "temporal-difference"


class TemporalDifferenceConfig(ComponentConfig):
    kind: Literal["temporal-difference"] = "temporal-difference"


@component("fusion", NAME, TemporalDifferenceConfig)
class ProjectedDifference(TemporalDifference):
    """Changes the audio, and leaves it in `extras["first-difference"]` [B, T, H]."""

    def __init__(self, config: TemporalDifferenceConfig, dims: Dims) -> None:
        super().__init__(dims.hidden)

    def forward(self, tokens: Tokens) -> Tokens:
        audio = self.fuse(tokens.audio, tokens.audio_mask)
        return replace(tokens, audio=audio, extras={**tokens.extras, "first-difference": audio})

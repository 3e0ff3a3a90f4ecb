"""Summary to frames: the summary token is added to every frame, for decoder and heads.

Source: CG-DETR (Moon et al., 2023, arXiv 2311.08835) as released: the encoded saliency token joins the
memory. It stands last in `encoder` and has no weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import nn

from amrctl.model.types import Dims, Memory
from amrctl.registry import ComponentConfig, component

NAME = "summary-to-frames"


class SummaryToFramesConfig(ComponentConfig):
    kind: Literal["summary-to-frames"] = "summary-to-frames"


@component("encoder", NAME, SummaryToFramesConfig)
class SummaryToFrames(nn.Module):
    """audio + summary; the rest passes through."""

    def __init__(self, config: SummaryToFramesConfig, dims: Dims) -> None:
        super().__init__()

    def forward(self, memory: Memory) -> Memory:
        return replace(memory, audio=memory.audio + memory.summary[:, None])

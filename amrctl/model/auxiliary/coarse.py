"""Coarse branch: the same detector answers from a recording at half its resolution.

Source: KAIST, DCASE 2026 Task 6, section 3.1, eq. 2. The report pools the projected audio (the text)
or the memory (eq. 2); its code pools the features, recomputes TEF and projects them again, and counts
span, gIoU and label of the last decoder layer. The code's way is the default (`pool`). Frames are
pooled within each recording: TEF counts its real coarse frames, and the last one of an odd length is
the mean of what is real. Refinement and added queries do not run on this pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from pydantic import Field
from torch import nn

from amrctl.data.batch import Batch
from amrctl.model.layers.positions import frame_positions
from amrctl.model.layers.scales import pool
from amrctl.model.types import Branch, Dims, Memory, Output, Tokens
from amrctl.registry import ComponentConfig, component

if TYPE_CHECKING:
    from amrctl.model.detector import Detector

NAME = "coarse"
Record = TypeVar("Record", Tokens, Memory)


class CoarseConfig(ComponentConfig):
    kind: Literal["coarse"] = "coarse"
    factor: int = Field(2, ge=2, description="frames that become one")
    weight: float = Field(0.25, ge=0, description="of the branch's loss against the main one's")
    pool: Literal["features", "projected", "memory"] = Field(
        "features", description="what is pooled: raw features, projected audio, or the encoder's output"
    )


def coarser_batch(batch: Batch, factor: int) -> Batch:
    """The batch on the coarse grid, without targets (`seconds` and hence spans mean the same)."""
    pooled = [pool(stream, batch.audio_mask, factor)[0] for stream in batch.audio]
    lengths = torch.div(batch.lengths + factor - 1, factor, rounding_mode="floor")
    frames = torch.arange(pooled[0].shape[1], device=lengths.device)
    return replace(
        batch,
        audio=tuple(pooled),
        audio_mask=frames[None] < lengths[:, None],
        lengths=lengths,
        targets=None,
    )


def coarser(record: Record, factor: int) -> Record:
    """`Tokens` or `Memory` on the coarse grid, with the positions of that grid."""
    audio, mask = pool(record.audio, record.audio_mask, factor)
    position = frame_positions(mask, audio.shape[-1])
    return replace(record, audio=audio, audio_mask=mask, audio_position=position, extras={})


@component("auxiliary", NAME, CoarseConfig)
class Coarse(nn.Module):
    """Writes `output.branches["coarse"]`, and its last spans [B, N, 2] into `output.extras["coarse"]`.

    It has no weights of its own; dropout draws anew.
    """

    def __init__(self, config: CoarseConfig, dims: Dims) -> None:
        super().__init__()
        self.factor, self.weight, self.pool = config.factor, config.weight, config.pool

    def forward(
        self, detector: Detector, batch: Batch, tokens: Tokens, memory: Memory, output: Output
    ) -> None:
        short = coarser_batch(batch, self.factor)
        if self.pool == "features":
            memory = detector.encode(detector.tokens(short))
        elif self.pool == "projected":
            memory = detector.encode(coarser(tokens, self.factor))
        else:
            memory = coarser(memory, self.factor)
        answer = detector.answer(memory, short, refine=False)
        output.branches[NAME] = Branch(answer, self.weight)
        if answer.spans is not None:
            output.extras[NAME] = answer.spans[-1]

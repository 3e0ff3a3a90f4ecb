"""Tokens of the official baseline: projected audio (with TEF) and text, and one summary token.

Source: QD-DETR (Moon et al., CVPR 2023) in its DCASE 2026 Task 6 form; TEF as in the Guangzhou
report, eq. 2, appended to the audio features before projection, or, as in the Yokohama report, as Fourier
features added after it (`layers.fourier_tef`). Token types (`types`) are CG-DETR's (Moon et al., 2023),
which makes its summary token of other things (`summary: none`).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.model.layers.feedforward import input_blocks
from amrctl.model.layers.fourier_tef import FourierTef
from amrctl.model.layers.positions import frame_positions
from amrctl.model.types import Dims, Tokens
from amrctl.registry import ComponentConfig, component


class ProjectionOptions(ComponentConfig):
    """What every way to project streams can be told."""

    layers: int = Field(2, ge=1, description="input blocks per side")
    dropout: float = Field(0.5, ge=0, lt=1)
    tef: Literal["concat-2d", "fourier-3d"] | None = Field(
        "concat-2d", description="time: two columns before projection, or Fourier features added after it"
    )
    bands: int = Field(16, ge=1, le=32, description="frequencies of fourier-3d, each twice the one before")
    types: bool = Field(False, description="add a learned vector to all audio and another to all text tokens")
    summary: Literal["learned", "none"] = Field(
        "learned", description="the summary token; none: zeros, where a fusion component makes it"
    )


class ProjectionConfig(ProjectionOptions):
    kind: Literal["projection"] = "projection"


_TEXT, _AUDIO = 0, 1  # rows of the type vectors, as in the released code


def tef_columns(lengths: Tensor, frames: int) -> Tensor:
    """`[t / n, (t + 1) / n]` per frame, [B, T, 2] float32; beyond a recording's end it goes on past 1."""
    t = torch.arange(frames, device=lengths.device, dtype=torch.float32)
    n = lengths[:, None].to(torch.float32)
    return torch.stack((t / n, t / n + 1.0 / n), dim=-1)


@component("tokens", "projection", ProjectionConfig)
class Projection(nn.Module):
    """Input blocks for audio and text, a learned summary token, sine positions for audio."""

    def __init__(self, config: ProjectionOptions, dims: Dims) -> None:
        super().__init__()
        if len(dims.audio) > 1 or len(dims.text) > 1:
            raise RecipeError(
                f"tokens component 'projection' reads one audio and one text stream; "
                f"the recipe lists {len(dims.audio)} and {len(dims.text)} ('gated-streams' reads several)"
            )
        self.tef = config.tef == "concat-2d"
        self.hidden = dims.hidden
        width = dims.audio[0] + (2 if self.tef else 0)
        self.audio = input_blocks(width, dims.hidden, config.layers, config.dropout)
        self.text = input_blocks(dims.text[0], dims.hidden, config.layers, config.dropout)
        self.types = nn.Parameter(torch.randn(2, dims.hidden) * 0.02) if config.types else None
        self.learned = config.summary == "learned"
        if self.learned:
            self.summary = nn.Parameter(torch.randn(dims.hidden))
            self.summary_position = nn.Parameter(torch.randn(dims.hidden))
        self.time = FourierTef(dims.hidden, config.bands) if config.tef == "fourier-3d" else None

    def forward(self, batch: Batch) -> Tokens:
        """Project the main streams of `batch`."""
        heard = batch.heard
        audio = heard.audio[0]
        if self.tef:
            columns = tef_columns(heard.lengths, audio.shape[1]) * heard.mask[..., None]
            audio = torch.cat((audio, columns), dim=-1)
        audio, text = self.audio(audio), self.text(batch.text[0])
        if self.types is not None:
            audio, text = audio + self.types[_AUDIO], text + self.types[_TEXT]
        if self.time is not None:
            audio = audio + self.time(heard.lengths, audio.shape[1])
        none = audio.new_zeros(self.hidden)
        summary, position = (self.summary, self.summary_position) if self.learned else (none, none)
        size = len(batch)
        return Tokens(
            audio=batch.spread(audio),
            audio_mask=batch.audio_mask,
            audio_position=batch.spread(frame_positions(heard.mask, self.hidden)),
            text=text,
            text_mask=batch.text_mask[0],
            summary=summary.expand(size, -1),
            summary_position=position.expand(size, -1),
        )

"""Boundary contrast: frames just inside a moment resemble the sentence more than those just outside.

Source: KAIST, DCASE 2026 Task 6, section 3.3, eq. 4 (InfoNCE, van den Oord et al. 2018). For each side
of each moment: the normalised mean of the up to K frames inside against each of the up to K frames
outside. What the report leaves open: a frame is inside when at least half of it is covered, as in the
saliency labels; the inside pool ends at the moment's other end (in the released code it may pass it by
a frame); sides without frames outside and moments under 2 frames are skipped. Frames outside may lie
in another moment of the query, as in the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.model.layers.pooling import masked_mean
from amrctl.model.layers.spans import to_start_end
from amrctl.model.types import Dims, LossTerm, Matches, Memory, Output, Tokens
from amrctl.registry import ComponentConfig, component

if TYPE_CHECKING:
    from amrctl.model.detector import Detector

NAME = "boundary-contrast"
_SHORTEST = 2  # frames of a moment that has two boundaries to speak of
_ROUNDING = 1e-3  # frames: what float32 spans may be off


class BoundaryContrastConfig(ComponentConfig):
    kind: Literal["boundary-contrast"] = "boundary-contrast"
    frames: int = Field(3, ge=1, description="K: frames on each side of a boundary")
    temperature: float = Field(0.1, gt=0)
    weight: float = Field(0.2, ge=0)


class Contrast:
    """The mean over boundary sides that the component has written."""

    name, all_layers = NAME, False

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        return output.extras[NAME]


def frames_of(spans: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """First frame and frame after the last of which a span covers at least half, int64 [B, M] each.

    `spans` [B, M, 2] (centre, width), `lengths` [B].
    """
    n = lengths[:, None, None]
    edges = to_start_end(spans.float()) * n
    start = torch.ceil(edges[..., :1] - 0.5 - _ROUNDING)
    end = torch.floor(edges[..., 1:] + 0.5 + _ROUNDING)
    within = torch.cat((start, end), dim=-1).long().clamp(min=0).minimum(n)
    return within[..., 0], within[..., 1]


def boundary_contrast(
    audio: Tensor, text: Tensor, spans: Tensor, mask: Tensor, lengths: Tensor, frames: int, temperature: float
) -> Tensor:
    """Eq. 4, a scalar; 0 where no side counts.

    `audio` [B, T, H] and `text` [B, H], both L2-normalised float32; `spans` [B, M, 2] with `mask`
    [B, M]; `lengths` [B] real frames.
    """
    start, end = (edge[..., None] for edge in frames_of(spans, lengths))
    step = torch.arange(frames, device=spans.device)
    inside = torch.stack((start + step, end - 1 - step), dim=2)  # [B, M, 2 sides, K]
    outside = torch.stack((start - 1 - step, end + step), dim=2)
    start, end = start[..., None], end[..., None]
    inside_real = (inside >= start) & (inside < end)
    outside_real = (outside >= 0) & (outside < lengths[:, None, None, None])
    counts = outside_real.any(-1) & (mask & (end - start >= _SHORTEST)[..., 0, 0])[..., None]
    pooled = (_taken(audio, inside) * inside_real[..., None]).sum(3)
    positive = (functional.normalize(pooled, dim=-1) * text[:, None, None]).sum(-1) / temperature
    agreement = (audio * text[:, None]).sum(-1) / temperature  # of every frame, [B, T]
    negative = _taken(agreement[..., None], outside)[..., 0].masked_fill(~outside_real, float("-inf"))
    logits = torch.cat((positive[..., None], negative), dim=-1)
    loss = torch.logsumexp(logits, dim=-1) - positive
    return torch.where(counts, loss, 0.0).sum() / counts.sum().clamp(min=1)


def _taken(rows: Tensor, index: Tensor) -> Tensor:
    """`rows` [B, T, D] at `index` [B, M, 2, K] (held within the rows) → [B, M, 2, K, D]."""
    batch = torch.arange(len(rows), device=rows.device)[:, None, None, None]
    return rows[batch, index.clamp(0, rows.shape[1] - 1)]


@component("auxiliary", NAME, BoundaryContrastConfig)
class BoundaryContrast(nn.Module):
    """Writes `output.extras["boundary-contrast"]`: the loss, a scalar."""

    def __init__(self, config: BoundaryContrastConfig, dims: Dims) -> None:
        super().__init__()
        self.config = config
        self.audio = nn.Linear(dims.hidden, dims.hidden)
        self.text = nn.Linear(dims.hidden, dims.hidden)

    def forward(
        self, detector: Detector, batch: Batch, tokens: Tokens, memory: Memory, output: Output
    ) -> None:
        if batch.targets is None:
            return
        audio = functional.normalize(self.audio(memory.audio).float(), dim=-1)
        text = functional.normalize(self.text(masked_mean(memory.text, memory.text_mask)).float(), dim=-1)
        output.extras[NAME] = boundary_contrast(
            audio,
            text,
            batch.targets.spans,
            batch.targets.mask,
            batch.lengths,
            self.config.frames,
            self.config.temperature,
        )

    def loss_terms(self) -> list[LossTerm]:
        return [Contrast(self.config.weight)]

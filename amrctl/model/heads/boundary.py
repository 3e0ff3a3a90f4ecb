"""Boundary heads: where moments start and end, frame by frame.

Source: Guangzhou, DCASE 2026 Task 6, section 3.4, eq. 5: a start and an end head on the encoded audio,
taught with Gaussian soft targets by the mean of two binary cross-entropies. Left open there, ours:
each head is a two-layer perceptron, sigma is 1 s around each frame's centre, a frame has the largest
value of all moments of the query (those that this epoch's draw left out included), and the
cross-entropies are means over the real frames of the batch. Besides shaping the memory, the
heads give the boundary confidence that the head `quality` and the refinement `span-evidence` read.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.model.layers.feedforward import MLP
from amrctl.model.layers.spans import to_start_end
from amrctl.model.types import Decoded, Dims, LossTerm, Matches, Memory, Output
from amrctl.registry import ComponentConfig, component

NAME = "boundary"


class BoundaryConfig(ComponentConfig):
    kind: Literal["boundary"] = "boundary"
    layers: int = Field(2, ge=1, description="linear layers of each head")
    sigma: float = Field(1.0, gt=0, description="seconds: width of the Gaussian targets")
    weight: float = Field(1.0, ge=0, description="of the cross-entropy")


class BoundaryTerm:
    """Half the sum of the start and the end head's binary cross-entropies, mean over real frames."""

    name, all_layers = NAME, False

    def __init__(self, weight: float, sigma: float) -> None:
        self.weight, self.sigma = weight, sigma

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        assert output.boundary is not None
        padding = ~batch.audio_mask[..., None]
        # masked before too: what stands on padding must not reach the gradient, not even as NaN x 0
        logits = output.boundary.float().masked_fill(padding, 0.0)
        wanted = gaussian_targets(batch, self.sigma)
        loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return 0.5 * loss.masked_fill(padding, 0.0).sum() / batch.audio_mask.sum()


def gaussian_targets(batch: Batch, sigma: float) -> Tensor:
    """exp(-(t - b)^2 / 2 sigma^2) for the nearest boundary b, in seconds; t is a frame's centre.

    Returns [B, T, 2] float32 (start, end), 0 for queries without a moment.
    """
    targets = batch.targets
    assert targets is not None
    spans = torch.cat((targets.spans, targets.ignored), dim=1)
    mask = torch.cat((targets.mask, targets.ignored_mask), dim=1)
    seconds = batch.seconds.float()[:, None]
    at = to_start_end(spans) * seconds[..., None]
    frames = torch.arange(batch.audio_mask.shape[1], device=spans.device) + 0.5
    centre = frames * (seconds / batch.lengths[:, None])
    distance = centre[:, :, None, None] - at[:, None]  # [B, T, M, 2]
    bumps = torch.exp(-0.5 * (distance / sigma) ** 2)
    return bumps.masked_fill(~mask[:, None, :, None], 0.0).amax(2)


@component("heads", NAME, BoundaryConfig)
class Boundary(nn.Module):
    """Writes `output.boundary` [B, T, 2], start and end logits of every frame."""

    def __init__(self, config: BoundaryConfig, dims: Dims) -> None:
        super().__init__()
        self.weight, self.sigma = config.weight, config.sigma
        self.start = MLP(dims.hidden, dims.hidden, 1, config.layers)
        self.end = MLP(dims.hidden, dims.hidden, 1, config.layers)

    def forward(self, memory: Memory, decoded: Decoded, output: Output) -> None:
        if output.quality is not None:
            raise RecipeError("model.heads: 'boundary' must stand before 'quality', which reads it")
        output.boundary = torch.cat((self.start(memory.audio), self.end(memory.audio)), dim=-1)

    def loss_terms(self) -> list[LossTerm]:
        return [BoundaryTerm(self.weight, self.sigma)]

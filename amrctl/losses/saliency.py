"""Saliency term of the baseline: hinge, rank-contrastive and negative-pair parts.

Source: Moment-DETR and QD-DETR (Moon et al., CVPR 2023, section 3.4) as released for DCASE 2026
Task 6: labels are 0/1, so that one of the twelve rank levels is active while the sum is still
divided by 12, and the negative-pair part is a sum over frames. Computed in float32; the
logarithms are written so that large scores neither overflow nor give NaN on padding.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.losses.base import TermConfig, need, targets_of
from amrctl.model.types import Matches, Output
from amrctl.registry import component

_LEVELS = 12
_TEMPERATURE = 0.5


class SaliencyConfig(TermConfig):
    kind: Literal["saliency"] = "saliency"
    margin: float = Field(0.2, ge=0, description="of the hinge between inside and outside frames")


def hinge(curve: Tensor, positives: Tensor, negatives: Tensor, pair_mask: Tensor, margin: float) -> Tensor:
    """Sum over drawn pairs of max(0, margin + outside - inside), mean over rows. Scalar."""
    gap = margin + curve.gather(1, negatives) - curve.gather(1, positives)
    return (gap.clamp(min=0) * pair_mask[:, None]).sum() / len(curve)


def rank(
    curve: Tensor, mismatched: Tensor | None, inside: Tensor, real: Tensor, mismatched_real: Tensor
) -> Tensor:
    """Softmax contrast of inside frames against all frames, the mismatched pair's included. Scalar.

    `curve`, `inside`, `real` [B, T]; `mismatched` [B, T] with its own mask.
    """
    scores, seen = curve, real
    if mismatched is not None:
        scores = torch.cat((curve, mismatched), dim=1)
        seen = torch.cat((real, mismatched_real), dim=1)
    scores = scores.masked_fill(~seen, -1000.0) / _TEMPERATURE
    scores = scores - scores.max(dim=1, keepdim=True).values.detach()
    log_p = scores - torch.log(scores.exp().sum(1, keepdim=True) + 1e-6)
    per_row = -(log_p[:, : curve.shape[1]] * inside).sum(1) / (inside.sum(1) + 1e-6)
    return (per_row * (inside.sum(1) > 0)).mean() / _LEVELS


def negative_pair(mismatched: Tensor, real: Tensor) -> Tensor:
    """-log(1 - sigmoid(score)), summed over real frames, mean over rows. Scalar."""
    # masked before too: what stands on padding must not reach the gradient, not even as NaN x 0
    cost = functional.softplus(mismatched.masked_fill(~real, 0.0))
    return cost.masked_fill(~real, 0.0).sum(1).mean()


@component("losses", "saliency", SaliencyConfig)
class Saliency:
    """hinge + rank + negative pairs, the last two with `auxiliary: [negative-pairs]`."""

    name, all_layers = "saliency", False

    def __init__(self, config: SaliencyConfig) -> None:
        self.weight, self.margin = config.weight, config.margin

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        targets = targets_of(batch)
        curve = need(output.saliency, "saliency", "saliency").float()
        mismatched = output.extras.get("negative-pairs")
        real = batch.audio_mask
        other = real & (targets.negative_row >= 0)[:, None]
        total = hinge(curve, targets.positives, targets.negatives, targets.pair_mask, self.margin)
        if mismatched is not None:
            mismatched = mismatched.float()
            total = total + negative_pair(mismatched, other)
        return total + rank(curve, mismatched, targets.saliency, real, other)

"""Saliency term of the baseline: hinge, rank-contrastive and negative-pair parts.

Source: Moment-DETR and QD-DETR (Moon et al., CVPR 2023, section 3.4) as released for DCASE 2026
Task 6; the parts are in `model/layers/saliency.py`. Computed in float32; the logarithms are written so
that large scores neither overflow nor give NaN on padding. CG-DETR (Moon et al., 2023) differs in what
the means run over: `rows: apart`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.losses.base import TermConfig, need, targets_of
from amrctl.model.layers.saliency import (
    apart,
    hinge,
    mean_of,
    mismatched,
    negative_pair,
    negative_rows,
    rank,
    rank_rows,
)
from amrctl.model.types import Matches, Output
from amrctl.registry import component


class SaliencyConfig(TermConfig):
    kind: Literal["saliency"] = "saliency"
    margin: float = Field(0.2, ge=0, description="of the hinge between inside and outside frames")
    rows: Literal["together", "apart"] = Field(
        "together",
        description="what the rank and negative parts are means over: all pairs, or (apart, CG-DETR) those "
        "with a mismatched sentence, the rank part of the others added",
    )


@component("losses", "saliency", SaliencyConfig)
class Saliency:
    """hinge + rank + negative pairs, the last two with `auxiliary: [negative-pairs]`.

    `official` (set by the criterion) with rows apart: a single pair without a mismatched sentence beside
    others has no rank part, as in the released code.
    """

    name, all_layers = "saliency", False

    def __init__(self, config: SaliencyConfig) -> None:
        self.weight, self.margin, self.rows = config.weight, config.margin, config.rows
        self.official = False

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        targets = targets_of(batch)
        curve = need(output.saliency, "saliency", "saliency").float()
        negative, paired = mismatched(output, targets)
        real = batch.audio_mask
        other = real & paired[:, None]
        total = hinge(curve, targets.positives, targets.negatives, targets.pair_mask, self.margin)
        if self.rows == "together":
            if negative is not None:
                total = total + negative_pair(negative, other)
            return total + rank(curve, negative, targets.saliency, real, other)
        if negative is not None:
            total = total + mean_of(negative_rows(negative, other), paired)
        rows = rank_rows(curve, negative, targets.saliency, real, other)
        if self.official:
            alone = paired.any() & ((~paired).sum() == 1)
            rows = rows.masked_fill(alone & ~paired, 0.0)
        return total + apart(rows, paired)

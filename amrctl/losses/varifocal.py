"""Varifocal classification of the queries: sure where the window fits.

Source: Yokohama, DCASE 2026 Task 6, section 3.1, after Zhang et al. (CVPR 2021), eq. 2: a matched query
whose window has IoU q with its moment costs -q (q log p + (1 - q) log(1 - p)), any other
-alpha p^gamma log(1 - p), with alpha 0.75 and gamma 2; the sum is divided by the number of matched
queries. As there, a matched query with q = 0 counts as one of the others. q is detached. Left open by the
report, ours: every decoder layer counts, and a moment that this epoch's draw left out is no background.
It takes the place of `label`; `cost` is the class cost of matching (times -p).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.losses.base import TermConfig, need
from amrctl.losses.iou_quality import iou_target
from amrctl.losses.labels import counted
from amrctl.model.layers.windows import margin
from amrctl.model.types import Matches, Output
from amrctl.registry import component


class VarifocalConfig(TermConfig):
    kind: Literal["varifocal"] = "varifocal"
    alpha: float = Field(0.75, gt=0, description="weight of the unmatched")
    gamma: float = Field(2.0, ge=0, description="how much unsure background is played down")
    cost: float | None = Field(None, ge=0, description="class cost of matching; default: the weight")


@component("losses", "varifocal", VarifocalConfig)
class Varifocal:
    """The sum over B x N queries, per matched query (one at least)."""

    name, all_layers = "varifocal", True
    branches = classifies = True

    def __init__(self, config: VarifocalConfig) -> None:
        self.weight, self.alpha, self.gamma = config.weight, config.alpha, config.gamma
        if config.cost is not None:
            self.cost = config.cost

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        towards = margin(need(output.logits, "varifocal", "foreground")[layer].float())
        wanted = iou_target(output, batch, matches, layer)
        # p = sigmoid(towards); p^gamma by logarithms, which do not underflow on their way back
        background = self.alpha * (self.gamma * functional.logsigmoid(towards)).exp()
        weight = torch.where(wanted > 0, wanted, background)
        loss = weight * functional.binary_cross_entropy_with_logits(towards, wanted, reduction="none")
        return (loss * counted(output, batch, matches, layer)).sum() / matches.number()

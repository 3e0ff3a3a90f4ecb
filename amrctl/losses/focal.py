"""Focal classification of the queries.

Source: Guangzhou, DCASE 2026 Task 6, section 3.3, eq. 3, after Lin et al. (ICCV 2017):
-alpha_t (1 - p_t)^gamma log p_t with alpha 0.75 and gamma 2, p_t the probability of the class that a
query should have. Left open there, ours: alpha_t is alpha for matched queries and 1 - alpha for the
others, the mean is over all B x N queries, and every decoder layer counts. It takes the place of
`label` (without that term's background weight 0.1), also as the class cost of matching.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.losses.base import TermConfig, need
from amrctl.losses.labels import counted
from amrctl.model.layers.windows import margin
from amrctl.model.types import Matches, Output
from amrctl.registry import component


class FocalConfig(TermConfig):
    kind: Literal["focal"] = "focal"
    alpha: float = Field(0.75, gt=0, lt=1, description="weight of foreground; background has the rest of 1")
    gamma: float = Field(2.0, ge=0, description="how much sure and right answers are played down")


@component("losses", "focal", FocalConfig)
class Focal:
    """-alpha_t (1 - p_t)^gamma log p_t, plain mean over all B x N queries."""

    name, all_layers = "focal", True
    branches = classifies = True  # its weight is the class cost of matching

    def __init__(self, config: FocalConfig) -> None:
        self.weight, self.alpha, self.gamma = config.weight, config.alpha, config.gamma

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        towards = margin(need(output.logits, "focal", "foreground")[layer].float())
        found = matches.found(towards)
        # p_t = sigmoid(signed): the margin counts for the matched and against the others
        signed = torch.where(found, towards, -towards)
        alpha = torch.where(found, self.alpha, 1 - self.alpha)
        focus = (self.gamma * functional.logsigmoid(-signed)).exp()  # (1 - p_t)^gamma
        loss = -alpha * focus * functional.logsigmoid(signed)
        return (loss * counted(output, batch, matches, layer)).mean()

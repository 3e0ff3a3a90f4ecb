"""Confidence that says how well a window fits: the IoU-aware terms.

Source: Guangzhou, DCASE 2026 Task 6. Section 3.3, eq. 4: binary cross-entropy of the foreground margin
(foreground less background logit) with the IoU of a matched window and its moment, detached, and with 0
for the others. Section 3.5: the quality head learns the same target; the report gives neither its
loss nor a weight, so it is the same cross-entropy, weight 1 (ours). Both are means over all B x N
queries on every decoder layer, and leave out what the class loss leaves out.

QAM-DETR (Chung-Ang University), DCASE 2026 Task 6, section 2.3, regresses the same detached IoU for matched
windows. Its loss and weight are not given: L1 of the sigmoid, mean over the matched windows of the batch,
weight 1, on every decoder layer (ours).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.losses.base import TermConfig, matched_windows, need
from amrctl.losses.labels import counted
from amrctl.model.layers.spans import iou
from amrctl.model.layers.windows import margin
from amrctl.model.types import LossTerm, Matches, Output
from amrctl.registry import component


class QualityConfig(TermConfig):
    kind: Literal["quality"] = "quality"


@component("losses", "quality", QualityConfig)
class Quality:
    """Eq. 4 on the foreground margin."""

    name, all_layers = "quality", True

    def __init__(self, config: QualityConfig) -> None:
        self.weight = config.weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        logits = need(output.logits, "quality", "foreground")[layer]
        return _cross_entropy(margin(logits.float()), output, batch, matches, layer)

    @staticmethod
    def of_head(weight: float, loss: Literal["cross-entropy", "l1"] = "cross-entropy") -> LossTerm:
        """The term of the head `quality`, which asks for it through the registry (both stand below)."""
        return _HeadQuality(weight) if loss == "cross-entropy" else _HeadL1(weight)


class _HeadQuality:
    """The same target for the quality head's logit."""

    name, all_layers = "quality-head", True

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        logit = need(output.quality, self.name, "quality")[layer].float()
        return _cross_entropy(logit, output, batch, matches, layer)


class _HeadL1:
    """|p_quality - IoU| of matched windows, mean over the batch's; 0 where there are none."""

    name, all_layers = "quality-head", True

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        told = need(output.quality, self.name, "quality")[layer].float().sigmoid()
        found = iou_target(output, batch, matches, layer)
        distance = (told - found).abs()[matches.row, matches.query]
        return matches.counted(distance).sum() / matches.number()


def iou_target(output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
    """IoU of each matched window with its moment, 0 for the others; [B, N] float32, no gradient."""
    predicted, wanted = matched_windows(output, batch, matches, layer)
    target = torch.zeros(need(output.spans, "quality", "span").shape[1:3], device=predicted.device)
    return target.index_put((matches.row, matches.query), iou(predicted, wanted).detach().float())


def _cross_entropy(logit: Tensor, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
    target = iou_target(output, batch, matches, layer)
    loss = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
    return (loss * counted(output, batch, matches, layer)).mean()

"""Foreground / background cross-entropy of the queries (DETR; QD-DETR)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.losses.base import TermConfig, need, targets_of
from amrctl.model.layers.spans import iou, to_start_end
from amrctl.model.layers.stacking import stacked
from amrctl.model.types import Matches, Output
from amrctl.registry import component


class LabelConfig(TermConfig):
    kind: Literal["label"] = "label"
    background: float = Field(0.1, gt=0, description="weight of a background query")


def foreground(logits: Tensor) -> Tensor:
    """Probability of foreground: softmax of two logits (index 0), or sigmoid of one; [...]."""
    logits = logits.float()
    return logits.softmax(-1)[..., 0] if logits.shape[-1] == 2 else logits[..., 0].sigmoid()


def counted(output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
    """Which queries a class loss counts, [B, N] bool.

    An unmatched query on a moment that was left out of this epoch's draw (IoU of at least 0.5) is
    neither foreground nor background.
    """
    targets = targets_of(batch)
    spans = need(output.spans, "label", "span")[layer].detach()
    keep = torch.ones(spans.shape[:2], dtype=torch.bool, device=spans.device)
    ignored = targets.ignored_mask  # asking a GPU would wait for it
    if ignored.device.type != "cpu" or stacked(ignored) or bool(ignored.any()):
        overlap = iou(to_start_end(spans)[:, :, None], to_start_end(targets.ignored)[:, None])
        keep = ~((overlap >= 0.5) & targets.ignored_mask[:, None]).any(-1) | matches.found(keep)
    return keep


@component("losses", "label", LabelConfig)
class Label:
    """Weighted cross-entropy, foreground 1 and background 0.1, plain mean over all B x N queries."""

    name, all_layers = "label", True
    branches = classifies = True  # its weight is the class cost of matching

    def __init__(self, config: LabelConfig) -> None:
        self.weight = config.weight
        self.background = config.background

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        logits = need(output.logits, "label", "foreground")[layer].float()
        found = matches.found(logits[..., 0])
        if logits.shape[-1] == 1:  # one logit: foreground or not
            wanted = found.to(logits.dtype)
            loss = functional.binary_cross_entropy_with_logits(logits[..., 0], wanted, reduction="none")
        else:
            loss = functional.cross_entropy(logits.transpose(1, 2), (~found).long(), reduction="none")
        loss = torch.where(found, loss, loss * self.background)
        return (loss * counted(output, batch, matches, layer)).mean()

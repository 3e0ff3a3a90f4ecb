"""Learning from a teacher's windows: the two terms of the Guangzhou report, section 3.7, eq. 8.

    L_teacher = lambda_span L_span + lambda_score L_score,   K = 3, lambda_span = 2.0, lambda_score = 0.5

The report does not spell the two terms out. Here the teacher's top K windows are matched to the
student's last layer (Hungarian, cost 10 L1 - gIoU); over the matched pairs, L_span is the mean of
L1 + (1 - gIoU), weighted by the teacher's scores, and L_score the mean binary cross-entropy
between the student's foreground margin and the teacher's score. Student windows without a partner
are left alone. Both terms are 0 where the batch has no teacher.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from amrctl.data.batch import Batch, Teacher
from amrctl.losses.base import TermConfig, need
from amrctl.losses.dense import dense
from amrctl.losses.matching import assign
from amrctl.model.layers.spans import giou, to_start_end
from amrctl.model.layers.stacking import stacked
from amrctl.model.layers.windows import margin
from amrctl.model.types import Matches, Output
from amrctl.registry import component


class SpanConfig(TermConfig):
    """Weight lambda_span."""

    kind: Literal["teacher-span"] = "teacher-span"
    weight: float = Field(default=2.0, ge=0)


class ScoreConfig(TermConfig):
    """Weight lambda_score."""

    kind: Literal["teacher-score"] = "teacher-score"
    weight: float = Field(default=0.5, ge=0)


@component("losses", "teacher-span", SpanConfig)
class TeacherSpan:
    """L_span: where the teacher's windows lie."""

    name = "teacher-span"
    all_layers = False

    def __init__(self, config: SpanConfig) -> None:
        self.weight = config.weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        """Scalar, 0 or more."""
        spans = _spans(output)
        teacher = _teacher(batch)
        if teacher is None:
            return spans.sum() * 0.0
        pairs = _pairs(spans, teacher)
        mine, theirs = spans[pairs.row, pairs.query], teacher.spans[pairs.row, pairs.moment]
        weight = pairs.counted(teacher.scores[pairs.row, pairs.moment])
        distance = (mine - theirs).abs().mean(dim=1) + (1 - giou(to_start_end(mine), to_start_end(theirs)))
        return (weight * distance).sum() / weight.sum().clamp(min=1e-6)


@component("losses", "teacher-score", ScoreConfig)
class TeacherScore:
    """L_score: how sure the teacher is of them."""

    name = "teacher-score"
    all_layers = False

    def __init__(self, config: ScoreConfig) -> None:
        self.weight = config.weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        """Scalar, 0 or more."""
        logits = need(output.logits, "teacher-score", "foreground")[-1].float()
        teacher = _teacher(batch)
        if teacher is None:
            return logits.sum() * 0.0
        pairs = _pairs(_spans(output), teacher)
        if not len(pairs.row):
            return logits.sum() * 0.0
        towards = margin(logits[pairs.row, pairs.query])
        wanted = teacher.scores[pairs.row, pairs.moment]
        if not stacked(towards):  # the library's mean, whose gradient rounds in another order
            return functional.binary_cross_entropy_with_logits(towards, wanted)
        return pairs.mean(functional.binary_cross_entropy_with_logits(towards, wanted, reduction="none"))


@torch.no_grad()
def match_teacher(spans: Tensor, teacher: Teacher) -> tuple[Tensor, Tensor, Tensor]:
    """Pair student spans `[B, N, 2]` with the teacher's windows, one to one, at the lowest total cost.

    The cost is 10 L1 (sum of both coordinates) - gIoU. The real windows of a row come first in
    `teacher.mask`. Returns int64 `row, query, window`, each `[P]`, where P sums
    min(N, windows of the row) over rows.
    """
    cost, counts = _cost(spans, teacher).cpu().numpy(), teacher.mask.sum(1).cpu().numpy()
    row, query, window = torch.tensor(assign(cost, counts), dtype=torch.int64, device=spans.device)
    return row, query, window


@torch.no_grad()
def _cost(spans: Tensor, teacher: Teacher) -> Tensor:
    """[B, N, K], finite."""
    far = (spans[:, :, None] - teacher.spans[:, None]).abs().sum(dim=-1)  # [B, N, K]
    near = giou(to_start_end(spans)[:, :, None], to_start_end(teacher.spans)[:, None])
    return torch.nan_to_num(10 * far - near, nan=1e6, posinf=1e6, neginf=-1e6)


def _pairs(spans: Tensor, teacher: Teacher) -> Matches:
    if stacked(spans):
        return dense(_cost(spans, teacher)[None], teacher.mask)[0]
    return Matches(*match_teacher(spans, teacher))


def _spans(output: Output) -> Tensor:
    return need(output.spans, "teacher-span", "span")[-1].float()


def _teacher(batch: Batch) -> Teacher | None:
    return batch.targets.teacher if batch.targets is not None else None

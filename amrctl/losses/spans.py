"""Span terms: L1 on (centre, width) and generalised IoU, over matched pairs (DETR; QD-DETR)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.losses.base import TermConfig, matched_windows, need, targets_of
from amrctl.model.layers.spans import giou
from amrctl.model.types import Matches, Output
from amrctl.registry import component


class SpanConfig(TermConfig):
    kind: Literal["span"] = "span"


class GiouConfig(TermConfig):
    kind: Literal["giou"] = "giou"


@component("losses", "span", SpanConfig)
class SpanL1:
    """Mean absolute error over the 2P coordinates of the P matched pairs of the batch."""

    name, all_layers, branches = "span", True, True

    def __init__(self, config: SpanConfig) -> None:
        self.weight = config.weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        spans = need(output.spans, "span", "span")[layer]
        if len(matches.row) == 0:
            return spans.sum() * 0.0
        wanted = targets_of(batch).spans[matches.row, matches.moment]
        return matches.mean((spans[matches.row, matches.query] - wanted).abs())


@component("losses", "giou", GiouConfig)
class SpanGiou:
    """Mean of 1 - generalised IoU over the matched pairs of the batch."""

    name, all_layers, branches = "giou", True, True

    def __init__(self, config: GiouConfig) -> None:
        self.weight = config.weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        predicted, wanted = matched_windows(output, batch, matches, layer)
        if len(matches.row) == 0:
            return predicted.sum() * 0.0
        return matches.mean(1.0 - giou(predicted, wanted))

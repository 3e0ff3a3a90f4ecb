"""Negative pairs: the same recording with a sentence that does not belong to it.

Source: QD-DETR (Moon et al., CVPR 2023), section 3.3. Only the saliency of the mismatched pair is
needed, so the decoder does not run for it. Sentences of the same recording are not taken as
mismatched, except with `compat: official`, which takes the next row whatever it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from torch import nn

from amrctl.data.batch import Batch
from amrctl.model.types import Dims, Memory, Output, Tokens
from amrctl.registry import ComponentConfig, component

if TYPE_CHECKING:
    from amrctl.model.detector import Detector

NAME = "negative-pairs"


class NegativePairsConfig(ComponentConfig):
    kind: Literal["negative-pairs"] = "negative-pairs"


@component("auxiliary", NAME, NegativePairsConfig)
class NegativePairs(nn.Module):
    """Writes `output.extras["negative-pairs"]` [B, T]: saliency of the mismatched pair."""

    def __init__(self, config: NegativePairsConfig, dims: Dims) -> None:
        super().__init__()

    def forward(
        self, detector: Detector, batch: Batch, tokens: Tokens, memory: Memory, output: Output
    ) -> None:
        if batch.targets is None:
            return
        row = batch.targets.negative_row.clamp(min=0)
        mismatched = replace(tokens, text=tokens.text[row], text_mask=tokens.text_mask[row])
        output.extras[NAME] = detector.saliency_head.curve(detector.encode(mismatched))

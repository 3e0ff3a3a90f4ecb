"""Rank by foreground blended with the resemblance of window and sentence.

Source: KAIST, DCASE 2026 Task 6, section 3.2: alpha p_fg + (1 - alpha) r, where r in 0..1 is what the
head `span-rerank` says. At alpha 1 (the submitted systems) this is the foreground alone, to the bit.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.inference.scores.foreground import ForegroundScore, ForegroundScoreConfig
from amrctl.model.types import Output
from amrctl.registry import ComponentConfig, component

NAME = "span-rerank"


class SpanRerankScoreConfig(ComponentConfig):
    kind: Literal["span-rerank"] = "span-rerank"
    alpha: float = Field(1.0, ge=0, le=1, description="share of the foreground; the rest is resemblance")


@component("score", NAME, SpanRerankScoreConfig)
class SpanRerankScore:
    """`alpha p_fg + (1 - alpha) r` of the last decoder layer."""

    def __init__(self, config: SpanRerankScoreConfig) -> None:
        self.alpha = config.alpha
        self.foreground = ForegroundScore(ForegroundScoreConfig())

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        """[B, N] float32 in 0..1."""
        foreground = self.foreground(output, batch)
        if self.alpha == 1.0:
            return foreground
        if NAME not in output.extras:
            raise RecipeError(
                f"inference.score: alpha {self.alpha:g} needs the head '{NAME}' in model.heads; "
                "set inference.score.alpha=1 without it"
            )
        return self.alpha * foreground + (1 - self.alpha) * output.extras[NAME].float()

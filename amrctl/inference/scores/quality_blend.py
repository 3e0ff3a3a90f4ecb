"""Rank by foreground blended with the quality head's estimate.

Source: Guangzhou, DCASE 2026 Task 6, section 3.5, eq. 6: (1 - lambda) p_fg + lambda p_quality, lambda 0.8.
With the refinement `span-evidence`, p_fg is that of the corrected logits.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, create_model
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.inference.scores.foreground import ForegroundScore, ForegroundScoreConfig
from amrctl.model.types import Output
from amrctl.registry import ComponentConfig, component

NAME = "quality-blend"

# made by call: a class body cannot name a field `lambda`, and a recipe should say what the report says
_FIELDS: dict[str, Any] = {
    "kind": (Literal["quality-blend"], NAME),
    "lambda": (float, Field(0.8, ge=0, le=1, description="share of the quality head")),
}
QualityBlendConfig = create_model("QualityBlendConfig", __base__=ComponentConfig, **_FIELDS)


@component("score", NAME, QualityBlendConfig)
class QualityBlend:
    """`(1 - lambda) p_fg + lambda p_quality` of the last decoder layer."""

    needs_heads = ("quality",)

    def __init__(self, config: ComponentConfig) -> None:
        self.share: float = getattr(config, "lambda")
        self.foreground = ForegroundScore(ForegroundScoreConfig())

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        """[B, N] float32 in 0..1."""
        if output.quality is None:
            raise RecipeError(
                f"inference.score: '{NAME}' needs the head 'quality' in model.heads; "
                "without it, set inference.score=foreground"
            )
        quality = output.quality[-1].float().sigmoid()
        return (1 - self.share) * self.foreground(output, batch) + self.share * quality

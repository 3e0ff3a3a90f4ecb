"""Rank by foreground times the quality head's estimate.

Source: QAM-DETR (Chung-Ang University), DCASE 2026 Task 6 report, section 2.3, eq. 2: s = p_fg * q.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.inference.scores.foreground import ForegroundScore, ForegroundScoreConfig
from amrctl.model.types import Output
from amrctl.registry import ComponentConfig, component

NAME = "product"


class ProductConfig(ComponentConfig):
    kind: Literal["product"] = "product"


@component("score", NAME, ProductConfig)
class Product:
    """`p_fg * p_quality` of the last decoder layer."""

    needs_heads = ("quality",)

    def __init__(self, config: ProductConfig) -> None:
        self.foreground = ForegroundScore(ForegroundScoreConfig())

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        """[B, N] float32 in 0..1."""
        if output.quality is None:
            raise RecipeError(
                f"inference.score: '{NAME}' needs the head 'quality' in model.heads; "
                "without it, set inference.score=foreground"
            )
        return self.foreground(output, batch) * output.quality[-1].float().sigmoid()

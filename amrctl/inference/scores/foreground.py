"""Rank by the probability of foreground (the baseline)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.losses.labels import foreground
from amrctl.model.types import Output
from amrctl.registry import ComponentConfig, component


class ForegroundScoreConfig(ComponentConfig):
    kind: Literal["foreground"] = "foreground"


@component("score", "foreground", ForegroundScoreConfig)
class ForegroundScore:
    """`p_fg` of the last decoder layer."""

    def __init__(self, config: ForegroundScoreConfig) -> None:
        pass

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        """[B, N] float32 in 0..1."""
        if output.logits is None:
            raise RecipeError("inference.score: 'foreground' needs the head 'foreground'")
        return foreground(output.logits[-1])

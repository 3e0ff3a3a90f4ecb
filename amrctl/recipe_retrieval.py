"""Recipes of `task: retrieval`: a dual encoder that ranks recordings by a sentence."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SerializeAsAny

from amrctl.recipe_base import BaseRecipe, StageTrain, Strict
from amrctl.registry import ComponentConfig


class Temperature(Strict):
    """What similarities are divided by in the contrastive loss."""

    initial: float = Field(default=0.05, gt=0)
    learned: bool = True


class RetrievalModel(Strict):
    """The dual encoder's slots."""

    audio: SerializeAsAny[ComponentConfig]
    text: SerializeAsAny[ComponentConfig]
    pooling: SerializeAsAny[ComponentConfig]
    dim: int = Field(1024, ge=2, description="width of the shared space")
    temperature: Temperature = Temperature()


class RetrievalTrain(StageTrain):
    """How one stage trains a dual encoder. `epochs`, `batch`, `eval_batch` count recordings."""

    epochs: int = Field(20, ge=1)
    batch: int = Field(64, ge=2)
    eval_batch: int = Field(64, ge=1)
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    metrics: list[str] = Field(default=["mAP@10", "R@1"], min_length=1, description="the first is primary")
    max_seconds: float = Field(30.0, gt=0, description="of longer recordings a drawn stretch is heard")
    memory_gb: float = Field(
        4.0, ge=0, description="spectra are kept in memory up to this size; more is read anew by workers"
    )
    workers: int | None = Field(None, ge=0, description="processes that read; none: one a core, at most 8")


class RetrievalRecipe(BaseRecipe):
    """One resolved recipe of a dual encoder."""

    task: Literal["retrieval"]
    model: RetrievalModel
    losses: list[SerializeAsAny[ComponentConfig]]
    train: RetrievalTrain

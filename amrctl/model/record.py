"""A checkpoint in memory: weights and what explains them, whatever file they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from amrctl.checkpoint_file import FORMAT
from amrctl.recipe import Recipe

__all__ = ["FORMAT", "Checkpoint"]


@dataclass
class Checkpoint:
    """Weights and what explains them."""

    tensors: dict[str, Tensor]
    recipe: Recipe
    features: dict[str, list[dict[str, Any]]]  # per side, main first: name, dim, encoder, hop, attrs
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    rounding: int = 0  # seconds; 1 when the training annotations are whole seconds

    @property
    def dims(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Feature widths of the audio and the text streams, main first."""
        return (
            tuple(int(s["dim"]) for s in self.features["audio"]),
            tuple(int(s["dim"]) for s in self.features["text"]),
        )

    def metadata(self) -> dict[str, Any]:
        """What stands in the file beside the tensors."""
        return {
            "format": FORMAT,
            "recipe": self.recipe.to_dict(),
            "features": self.features,
            "epoch": self.epoch,
            "metrics": self.metrics,
            "provenance": self.provenance,
            "rounding": self.rounding,
        }

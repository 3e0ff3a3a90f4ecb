"""The loss of a dual encoder: its recipe's terms, weighted and summed."""

from __future__ import annotations

from typing import Any

import torch

from amrctl import registry
from amrctl.encoders.dual.model import Embedded
from amrctl.losses.total import Loss
from amrctl.recipe_retrieval import RetrievalRecipe


class RetrievalCriterion:
    """Calls every term of `losses` on the two sides of a batch."""

    def __init__(self, recipe: RetrievalRecipe) -> None:
        self.terms = [registry.find("retrieval-losses", c.kind).build(c) for c in recipe.losses]

    def __call__(self, output: Embedded, batch: Any) -> Loss:
        """The weighted sum and each raw term."""
        loss = Loss(torch.zeros((), device=output.audio.device), {}, {})
        for term in self.terms:
            loss.add(term.name, term(output), term.weight)
        return loss

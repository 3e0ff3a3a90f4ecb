"""The one place that matches, weights, repeats over decoder layers and sums loss terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amrctl import registry
from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.losses.base import targets_of
from amrctl.losses.dense import dense
from amrctl.losses.labels import foreground
from amrctl.losses.matching import costs, match
from amrctl.model.detector import Detector
from amrctl.model.layers.stacking import stacked
from amrctl.model.types import LossTerm, Matches, Output
from amrctl.recipe import Recipe


@dataclass
class Loss:
    """The sum to differentiate, and each term for the log (detached, on the device)."""

    total: Tensor
    raw: dict[str, Tensor]  # unweighted, last decoder layer
    weighted: dict[str, Tensor]  # weighted and summed over decoder layers

    def add(self, name: str, value: Tensor, weight: float) -> None:
        """Count one term on one decoder layer; layers come in their order."""
        scaled = value * weight
        self.total = self.total + scaled
        kept = scaled.detach()
        self.weighted[name] = self.weighted[name] + kept if name in self.weighted else kept
        self.raw[name] = value.detach()


class Criterion:
    """Loss of a recipe: its `losses` block plus the terms its components bring along."""

    def __init__(self, recipe: Recipe, detector: Detector) -> None:
        self.terms: list[LossTerm] = [registry.find("losses", c.kind).build(c) for c in recipe.losses]
        for term in self.terms:
            if hasattr(term, "official"):
                term.official = recipe.compat == "official"
        for part in detector.components():
            own = getattr(part, "loss_terms", None)
            if own is not None:
                self.terms.extend(own())
        names = [term.name for term in self.terms]
        double = {name for name in names if names.count(name) > 1}
        if double:
            raise RecipeError(f"losses: '{min(double)}' is there twice")
        weights = {term.name: term.weight for term in self.terms}
        if "span" not in weights or "giou" not in weights:
            raise RecipeError("losses: matching needs 'span' and 'giou' (their weights are its costs)")
        self._span, self._giou = weights["span"], weights["giou"]
        self._label = max(
            (getattr(t, "cost", t.weight) for t in self.terms if _is_class_term(t)), default=0.0
        )
        self._units = {"span": self._span, "giou": self._giou, "label": self._label}

    def __call__(self, output: Output, batch: Batch) -> Loss:
        """Match all layers once, then evaluate every term where it applies."""
        layers = self._match(output, batch)
        last = len(layers) - 1
        loss = Loss(torch.zeros((), device=batch.audio_mask.device), {}, {})
        for term in self.terms:
            weight = term.weight * self._units.get(getattr(term, "unit", ""), 1.0)
            for layer in range(len(layers)) if term.all_layers else (last,):
                loss.add(term.name, term(output, batch, layers[layer], layer), weight)
        for name, branch in output.branches.items():
            found = self._match(branch.output, batch)
            for term in self.terms:
                if getattr(term, "branches", False):
                    value = term(branch.output, batch, found[-1], len(found) - 1)
                    loss.add(f"{name}.{term.name}", value, branch.weight * term.weight)
        return loss

    def _match(self, output: Output, batch: Batch) -> list[Matches]:
        """The pairs of every decoder layer."""
        targets = targets_of(batch)
        if output.logits is None or output.spans is None:
            raise RecipeError("model.heads: training needs 'foreground' and 'span'")
        cost = costs(
            foreground(output.logits.detach()),
            output.spans.detach(),
            targets,
            span=self._span,
            giou_weight=self._giou,
            label=self._label,
        )
        return dense(cost, targets.mask) if stacked(cost) else match(cost, targets)


def _is_class_term(term: LossTerm) -> bool:
    return getattr(term, "classifies", False)

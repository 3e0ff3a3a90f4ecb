"""The one place that matches, weights, repeats over decoder layers and sums loss terms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from amrctl import registry
from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.losses.base import targets_of
from amrctl.losses.labels import foreground
from amrctl.losses.matching import costs, match
from amrctl.model.detector import Detector
from amrctl.model.types import LossTerm, Output
from amrctl.recipe import Recipe


@dataclass
class Loss:
    """The sum to differentiate, and each term for the log (detached, on the device)."""

    total: Tensor
    raw: dict[str, Tensor]  # unweighted, last decoder layer
    weighted: dict[str, Tensor]  # weighted and summed over decoder layers


class Criterion:
    """Loss of a recipe: its `losses` block plus the terms its components bring along."""

    def __init__(self, recipe: Recipe, detector: Detector) -> None:
        self.terms: list[LossTerm] = [registry.find("losses", c.kind).build(c) for c in recipe.losses]
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

    def __call__(self, output: Output, batch: Batch) -> Loss:
        """Match all layers once, then evaluate every term where it applies."""
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
        layers = match(cost, targets)
        last = len(layers) - 1
        total = output.spans.new_zeros(())
        raw: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        for term in self.terms:
            for layer in range(len(layers)) if term.all_layers else (last,):
                value = term(output, batch, layers[layer], layer)
                scaled = value * term.weight
                total = total + scaled
                kept = scaled.detach()
                weighted[term.name] = weighted[term.name] + kept if term.name in weighted else kept
                if layer == last:
                    raw[term.name] = value.detach()
        return Loss(total, raw, weighted)


def _is_class_term(term: LossTerm) -> bool:
    return getattr(term, "classifies", False)

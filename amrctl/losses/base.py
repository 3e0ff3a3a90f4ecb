"""What the general loss terms share: their options and how they pick the matched pairs."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from amrctl.data.batch import Batch, Targets
from amrctl.errors import RecipeError
from amrctl.model.layers.spans import to_start_end
from amrctl.model.types import Matches, Output
from amrctl.registry import ComponentConfig


class TermConfig(ComponentConfig):
    """A loss term of a recipe's `losses` block: `span: 10` is `span: {weight: 10}`."""

    weight: float = Field(ge=0)


def targets_of(batch: Batch) -> Targets:
    """The batch's targets; `RecipeError` on a batch without (blind data cannot train)."""
    if batch.targets is None:
        raise RecipeError("a loss needs labelled windows, and these queries have none")
    return batch.targets


def need(value: Tensor | None, term: str, head: str) -> Tensor:
    """`value`, or a `RecipeError` that names the head a term needs."""
    if value is None:
        raise RecipeError(f"losses.{term}: needs the head '{head}' in model.heads")
    return value


def matched_windows(output: Output, batch: Batch, matches: Matches, layer: int) -> tuple[Tensor, Tensor]:
    """(start, end) of the matched predictions and of their moments, each [P, 2], in 0..1."""
    spans = need(output.spans, "span", "span")[layer]
    predicted = spans[matches.row, matches.query]
    wanted = targets_of(batch).spans[matches.row, matches.moment]
    return to_start_end(predicted), to_start_end(wanted)

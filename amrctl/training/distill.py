"""The recipe of a distillation: any recipe, plus the two teacher terms (see `losses.teacher`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from amrctl import recipe as recipes
from amrctl.errors import RecipeError
from amrctl.losses.teacher import ScoreConfig, SpanConfig
from amrctl.model import checkpoint
from amrctl.recipe import Recipe
from amrctl.run_folder import find_checkpoint


def with_teacher(
    name_or_file: str | None,
    init: Path | None,
    sets: Iterable[str] = (),
    *,
    span_weight: float | None = None,
    score_weight: float | None = None,
) -> Recipe:
    """The `finetune` recipe of a distillation.

    It is the named one, or that in the metadata of `init`. A teacher term that it lacks is added;
    a weight that is given replaces the recipe's. `sets` (`--set`) are applied last. Raises
    `RecipeError` when there is neither a recipe nor an `init`.
    """
    if name_or_file is not None:
        base = recipes.load(name_or_file, "finetune").to_dict()
        where = name_or_file
    elif init is not None:
        where = str(find_checkpoint(init))
        base = checkpoint.read(where).recipe.to_dict()
    else:
        raise RecipeError("distill needs --recipe, or --init whose recipe it takes")
    losses: dict[str, Any] = {
        entry["kind"]: {key: value for key, value in entry.items() if key != "kind"}
        for entry in base["losses"]
    }
    for kind, config, weight in (
        ("teacher-span", SpanConfig(), span_weight),
        ("teacher-score", ScoreConfig(), score_weight),
    ):
        term = losses.setdefault(kind, {"weight": config.weight})
        if weight is not None:
            term["weight"] = weight
    return recipes.from_dict({**base, "losses": losses}, where=where, stage="finetune", sets=sets)

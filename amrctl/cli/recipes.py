"""`amrctl recipes`: what recipes and components there are, and a recipe as it resolves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from amrctl.cli._options import Json, Quiet, Sets, Verbose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amrctl.cli._console import Console


def run(
    name: Annotated[
        str | None,
        typer.Argument(help="A recipe's name or file; without one, all are listed.", metavar="[RECIPE]"),
    ] = None,
    stage: Annotated[str, typer.Option("--stage", help="pretrain or finetune.")] = "finetune",
    sets: Sets = None,
    components: Annotated[
        bool, typer.Option("--components", help="List the slots and what can be plugged in.")
    ] = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List recipes, or print one as a stage resolves it.

    The printed YAML holds every key with its value, defaults included;
    any of them can be changed with --set, here and in training.

    Examples:

      amrctl recipes

      amrctl recipes qd-detr --stage pretrain

      amrctl recipes qd-detr --set train.epochs=50 --set losses.label=2

      amrctl recipes --components
    """
    from amrctl.cli._console import Console
    from amrctl.errors import RecipeError, near

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    if name is not None and components:
        raise RecipeError("--components stands alone; leave the recipe's name out")
    if name is None and (sets or stage != "finetune"):
        raise RecipeError("--stage and --set need a recipe's name")
    if components:
        _components(console)
        return
    if name is None:
        _list(console)
        return
    from amrctl.recipe import STAGES, load_any

    if stage not in STAGES:
        raise RecipeError(f"--stage {stage}: no stage is called so{near(stage, list(STAGES))}")
    recipe = load_any(name, stage, sets or ())
    console.result(recipe.to_dict())
    console.say(recipe.to_yaml().rstrip("\n"))


def _list(console: Console) -> None:
    from amrctl.recipe_catalogue import summaries

    found = summaries()
    console.result([summary._asdict() for summary in found])
    _table(console, ("recipe", "source", "what it is"), [tuple(summary) for summary in found])
    console.say("amrctl recipes NAME prints one; --components lists what recipes are made of")


def _components(console: Console) -> None:
    import json

    from amrctl.recipe_catalogue import components

    found = components()
    console.result(found)
    rows = []
    for slot, kinds in found.items():
        for i, (kind, options) in enumerate((kinds or {"(none)": {}}).items()):
            told = ", ".join(f"{key}={json.dumps(value)}" for key, value in options.items())
            rows.append((slot if i == 0 else "", kind, told))
    _table(console, ("slot", "kind", "options and defaults"), rows)


def _table(console: Console, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.text import Text

    from amrctl.cli._console import table

    shown = table(*columns)
    for column in shown.columns:
        column.justify = "left"
    for row in rows:
        shown.add_row(*map(Text, row))  # Text, not str: brackets in a name are no markup
    console.table(shown)

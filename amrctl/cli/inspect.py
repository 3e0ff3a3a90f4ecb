"""`amrctl inspect`: one file in, what it is on one screen out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amrctl.cli._options import Json, Quiet, Verbose

if TYPE_CHECKING:
    from amrctl.cli._console import Console
    from amrctl.data.explained import Explained


def run(
    path: Annotated[Path, typer.Argument(help="Any file or run folder.", metavar="PATH")],
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Explain a file on one screen.

    Knows manifests, features, predictions, score matrices, checkpoints, run folders,
    metrics, submission packages and official npz features, by content.

    Examples:

      amrctl inspect castella_train_release.jsonl

      amrctl inspect features.h5

      amrctl inspect run/best.safetensors --json
    """
    from amrctl.cli._console import Console
    from amrctl.data.inspect import explain

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    found = explain(path)
    console.result(found.to_dict())
    _show(console, found)
    for note in found.notes:
        console.note(note)


def _show(console: Console, found: Explained) -> None:
    from rich.table import Table
    from rich.text import Text

    from amrctl.cli._console import table

    console.say(f"{found.path}: {found.kind}")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in found.facts.items():
        facts.add_row(name, Text(f"{value:,}" if isinstance(value, int) else str(value)))
    console.table(facts)
    for listing in found.tables:
        shown = table(*listing.columns, title=listing.title)
        for row in listing.rows:
            # Text, not str: a name in a file is no markup
            shown.add_row(*(Text(f"{v:,}" if isinstance(v, int) else str(v)) for v in row))
        console.table(shown)

"""`amrctl soup`: several checkpoints become one by averaging their weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from amrctl.cli._options import Json, Overwrite, Quiet, Verbose


def run(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="C.safetensors", help="Checkpoints, run folders, or folders of several seeds."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The averaged checkpoint.", metavar="C.safetensors")],
    uniform: Annotated[bool, typer.Option("--uniform", help="The plain mean.")] = False,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="A,B", help="One share a checkpoint; they sum to 1."),
    ] = None,
    fill_missing: Annotated[
        str | None,
        typer.Option(
            "--fill-missing",
            metavar="identity",
            help="A part that starts as the identity may be missing in some; it counts as untrained there.",
        ),
    ] = None,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Take a folder of seeds although some failed.")
    ] = False,
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Average the weights of checkpoints of one architecture into one checkpoint.

    Sums are float64; memory holds one tensor per checkpoint. A run folder stands for its best
    checkpoint, a folder of several seeds for the best of each.

    Examples:

      amrctl soup runs --uniform --out soup.safetensors

      amrctl soup run/best.mAP.safetensors run/best.R1@0.7.safetensors --weights 0.8,0.2 --out C.safetensors

      amrctl soup C.safetensors before.safetensors --weights 0.7,0.3
      --fill-missing identity --out D.safetensors
    """
    from amrctl.cli._console import Console, table
    from amrctl.cli._options import parse_floats
    from amrctl.ensemble.soup import make_soup
    from amrctl.errors import CheckpointError
    from amrctl.pipeline.soup import identity_parts

    if uniform == (weights is not None):
        raise CheckpointError("choose one way to average: --uniform or --weights A,B")
    if fill_missing not in (None, "identity"):
        raise CheckpointError(f"--fill-missing {fill_missing}: the only way to fill is identity")
    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    soup = make_soup(
        checkpoints,
        out,
        weights=None if weights is None else parse_floats("--weights", weights),
        identity=identity_parts(checkpoints, allow_incomplete=allow_incomplete) if fill_missing else None,
        allow_incomplete=allow_incomplete,
        overwrite=overwrite,
        report=console,
    )
    console.result(soup.to_dict())
    names = list(dict.fromkeys(name for part in soup.ingredients for name in part.metrics))
    shown = table("checkpoint", "weight", "distance", *(f"val {name}" for name in names), title=str(out))
    # less the folder that all share, so that a narrow table still tells them apart
    shared = os.path.commonpath([part.path.absolute().parent for part in soup.ingredients])
    for part in soup.ingredients:
        place = os.path.relpath(part.path.absolute(), shared)
        values = [f"{part.metrics[name]:.2f}" if name in part.metrics else "" for name in names]
        shown.add_row(place, f"{part.weight:.4g}", f"{part.distance:.2%}", *values)
    console.table(shown)
    first, second, distance = soup.farthest
    console.say(
        f"distance: from the soup, in parts of its norm; farthest apart, {distance:.2%}: "
        f"{soup.ingredients[first].path} and {soup.ingredients[second].path}"
    )

"""`amrctl convert`: checkpoints between our layout and the official baseline's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amrctl.cli._options import Json, Overwrite, Quiet


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Ours (.safetensors, run folder) or official (.ckpt).")],
    out: Annotated[Path, typer.Option("--out", help="The other layout: .ckpt or .safetensors.")],
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert weights between amrctl and the official QD-DETR baseline or CG-DETR, both ways.

    `predict` and `--init` read official files directly; converting is for averaging them with others, or
    for using weights trained here in the official code. Both give the same numbers in float32.

    Examples:

      amrctl convert best.ckpt --out best.safetensors

      amrctl convert run/best.safetensors --out best.ckpt
    """
    from amrctl import provenance
    from amrctl.cli._console import Console
    from amrctl.errors import CheckpointError
    from amrctl.model import checkpoint as ours
    from amrctl.model import official
    from amrctl.run_folder import find_checkpoint

    suffixes = (".ckpt", ".pth", ".pt")
    to_official = out.suffix in suffixes
    if to_official == (checkpoint.suffix in suffixes):
        raise CheckpointError(
            f"{checkpoint} and {out} have the same layout; one is .safetensors, the other .ckpt"
        )
    provenance.refuse_existing(out, overwrite)
    found = ours.read(find_checkpoint(checkpoint))
    if to_official:
        official.write(out, found, overwrite=overwrite)
    else:
        ours.write(out, found, overwrite=overwrite)
    console = Console(json_mode=json_mode, quiet=quiet)
    weights = sum(tensor.numel() for tensor in found.tensors.values())
    console.result({"out": str(out), "recipe": found.recipe.name, "weights": weights})
    console.say(f"{out}: recipe {found.recipe.name}, {weights:,} weights")

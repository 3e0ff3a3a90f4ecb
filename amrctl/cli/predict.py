"""`amrctl predict`: a checkpoint finds the moments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amrctl.cli._options import (
    ClipWindows,
    Device,
    Features,
    Json,
    Overwrite,
    Precision,
    Quiet,
    Sets,
    Verbose,
)


def run(
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            "--checkpoint",
            help="Weights (.safetensors, a run folder, an official .ckpt); several are pooled.",
            metavar="C...",
        ),
    ],
    features: Features,
    test: Annotated[
        list[Path],
        typer.Option("--test", help="Queries to answer (windows are not needed).", metavar="M.jsonl..."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The prediction file.")],
    rounding: Annotated[
        float | None,
        typer.Option(
            "--round",
            min=0,
            help="Round to multiples of this many seconds; 0: exact. Default: as the training labels were.",
        ),
    ] = None,
    saliency: Annotated[
        bool, typer.Option("--saliency", help="Also write a raw score per frame (pred_saliency_scores).")
    ] = False,
    saliency_proposals: Annotated[
        float | None,
        typer.Option(
            "--saliency-proposals",
            metavar="SHARE",
            help="Runs of frames with this share of the highest saliency are windows too, as 0.5.",
        ),
    ] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Windows a query (default: the recipe's, 10).")
    ] = None,
    sets: Sets = None,
    clip_windows: ClipWindows = False,
    device: Device = "auto",
    precision: Precision = "fp32",
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Answer queries with ranked windows.

    Windows lie within the recording and are never empty; scores are 0..1, best first.
    Recordings longer than the model was trained on are read in overlapping chunks.
    Several checkpoints are pooled as `fuse --pool` does. --set changes the stored recipe.

    Examples:

      amrctl predict --checkpoint run/best.safetensors --features f.h5 --test test.jsonl --out p.jsonl

      amrctl predict --checkpoint a.safetensors b.safetensors --features f.h5
      --test test.jsonl --round 0 --saliency-proposals 0.5 --out p.jsonl
    """
    from amrctl.cli._console import Console
    from amrctl.pipeline.predict import PredictRequest, predict

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    request = PredictRequest(
        checkpoints=tuple(checkpoint),
        features=features,
        test=tuple(test),
        out=out,
        rounding=rounding,
        saliency=saliency,
        keep=keep,
        sets=tuple(sets or ()),
        device=device,
        precision=precision,
        clip_windows=clip_windows,
        overwrite=overwrite,
        saliency_proposals=saliency_proposals,
    )
    items = predict(request, console)
    windows = sum(len(item.windows) for item in items)
    console.result({"out": str(out), "queries": len(items), "windows": windows})
    console.say(f"{out}: {len(items):,} queries, {windows:,} windows")

"""`amrctl predict`: a checkpoint finds the moments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amrctl.cli._options import (
    ClipWindows,
    Device,
    Json,
    OptionalFeatures,
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
    test: Annotated[
        list[Path],
        typer.Option("--test", help="Queries to answer (windows are not needed).", metavar="M.jsonl..."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The prediction file.")],
    features: OptionalFeatures = None,
    audio: Annotated[
        list[Path] | None,
        typer.Option("--audio", help="For dual encoders: folders with the recordings.", metavar="DIR..."),
    ] = None,
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
    A dual encoder (task retrieval) scores every caption against every recording
    under --audio, and writes a score matrix (HDF5).

    Examples:

      amrctl predict --checkpoint run/best.safetensors --features f.h5 --test test.jsonl --out p.jsonl

      amrctl predict --checkpoint a.safetensors b.safetensors --features f.h5
      --test test.jsonl --round 0 --saliency-proposals 0.5 --out p.jsonl

      amrctl predict --checkpoint dual --audio sounds/ --test captions.jsonl --out scores.h5
    """
    from amrctl.checkpoint_file import task_of
    from amrctl.cli._console import Console
    from amrctl.errors import AmrctlError
    from amrctl.pipeline.predict import PredictRequest, predict
    from amrctl.run_folder import find_checkpoint

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    tasks = {path: task_of(find_checkpoint(path)) for path in checkpoint}
    if len(set(tasks.values())) > 1:
        raise AmrctlError("--checkpoint: detectors and dual encoders cannot be pooled; give one kind")
    if "retrieval" in tasks.values():
        foreign = {
            "--features": features is not None,
            "--round": rounding is not None,
            "--saliency": saliency,
            "--saliency-proposals": saliency_proposals is not None,
            "--keep": keep is not None,
            "--clip-windows": clip_windows,
        }
        if wrong := [option for option, given in foreign.items() if given]:
            raise AmrctlError(f"{checkpoint[0]} is a dual encoder (task retrieval): leave {wrong[0]} out")
        if not audio:
            raise AmrctlError(f"{checkpoint[0]} is a dual encoder (task retrieval): --audio DIR is missing")
        from amrctl.pipeline.retrieval import RankRequest, rank_recordings

        matrix = rank_recordings(
            RankRequest(
                checkpoints=tuple(checkpoint),
                test=tuple(test),
                audio=tuple(audio),
                out=out,
                sets=tuple(sets or ()),
                device=device,
                precision=precision,
                overwrite=overwrite,
            ),
            console,
        )
        rows, columns = matrix.scores.shape
        console.result({"out": str(out), "queries": rows, "recordings": columns})
        console.say(f"{out}: {rows:,} queries x {columns:,} recordings")
        return
    if audio:
        raise AmrctlError(f"{checkpoint[0]} is a detector: leave --audio out; it reads --features F.h5")
    if features is None:
        raise AmrctlError(f"{checkpoint[0]} is a detector: --features F.h5 is missing")
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

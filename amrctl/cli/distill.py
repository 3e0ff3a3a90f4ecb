"""`amrctl distill`: fine-tuning with a teacher's predictions as additional, soft targets."""

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
from amrctl.cli._training import Init, OneSeed, Out, Seeds, Together, Train, Val


def run(
    teacher: Annotated[
        list[Path],
        typer.Option(
            "--teacher", help="Predictions on the training set; several are united.", metavar="P.jsonl..."
        ),
    ],
    train: Train,
    val: Val,
    features: Features,
    out: Out,
    init: Init = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Name or YAML file; default: that of --init.", metavar="NAME|FILE"),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Windows a query that teach.")] = 3,
    span_weight: Annotated[
        float | None,
        typer.Option("--span-weight", min=0, help="Span term (default: the recipe's, or 2.0)."),
    ] = None,
    score_weight: Annotated[
        float | None,
        typer.Option("--score-weight", min=0, help="Score term (default: the recipe's, or 0.5)."),
    ] = None,
    rank_normalise: Annotated[
        bool, typer.Option("--rank-normalise", help="Replace each file's scores by ranks before uniting.")
    ] = False,
    seed: OneSeed = None,
    seeds: Seeds = None,
    together: Together = False,
    sets: Sets = None,
    device: Device = "auto",
    precision: Precision = "auto",
    clip_windows: ClipWindows = False,
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fine-tune a student that also learns from a teacher's windows (all other losses stay on).

    The teacher is the union of prediction files on the training set, made with
    `predict --test TRAIN --round 0`; near copies are dropped, the best --top-k windows a query count.

    Examples:

      amrctl predict --checkpoint C.safetensors --features F.h5 --test T.jsonl --round 0 --out P.jsonl

      amrctl distill --teacher P.jsonl Q.jsonl --init S.safetensors --train T.jsonl --val V.jsonl
      --features F.h5 --out run
    """
    from amrctl.cli._console import Console
    from amrctl.cli._training import start
    from amrctl.training.distill import with_teacher
    from amrctl.training.run import Request, TeacherChoice

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    if init is None:
        console.note("no --init: training from scratch")
    request = Request(
        recipe=with_teacher(recipe, init, sets or (), span_weight=span_weight, score_weight=score_weight),
        train=tuple(train),
        val=tuple(val),
        features=features,
        init=init,
        teacher=TeacherChoice(tuple(teacher), top_k=top_k, rank_normalise=rank_normalise),
        device=device,
        precision=precision,
        clip_windows=clip_windows,
    )
    facts: dict[str, object] = {"files": [str(path) for path in teacher], "top_k": top_k}
    start(console, request, out, seed, seeds, overwrite, together, facts)

"""`amrctl fuse`: several prediction files become one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amrctl.cli._options import Json, Overwrite, Quiet, Verbose


def run(
    predictions: Annotated[
        list[Path], typer.Argument(metavar="P.jsonl", help="Prediction files over the same queries.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The fused prediction file.")],
    use_wbf: Annotated[
        bool, typer.Option("--wbf", help="Overlapping windows become their score-weighted mean.")
    ] = False,
    use_pool: Annotated[
        bool, typer.Option("--pool", help="All windows, sorted by score; no boundary changes.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="A,B", help="One number a file (default 1 each); 0: left out."),
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option("--iou", help="--wbf: windows fuse when their IoU is above this (default 0.55)."),
    ] = None,
    drop_copies: Annotated[
        float | None,
        typer.Option(
            "--drop-copies", metavar="IOU", help="--pool: of windows with an IoU above this keep the best."
        ),
    ] = None,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Windows a query in the result.")] = 10,
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fuse several prediction files over the same queries into one.

    --wbf averages overlapping windows; --pool keeps every window and sorts again.
    Files made with `predict --round 0` fuse better than rounded ones.

    Examples:

      amrctl fuse a.jsonl b.jsonl --wbf --weights 0.9,0.1 --out fused.jsonl

      amrctl fuse a.jsonl b.jsonl --pool --drop-copies 0.95 --out pooled.jsonl
    """
    from amrctl import provenance
    from amrctl.cli._console import Console, table
    from amrctl.cli._options import parse_floats
    from amrctl.data.predictions import merge_meta, read_predictions, require_same_queries, write_predictions
    from amrctl.ensemble.pool import pool
    from amrctl.ensemble.stack import checked_weights, rounded
    from amrctl.ensemble.wbf import wbf
    from amrctl.errors import PredictionError

    if use_wbf == use_pool:
        raise PredictionError("choose one way to fuse: --wbf or --pool")
    if use_pool and iou is not None:
        raise PredictionError("--iou belongs to --wbf; to drop near copies from a pool use --drop-copies IOU")
    if use_wbf and drop_copies is not None:
        raise PredictionError("--drop-copies belongs to --pool; --wbf fuses near copies itself")
    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    provenance.refuse_existing(out, overwrite)
    numbers = None if weights is None else parse_floats("--weights", weights)
    checked = checked_weights(numbers, len(predictions))
    files = [read_predictions(path) for path in predictions]
    require_same_queries(files)
    members = [file.items for file in files]
    for file in files:
        if len(files) > 1 and rounded(file):
            console.note(
                f"{file.path}: all windows are whole seconds; members of a fusion are better made with "
                "predict --round 0"
            )
    if use_wbf:
        threshold = 0.55 if iou is None else iou
        fused = wbf(members, weights=numbers, iou=threshold, keep=keep)
        how: dict[str, object] = {"kind": "wbf", "iou": threshold}
    else:
        fused = pool(members, weights=numbers, keep=keep, copies_iou=drop_copies)
        how = {"kind": "pool", "drop_copies": drop_copies}
    how |= {"weights": checked.tolist(), "keep": keep}
    kept = [(f.meta, p) for f, p, w in zip(files, predictions, checked, strict=True) if w > 0]
    meta = merge_meta([m for m, _ in kept], "fuse", [p for _, p in kept], fusion=how)
    if use_wbf and len(kept) > 1:
        meta["rounding"] = 0  # means of windows are not whole seconds
    write_predictions(out, fused, meta, overwrite=overwrite)

    result = {
        "out": str(out),
        "queries": len(fused),
        "windows": sum(len(item.windows) for item in fused),
        "fusion": how,
    }
    console.result(result)
    shown = table("file", "weight", "queries", "windows")
    for path, weight, items in zip(predictions, checked.tolist(), members, strict=True):
        shown.add_row(path.name, f"{weight:g}", f"{len(items):,}", f"{sum(len(i.windows) for i in items):,}")
    console.table(shown)
    console.say(f"{out}: {result['queries']:,} queries, {result['windows']:,} windows")

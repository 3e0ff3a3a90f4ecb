"""`amrctl fuse`: several prediction files become one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from amrctl.cli._options import Json, Overwrite, Quiet, Verbose

if TYPE_CHECKING:
    from amrctl.ensemble.consensus import Bonuses

_SCALES = "Scores first"
_CONSENSUS = "Of --consensus"


def run(
    predictions: Annotated[
        list[Path], typer.Argument(metavar="P.jsonl", help="Prediction files over the same queries.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The fused prediction file.")],
    use_consensus: Annotated[
        bool, typer.Option("--consensus", help="As --wbf; windows that files and top ranks agree on move up.")
    ] = False,
    use_wbf: Annotated[
        bool, typer.Option("--wbf", help="Overlapping windows become their score-weighted mean.")
    ] = False,
    use_pool: Annotated[
        bool, typer.Option("--pool", help="All windows, sorted by score; no boundary changes.")
    ] = False,
    saliency: Annotated[
        bool,
        typer.Option(
            "--saliency", help="First add windows from each file's saliency curve. Alone: as with --pool."
        ),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="--saliency: frames of this share of the highest (default 0.5)."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="A,B", help="One number a file (default 1 each); 0: left out."),
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option(
            "--iou", help="Windows fuse when their IoU is above this (--wbf: 0.55, --consensus: 0.85)."
        ),
    ] = None,
    coordinates: Annotated[
        str | None,
        typer.Option(
            "--coordinates",
            metavar="average|best",
            help="--wbf, --consensus: boundaries are the members' mean (default) or the best member's.",
        ),
    ] = None,
    drop_copies: Annotated[
        float | None,
        typer.Option(
            "--drop-copies", metavar="IOU", help="--pool: of windows with an IoU above this keep the best."
        ),
    ] = None,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Windows a query in the result.")] = 10,
    bonus_count: Annotated[
        float | None,
        typer.Option(
            "--bonus-count",
            help="For each further window of a cluster (default 0.05).",
            rich_help_panel=_CONSENSUS,
        ),
    ] = None,
    bonus_source: Annotated[
        float | None,
        typer.Option(
            "--bonus-source", help="For each further file (default 0.02).", rich_help_panel=_CONSENSUS
        ),
    ] = None,
    bonus_rank: Annotated[
        float | None,
        typer.Option(
            "--bonus-rank", help="Times the mean of 1/rank (default 0.02).", rich_help_panel=_CONSENSUS
        ),
    ] = None,
    normalise: Annotated[
        str,
        typer.Option(
            "--normalise",
            metavar="none|rank|minmax",
            help="Replace each file's scores, query by query.",
            rich_help_panel=_SCALES,
        ),
    ] = "none",
    temperature: Annotated[
        str | None,
        typer.Option(
            "--temperature",
            metavar="A,B",
            help="One a file: divides the logit of its scores.",
            rich_help_panel=_SCALES,
        ),
    ] = None,
    offset: Annotated[
        str | None,
        typer.Option(
            "--offset", metavar="A,B", help="One a file: added to the divided logit.", rich_help_panel=_SCALES
        ),
    ] = None,
    rounding: Annotated[
        float | None,
        typer.Option("--round", min=0, metavar="SECONDS", help="Round the result's windows (default: not)."),
    ] = None,
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fuse several prediction files over the same queries into one.

    --consensus and --wbf average overlapping windows; --pool keeps every window and sorts again.
    Files made with `predict --round 0` fuse better than rounded ones.

    Examples:

      amrctl fuse main.jsonl anchor.jsonl --consensus --weights 0.9,0.1 --out fused.jsonl

      amrctl fuse a.jsonl b.jsonl --pool --drop-copies 0.95 --out pooled.jsonl

      amrctl fuse a.jsonl b.jsonl --saliency --threshold 0.5 --out more.jsonl
    """
    from amrctl.cli._console import Console, table
    from amrctl.cli._options import parse_floats
    from amrctl.errors import PredictionError
    from amrctl.pipeline.fuse import FuseRequest, fuse

    way = _way(use_consensus, use_wbf, use_pool, saliency)
    if not saliency and threshold is not None:
        raise PredictionError("--threshold belongs to --saliency")
    if way == "pool" and iou is not None:
        raise PredictionError(
            "--iou belongs to --wbf and --consensus; to drop near copies from a pool use --drop-copies IOU"
        )
    if way == "pool" and coordinates is not None:
        raise PredictionError("--coordinates belongs to --wbf and --consensus; --pool changes no boundary")
    if way != "pool" and drop_copies is not None:
        raise PredictionError(f"--drop-copies belongs to --pool; --{way} fuses near copies itself")
    if normalise != "none" and (temperature, offset) != (None, None):
        raise PredictionError("choose one way to change scores: --normalise, or --temperature and --offset")

    def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
        return None if text is None else tuple(parse_floats(option, text))

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    share = 0.5 if threshold is None else threshold
    request = FuseRequest(
        files=tuple(predictions),
        out=out,
        way=way,
        weights=numbers("--weights", weights),
        keep=keep,
        iou=iou,
        coordinates=coordinates or "average",
        bonuses=_bonuses(way, count=bonus_count, source=bonus_source, rank=bonus_rank),
        copies_iou=drop_copies,
        saliency=share if saliency else None,
        normalise=normalise,
        temperatures=numbers("--temperature", temperature),
        offsets=numbers("--offset", offset),
        rounding=rounding,
        overwrite=overwrite,
    )
    made = fuse(request, console)
    windows = sum(len(item.windows) for item in made.items)
    console.result({"out": str(out), "queries": len(made.items), "windows": windows, "fusion": made.how})
    shown = table("file", "weight", "queries", "windows")
    for file, weight in zip(made.members, made.weights, strict=True):
        count = sum(len(item.windows) for item in file)
        shown.add_row(file.path.name if file.path else "", f"{weight:g}", f"{len(file):,}", f"{count:,}")
    console.table(shown)
    console.say(f"{out}: {len(made.items):,} queries, {windows:,} windows")


def _way(
    use_consensus: bool, use_wbf: bool, use_pool: bool, saliency: bool
) -> Literal["pool", "wbf", "consensus"]:
    from amrctl.errors import PredictionError

    if use_consensus + use_wbf + use_pool > 1 or not (use_consensus or use_wbf or use_pool or saliency):
        raise PredictionError("choose one way to fuse: --consensus, --wbf or --pool")
    if use_consensus:
        return "consensus"
    return "wbf" if use_wbf else "pool"


def _bonuses(way: str, **given: float | None) -> Bonuses:
    from amrctl.ensemble.consensus import Bonuses
    from amrctl.errors import PredictionError

    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if named and way != "consensus":
        raise PredictionError(f"--bonus-{next(iter(named))} belongs to --consensus")
    return Bonuses(**named)

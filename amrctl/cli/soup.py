"""`amrctl soup`: several checkpoints become one by averaging their weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amrctl.cli._options import ClipWindows, Device, Json, OptionalFeatures, Overwrite, Quiet, Verbose
from amrctl.errors import AmrctlError

if TYPE_CHECKING:
    from amrctl.cli._console import Console
    from amrctl.ensemble.soup import Soup

_HOW = "One of"


def run(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="C.safetensors", help="Checkpoints, run folders, or folders of several seeds."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The averaged checkpoint.", metavar="C.safetensors")],
    uniform: Annotated[bool, typer.Option("--uniform", help="The plain mean.", rich_help_panel=_HOW)] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="A,B", help="One share a checkpoint; they sum to 1.", rich_help_panel=_HOW
        ),
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy", help="The mean of those that do not lower the validation.", rich_help_panel=_HOW
        ),
    ] = False,
    fisher: Annotated[
        bool,
        typer.Option(
            "--fisher", help="Each weight by how sensitive the loss is to it.", rich_help_panel=_HOW
        ),
    ] = False,
    val: Annotated[
        list[Path] | None,
        typer.Option("--val", help="--greedy: labelled manifests, joined.", metavar="M.jsonl..."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", help="--greedy: what must not fall (default: the recipe's first).", metavar="NAME"
        ),
    ] = None,
    fisher_data: Annotated[
        list[Path] | None,
        typer.Option(
            "--fisher-data",
            help="--fisher: labelled manifests, joined, that no checkpoint was trained on.",
            metavar="M.jsonl...",
        ),
    ] = None,
    features: OptionalFeatures = None,
    device: Device = "auto",
    clip_windows: ClipWindows = False,
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

      amrctl soup runs --greedy --val V.jsonl --features F.h5 --metric mAP --out soup.safetensors

      amrctl soup runs --fisher --fisher-data V.jsonl --features F.h5 --out soup.safetensors

      amrctl soup C.safetensors before.safetensors --weights 0.7,0.3
      --fill-missing identity --out D.safetensors
    """
    from amrctl.cli._console import Console

    given = {
        "--weights": weights, "--greedy": greedy, "--fisher": fisher, "--val": val, "--metric": metric,
        "--fisher-data": fisher_data, "--features": features, "--fill-missing": fill_missing,
        "--clip-windows": clip_windows,
    }  # fmt: skip
    how = _way({"--uniform": uniform, **given})
    if fill_missing not in (None, "identity"):
        raise AmrctlError(f"--fill-missing {fill_missing}: the only way to fill is identity")
    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    shared: dict[str, Any] = {"allow_incomplete": allow_incomplete, "overwrite": overwrite}
    data: dict[str, Any] = {"features": features, "device": device, "clip_windows": clip_windows}
    if how == "--greedy":
        from amrctl.pipeline.greedy import GreedyRequest, greedy_soup

        chosen = GreedyRequest(tuple(checkpoints), out, tuple(val or ()), metric=metric, **data, **shared)
        soup = greedy_soup(chosen, console)
    elif how == "--fisher":
        from amrctl.pipeline.fisher import FisherRequest, fisher_soup

        weighed = FisherRequest(tuple(checkpoints), out, tuple(fisher_data or ()), **data, **shared)
        soup = fisher_soup(weighed, console)
    else:
        from amrctl.cli._options import parse_floats
        from amrctl.ensemble.soup import make_soup
        from amrctl.pipeline.soup import identity_parts

        soup = make_soup(
            checkpoints,
            out,
            weights=None if weights is None else parse_floats("--weights", weights),
            identity=identity_parts(checkpoints, allow_incomplete=allow_incomplete) if fill_missing else None,
            report=console,
            **shared,
        )
    console.result(soup.to_dict())
    _show(console, soup)


# way to average → options that it needs, options that it may have
WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "--uniform": ((), ("--fill-missing",)),
    "--weights": ((), ("--fill-missing",)),
    "--greedy": (("--val", "--features"), ("--metric", "--clip-windows")),
    "--fisher": (("--fisher-data", "--features"), ("--clip-windows",)),
}


def _way(given: dict[str, Any]) -> str:
    """The one way to average that was asked for. Raises `AmrctlError` for what does not belong to it."""
    asked = [way for way in WAYS if given[way]]
    if len(asked) != 1:
        raise AmrctlError(
            "choose one way to average: --uniform, --weights A,B, --greedy --val M --features F or "
            "--fisher --fisher-data M --features F"
        )
    (way,) = asked
    needed, allowed = WAYS[way]
    for option in needed:
        if not given[option]:
            raise AmrctlError(f"{way} needs {option}")
    for option, value in given.items():
        if value and option not in (way, *needed, *allowed):
            raise AmrctlError(f"{option} does not belong to {way}; leave it out")
    return way


def _show(console: Console, soup: Soup) -> None:
    from amrctl.cli._console import table

    tried = (soup.method.get("greedy") or {}).get("tried", [])
    # less the folder that all share, so that a narrow table still tells them apart
    every = [part.path.absolute() for part in soup.ingredients] + [Path(t["path"]).absolute() for t in tried]
    common = os.path.commonpath([path.parent for path in every])
    if tried:
        steps = table(
            "tried", "alone", "soup with it", "", title=f"{soup.method['greedy']['metric']}, percent"
        )
        for step in tried:
            place = os.path.relpath(Path(step["path"]).absolute(), common)
            kept = "kept" if step["kept"] else "left out"
            steps.add_row(place, f"{step['alone']:.2f}", f"{step['soup']:.2f}", kept)
        console.table(steps)
    names = list(dict.fromkeys(name for part in soup.ingredients for name in part.metrics))
    shown = table(
        "checkpoint", "weight", "distance", *(f"val {name}" for name in names), title=str(soup.path)
    )
    for part in soup.ingredients:
        place = os.path.relpath(part.path.absolute(), common)
        values = [f"{part.metrics[name]:.2f}" if name in part.metrics else "" for name in names]
        shown.add_row(place, f"{part.weight:.4g}", f"{part.distance:.2%}", *values)
    console.table(shown)
    first, second, distance = soup.farthest
    if first != second:
        console.say(
            f"distance: from the soup, in parts of its norm; farthest apart, {distance:.2%}: "
            f"{soup.ingredients[first].path} and {soup.ingredients[second].path}"
        )

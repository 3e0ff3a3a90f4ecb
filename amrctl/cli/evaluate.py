"""`amrctl evaluate`: predictions and a labelled manifest in, metrics out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amrctl.cli._options import ClipWindows, Json, Overwrite, Quiet, Seed, Verbose
from amrctl.errors import AmrctlError

if TYPE_CHECKING:
    from rich.table import Table

    from amrctl.cli._console import Console


def run(
    predictions: Annotated[
        list[Path],
        typer.Argument(help="Prediction files; several are seeds of one system.", metavar="P.jsonl"),
    ],
    test: Annotated[
        Path | None,
        typer.Option("--test", help="The manifest with the labels (of predictions).", metavar="M.jsonl"),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against", help="Files of another system: the paired difference.", metavar="Q.jsonl..."
        ),
    ] = None,
    relevant: Annotated[
        list[Path] | None,
        typer.Option(
            "--relevant",
            help="Of a score matrix: files with further relevant recordings of its captions.",
            metavar="R.csv...",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the metrics here as JSON.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score the queries that all files have, and say which were not.")
    ] = False,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Bootstrap resamples of the recordings.")
    ] = 2000,
    seed: Seed = 0,
    clip_windows: ClipWindows = False,
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score predictions against a labelled manifest, as the official script does.

    Prints R1 and mAP, R5, mean IoU, 95% intervals over recordings, and
    results by moment length, number of moments and recording length.

    --against adds the paired difference to another system, with p-value.

    Examples:

      amrctl evaluate p.jsonl --test test.jsonl

      amrctl evaluate a0.jsonl a1.jsonl --test test.jsonl --against b.jsonl

      amrctl evaluate p.jsonl --test test.jsonl --json --out metrics.json

      amrctl evaluate scores.h5 --relevant metadata_eval.csv
    """
    from amrctl.cli._console import Console
    from amrctl.data.manifest import read_manifest
    from amrctl.data.predictions import read_predictions
    from amrctl.evaluation.report import report
    from amrctl.provenance import refuse_existing, write_json

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    if out is not None:
        refuse_existing(out, overwrite)
    if any(path.suffix == ".h5" for path in predictions):
        foreign = {"--test": test, "--against": against, "--partial": partial, "--clip-windows": clip_windows}
        if wrong := [option for option, given in foreign.items() if given]:
            raise AmrctlError(f"{predictions[0]} is a score matrix with its captions: leave {wrong[0]} out")
        _retrieval(console, predictions, relevant or [], out, overwrite)
        return
    if relevant:
        raise AmrctlError("--relevant is for score matrices (.h5); windows are scored by --test M.jsonl")
    if test is None:
        raise AmrctlError("--test M.jsonl is missing: the manifest with the labels")
    manifest = read_manifest(test, clip_windows=clip_windows, need_windows=True)
    result = report(
        [read_predictions(path, scores=False, empty_windows=True) for path in predictions],
        manifest,
        against=[read_predictions(path, scores=False, empty_windows=True) for path in against or ()],
        partial=partial,
        resamples=resamples,
        seed=seed,
    )
    if out is not None:
        write_json(out, result, overwrite=overwrite)
    _caution(console, result)
    for note in result["notes"]:
        console.note(f"note: {note}")
    console.say(_heading(result))
    for made in _tables(result):
        console.table(made)
    console.result(result)
    if out is not None:
        console.note(f"wrote {out}")


def _retrieval(
    console: Console, paths: list[Path], relevant: list[Path], out: Path | None, overwrite: bool
) -> None:
    """Metrics of score matrices, a table for each label set."""
    from amrctl.cli._console import table
    from amrctl.pipeline.retrieval import report_on
    from amrctl.provenance import write_json

    result = report_on(paths, relevant)
    if out is not None:
        write_json(out, result, overwrite=overwrite)
    if result["trained_on_reference"]:
        console.note(
            "CAUTION: a checkpoint was trained on these captions; its numbers mean nothing for others"
        )
    for told in result["sets"]:
        if told["unasked"]:
            console.note(f"{told['labels']}: {told['unasked']:,} of its queries are not in the matrix")
        title = (
            f"{told['labels']}: {told['queries']:,} queries, {told['recordings']:,} recordings, "
            f"{told['relevant']:.2f} relevant each"
        )
        made = table("metric", "percent", "by guessing", title=title)
        for name, value in told["metrics"].items():
            made.add_row(name, f"{value:.2f}", f"{told['guessing'][name]:.2f}")
        console.table(made)
    console.result(result)
    if out is not None:
        console.note(f"wrote {out}")


def _caution(console: Console, result: dict[str, Any]) -> None:
    for entry in [*result["files"], *result.get("against", {}).get("files", [])]:
        if entry["trained_on_reference"]:
            console.note(
                f"CAUTION: {entry['path']} comes from a checkpoint that was trained on"
                f" {result['reference']['path']}; its numbers say nothing about unseen recordings"
            )
    if result["trained_on_reference"] is None:
        console.detail("whether a checkpoint was trained on this manifest is not known for every file")


def _tables(result: dict[str, Any]) -> list[Table]:
    tables = [_main(result), _thresholds(result), _strata(result)]
    files = [*result["files"], *result.get("against", {}).get("files", [])]
    if len(files) > 1:
        tables.append(_files(files))
    if "against" in result:
        tables.append(_paired(result["against"]))
    return tables


def _heading(result: dict[str, Any]) -> str:
    files, reference = result["files"], result["reference"]
    return (
        f"{_called(files)} on {Path(reference['path']).name}:"
        f" {reference['queries']} queries, {reference['recordings']} recordings"
    )


def _called(files: list[dict[str, Any]]) -> str:
    return Path(files[0]["path"]).name if len(files) == 1 else f"mean of {len(files)} files"


def _main(result: dict[str, Any]) -> Table:
    from amrctl.cli._console import table

    several = len(result["files"]) > 1
    made = table("metric", "percent", "95% interval", *(["sd over files"] if several else []))
    for metric, told in result["metrics"].items():
        row = [metric, f"{told['mean']:.2f}", _range(told)]
        made.add_row(*row, *([f"{told['sd']:.2f}"] if several else []))
    return made


def _thresholds(result: dict[str, Any]) -> Table:
    from amrctl.cli._console import table

    full = result["full"]
    made = table(
        "IoU at least",
        "R1",
        "mAP",
        title="Official blocks" + (", mean of files" if len(result["files"]) > 1 else ""),
    )
    for threshold, r1 in full["MR-R1"].items():
        made.add_row(threshold, f"{r1:.2f}", f"{full['MR-mAP'][threshold]:.2f}")
    made.add_row("average", "", f"{full['MR-mAP']['average']:.2f}")
    return made


def _strata(result: dict[str, Any]) -> Table:
    from amrctl.cli._console import table
    from amrctl.evaluation.strata import KINDS

    made = table("by", "queries", "R1@0.5", "R1@0.7", "95%", "mAP", "mIoU", title="Kinds of queries")
    for kind in KINDS:
        made.add_section()
        made.add_row(f"[bold]{kind.title}[/bold]")
        for told in result["strata"][kind.key]:
            r1, r1_strict, mean_ap, mean_iou = (
                _percent(told["metrics"][name]["mean"]) for name in ("R1@0.5", "R1@0.7", "mAP", "mIoU")
            )
            strict = told["metrics"]["R1@0.7"]
            interval = "-" if strict["low"] is None else f"{strict['low']:.0f} to {strict['high']:.0f}"
            made.add_row(
                f"  {told['name']}", str(told["queries"]), r1, r1_strict, interval, mean_ap, mean_iou
            )
    return made


def _files(files: list[dict[str, Any]]) -> Table:
    from amrctl.cli._console import table

    made = table("file", "R1@0.5", "R1@0.7", "mAP", "R5@0.7", "mIoU", title="Each file")
    made.columns[0].overflow = "fold"
    for told in files:
        brief, extra = told["brief"], told["extra"]
        shown = [brief["MR-full-R1@0.5"], brief["MR-full-R1@0.7"], brief["MR-full-mAP"]]
        shown += [extra["R5@0.7"], extra["mIoU"]]
        made.add_row(told["path"], *(f"{value:.2f}" for value in shown))
    return made


def _paired(against: dict[str, Any]) -> Table:
    from amrctl.cli._console import table

    title = f"Against {_called(against['files'])}"
    made = table("metric", "this", "other", "difference", "95% interval", "p", "p < 0.05", title=title)
    for metric, told in against["metrics"].items():
        verdict = "beats" if told["beats"] else "loses" if told["difference"] < 0 and told["p"] < 0.05 else ""
        values = [f"{told['mean']:.2f}", f"{told['against']:.2f}", f"{told['difference']:+.2f}"]
        made.add_row(metric, *values, _range(told, "+"), f"{told['p']:.3f}", verdict)
    return made


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(told: dict[str, Any], sign: str = "") -> str:
    if told["low"] is None:
        return "-"
    return f"{told['low']:{sign}.2f} to {told['high']:{sign}.2f}"

"""`amrctl submit`: challenge files from prediction files, and a check of finished packages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amrctl.cli._options import Json, Overwrite, Quiet, Verbose

if TYPE_CHECKING:
    from amrctl.cli._console import Console

_ABOUT = "About the system"


def run(
    predictions: Annotated[
        list[Path] | None, typer.Argument(metavar="P.jsonl", help="One to four prediction files.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", metavar="M.jsonl", help="The challenge's query list.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", help="Surname_Institute_task6_1; more files are numbered on from there."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The folder to make.")] = None,
    task: Annotated[
        str, typer.Option("--task", help="dcase2026 (moments) or dcase2025 (score matrices of recordings).")
    ] = "dcase2026",
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="dcase2025: the older form, a list of the best file names."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", metavar="ZIP|DIR", help="Check a finished package; nothing is written."),
    ] = None,
    clip: Annotated[bool, typer.Option("--clip", help="Shorten windows that leave their recording.")] = False,
    template: Annotated[
        Path | None,
        typer.Option("--template", metavar="FILE", help="Metadata template in place of the built-in one."),
    ] = None,
    print_template: Annotated[
        bool, typer.Option("--print-template", help="Print the built-in metadata template and stop.")
    ] = False,
    development_scores: Annotated[
        list[Path] | None,
        typer.Option(
            "--development-scores",
            metavar="M.json",
            help="Metrics files of evaluate, one a prediction file.",
        ),
    ] = None,
    technical_report: Annotated[
        Path | None, typer.Option("--report", metavar="PDF", help="The technical report, for the package.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="System name.", rich_help_panel=_ABOUT)] = "",
    abbreviation: Annotated[
        str, typer.Option("--abbreviation", help="At most 10 characters.", rich_help_panel=_ABOUT)
    ] = "",
    description: Annotated[
        str, typer.Option("--description", help="What the system does.", rich_help_panel=_ABOUT)
    ] = "",
    author: Annotated[
        list[str] | None,
        typer.Option(
            "--author",
            help="'Last, First, email, affiliation'; repeat it, the first one corresponds.",
            rich_help_panel=_ABOUT,
        ),
    ] = None,
    external_dataset: Annotated[
        list[str] | None,
        typer.Option("--external-dataset", help="'Name, URL'; repeat it.", rich_help_panel=_ABOUT),
    ] = None,
    source_code: Annotated[
        str, typer.Option("--source-code", help="Where the code is.", rich_help_panel=_ABOUT)
    ] = "",
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the challenge's files and package, checked against the query list.

    A fault stops it and nothing is written: a query missing, extra or twice,
    a window outside its recording, empty or reversed.
    With --check, an existing package is checked instead.

    Examples:

      amrctl submit p.jsonl --queries q.jsonl --label Doe_X_task6_1 --out sub

      amrctl submit --check sub/Doe_X_task6.zip --queries q.jsonl

      amrctl submit scores.h5 --task dcase2025 --label Doe_X_task6_1 --out sub
    """
    from amrctl.cli._console import Console, table
    from amrctl.data.manifest import read_manifest
    from amrctl.data.predictions import read_predictions
    from amrctl.errors import SubmissionError
    from amrctl.submission import metadata
    from amrctl.submission.check import check_package
    from amrctl.submission.dcase2026 import write_submission

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    if print_template:
        text = metadata.template(None)[0]
        console.result({"template": text})
        console.say(text.rstrip("\n"))
        return
    if task not in ("dcase2026", "dcase2025"):
        raise SubmissionError(f"--task {task}: there is dcase2026 and dcase2025")
    if task == "dcase2025":
        foreign: dict[str, object] = {"--queries": queries, "--check": check, "--clip": clip}
        foreign |= {
            "--template": template,
            "--development-scores": development_scores,
            "--report": technical_report,
        }
        if wrong := [option for option, given in foreign.items() if given]:
            raise SubmissionError(f"--task dcase2025 writes score matrices only: leave {wrong[0]} out")
        _retrieval(console, predictions, label, out, top_k, overwrite)
        return
    if top_k is not None:
        raise SubmissionError("--top-k belongs to --task dcase2025")
    if queries is None:
        raise SubmissionError("--queries is missing: give the challenge's query list (a manifest)")
    # labels that the list may carry play no part here
    listed = read_manifest(queries, clip_windows=True)
    if check is not None:
        if predictions or label or out:
            raise SubmissionError(
                "--check stands alone with --queries; it takes no P.jsonl, --label or --out"
            )
        found = check_package(check, listed)
        console.result(
            {"package": str(check), "labels": found.labels, "faults": found.faults, "notes": found.notes}
        )
        for note in found.notes:
            console.note(f"note: {note}")
        for fault in found.faults:
            console.say(fault)
        if found.faults:
            count = len(found.faults)
            raise SubmissionError(f"{check} would be refused: {count} fault{'s' if count > 1 else ''}")
        systems = f"{len(found.labels)} system{'s' if len(found.labels) > 1 else ''}"
        console.say(f"{check}: {systems}, {len(listed)} queries, no fault")
        return
    if not predictions or label is None or out is None:
        lacking = [n for n, v in (("P.jsonl", predictions), ("--label", label), ("--out", out)) if not v]
        raise SubmissionError(
            f"{' and '.join(lacking)} missing: amrctl submit P.jsonl --queries M.jsonl --label L --out DIR"
        )
    written = write_submission(
        out,
        [read_predictions(path) for path in predictions],
        listed,
        label,
        told=metadata.Told(
            name=name,
            abbreviation=abbreviation,
            description=description,
            source_code=source_code,
            authors=metadata.parse_authors(author or []),
            external_datasets=metadata.parse_datasets(external_dataset or []),
        ),
        template=template,
        scores=development_scores or [],
        technical_report=technical_report,
        clip=clip,
        overwrite=overwrite,
        report=console,
    )
    for one, unknown in written.unknown.items():
        if unknown:
            console.note(f"{one}.meta.yaml: still unknown: {', '.join(unknown)}")
    if technical_report is None:
        console.note("the package holds no technical report; add it with --report PDF before you send it")
    console.result(
        {
            "out": str(written.folder),
            "package": str(written.folder / written.package),
            "labels": written.labels,
            "queries": len(listed),
            "unknown": written.unknown,
        }
    )
    shown = table("system", "prediction file", "queries")
    for one, path in zip(written.labels, predictions, strict=True):
        shown.add_row(one, path.name, f"{len(listed):,}")
    console.table(shown)
    console.say(f"package: {written.folder / written.package}")


def _retrieval(
    console: Console,
    predictions: list[Path] | None,
    label: str | None,
    out: Path | None,
    top_k: int | None,
    overwrite: bool,
) -> None:
    """The files of language-based audio retrieval."""
    from amrctl.data.score_matrix import read_scores
    from amrctl.errors import SubmissionError
    from amrctl.submission.dcase2025 import write_retrieval

    if not predictions or label is None or out is None:
        lacking = [n for n, v in (("S.h5", predictions), ("--label", label), ("--out", out)) if not v]
        raise SubmissionError(
            f"{' and '.join(lacking)} missing: amrctl submit S.h5 --task dcase2025 --label L --out DIR"
        )
    matrices = [read_scores(path) for path in predictions]
    written = write_retrieval(out, matrices, label, top_k=top_k, overwrite=overwrite)
    console.result({"out": str(out), "files": {name: str(path) for name, path in written.items()}})
    for path, matrix in zip(written.values(), matrices, strict=True):
        console.say(f"{path}: {len(set(matrix.queries)):,} captions, {len(matrix.files):,} recordings")

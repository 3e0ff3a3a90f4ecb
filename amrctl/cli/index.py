"""`amrctl index`: a folder of recordings becomes searchable, or its archive is brought up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amrctl.cli._options import Device, Json, Overwrite, Precision, Quiet, Verbose


def run(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The recordings: wav, flac, ogg, mp3, at any depth.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The archive, a folder.", metavar="A.index")],
    audio_encoder: Annotated[
        str | None,
        typer.Option(
            "--audio-encoder",
            help="Whose space sentences share, as laion-clap:WEIGHTS; default: the archive's.",
            metavar="NAME",
        ),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder", help="Its other side; default: of its name and weights.", metavar="NAME"
        ),
    ] = None,
    window: Annotated[
        float | None, typer.Option("--window", help="Seconds that a vector hears; default: 10.")
    ] = None,
    hop: Annotated[
        float | None, typer.Option("--hop", help="Seconds from vector to vector; default: half of that.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of vectors: float16 (the default) or float32.")
    ] = None,
    features_for: Annotated[
        list[Path] | None,
        typer.Option(
            "--features-for",
            help="Also keep what this detector hears, so that searches need no sound.",
            metavar="CHECKPOINT...",
        ),
    ] = None,
    detector_encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--detector-encoder",
            help="Instead of the detector's own audio encoders, main stream first (repeatable).",
            metavar="NAME",
        ),
    ] = None,
    nearest_from: Annotated[
        int | None,
        typer.Option(
            "--nearest-from", min=1, help="Build a graph for quick search from so many windows on (50,000)."
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes; each loads the encoders.")] = 1,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Windows that a network gets at a time.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a folder of recordings searchable, or bring its archive up to date.

    Every recording becomes a vector for each window, in a space that
    sentences share; search --index compares them. The same command again
    hears only what is new or changed, forgets what is gone, and after a kill
    goes on where it stopped. Files that cannot be heard are listed and do not
    stop the rest; the exit code is then 1.

    Examples:

      amrctl index recordings/ --audio-encoder laion-clap --out archive.index

      amrctl index recordings/ --audio-encoder laion-clap
      --features-for C.safetensors --out archive.index

      amrctl index recordings/ --out archive.index
    """
    from amrctl.archive.build import index
    from amrctl.archive.request import IndexRequest
    from amrctl.cli._console import Console, table
    from amrctl.errors import AmrctlError
    from amrctl.pipeline.archive import streams_of

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    checkpoints = features_for or []
    if detector_encoder and len(checkpoints) != 1:
        raise AmrctlError("--detector-encoder needs one --features-for, whose encoders it names")
    done = index(
        IndexRequest(
            folder=folder,
            out=out,
            audio_encoder=audio_encoder,
            text_encoder=text_encoder,
            window=window,
            hop=hop,
            dtype=dtype,
            features=tuple(w for path in checkpoints for w in streams_of(path, detector_encoder or ())),
            nearest_from=nearest_from,
            device=device,
            precision=None if precision == "auto" else precision,
            batch=batch,
            workers=workers,
            overwrite=overwrite,
        ),
        console,
    )
    archive = done.archive
    console.result(done.to_json())
    if not done.fresh:
        console.note(f"{out} is up to date; nothing to do")
    shown = table("recordings", "number", title=str(out))
    for name in ("added", "changed", "moved", "removed", "kept"):
        shown.add_row(name, f"{getattr(done, name):,}")
    shown.add_row("unreadable", f"{len(archive.unreadable):,}")
    shown.add_row("in the archive", f"{len(archive.recordings):,}")
    console.table(shown)
    graph = "a graph for quick search" if archive.nearest else "searched exactly"
    console.say(f"{archive.seconds / 3600:.2f} h, {archive.windows:,} windows, {graph}")
    for fault in archive.unreadable:
        console.note(f"cannot be heard: {fault.why}")
    if archive.unreadable:
        raise typer.Exit(1)

"""`amrctl synth`: event clips with captions and backgrounds in, recordings and manifests out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amrctl.cli._options import Json, Overwrite, Quiet, Seed, Verbose

if TYPE_CHECKING:
    from amrctl.cli._console import Console
    from amrctl.data.synth import SynthResult

_MATERIAL, _MIX = "Material", "Mixing (a preset sets these; what is given here goes first)"


def run(
    events: Annotated[
        str,
        typer.Option(
            "--events", help="Folder of event clips, or 'builtin': the embedded bank.", metavar="DIR"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", metavar="DIR")],
    recordings: Annotated[
        int | None,
        typer.Option("--recordings", help="Number of recordings, all splits together (default: 100)."),
    ] = None,
    length: Annotated[
        str | None, typer.Option("--length", help="Seconds, or a range as 30-90 (default: 60).", metavar="S")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="A published design: clotho-moment or five-minute.")
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option("--splits", help="One manifest each: train=0.8,val=0.1,test=0.1.", metavar="NAME=F,..."),
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option("--queries", help="Exact number, in all or train=800,val=200.", metavar="N"),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; default: all cores.")
    ] = None,
    captions: Annotated[
        list[Path] | None,
        typer.Option(
            "--captions",
            help="Captions of the clips (default: EVENTS/captions.csv).",
            metavar="FILE...",
            rich_help_panel=_MATERIAL,
        ),
    ] = None,
    captions_format: Annotated[
        str | None,
        typer.Option(
            "--captions-format",
            help="csv, clotho, audiocaps or wavcaps; found out if not given.",
            rich_help_panel=_MATERIAL,
        ),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            "--exclude",
            help="Lists of ids whose clips are not used.",
            metavar="FILE...",
            rich_help_panel=_MATERIAL,
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out listed clips that are missing, broken or silent.",
            rich_help_panel=_MATERIAL,
        ),
    ] = False,
    clips_per_kind: Annotated[
        int | None,
        typer.Option(
            "--clips-per-kind", help="Size of the embedded bank (default: 12).", rich_help_panel=_MATERIAL
        ),
    ] = None,
    backgrounds: Annotated[
        Path | None,
        typer.Option(
            "--backgrounds",
            help="Folder of background recordings; without it: noise.",
            metavar="DIR",
            rich_help_panel=_MATERIAL,
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            "--noise",
            help="Colours to draw from: white, pink, brown, blue, none (default: white,pink,brown).",
            rich_help_panel=_MATERIAL,
        ),
    ] = None,
    events_per_recording: Annotated[
        str | None,
        typer.Option(
            "--events-per-recording",
            help="Different events, as 3-5 (default: 1-4).",
            metavar="N",
            rich_help_panel=_MIX,
        ),
    ] = None,
    repeats: Annotated[
        str | None,
        typer.Option(
            "--repeats",
            help="Occurrences of one event, as 1-3 (default: 1).",
            metavar="N",
            rich_help_panel=_MIX,
        ),
    ] = None,
    snr: Annotated[
        str | None,
        typer.Option(
            "--snr",
            help="dB, event against background over its span (default: 5-20).",
            metavar="DB",
            rich_help_panel=_MIX,
        ),
    ] = None,
    background_level: Annotated[
        str | None,
        typer.Option(
            "--background-level",
            help="dB of full scale, as -40--30, or 'keep' (default: -40--30).",
            metavar="DB",
            rich_help_panel=_MIX,
        ),
    ] = None,
    overlap: Annotated[
        bool | None,
        typer.Option(
            "--overlap/--no-overlap", help="Events may overlap (default: no).", rich_help_panel=_MIX
        ),
    ] = None,
    gap: Annotated[
        float | None,
        typer.Option("--gap", help="Seconds at least between events (default: 0.5).", rich_help_panel=_MIX),
    ] = None,
    fade: Annotated[
        float | None,
        typer.Option(
            "--fade", help="Seconds at both ends of an event (default: 0.01).", rich_help_panel=_MIX
        ),
    ] = None,
    trim: Annotated[
        str | None,
        typer.Option(
            "--trim",
            help="silence, blocks (1 s, Clotho-Moment) or none (default: silence).",
            rich_help_panel=_MIX,
        ),
    ] = None,
    min_event: Annotated[
        float | None,
        typer.Option(
            "--min-event", help="Repeat shorter clips up to this length (default: 0).", rich_help_panel=_MIX
        ),
    ] = None,
    max_event: Annotated[
        float | None,
        typer.Option("--max-event", help="Cut longer clips (default: 30).", rich_help_panel=_MIX),
    ] = None,
    snap: Annotated[
        bool | None,
        typer.Option(
            "--snap/--no-snap", help="Moments on whole seconds (default: no).", rich_help_panel=_MIX
        ),
    ] = None,
    rate: Annotated[
        int | None, typer.Option("--rate", help="Sample rate in Hz (default: 16000).", rich_help_panel=_MIX)
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix", help="How the ids of recordings begin (default: synth).", rich_help_panel=_MIX
        ),
    ] = None,
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Mix captioned event clips over backgrounds into recordings with known moments.

    Writes OUT/audio/<vid>.flac and OUT/manifest.jsonl, or one manifest for
    each split. The same seed gives the same bytes; killed, the same command
    goes on where it stopped.

    captions.csv has the columns file,caption (a row for each caption), and if
    you like event and split.

    Examples:

      amrctl synth --events builtin --recordings 60 --events-per-recording 3-5
      --splits train=0.8,val=0.1,test=0.1 --out synth/

      amrctl synth --events clips/ --captions captions.csv --recordings 500
      --length 60 --backgrounds streets/ --snr 0-15 --seed 1 --out synth/

      amrctl synth --events wavcaps/ --captions bbc.json
      soundbible.json --backgrounds demand/ --preset five-minute --out mid/
    """
    from amrctl.cli._console import Console
    from amrctl.data.synth import settings as choose
    from amrctl.data.synth import synthesise

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    keep = background_level == "keep"
    levels = None if keep else _range("--background-level", background_level)
    given: dict[str, Any] = {
        "recordings": recordings,
        "length": _range("--length", length),
        "splits": choose.parse_shares("--splits", splits) if splits else None,
        "queries": choose.parse_queries(queries) if queries else None,
        "captions": tuple(map(str, captions)) if captions else None,
        "captions_format": captions_format,
        "exclude": tuple(map(str, exclude)) if exclude else None,
        "clips_per_kind": clips_per_kind,
        "backgrounds": str(backgrounds) if backgrounds else None,
        "noise": tuple(part.strip() for part in noise.split(",")) if noise is not None else None,
        "events_per_recording": _range("--events-per-recording", events_per_recording, whole=True),
        "repeats": _range("--repeats", repeats, whole=True),
        "snr": _range("--snr", snr),
        "background_level": levels,
        "overlap": overlap,
        "gap": gap,
        "fade": fade,
        "trim": trim,
        "min_event": min_event,
        "max_event": max_event,
        "snap": snap,
        "rate": rate,
        "prefix": prefix,
    }
    choices = {name: value for name, value in given.items() if value is not None}
    if keep:
        choices["background_level"] = None
    settings = choose.with_preset(preset, {**choices, "events": events, "skip_bad": skip_bad, "seed": seed})
    made = synthesise(settings, out, workers=workers or _cores(), overwrite=overwrite, report=console)
    _show(console, made)


def _cores() -> int:
    """Cores this process may use (a container or a batch system may give fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _range(option: str, text: str | None, *, whole: bool = False) -> tuple[float, float] | None:
    from amrctl.data.synth.settings import parse_range

    return parse_range(option, text, whole=whole) if text is not None else None


def _show(console: Console, made: SynthResult) -> None:
    from amrctl.cli._console import table

    if made.finished_before:
        console.note(f"{made.folder} holds this already; nothing to do (--overwrite makes it again)")
    shown = table("manifest", "recordings", "queries", title=str(made.folder))
    for name, path in made.manifests.items():
        shown.add_row(path.name, f"{made.recordings[name]:,}", f"{made.queries[name]:,}")
    console.table(shown)
    if made.empty:
        console.note(f"{made.empty:,} recordings hold no event and have no query")
    console.result(
        {
            "out": str(made.folder),
            "audio": str(made.audio),
            "manifests": {name or "manifest": str(path) for name, path in made.manifests.items()},
            "recordings": {name or "manifest": count for name, count in made.recordings.items()},
            "queries": {name or "manifest": count for name, count in made.queries.items()},
            "made": made.made,
            "empty": made.empty,
        }
    )

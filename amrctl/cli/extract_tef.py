"""`amrctl extract-tef`: sound files and sentences (or npz folders) in, a feature file out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amrctl.cli._options import ClipWindows, Device, Json, Overwrite, Precision, Quiet, Verbose
from amrctl.errors import AmrctlError

if TYPE_CHECKING:
    from amrctl.cli._console import Console
    from amrctl.data.extract import Extracted
    from amrctl.encoders.base import Entry

_NPZ = "Official npz features"


def run(
    out: Annotated[
        Path | None, typer.Option("--out", help="Feature file to write or add to.", metavar="F.h5")
    ] = None,
    manifest: Annotated[
        list[Path] | None,
        typer.Option("--manifest", help="Whose recordings and sentences to encode.", metavar="M.jsonl..."),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            "--audio",
            help="The recordings: a folder of <vid>.wav, .flac, .ogg, .mp3, or of WebDataset tars.",
            metavar="DIR",
        ),
    ] = None,
    audio_encoder: Annotated[
        list[str] | None,
        typer.Option("--audio-encoder", help="As logmel, or NAME:WEIGHTS (repeatable).", metavar="NAME"),
    ] = None,
    text_encoder: Annotated[
        list[str] | None,
        typer.Option("--text-encoder", help="As words, or NAME:WEIGHTS (repeatable).", metavar="NAME"),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Show the encoders, and where to get their weights.")
    ] = False,
    window: Annotated[
        float | None,
        typer.Option("--window", help="Seconds that a frame hears; default: the encoder's, 1."),
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option("--hop", help="Seconds from frame to frame; default: the encoder's, 1."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: Annotated[
        int | None, typer.Option("--batch", help="Windows or sentences that a network gets at a time.")
    ] = None,
    tef: Annotated[
        int, typer.Option("--tef", min=2, max=3, help="Columns of the stored copy of the endpoint features.")
    ] = 2,
    dtype: Annotated[str, typer.Option("--dtype", help="float16 or float32.")] = "float16",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Processes for encoders without a network; default: all cores."
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out missing or broken recordings, and list them at the end."),
    ] = False,
    clip_windows: ClipWindows = False,
    audio_npz: Annotated[
        Path | None,
        typer.Option(
            "--audio-npz", help="Folder of <vid>.npz to import.", metavar="DIR", rich_help_panel=_NPZ
        ),
    ] = None,
    text_npz: Annotated[
        Path | None,
        typer.Option(
            "--text-npz", help="Folder of qid<qid>.npz to import.", metavar="DIR", rich_help_panel=_NPZ
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the imported streams, as ms-clap.", rich_help_panel=_NPZ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            help="Write streams of this file as npz folders under --out instead.",
            metavar="F.h5",
            rich_help_panel=_NPZ,
        ),
    ] = None,
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode recordings and sentences, and store them with temporal endpoint features (TEF).

    Reads wav, flac, ogg and mp3 of any rate and channel count. Several
    encoders hear the recordings in one pass. Killed, the same command goes on
    where it stopped. With another encoder and the same --out, a stream is
    added.

    Examples:

      amrctl extract-tef --list

      amrctl extract-tef --manifest train.jsonl val.jsonl --audio audio/
      --audio-encoder logmel --text-encoder words --out features.h5

      amrctl extract-tef --manifest m.jsonl --audio tars/
      --audio-encoder wavlm-large --audio-encoder logmel
      --text-encoder roberta-large --out features.h5

      amrctl extract-tef --manifest m.jsonl --audio-npz clap/ --text-npz
      clap_text/ --name ms-clap --out features.h5

      amrctl extract-tef --export features.h5 --audio-encoder ms-clap
      --text-encoder ms-clap --out npz/
    """
    from amrctl.cli._console import Console

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    if listing:
        _list(console)
        return
    if out is None:
        raise AmrctlError("--out F.h5 is missing: the feature file to write or add to")
    importing = audio_npz is not None or text_npz is not None
    given = {
        "--manifest": bool(manifest),
        "--audio": audio is not None,
        "--audio-encoder": bool(audio_encoder),
        "--text-encoder": bool(text_encoder),
        "--audio-npz": audio_npz is not None,
        "--text-npz": text_npz is not None,
        "--name": name is not None,
    }
    if export is not None:
        _refuse("--export", given, "--manifest", "--audio", "--audio-npz", "--text-npz", "--name")
        named = []
        for side, names in (("audio", audio_encoder), ("text", text_encoder)):
            if names and len(names) > 1:
                raise AmrctlError(f"--export writes one {side} stream at a time; name one --{side}-encoder")
            named.append(names[0] if names else None)
        _export(console, export, out, named[0], named[1], overwrite)
        return
    if not manifest:
        raise AmrctlError("--manifest M.jsonl is missing: it names the recordings and sentences")

    from amrctl.data.extract import extract, import_streams
    from amrctl.data.manifest import read_manifests

    if importing:
        _refuse("--audio-npz and --text-npz", given, "--audio", "--audio-encoder", "--text-encoder")
        if name is None:
            raise AmrctlError(
                "--name is missing: what the imported streams shall be called, as --name ms-clap"
            )
    else:
        _refuse("an extraction", given, "--name")
        if audio is not None and not audio_encoder:
            raise AmrctlError(f"--audio {audio} needs --audio-encoder; the embedded one is logmel")
        if not audio_encoder and not text_encoder:
            raise AmrctlError(
                "nothing to extract: add --audio DIR --audio-encoder logmel, --text-encoder words"
            )
    read = read_manifests(manifest, clip_windows=clip_windows)
    for note in read.notes:
        console.note(note)
    if importing:
        assert name is not None
        done = import_streams(
            read,
            out,
            name,
            audio_npz=audio_npz,
            text_npz=text_npz,
            tef=tef,
            overwrite=overwrite,
            report=console,
        )
    else:
        done = extract(
            read,
            out,
            audio=audio,
            audio_encoder=audio_encoder,
            text_encoder=text_encoder,
            tef=tef,
            dtype=dtype,
            window=window,
            hop=hop,
            device=device,
            precision=precision,
            batch=batch,
            workers=workers or _cores(),
            skip_bad=skip_bad,
            overwrite=overwrite,
            report=console,
        )
    _show(console, done)


def _cores() -> int:
    """Cores this process may use (a container or a batch system may give fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse(what: str, given: dict[str, bool], *options: str) -> None:
    clash = [option for option in options if given[option]]
    if clash:
        raise AmrctlError(
            f"{what} does not go with {', '.join(clash)}; leave {'it' if len(clash) == 1 else 'them'} out"
        )


def _export(
    console: Console, features: Path, out: Path, audio: str | None, text: str | None, overwrite: bool
) -> None:
    from amrctl.data.npz import export_npz

    if audio is None and text is None:
        audio = text = "auto"
    folders = export_npz(features, out, audio, text, overwrite=overwrite, report=console)
    written = {side: str(folder) for side, folder in zip(("audio", "text"), folders, strict=True) if folder}
    for side, folder in written.items():
        console.say(f"{side}: {folder}")
    console.result({"out": str(out), "folders": written})


def _list(console: Console) -> None:
    """All encoders, from their cards: none is built, nothing heavy is imported."""
    from dataclasses import asdict

    from amrctl.cli._console import table
    from amrctl.encoders.base import catalogue

    entries = catalogue()
    shown = table("encoder", "side", "row", "Hz", "packages")
    for entry in entries:
        packages = f"needs {', '.join(entry.missing)}" if entry.missing else "installed"
        rate = f"{entry.card.rate:,}" if entry.card.rate else "-"
        shown.add_row(entry.name, entry.side, f"{entry.card.dim:,}", rate, packages)
    console.table(shown)
    for told in _sources(entries):
        console.say(told)
    console.result(
        [
            {
                "name": entry.name,
                "side": entry.side,
                **asdict(entry.card),
                "missing": list(entry.missing),
                "default": entry.default,
            }
            for entry in entries
        ]
    )


def _sources(entries: list[Entry]) -> list[str]:
    """Where to get weights, a paragraph for encoders that share them, 80 columns wide."""
    from textwrap import fill

    shared: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.card.weights:
            shared.setdefault((entry.card.weights, entry.card.licence), []).append(entry)
    paragraphs = []
    for (weights, licence), group in shared.items():
        lines = [
            f"{entry.name} ({entry.side})" + (f": {entry.card.note}" if entry.card.note else "")
            for entry in group
        ]
        lines += [f"  weights: {weights}", f"  licence: {licence}"]
        if group[0].default:
            lines.append(f"  default: {group[0].default}")
        paragraphs.append(
            "\n".join(
                # addresses stay whole, to be copied
                fill(line, 80, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
                for line in lines
            )
        )
    return paragraphs


def _show(console: Console, done: Extracted) -> None:
    from dataclasses import asdict

    from amrctl.cli._console import table

    if not done.fresh:
        console.note(f"{done.out} holds this already; nothing to do (--overwrite makes it again)")
    shown = table("stream", "name", "of", "rows", "numbers", title=str(done.out))
    for one in done.stored:
        of, rows = ("recordings", "frames") if one.side == "audio" else ("sentences", "tokens")
        shown.add_row(one.side, one.name, f"{one.count:,} {of}", f"{one.rows:,} {rows}", f"{one.dim:,}")
    console.table(shown)
    if done.skipped:
        console.say(f"skipped {len(done.skipped):,} recordings:")
        for why in done.skipped.values():
            console.say(f"  {why}")
    console.result(
        {
            "out": str(done.out),
            "fresh": done.fresh,
            "streams": done.streams,
            "recordings": done.recordings,
            "frames": done.frames,
            "queries": done.queries,
            "tokens": done.tokens,
            "skipped": done.skipped,
            "stored": [asdict(one) for one in done.stored],
        }
    )

"""`amrctl extract-tef`: sound files and sentences (or npz folders) in, a feature file out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amrctl.cli._options import ClipWindows, Json, Overwrite, Quiet, Verbose
from amrctl.errors import AmrctlError

if TYPE_CHECKING:
    from amrctl.cli._console import Console
    from amrctl.data.extract import Extracted

_NPZ = "Official npz features"


def run(
    out: Annotated[Path, typer.Option("--out", help="Feature file to write or add to.", metavar="F.h5")],
    manifest: Annotated[
        list[Path] | None,
        typer.Option("--manifest", help="Whose recordings and sentences to encode.", metavar="M.jsonl..."),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            "--audio", help="Folder with the recordings: <vid>.wav, .flac, .ogg, .mp3.", metavar="DIR"
        ),
    ] = None,
    audio_encoder: Annotated[
        str | None, typer.Option("--audio-encoder", help="Name of the encoder, as logmel.", metavar="NAME")
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option("--text-encoder", help="Name of the encoder, as words.", metavar="NAME")
    ] = None,
    tef: Annotated[
        int, typer.Option("--tef", min=2, max=3, help="Columns of the stored copy of the endpoint features.")
    ] = 2,
    dtype: Annotated[str, typer.Option("--dtype", help="float16 or float32.")] = "float16",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes that encode recordings; default: all cores."),
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

    Reads wav, flac, ogg and mp3 of any rate and channel count. Killed, the
    same command goes on where it stopped. With another encoder and the same
    --out, a stream is added.

    Examples:

      amrctl extract-tef --manifest train.jsonl val.jsonl --audio audio/
      --audio-encoder logmel --text-encoder words --out features.h5

      amrctl extract-tef --manifest m.jsonl --audio-npz clap/ --text-npz
      clap_text/ --name ms-clap --out features.h5

      amrctl extract-tef --export features.h5 --audio-encoder ms-clap
      --text-encoder ms-clap --out npz/
    """
    from amrctl.cli._console import Console

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    importing = audio_npz is not None or text_npz is not None
    given = {
        "--manifest": bool(manifest),
        "--audio": audio is not None,
        "--audio-encoder": audio_encoder is not None,
        "--text-encoder": text_encoder is not None,
        "--audio-npz": audio_npz is not None,
        "--text-npz": text_npz is not None,
        "--name": name is not None,
    }
    if export is not None:
        _refuse("--export", given, "--manifest", "--audio", "--audio-npz", "--text-npz", "--name")
        _export(console, export, out, audio_encoder, text_encoder, overwrite)
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
        if audio is not None and audio_encoder is None:
            raise AmrctlError(f"--audio {audio} needs --audio-encoder; the embedded one is logmel")
        if audio_encoder is None and text_encoder is None:
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


def _show(console: Console, done: Extracted) -> None:
    from amrctl.cli._console import table

    if not done.fresh:
        console.note(f"{done.out} holds this already; nothing to do (--overwrite makes it again)")
    shown = table("stream", "name", "of", "rows", title=str(done.out))
    if "audio" in done.streams:
        shown.add_row(
            "audio", done.streams["audio"], f"{done.recordings:,} recordings", f"{done.frames:,} frames"
        )
    if "text" in done.streams:
        shown.add_row("text", done.streams["text"], f"{done.queries:,} sentences", f"{done.tokens:,} tokens")
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
        }
    )

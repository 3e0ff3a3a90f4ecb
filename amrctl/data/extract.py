"""Recordings and sentences → feature file: encode, store, go on after a kill.

The same call after a kill does only what is missing and ends with the same numbers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amrctl.data.extract_jobs import AudioJob, Stream, TextJob, described, digest
from amrctl.data.feature_writer import FeatureWriter, StreamSpec
from amrctl.data.features import FeatureFile, Side
from amrctl.data.manifest import Manifest
from amrctl.data.npz import import_npz
from amrctl.data.tef import tef as tef_rows
from amrctl.errors import AmrctlError, AudioError, FeatureError, ManifestError, OutputError
from amrctl.progress import SILENT, Reporter

__all__ = ["Extracted", "Stored", "described", "extract", "import_streams"]


@dataclass(frozen=True)
class Stored:
    """One stream: `count` recordings or sentences in `rows` rows of `dim` numbers."""

    side: Side
    name: str
    count: int
    rows: int
    dim: int


@dataclass(frozen=True)
class Extracted:
    """What an extraction wrote. `streams`: side → name of its first stream that was asked for, whose
    sizes `recordings` to `tokens` are; `stored`: every stream that was asked for, audio first;
    `skipped`: recording → why it is not in the file; `fresh`: false when there was nothing to do."""

    out: Path
    streams: dict[str, str]
    recordings: int = 0
    frames: int = 0
    queries: int = 0
    tokens: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    fresh: bool = True
    stored: tuple[Stored, ...] = ()


def _there(out: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Attributes of the streams that `out` holds; what else may lie there is the writer's to judge."""
    if not out.exists():
        return {}
    try:
        with FeatureFile(out) as file:
            sides: tuple[Side, ...] = ("audio", "text")
            return {(side, name): info.attrs for side in sides for name, info in file.streams(side).items()}
    except FeatureError:
        return {}


def extract(
    manifest: Manifest,
    out: Path | str,
    *,
    audio: Path | str | None = None,
    audio_encoder: str | Sequence[str] | None = None,
    text_encoder: str | Sequence[str] | None = None,
    tef: int = 2,
    dtype: str = "float16",
    window: float | None = None,
    hop: float | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch: int | None = None,
    workers: int = 1,
    skip_bad: bool = False,
    overwrite: bool = False,
    report: Reporter = SILENT,
) -> Extracted:
    """Encode the recordings of `manifest` (sound files or tars under `audio`) and its sentences.

    `audio_encoder`, `text_encoder`: one or several, as `load_audio_encoder` takes them; at least one.
    A stream is named after its encoder and is added beside those that `out` holds. `tef`: 2 or 3
    columns. `window`, `hop` (seconds), `device`, `precision`, `batch`: fields of `EncoderConfig`, for
    all encoders that have them. `workers`: processes that encode recordings, 1 works in this one; the
    stored numbers do not depend on it. Networks always work in this process, with all its threads.

    A stream that `out` holds from the same files, sentences, weights and settings is left as it is.
    Raises `AmrctlError`: bad audio (unless `skip_bad`), an output in the way (unless `overwrite`),
    unknown encoders or weights, no queries.
    """
    if not len(manifest):
        raise ManifestError(f"{manifest.path or 'the manifests'}: no queries, so there is nothing to extract")
    tef_rows(1, tef)  # tells a wrong number of columns before the work
    common = {"device": device, "precision": precision, "batch": batch}
    hearers, readers = _listed("audio", audio_encoder), _listed("text", text_encoder)
    listener = reader = None
    if hearers:
        if audio is None:
            raise AudioError("--audio-encoder needs --audio DIR, the folder with the recordings")
        options = {**common, "window": window, "hop": hop}
        listener = AudioJob(hearers, options, manifest.recordings, Path(audio), dtype, tef, workers, skip_bad)
    if readers:
        reader = TextJob(readers, common, {query.qid: query.query for query in manifest}, dtype)
    streams = [stream for job in (listener, reader) if job is not None for stream in job.streams]
    if not streams:
        raise FeatureError("nothing to extract: name an --audio-encoder, a --text-encoder or both")

    target = Path(out)
    there = {} if overwrite else _there(target)
    todo = [
        stream
        for stream in streams
        if there.get((stream.side, stream.name), {}).get("made_from") != stream.written
    ]
    settings: dict[str, Any] = {"dtype": dtype}
    for stream in todo or streams:
        settings |= {f"{stream.side} {stream.name}: {key}": v for key, v in stream.made_from.items()}
    reasons = _reasons(listener)
    if not todo:
        _clear(target, settings)
        return _counted(target, [(s.side, s.name) for s in streams], reasons, False)
    for stream in todo:
        _refuse_other(target, stream, there.get((stream.side, stream.name)))
    writer = FeatureWriter(target, settings, overwrite, [(stream.side, stream.name) for stream in todo])
    try:
        specs: list[StreamSpec] = []
        # Sentences first: they are quick, and faults in them show before hours of audio.
        for side, job in (("text", reader), ("audio", listener)):
            if job is not None:
                specs += job.run([stream for stream in todo if stream.side == side], writer, report)
        writer.finish(specs, {f"{tef}d": lambda frames: tef_rows(frames, tef)})
    finally:
        writer.close()
    if listener is not None:
        reasons |= listener.skipped
    return _counted(target, [(s.side, s.name) for s in streams], reasons, True)


def _listed(side: str, given: str | Sequence[str] | None) -> list[str]:
    """The spellings of one side's encoders; a name twice would be one stream twice."""
    specs = [given] if isinstance(given, str) else list(given or ())
    names = [spec.partition(":")[0] for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FeatureError(f"--{side}-encoder {twice} is named twice; a file holds one stream of that name")
    return specs


def _refuse_other(out: Path, stream: Stream, attrs: Mapping[str, Any] | None) -> None:
    """Raise `OutputError` for a stream that is there and was made from something else; say from what."""
    if attrs is None:
        return
    try:
        before = json.loads(attrs.get("made_from", ""))
    except (TypeError, ValueError):
        before = None
    why = "from another source"
    if isinstance(before, dict) and "encoder" in before:
        now = stream.made_from
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        why = "with " + ", ".join(
            f"{key} {_brief(before.get(key))}, not {_brief(now.get(key))}" for key in keys
        )
    raise OutputError(
        f"{out} has {stream.side} stream '{stream.name}' already, made {why}; choose another --out or "
        "replace it with --overwrite"
    )


def _brief(value: Any) -> str:
    return str(value if not isinstance(value, str) or len(value) <= 16 else value[:12] + "...")


def _clear(out: Path, settings: Mapping[str, Any]) -> None:
    """Remove what a kill between the last rename and the tidying left; the part of another run stays."""
    if out.with_name(out.name + ".part").is_dir():
        with contextlib.suppress(AmrctlError):
            FeatureWriter(out, settings, overwrite=False).close()


def _reasons(job: AudioJob | None) -> dict[str, str]:
    """Why a recording is missing, were it missing; what an earlier run skipped it did not write down."""
    if job is None:
        return {}
    return {vid: job.skipped.get(vid, f"{vid} was skipped when the file was made") for vid in job.durations}


def _counted(
    out: Path, streams: Sequence[tuple[Side, str]], asked: Mapping[str, str], fresh: bool
) -> Extracted:
    """Count what `out` holds; `asked`: recording → why it is missing, if it is."""
    stored, skipped = [], {}
    with FeatureFile(out) as file:
        for side, name in streams:
            lengths = file.lengths(side, name)
            dim = file.resolve(side, name).dim
            stored.append(Stored(side, name, len(lengths), sum(lengths.values()), dim))
            if side == "audio":
                skipped = {vid: why for vid, why in asked.items() if vid not in lengths}
    first: dict[str, Stored] = {}
    for one in stored:
        first.setdefault(one.side, one)
    nothing = Stored("tef", "", 0, 0, 0)
    audio, text = (first.get(side, nothing) for side in ("audio", "text"))
    return Extracted(
        out,
        {side: one.name for side, one in first.items()},
        recordings=audio.count,
        frames=audio.rows,
        queries=text.count,
        tokens=text.rows,
        skipped=skipped,
        fresh=fresh,
        stored=tuple(stored),
    )


def import_streams(
    manifest: Manifest,
    out: Path | str,
    name: str,
    *,
    audio_npz: Path | str | None = None,
    text_npz: Path | str | None = None,
    tef: int = 2,
    overwrite: bool = False,
    report: Reporter = SILENT,
) -> Extracted:
    """Pack official npz folders into `out` as streams called `name`, with TEF; see `npz.import_npz`.

    Streams that `out` holds from the same files are left as they are. Raises `AmrctlError`.
    """
    tef_rows(1, tef)
    folders: dict[Side, Path | str | None] = {"audio": audio_npz, "text": text_npz}
    streams: dict[Side, str] = {side: name for side, folder in folders.items() if folder is not None}
    source = {
        "tef": tef,
        "ids": digest([list(manifest.recordings), list(manifest.by_qid)]),
        "files": {
            side: digest(_sizes(Path(folder))) for side, folder in folders.items() if folder is not None
        },
    }
    written = json.dumps(source, sort_keys=True)
    there = {} if overwrite else _there(Path(out))
    fresh = not streams or any(there.get(key, {}).get("made_from") != written for key in streams.items())
    if fresh:
        import_npz(
            out,
            audio_npz,
            text_npz,
            name,
            manifest,
            attrs={"made_from": written},
            tef={f"{tef}d": lambda frames: tef_rows(frames, tef)},
            overwrite=overwrite,
            report=report,
        )
    return _counted(Path(out), list(streams.items()), {}, fresh)


def _sizes(folder: Path) -> list[list[str | int]]:
    return sorted([path.name, path.stat().st_size] for path in folder.rglob("*.npz") if path.is_file())

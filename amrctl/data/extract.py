"""Recordings and sentences → feature file: encode, store, go on after a kill.

Each finished recording and sentence is stored at once; the same call after a kill does only what is
missing and ends with the same numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from amrctl.data.audio import find_audio, probe
from amrctl.data.feature_writer import FeatureWriter, StreamSpec
from amrctl.data.features import FeatureFile, Side
from amrctl.data.framing import BATCH, encode_file
from amrctl.data.manifest import Manifest
from amrctl.data.npz import import_npz
from amrctl.data.tef import tef as tef_rows
from amrctl.data.workers import spread
from amrctl.encoders.base import AudioEncoder, TextEncoder, load_audio_encoder, load_text_encoder
from amrctl.errors import AmrctlError, AudioError, FeatureError, ManifestError
from amrctl.progress import SILENT, Reporter

DURATION_TOLERANCE = 1.0  # seconds between a manifest's duration and its file's that need no mention


@dataclass(frozen=True)
class Extracted:
    """What an extraction wrote. `streams`: side → name of the streams that were asked for;
    `skipped`: recording → why it is not in the file; `fresh`: false when there was nothing to do."""

    out: Path
    streams: dict[str, str]
    recordings: int = 0
    frames: int = 0
    queries: int = 0
    tokens: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    fresh: bool = True


@dataclass
class _AudioJob:
    """The recordings that one encoder shall hear."""

    spec: str
    durations: Mapping[str, float]
    folder: Path
    dtype: str
    tef: int
    workers: int
    skip_bad: bool
    skipped: dict[str, str] = field(default_factory=dict)
    side: Side = "audio"

    def __post_init__(self) -> None:
        self.encoder = load_audio_encoder(self.spec)
        self.name = self.encoder.name
        self.paths = find_audio(self.folder, self.durations, bad=self.skipped if self.skip_bad else None)
        # Sizes tell one set of files from another without reading them, wherever they lie.
        files = [
            [vid, self.paths[vid].stat().st_size if vid in self.paths else None] for vid in self.durations
        ]
        self.made_from = {
            **described(self.encoder),
            "dtype": self.dtype,
            "tef": self.tef,
            "recordings": len(files),
            "files": _digest(files),
        }

    def run(self, writer: FeatureWriter, report: Reporter) -> StreamSpec:
        done = writer.done(self.side, self.name)
        left = [vid for vid in self.paths if vid not in done]
        seconds = {vid: _length(path) for vid, path in self.paths.items() if vid in done}
        found = len(self.paths)
        # Closed at once on a fault, so that no worker goes on with what nobody waits for.
        answers = contextlib.closing(self._answers(writer, left))
        shown = report.bar(self.name, found, unit="recordings", done=found - len(left))
        with shown as bar, answers as encoded:
            for vid, answer in encoded:
                if isinstance(answer, AudioError):
                    if not self.skip_bad:
                        raise answer
                    self.skipped[vid] = str(answer)
                else:
                    seconds[vid] = answer
                bar.advance(note=vid)
        ids = [vid for vid in self.durations if vid in seconds]
        if not ids:
            first = next(iter(self.skipped.values()))
            raise AudioError(f"not one of {len(self.durations):,} recordings can be read; the first: {first}")
        _compare_durations(self.durations, seconds, report)
        return StreamSpec(self.side, self.name, ids, _attrs(self, skipped=len(self.skipped) or None))

    def _answers(
        self, writer: FeatureWriter, vids: Sequence[str]
    ) -> Generator[tuple[str, float | AudioError], None, None]:
        """What `_encode` says of each recording, as they are done, in this process or in others."""
        jobs = [(vid, self.paths[vid]) for vid in vids]
        workers = min(self.workers, len(jobs))
        if workers <= 1:
            return (_encode(self.encoder, writer, job) for job in jobs)
        return spread(partial(_encode_here, self.spec, writer), jobs, workers)


@dataclass
class _TextJob:
    """The sentences that one encoder shall read."""

    spec: str
    sentences: Mapping[str, str]
    dtype: str
    side: Side = "text"

    def __post_init__(self) -> None:
        self.encoder = load_text_encoder(self.spec)
        self.name = self.encoder.name
        self.made_from = {
            **described(self.encoder),
            "dtype": self.dtype,
            "queries": len(self.sentences),
            "sentences": _digest(list(self.sentences.items())),
        }

    def run(self, writer: FeatureWriter, report: Reporter) -> StreamSpec:
        done = writer.done(self.side, self.name)
        left = [qid for qid in self.sentences if qid not in done]
        with report.bar(
            self.name, len(self.sentences), unit="sentences", done=len(self.sentences) - len(left)
        ) as bar:
            for start in range(0, len(left), BATCH):
                qids = left[start : start + BATCH]
                answers = self.encoder.encode([self.sentences[qid] for qid in qids])
                for qid, answer in zip(qids, answers, strict=True):
                    writer.put(self.side, self.name, qid, answer.tokens, answer.pooled)
                bar.advance(len(qids))
        return StreamSpec(self.side, self.name, list(self.sentences), _attrs(self))


_Job = _AudioJob | _TextJob


def described(encoder: AudioEncoder | TextEncoder) -> dict[str, Any]:
    """Attributes of a stream as its encoder gives them; `encoder_version`, since the tool has one too."""
    given = dict(encoder.attributes())
    known: dict[str, Any] = {"encoder": encoder.name, "encoder_version": given.pop("version", None), **given}
    if isinstance(encoder, AudioEncoder):
        known |= {"sample_rate": encoder.sample_rate, "window": encoder.window, "hop": encoder.hop}
    return known


def _attrs(job: _Job, **more: Any) -> dict[str, Any]:
    return {**described(job.encoder), **more, "made_from": json.dumps(job.made_from, sort_keys=True)}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[
        :16
    ]


def _length(path: Path) -> float:
    rate, _, frames = probe(path)
    return frames / rate


def _encode(
    encoder: AudioEncoder, writer: FeatureWriter, job: tuple[str, Path]
) -> tuple[str, float | AudioError]:
    """Encode and store one recording: its id, and seconds of sound or what is wrong with the file."""
    vid, path = job
    try:
        rows = encode_file(path, encoder)
        seconds = _length(path)
    except AudioError as error:
        return vid, error
    writer.put("audio", encoder.name, vid, rows)
    return vid, seconds


def _encode_here(
    spec: str, writer: FeatureWriter
) -> Callable[[tuple[str, Path]], tuple[str, float | AudioError]]:
    """`_encode` in a worker process, whose encoder is its own."""
    return partial(_encode, load_audio_encoder(spec), writer)


def _compare_durations(told: Mapping[str, float], found: Mapping[str, float], report: Reporter) -> None:
    """Say how many recordings are longer or shorter than their manifest says, and which most."""
    apart = {vid: abs(seconds - told[vid]) for vid, seconds in found.items()}
    many = sum(gap > DURATION_TOLERANCE for gap in apart.values())
    if many:
        worst = max(apart, key=lambda vid: apart[vid])
        report.note(
            f"{many:,} of {len(found):,} recordings are more than {DURATION_TOLERANCE:g} s longer or shorter "
            f"than their manifest says; worst: {worst}, {found[worst]:.1f} s in the file, not {told[worst]:g}"
        )


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
    audio_encoder: str | None = None,
    text_encoder: str | None = None,
    tef: int = 2,
    dtype: str = "float16",
    workers: int = 1,
    skip_bad: bool = False,
    overwrite: bool = False,
    report: Reporter = SILENT,
) -> Extracted:
    """Encode the recordings of `manifest` (files under `audio`) and its sentences into `out`.

    `audio_encoder`, `text_encoder`: as `load_audio_encoder` takes them; at least one. A stream is
    named after its encoder and is added beside those that `out` holds. `tef`: 2 or 3 columns.
    `workers`: processes that encode recordings; 1 works in this one. The stored numbers do not
    depend on it.

    A stream that `out` holds from the same files, sentences, encoder and settings is left as it is.
    Raises `AmrctlError`: bad audio (unless `skip_bad`), an output in the way (unless `overwrite`),
    unknown encoders, no queries.
    """
    if not len(manifest):
        raise ManifestError(f"{manifest.path or 'the manifests'}: no queries, so there is nothing to extract")
    tef_rows(1, tef)  # tells a wrong number of columns before the work
    jobs: list[_Job] = []
    if audio_encoder is not None:
        if audio is None:
            raise AudioError("--audio-encoder needs --audio DIR, the folder with the recordings")
        jobs.append(_AudioJob(audio_encoder, manifest.recordings, Path(audio), dtype, tef, workers, skip_bad))
    if text_encoder is not None:
        jobs.append(_TextJob(text_encoder, {query.qid: query.query for query in manifest}, dtype))
    if not jobs:
        raise FeatureError("nothing to extract: name an --audio-encoder, a --text-encoder or both")

    target = Path(out)
    streams = {str(job.side): job.name for job in jobs}
    there = {} if overwrite else _there(target)
    todo = [
        job
        for job in jobs
        if there.get((job.side, job.name), {}).get("made_from") != json.dumps(job.made_from, sort_keys=True)
    ]
    settings: dict[str, Any] = {"dtype": dtype}
    settings.update((job.side, job.made_from) for job in todo or jobs)
    if not todo:
        _clear(target, settings)
        return _counted(target, streams, _reasons(jobs), False)
    writer = FeatureWriter(target, settings, overwrite, [(job.side, job.name) for job in todo])
    try:
        # Sentences first: they are quick, and faults in them show before hours of audio.
        specs = [job.run(writer, report) for job in reversed(todo)]
        writer.finish(specs, {f"{tef}d": lambda frames: tef_rows(frames, tef)})
    finally:
        writer.close()
    return _counted(target, streams, _reasons(jobs), True)


def _clear(out: Path, settings: Mapping[str, Any]) -> None:
    """Remove what a kill between the last rename and the tidying left; the part of another run stays."""
    if out.with_name(out.name + ".part").is_dir():
        with contextlib.suppress(AmrctlError):
            FeatureWriter(out, settings, overwrite=False).close()


def _reasons(jobs: Sequence[_Job]) -> dict[str, str]:
    """Why a recording is missing, were it missing; what an earlier run skipped it did not write down."""
    return {
        vid: job.skipped.get(vid, f"{vid} was skipped when the file was made")
        for job in jobs
        if isinstance(job, _AudioJob)
        for vid in job.durations
    }


def _counted(out: Path, streams: dict[str, str], asked: Mapping[str, str], fresh: bool) -> Extracted:
    """Count what `out` holds; `asked`: recording → why it is missing, if it is."""
    counts: dict[str, tuple[int, int]] = {"audio": (0, 0), "text": (0, 0)}
    skipped: dict[str, str] = {}
    sides: tuple[Side, ...] = ("audio", "text")
    with FeatureFile(out) as file:
        for side in sides:
            if side in streams:
                lengths = file.lengths(side, streams[side])
                counts[side] = len(lengths), sum(lengths.values())
                if side == "audio":
                    skipped = {vid: why for vid, why in asked.items() if vid not in lengths}
    return Extracted(out, streams, *counts["audio"], *counts["text"], skipped, fresh)


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
    folders = {"audio": audio_npz, "text": text_npz}
    streams = {side: name for side, folder in folders.items() if folder is not None}
    source = {
        "tef": tef,
        "ids": _digest([list(manifest.recordings), list(manifest.by_qid)]),
        "files": {
            side: _digest(_sizes(Path(folder))) for side, folder in folders.items() if folder is not None
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
    return _counted(Path(out), streams, {}, fresh)


def _sizes(folder: Path) -> list[list[str | int]]:
    return sorted([path.name, path.stat().st_size] for path in folder.rglob("*.npz") if path.is_file())

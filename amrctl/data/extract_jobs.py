"""The work of an extraction: which recordings and sentences an encoder still lacks, and encoding them.

All audio encoders of a call hear each recording in one pass. Each finished recording and sentence is
stored at once, so that a later call does only what is missing.
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

from amrctl.data.audio import Sound, byte_size, probe
from amrctl.data.feature_writer import FeatureWriter, StreamSpec
from amrctl.data.features import Side
from amrctl.data.framing import BATCH
from amrctl.data.hearing import Heard, groups, hear, is_network
from amrctl.data.tars import find_recordings
from amrctl.data.workers import spread
from amrctl.encoders.base import AudioEncoder, TextEncoder, load_audio_encoder, load_text_encoder
from amrctl.errors import AudioError
from amrctl.progress import Reporter

DURATION_TOLERANCE = 1.0  # seconds between a manifest's duration and its file's that need no mention


@dataclass
class Stream:
    """One encoder's part of the file. `made_from`: all that decides its numbers."""

    side: Side
    encoder: AudioEncoder | TextEncoder
    made_from: dict[str, Any]

    @property
    def name(self) -> str:
        return self.encoder.name

    @property
    def written(self) -> str:
        return json.dumps(self.made_from, sort_keys=True)

    def spec(self, ids: Sequence[str], **more: Any) -> StreamSpec:
        attrs = {**described(self.encoder), **more, "made_from": self.written}
        return StreamSpec(self.side, self.name, ids, attrs)


@dataclass
class AudioJob:
    """The recordings, and the encoders that hear them in one pass."""

    specs: Sequence[str]
    options: Mapping[str, Any]
    durations: Mapping[str, float]
    folder: Path
    dtype: str
    tef: int
    workers: int
    skip_bad: bool
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        encoders = [load_audio_encoder(spec, **self.options) for spec in self.specs]
        self.paths = find_recordings(self.folder, self.durations, bad=self.skipped if self.skip_bad else None)
        # Sizes tell one set of files from another without reading them, wherever they lie.
        files = [[vid, byte_size(self.paths[vid]) if vid in self.paths else None] for vid in self.durations]
        more = {"dtype": self.dtype, "tef": self.tef, "recordings": len(files), "files": digest(files)}
        self.streams = [Stream("audio", encoder, made_from(encoder, **more)) for encoder in encoders]

    def run(self, todo: Sequence[Stream], writer: FeatureWriter, report: Reporter) -> list[StreamSpec]:
        """Encode what the streams `todo` lack; what to pack of them."""
        if not todo:
            return []
        done = {stream.name: writer.done("audio", stream.name) for stream in todo}
        finished = {vid for vid in self.paths if all(vid in ids for ids in done.values())}
        seconds = {vid: _length(self.paths[vid]) for vid in finished}
        jobs = self._jobs(done)
        title = ", ".join(stream.name for stream in todo)
        # Closed at once on a fault, so that no worker goes on with what nobody waits for.
        answers = contextlib.closing(self._answers(writer, jobs))
        shown = report.bar(title, len(self.paths), unit="recordings", done=len(finished))
        with shown as bar, answers as encoded:
            for vid, answer in encoded:
                if isinstance(answer, AudioError):
                    if not self.skip_bad:
                        raise answer
                    self.skipped[vid] = str(answer)
                else:
                    seconds[vid] = answer
                if vid not in finished:
                    bar.advance(note=vid)
        ids = [vid for vid in self.durations if vid in seconds]
        if not ids:
            first = next(iter(self.skipped.values()))
            raise AudioError(f"not one of {len(self.durations):,} recordings can be read; the first: {first}")
        _compare_durations(self.durations, seconds, report)
        return [stream.spec(ids, skipped=len(self.skipped) or None) for stream in todo]

    def _jobs(self, done: Mapping[str, set[str]]) -> list[_Job]:
        """What is to be heard, and by whom. Networks hear whole groups, also those begun before a kill."""
        encoders = [stream.encoder for stream in self.streams if stream.name in done]
        together = any(is_network(encoder) for encoder in encoders)
        jobs = []
        for vids in groups(self.durations) if together else ([vid] for vid in self.durations):
            there = [vid for vid in vids if vid in self.paths]
            names = [name for name, ids in done.items() if not ids.issuperset(there)]
            if names:
                jobs.append(_Job([(vid, self.paths[vid]) for vid in there], names))
        return jobs

    def _answers(
        self, writer: FeatureWriter, jobs: Sequence[_Job]
    ) -> Generator[tuple[str, float | AudioError], None, None]:
        """What `_encode` says of each recording, as they are done, in this process or in others."""
        encoders = {stream.name: stream.encoder for stream in self.streams}
        workers = min(self.workers, len(jobs))
        # A network uses all cores, or a GPU, by itself; several copies of it would only take memory.
        if workers <= 1 or any(is_network(encoders[name]) for job in jobs for name in job.names):
            for job in jobs:
                yield from _encode(encoders, writer, job)
            return
        names = {name for job in jobs for name in job.names}
        specs = [spec for spec, stream in zip(self.specs, self.streams, strict=True) if stream.name in names]
        for answers in spread(partial(_encode_here, specs, self.options, writer), jobs, workers):
            yield from answers


@dataclass(frozen=True)
class _Job:
    """Recordings that are heard in one pass by the encoders of these names."""

    recordings: Sequence[tuple[str, Sound]]
    names: Sequence[str]


@dataclass
class TextJob:
    """The sentences, and the encoders that read them."""

    specs: Sequence[str]
    options: Mapping[str, Any]
    sentences: Mapping[str, str]
    dtype: str

    def __post_init__(self) -> None:
        encoders = [load_text_encoder(spec, **self.options) for spec in self.specs]
        more = {
            "dtype": self.dtype,
            "queries": len(self.sentences),
            "sentences": digest(list(self.sentences.items())),
        }
        self.streams = [Stream("text", encoder, made_from(encoder, **more)) for encoder in encoders]

    def run(self, todo: Sequence[Stream], writer: FeatureWriter, report: Reporter) -> list[StreamSpec]:
        """Encode what the streams `todo` lack; what to pack of them."""
        for stream in todo:
            assert isinstance(stream.encoder, TextEncoder)
            done, qids = writer.done("text", stream.name), list(self.sentences)
            batch = int(getattr(stream.encoder, "batch", BATCH))
            with report.bar(stream.name, len(qids), unit="sentences", done=len(done & set(qids))) as bar:
                for start in range(0, len(qids), batch):
                    # Whole batches, also after a kill: a network's last bits depend on the neighbours.
                    part = qids[start : start + batch]
                    left = [qid for qid in part if qid not in done]
                    if not left:
                        continue
                    answers = stream.encoder.encode([self.sentences[qid] for qid in part])
                    for qid, answer in zip(part, answers, strict=True):
                        if qid not in done:
                            writer.put("text", stream.name, qid, answer.tokens, answer.pooled)
                    bar.advance(len(left))
        return [stream.spec(list(self.sentences)) for stream in todo]


def described(encoder: AudioEncoder | TextEncoder) -> dict[str, Any]:
    """Attributes of a stream as its encoder gives them; `encoder_version`, since the tool has one too."""
    given = dict(encoder.attributes())
    known: dict[str, Any] = {"encoder": encoder.name, "encoder_version": given.pop("version", None), **given}
    if isinstance(encoder, AudioEncoder):
        known |= {"sample_rate": encoder.sample_rate, "window": encoder.window, "hop": encoder.hop}
    return known


def made_from(encoder: AudioEncoder | TextEncoder, **more: Any) -> dict[str, Any]:
    """All that decides the numbers of an encoder, and `more`."""
    known = described(encoder)
    if known.get("checkpoint_sha256"):  # the same weights may lie elsewhere
        known.pop("checkpoint", None)
    return {**known, **more}


def digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _length(sound: Sound) -> float:
    rate, _, frames = probe(sound)
    return frames / rate


def _encode(
    encoders: Mapping[str, AudioEncoder | TextEncoder], writer: FeatureWriter, job: _Job
) -> Generator[tuple[str, float | AudioError], None, None]:
    """Encode and store recordings: each id, and seconds of sound or what is wrong with the file."""
    chosen = [encoders[name] for name in job.names]
    for answer in hear(job.recordings, [e for e in chosen if isinstance(e, AudioEncoder)]):
        if not isinstance(answer, Heard):
            yield answer
            continue
        for name, rows in answer.rows.items():
            writer.put("audio", name, answer.vid, rows)
        yield answer.vid, answer.seconds


def _encode_here(
    specs: Sequence[str], options: Mapping[str, Any], writer: FeatureWriter
) -> Callable[[_Job], list[tuple[str, float | AudioError]]]:
    """`_encode` in a worker process, whose encoders are its own."""
    encoders = {encoder.name: encoder for encoder in (load_audio_encoder(s, **options) for s in specs)}
    return lambda job: list(_encode(encoders, writer, job))


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

"""An archive, a checkpoint and sentences → ranked moments over all recordings.

The archive's vectors choose recordings; the detector reads only these. Its frames come from the
archive, where it keeps that detector's streams, from what earlier searches heard, or from the sound.
An `ArchiveSearch` keeps everything open, so that only the first question pays for loading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amrctl import provenance
from amrctl.archive import store
from amrctl.archive.ears import load_reader, sentence_rows
from amrctl.archive.nearest import Nearest, available
from amrctl.archive.rank import Match, factor, match
from amrctl.archive.request import Wanted
from amrctl.archive.shards import Cache, Shards
from amrctl.archive.store import Archive, Recording, stream_key
from amrctl.data.extract_jobs import described
from amrctl.data.features import Rows
from amrctl.data.manifest import Query
from amrctl.data.predictions import Prediction
from amrctl.encoders.base import TextEncoder
from amrctl.ensemble.pool import pool
from amrctl.errors import AmrctlError, ArchiveError, CheckpointError
from amrctl.model.checkpoint import read
from amrctl.pipeline.answering import Answerer, attribute, encoder_specs, trained_dtype
from amrctl.pipeline.search import MOST, check
from amrctl.progress import SILENT, Reporter
from amrctl.run_folder import find_checkpoint


@dataclass(frozen=True)
class ArchiveRequest:
    """What `search --index` is asked for, but for the sentences."""

    archive: Path
    checkpoint: Path
    top: int = 10  # moments a sentence
    recordings: int = 5  # that the detector reads for a sentence
    best_of: int = 1  # windows whose mean is a recording's score
    weight: float = 10.0  # of the recordings' scores in the order of the moments
    min_score: float = 0.0  # 0..1
    drop_copies: float = 0.95  # IoU above which the worse of two moments of a recording is left out
    rounding: float | None = None  # seconds; None: what the checkpoint was trained for
    exact: bool = False  # look at all windows, whatever their number
    folder: Path | None = None  # of the recordings, if they are not where the archive says
    text_of_archive: str | None = None  # instead of the text encoder in the archive
    cache_bytes: int = 2 << 30
    audio_encoders: tuple[str, ...] = ()  # these: as in `SearchRequest`
    text_encoders: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "fp32"


@dataclass(frozen=True)
class Moment:
    """A moment of a recording. `score`: what the answer is sorted by; `moment_score`: the detector's;
    `recording_score`: a cosine."""

    file: str
    start: float
    end: float
    score: float
    moment_score: float
    recording_score: float


@dataclass(frozen=True)
class Hit:
    """A recording that the detector was given. `start`, `end`: its best window, in seconds."""

    file: str
    score: float
    start: float
    end: float
    duration: float


@dataclass(frozen=True)
class Answer:
    """What is said about one sentence, both lists best first. `best`: the best score before `min_score`."""

    query: str
    moments: tuple[Moment, ...]
    recordings: tuple[Hit, ...]
    best: float


@dataclass(frozen=True)
class ArchiveFound:
    """What `search --index` answers. `how`: `exact` or `nearest`; `skipped`: recording → why the
    detector could not read it."""

    archive: Path
    encoder: str
    recordings: int
    windows: int
    seconds: float
    how: str
    checkpoint: Path
    checkpoint_sha256: str
    recipe: str
    encoders: dict[str, list[str]]
    rounding: float
    answers: tuple[Answer, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: times in seconds, scores 0..1, recordings' scores -1..1."""
        number = provenance.number
        queries = [
            {
                "query": answer.query,
                "moments": [
                    {**vars(m), "start": number(m.start), "end": number(m.end)} for m in answer.moments
                ],
                "recordings": [
                    {**vars(h), **{k: number(vars(h)[k]) for k in ("start", "end", "duration")}}
                    for h in answer.recordings
                ],
            }
            for answer in self.answers
        ]
        return {
            "index": str(self.archive),
            "index_encoder": self.encoder,
            "recordings": self.recordings,
            "windows": self.windows,
            "seconds": number(self.seconds),
            "candidates": self.how,
            "checkpoint": str(self.checkpoint),
            "checkpoint_sha256": self.checkpoint_sha256,
            "recipe": self.recipe,
            "encoders": self.encoders,
            "rounding": number(self.rounding),
            "skipped": self.skipped,
            "queries": queries,
        }


class ArchiveSearch:
    """An archive and a detector that are open for questions; see `ask`.

    `vectors`: `(windows, dim)`, mapped; `nearest`: the graph over them, None where all are looked at.

    Raises `AmrctlError` kinds: a damaged archive, a checkpoint whose encoders cannot run here,
    settings out of range.
    """

    def __init__(self, request: ArchiveRequest, report: Reporter = SILENT) -> None:
        check(("-",), request.top, request.min_score, request.drop_copies)
        for option, value in (("--recordings", request.recordings), ("--best-of", request.best_of)):
            if value < 1:
                raise AmrctlError(f"{option} {value}: at least 1")
        if not 0 <= request.weight < float("inf"):
            raise AmrctlError(f"--recording-weight {request.weight:g} is not a number from 0 on")
        self.request, self.report, self.root = request, report, request.archive
        self.archive: Archive = store.read(self.root)
        self.vectors = store.open_vectors(self.root, self.archive)
        self._offsets = self.archive.offsets()
        self.nearest = self._graph()
        self._reader: TextEncoder | None = None
        self.answerer = Answerer(
            request.checkpoint,
            keep=max(request.top, MOST),
            sets=request.sets,
            audio_encoders=request.audio_encoders,
            text_encoders=request.text_encoders,
            rounding=request.rounding,
            device=request.device,
            precision=request.precision,
            report=report,
        )
        self._sha256 = provenance.sha256(self.answerer.path)
        self._kept = {stream.key for stream in self.archive.features}
        self._cache = Cache(self.root / "cache", request.cache_bytes)
        self._folder = store.located(self.archive, self.root, request.folder)
        self._seen: set[str] = set()  # recordings whose file was found to be the one that was indexed

    def _graph(self) -> Nearest | None:
        graph = self.archive.nearest
        if graph is None or self.request.exact:
            return None
        if not available():
            self.report.note(
                f"faiss is not installed here, so all {self.archive.windows:,} windows are looked at "
                "(pip install 'amrctl[index]')"
            )
            return None
        return Nearest(self.root / graph.file, self.vectors)

    def ask(self, sentences: Sequence[str]) -> ArchiveFound:
        """The moments that fit each sentence best, over all recordings.

        Raises `AmrctlError` kinds: an empty sentence, encoders that cannot be had, or when not one of
        the recordings that were chosen can be heard.
        """
        request, archive = self.request, self.archive
        check(tuple(sentences), request.top, request.min_score, request.drop_copies)
        chosen = self.choose(list(sentences))
        heard: dict[int, list[Rows]] = {}
        skipped: dict[str, str] = {}
        for place in dict.fromkeys(m.recording for matches in chosen for m in matches):
            try:
                heard[place] = self._rows(archive.recordings[place])
            except CheckpointError:  # an encoder that cannot be had is no fault of the recording
                raise
            except AmrctlError as error:
                skipped[archive.recordings[place].path] = str(error)
        if not heard:
            raise ArchiveError(
                f"not one of the {len(skipped)} recordings that fit best can be heard; the first: "
                f"{next(iter(skipped.values()))}"
            )
        for why in skipped.values():
            self.report.note(why)
        items = self._moments(sentences, chosen, heard)
        answers = [
            self._answer(sentence, s, matches, items)
            for s, (sentence, matches) in enumerate(zip(sentences, chosen, strict=True))
        ]
        return ArchiveFound(
            archive=self.root,
            encoder=archive.encoder.spec,
            recordings=len(archive.recordings),
            windows=archive.windows,
            seconds=archive.seconds,
            how="exact" if self.nearest is None else "nearest",
            checkpoint=self.answerer.path,
            checkpoint_sha256=self._sha256,
            recipe=self.answerer.checkpoint.recipe.name,
            encoders=self.answerer.specs,
            rounding=self.answerer.rounding,
            answers=tuple(answers),
            skipped=skipped,
        )

    def choose(self, sentences: list[str]) -> list[list[Match]]:
        """The recordings that the detector reads, for each sentence."""
        ear, request = self.archive.encoder, self.request
        if self._reader is None:
            spec = request.text_of_archive or ear.text
            options = {"device": request.device, "precision": ear.made_from.get("precision")}
            try:
                self._reader = load_reader(spec, ear.space, ear.dim, options)
            except AmrctlError as error:
                if request.text_of_archive:
                    raise
                raise ArchiveError(
                    f"{self.root} was made with the text encoder {spec}: {error}; if its weights lie "
                    f"elsewhere, name it with --index-encoder, as {spec.partition(':')[0]}:WEIGHTS"
                ) from None
        rows = sentence_rows(self._reader, sentences, ear.dim)
        return [
            match(
                self.vectors,
                self._offsets,
                row,
                wanted=request.recordings,
                best_of=request.best_of,
                nearest=self.nearest,
            )
            for row in rows
        ]

    def _rows(self, recording: Recording) -> list[Rows]:
        """The detector's frames of a recording, for each of its streams."""
        return [self._stream(i, recording) for i in range(len(self.answerer.audio))]

    def _stream(self, stream: int, recording: Recording) -> Rows:
        trained = self.answerer.audio[stream]
        dtype = trained_dtype(trained)
        told = stream_key({key: attribute(trained, key) for key in store.DECIDING}, dtype)
        if not self.request.audio_encoders:  # what the training says is enough to find rows
            rows = self._had(told, recording)
            if rows is not None:
                return rows
        encoder = self.answerer.hearer(stream)
        key = stream_key(described(encoder), dtype)
        if key != told or self.request.audio_encoders:
            rows = self._had(key, recording)
            if rows is not None:
                return rows
        rows = self.answerer.hear(stream, self._file(recording), recording.path)
        self._cache.put(key, recording.sha256, rows)
        return rows

    def _had(self, key: str, recording: Recording) -> Rows | None:
        """Rows that the archive keeps, or an earlier search heard."""
        if key in self._kept:
            try:
                return Shards(self.root / "features" / key).get(recording.sha256)
            except ArchiveError as error:
                self.report.note(str(error))
        return self._cache.get(key, recording.sha256)

    def _file(self, recording: Recording) -> Path:
        """The sound of a recording; raises `ArchiveError` when it is not there or not the same any more."""
        path = self._folder / recording.path
        name = recording.path
        if not path.is_file():
            raise ArchiveError(
                f"{name} is not in {self._folder}; bring the archive up to date with amrctl index, or name "
                "the folder that the recordings lie in now with --audio"
            )
        if not path.resolve().is_relative_to(self._folder.resolve()):
            raise ArchiveError(f"{path} is a link out of the folder; copy the file into it")
        told = path.stat()
        same = (told.st_size, told.st_mtime_ns) == (recording.bytes, recording.mtime_ns)
        if not same and name not in self._seen:
            if told.st_size != recording.bytes or provenance.sha256(path) != recording.sha256:
                raise ArchiveError(f"{name} changed since it was indexed; run amrctl index again")
            self._seen.add(name)
        return path

    def _moments(
        self, sentences: Sequence[str], chosen: Sequence[Sequence[Match]], heard: Mapping[int, list[Rows]]
    ) -> dict[tuple[int, int], Prediction]:
        """What the detector says of each sentence about each of its recordings."""
        recordings = self.archive.recordings
        pairs = [(s, m.recording) for s, ms in enumerate(chosen) for m in ms if m.recording in heard]
        read = self.answerer.read(sentences, [f"sentence {s + 1}" for s in range(len(sentences))])
        queries = [
            Query(f"{s}.{r}", sentences[s], recordings[r].path, recordings[r].seconds, None) for s, r in pairs
        ]
        texts = [[rows[s] for s, _ in pairs] for rows in read]
        named = {recordings[r].path: rows for r, rows in heard.items()}
        items, _ = self.answerer.answer(queries, texts, named)
        kept = pool([items], keep=self.request.top, copies_iou=self.request.drop_copies)
        return dict(zip(pairs, kept, strict=True))

    def _answer(
        self,
        sentence: str,
        place: int,
        matches: Sequence[Match],
        items: Mapping[tuple[int, int], Prediction],
    ) -> Answer:
        """Moments of all its recordings in one order; equal scores: the better recording, then the
        better moment, first."""
        request, ear = self.request, self.archive.encoder
        moments: list[Moment] = []
        hits: list[Hit] = []
        best = max(m.score for m in matches)
        for found in matches:
            recording = self.archive.recordings[found.recording]
            start = found.window * ear.hop
            end = min(start + ear.window, recording.seconds)
            hits.append(Hit(recording.path, found.score, start, end, recording.seconds))
            item = items.get((place, found.recording))
            by = factor(found.score, best, request.weight)
            for begin, until, score in item.windows.tolist() if item is not None else []:
                moments.append(Moment(recording.path, begin, until, score * by, score, found.score))
        moments.sort(key=lambda moment: -moment.score)
        top = max((moment.score for moment in moments), default=0.0)
        kept = [moment for moment in moments if moment.score >= request.min_score]
        return Answer(sentence, tuple(kept[: request.top]), tuple(hits), top)


def streams_of(checkpoint: Path, given: Sequence[str] = ()) -> tuple[Wanted, ...]:
    """A checkpoint's audio streams, for an archive to keep; `given`: how its encoders are spelt, instead
    of as in the checkpoint. Raises `CheckpointError`."""
    path = find_checkpoint(checkpoint)
    loaded = read(path)
    specs = encoder_specs("audio", loaded, given, path)
    return tuple(
        Wanted(
            name=str(trained["name"]),
            spec=spec,
            dtype=trained_dtype(trained),
            window=attribute(trained, "window"),
            hop=attribute(trained, "hop"),
            precision=attribute(trained, "precision"),
        )
        for trained, spec in zip(loaded.features["audio"], specs, strict=True)
    )

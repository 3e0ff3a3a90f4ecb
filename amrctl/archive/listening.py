"""One recording at a time: name its content, hear it for whoever lacks its rows, store them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amrctl import provenance
from amrctl.archive.ears import WINDOWS, Named, load_windows, named, unit
from amrctl.archive.folder import SoundFile
from amrctl.archive.request import Wanted
from amrctl.archive.shards import Shards
from amrctl.archive.store import FeatureStream, Recording, Unreadable, stream_key
from amrctl.data.audio import probe
from amrctl.data.extract_jobs import described
from amrctl.data.feature_packing import checked
from amrctl.data.features import Rows
from amrctl.data.hearing import Heard, hear
from amrctl.encoders.base import AudioEncoder, load_audio_encoder
from amrctl.errors import AmrctlError, ArchiveError, AudioError, FeatureError


@dataclass(frozen=True)
class Setting:
    """All that decides what is stored: the archive's encoder and the detectors' streams."""

    spec: str
    window: float | None
    hop: float | None
    dtype: str
    options: Mapping[str, Any]  # fields of `EncoderConfig`
    wanted: tuple[Wanted, ...]


@dataclass(frozen=True)
class Job:
    """A file to be looked at."""

    file: SoundFile


@dataclass(frozen=True)
class Outcome:
    """A recording's entry, or why it has none; `heard`: seconds that encoders heard for it."""

    entry: Recording | Unreadable
    heard: float


@dataclass
class Desk:
    """Who hears, and where rows are stored: `windows` those of the archive, below `folder` a detector's."""

    encoder: AudioEncoder
    ears: dict[str, Named]  # `WINDOWS` and keys of streams
    streams: Sequence[FeatureStream]
    dtype: str
    windows: Shards
    folder: Path

    def stored(self, key: str) -> Shards:
        """The rows of one detector's stream."""
        return Shards(self.folder / key)

    def lacks(self, sha256: str, known: Mapping[str, int]) -> list[str]:
        """Who has to hear a recording; `known`: contents whose windows are had elsewhere."""
        first = [] if sha256 in known or self.windows.has(sha256) else [WINDOWS]
        return first + [s.key for s in self.streams if not self.stored(s.key).has(sha256)]

    def work(self, job: Job, known: Mapping[str, int]) -> Outcome:
        """Store what is missing of a recording, and tell of it."""
        file = job.file
        try:
            sha256 = provenance.sha256(file.path)
            rate, _, frames = probe(file.path)
            lacking = self.lacks(sha256, known)
            if lacking:
                self._hear(file, sha256, lacking)
            now = file.path.stat()
            if (now.st_size, now.st_mtime_ns) != (file.bytes, file.mtime_ns):
                raise AudioError(f"{file.path}: changed while it was read; run the same command again")
        except (AudioError, FeatureError) as error:
            return Outcome(Unreadable(path=file.name, why=str(error).replace(str(file.path), file.name)), 0)
        except OSError as error:
            return Outcome(Unreadable(path=file.name, why=f"{file.name}: {error.strerror}"), 0)
        windows = known[sha256] if sha256 in known else len(self.windows.get(sha256))
        seconds = frames / rate
        entry = Recording(
            path=file.name,
            bytes=file.bytes,
            mtime_ns=file.mtime_ns,
            sha256=sha256,
            seconds=seconds,
            windows=windows,
        )
        return Outcome(entry, seconds if lacking else 0.0)

    def _hear(self, file: SoundFile, sha256: str, lacking: Sequence[str]) -> None:
        # alone: which windows meet in a batch, and so the last bits of a network's rows, follow from
        # the recording itself
        (answer,) = hear([(file.name, file.path)], [self.ears[key] for key in lacking])
        if not isinstance(answer, Heard):
            raise answer[1]
        dtypes = {stream.key: stream.dtype for stream in self.streams}
        for key in lacking:
            rows: Rows = answer.rows[key]
            if key == WINDOWS:
                rows = checked("audio", self.encoder.name, file.name, unit(rows), 2, self.dtype)
                self.windows.put(sha256, rows)
            else:
                rows = checked("audio", self.ears[key].encoder.name, file.name, rows, 2, dtypes[key])
                self.stored(key).put(sha256, rows)


def prepare(setting: Setting, windows: Shards, folder: Path) -> Desk:
    """Load the encoders. Raises what `load_windows` does, and `ArchiveError` for a detector's encoder that
    cannot be had."""
    encoder = load_windows(setting.spec, setting.window, setting.hop, setting.options)
    ears = {WINDOWS: Named(encoder, WINDOWS, "plain", "round")}
    streams: dict[str, FeatureStream] = {}
    lost: dict[str, ArchiveError] = {}  # streams that are kept and whose encoder is not where it was
    for wanted in setting.wanted:
        options = {**setting.options, "precision": wanted.precision}
        try:
            hearer = load_audio_encoder(wanted.spec, **options, window=wanted.window, hop=wanted.hop)
        except AmrctlError as error:
            fault = ArchiveError(
                f"a detector's encoder {wanted.spec}: {error}; if its weights lie elsewhere, name it with "
                "--features-for and --detector-encoder"
            )
            if wanted.key is None:
                raise fault from None
            lost[wanted.key] = fault
            continue
        key = stream_key(described(hearer), wanted.dtype)
        ears[key] = named(hearer, key)
        streams[key] = FeatureStream(
            key=key,
            name=wanted.name,
            spec=wanted.spec,
            dim=hearer.dim,
            dtype="float32" if wanted.dtype == "float32" else "float16",
            window=wanted.window,
            hop=wanted.hop,
            precision=wanted.precision,
        )
    for key, fault in lost.items():
        if key not in streams:
            raise fault
    return Desk(encoder, ears, list(streams.values()), setting.dtype, windows, folder)

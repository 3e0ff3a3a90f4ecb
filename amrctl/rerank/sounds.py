"""The stretches of recordings that a verifier hears, at 16 kHz."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from amrctl import provenance
from amrctl.data.audio import Member, Samples, Sound, load_mono, load_span, probe
from amrctl.data.tars import find_recordings
from amrctl.errors import AudioError
from amrctl.progress import SILENT, Reporter
from amrctl.rerank.base import Candidate
from amrctl.rerank.prompt import stretch

RATE = 16_000
# A recording up to this is resampled once, as a whole, and held while its windows are asked about; of
# a longer one each stretch is read by itself.
WHOLE = 1800.0  # seconds; 115 MB
HELD = 2  # recordings
SHORTEST = RATE // 10  # samples; what is shorter is followed by silence, front ends need some frames


@dataclass(frozen=True)
class Heard:
    """What is heard for a window: `samples` `(n,)` float32 at `RATE`; `length`, and the window's `start`
    and `end` within it, in seconds."""

    samples: Samples
    length: float
    start: float
    end: float


class Sounds:
    """The recordings `vids` in the folder or tar `where`. May be used from several threads.

    Raises `AudioError`: a recording without a file or with two; later, a file that cannot be read.
    """

    def __init__(self, where: Path | str, vids: Iterable[str], *, report: Reporter = SILENT) -> None:
        self._where = find_recordings(where, vids)
        self._report = report
        self._held: OrderedDict[str, Samples] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _headers(self) -> dict[str, tuple[float, str]]:
        """Seconds and hash of every recording; read when they are first needed."""
        found = {}
        with self._report.bar("reading recordings", len(self._where), unit="recording") as bar:
            for vid, sound in self._where.items():
                rate, _, frames = probe(sound)
                found[vid] = frames / rate, _sha256(sound)
                bar.advance()
        return found

    def evidence(self, candidate: Candidate) -> str:
        """Hex SHA-256 of the recording's file. Raises `AudioError` for a window outside the recording."""
        seconds, sha256 = self._headers[candidate.vid]
        if not 0 <= candidate.start < seconds:
            raise AudioError(
                f"qid {candidate.qid}: window [{candidate.start:g}, {candidate.end:g}] is outside "
                f"{self._where[candidate.vid]}, which lasts {seconds:.2f} s; the predictions are about "
                "another file of that name"
            )
        return sha256

    def hear(self, candidate: Candidate) -> Heard:
        """The window with what is around it (`prompt.stretch`). Raises `AudioError`."""
        vid = candidate.vid
        with self._lock:
            duration = self._headers[vid][0]
            whole = duration <= WHOLE
            if whole:
                samples = self._whole(vid)
                duration = len(samples) / RATE
            try:
                first, last = stretch(candidate.start, candidate.end, duration)
            except ValueError as error:
                raise AudioError(f"{self._where[vid]}: {error}") from None
            if whole:
                piece = samples[round(first * RATE) : round(last * RATE)]
            else:
                piece = load_span(self._where[vid], RATE, first, last)
        if len(piece) < SHORTEST:
            piece = np.concatenate([piece, np.zeros(SHORTEST - len(piece), np.float32)])
        return Heard(piece, last - first, candidate.start - first, min(candidate.end, last) - first)

    def _whole(self, vid: str) -> Samples:
        if vid in self._held:
            self._held.move_to_end(vid)
        else:
            self._held[vid] = load_mono(self._where[vid], RATE)
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        return self._held[vid]


def _sha256(sound: Sound) -> str:
    if not isinstance(sound, Member):
        return provenance.sha256(sound)
    digest, left = hashlib.sha256(), sound.size
    with open(sound.tar, "rb") as stream:
        stream.seek(sound.offset)
        while left and (piece := stream.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()

"""Several encoders hear recordings in one pass: each file is opened once and resampled once per rate.

An encoder gets full batches: windows of neighbouring recordings go in together, and those of a long
one as they come, so memory does not grow with the length of a recording (its rows excepted).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from amrctl.data.audio import Samples, Sound, probe, stream_rates
from amrctl.data.framing import Framer, batch_of
from amrctl.encoders.base import AudioEncoder, Rows
from amrctl.errors import AudioError

Item = TypeVar("Item")

# Seconds of sound that are heard together by networks: many batches, of which the last is not full.
GROUP = 300.0


@dataclass(frozen=True)
class Heard:
    """What a pass says of one recording: the rows of each encoder by name."""

    vid: str
    seconds: float
    rows: Mapping[str, Rows]


def groups(durations: Mapping[str, float], seconds: float = GROUP) -> Iterator[list[str]]:
    """Neighbouring recordings that are heard together: as many as reach `seconds`.

    They follow from the list alone, not from what is done already: so the windows that meet in a
    batch, and with them the last bits of a network's rows, are the same after a kill.
    """
    group: list[str] = []
    total = 0.0
    for vid, duration in durations.items():
        group.append(vid)
        total += duration
        if total >= seconds:
            yield group
            group, total = [], 0.0
    if group:
        yield group


@dataclass
class _Ear:
    """One encoder and the windows that wait for a full batch, each with the place of its recording."""

    encoder: AudioEncoder
    waiting: list[Samples] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    rows: dict[int, list[Rows]] = field(default_factory=dict)

    def encode(self, least: int) -> None:
        """Encode batches for as long as `least` windows wait."""
        batch = batch_of(self.encoder)
        while len(self.waiting) >= least:
            answers = self.encoder.encode(np.stack(self.waiting[:batch]))
            for owner, row in zip(self.owners, answers, strict=False):
                self.rows.setdefault(owner, []).append(row[None])
            del self.waiting[:batch], self.owners[:batch]


# place of a recording, and either the next windows of each encoder, or how the recording ended
_Step = tuple[int, "list[list[Samples]] | float | AudioError"]


def _steps(sounds: Sequence[Sound], encoders: Sequence[AudioEncoder]) -> Generator[_Step, None, None]:
    """Windows of the recordings in order; each recording ends with its seconds or its fault."""
    rates = sorted({encoder.sample_rate for encoder in encoders})
    for place, sound in enumerate(sounds):
        framers = [Framer(encoder) for encoder in encoders]
        at = [rates.index(encoder.sample_rate) for encoder in encoders]
        try:
            rate, _, frames = probe(sound)
            for pieces in stream_rates(sound, rates):
                yield place, [framer.push(pieces[i]) for framer, i in zip(framers, at, strict=True)]
            yield place, [framer.finish() for framer in framers]
            yield place, frames / rate
        except AudioError as error:
            yield place, error


def hear(
    recordings: Sequence[tuple[str, Sound]], encoders: Sequence[AudioEncoder]
) -> Iterator[Heard | tuple[str, AudioError]]:
    """What each of `encoders` says of `recordings`, in one pass over the sound, in their order.

    A recording whose file is at fault is answered with the fault; the others are not touched by it.
    Networks work while the next piece is being read.
    """
    ears = [_Ear(encoder) for encoder in encoders]
    ended: dict[int, float | AudioError] = {}
    steps = _steps([sound for _, sound in recordings], encoders)
    ahead = _ahead(steps) if any(is_network(encoder) for encoder in encoders) else steps
    told = 0
    with contextlib.closing(ahead) as arriving:
        for place, step in arriving:
            if isinstance(step, list):
                for ear, windows in zip(ears, step, strict=True):
                    ear.waiting += windows
                    ear.owners += [place] * len(windows)
                    ear.encode(batch_of(ear.encoder))
                continue
            ended[place] = step
            if place == len(recordings) - 1:
                for ear in ears:
                    ear.encode(1)
            while told in ended and all(told not in ear.owners for ear in ears):
                yield _answer(recordings[told][0], ended.pop(told), ears, told)
                told += 1


def _answer(
    vid: str, end: float | AudioError, ears: Sequence[_Ear], place: int
) -> Heard | tuple[str, AudioError]:
    rows = {ear.encoder.name: ear.rows.pop(place, []) for ear in ears}
    if isinstance(end, AudioError):
        return vid, end
    return Heard(vid, end, {name: np.concatenate(found) for name, found in rows.items()})


def is_network(encoder: object) -> bool:
    """Whether an encoder computes with a torch network, which brings its own threads."""
    return getattr(encoder, "network", None) is not None


def _ahead(items: Generator[Item, None, None], depth: int = 2) -> Generator[Item, None, None]:
    """The same items, made in a thread that is at most `depth` of them ahead."""
    made: queue.Queue[tuple[list[Item], BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(given: list[Item], error: BaseException | None = None) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                made.put((given, error), timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    if not put([item]):
                        return
            put([])  # the end
        except BaseException as error:
            put([], error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            given, error = made.get()
            if error is not None:
                raise error
            if not given:
                return
            yield given[0]
    finally:
        stop.set()
        thread.join()

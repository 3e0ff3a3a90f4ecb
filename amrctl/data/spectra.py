"""What a dual encoder's front end makes of recordings: kept in memory while it fits, else read anew.

A recording is decoded and run through the front end once where all spectra fit the limit; more than
that is read for every batch by worker processes, in the order in which the batches come. Both ways
give the same numbers: each segment passes the front end by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from amrctl.data.audio import Sound, probe, stream_mono
from amrctl.encoders.dual import segments
from amrctl.progress import SILENT, Reporter

MOST_WORKERS = 8


class Stretch(NamedTuple):
    """Segments `first` to `last` (excluded) of a recording."""

    vid: str
    first: int
    last: int


class Heard(NamedTuple):
    """A batch: `spectra` [n, T, F] of all its stretches one after another, and how many are each one's."""

    spectra: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Ear:
    """How a recording is cut and what each segment becomes. `segment` and `hop` in samples at `rate`."""

    front: nn.Module
    rate: int
    segment: int
    hop: int

    def count(self, sound: Sound) -> int:
        """Segments of a recording, by its header."""
        rate, _, frames = probe(sound)
        return len(segments.starts(round(frames * self.rate / rate), self.segment, self.hop))

    def hear(self, sound: Sound, first: int, last: int) -> Tensor:
        """Spectra of segments `first` to `last`, [n, T, F] float32; a header that promises more segments
        than there are gives fewer, one at least."""
        blocks = stream_mono(sound, self.rate, 10.0)
        pieces = segments.stream(blocks, self.segment, self.hop)
        heard = [samples for _, samples in islice(pieces, last)]
        with torch.no_grad():
            rows = [self.front(torch.from_numpy(samples)[None]) for samples in heard[first:] or heard[-1:]]
            return torch.cat(rows)


class Spectra:
    """The recordings of one caption set, as a front end hears them.

    `counts`: vid → segments. Nothing is decoded before the first batch; then everything, where it fits
    in `limit` bytes.
    """

    def __init__(self, sounds: Mapping[str, Sound], ear: Ear, *, limit: float, workers: int) -> None:
        self.sounds, self.ear = dict(sounds), ear
        self.counts = {vid: ear.count(sound) for vid, sound in self.sounds.items()}
        with torch.no_grad():
            shape = ear.front(torch.zeros(1, ear.segment)).shape
        self.bytes = 4 * shape[1] * shape[2] * sum(self.counts.values())
        self.in_memory = self.bytes <= limit
        self.workers = workers
        self._held: dict[str, Tensor] = {}

    def load(self, report: Reporter = SILENT) -> None:
        """Decode everything now, where it fits in memory; otherwise do nothing."""
        if not self.in_memory:
            return
        missing = [vid for vid in self.sounds if vid not in self._held]
        with report.bar("listen", len(missing), unit="recordings") as bar:
            for vid in missing:
                heard = self.ear.hear(self.sounds[vid], 0, self.counts[vid])
                self.counts[vid] = len(heard)
                self._held[vid] = heard
                bar.advance()

    def batches(self, batches: Sequence[Sequence[Stretch]]) -> Iterator[Heard]:
        """For each batch the spectra of its stretches, in order."""
        if self.in_memory:
            self.load()
            for batch in batches:
                yield _joined([self._held[s.vid][s.first : s.last] for s in batch])
            return
        jobs = _Jobs(self.ear, [[(self.sounds[s.vid], s.first, s.last) for s in batch] for batch in batches])
        workers = min(self.workers, len(batches))
        # A generator of its own: the loader's draw must not move the random state of the training.
        yield from DataLoader(
            jobs,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator(),
        )


class _Jobs(Dataset[Heard]):
    """Batches as a data set of torch, one item a batch; picklable."""

    def __init__(self, ear: Ear, batches: Sequence[Sequence[tuple[Sound, int, int]]]) -> None:
        self._ear, self._batches = ear, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Heard:
        return _joined([self._ear.hear(*job) for job in self._batches[index]])


def _as_it_is(batch: Any) -> Any:
    return batch  # the loader's own would make a tensor of the counts


def _joined(parts: Sequence[Tensor]) -> Heard:
    # one tensor a batch: each that comes from another process costs an open file
    return Heard(torch.cat(list(parts)), tuple(map(len, parts)))

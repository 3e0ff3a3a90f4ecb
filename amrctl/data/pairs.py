"""Pairs of recordings and sentences as batches: what a dual encoder is trained on and asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from amrctl.data.batching import epoch_batches, steps
from amrctl.data.caption_lists import CaptionSet
from amrctl.data.spectra import MOST_WORKERS, Ear, Spectra, Stretch
from amrctl.encoders.dual.model import Pairs
from amrctl.encoders.dual.towers import AudioTower
from amrctl.launch import ALONE, Ranks
from amrctl.progress import SILENT, Reporter
from amrctl.recipe_retrieval import RetrievalTrain

T = TypeVar("T")


def ear_of(tower: AudioTower) -> Ear:
    """How a tower wants to hear recordings."""
    rate = tower.sample_rate
    return Ear(tower.front, rate, round(tower.config.segment * rate), round(tower.config.hop * rate))


class PairSet:
    """One caption set in the hearing of one audio tower. Nothing is decoded before it is needed.

    `ranks`: of every training batch this process hears its share only.
    """

    def __init__(
        self, captions: CaptionSet, tower: AudioTower, settings: RetrievalTrain, ranks: Ranks = ALONE
    ) -> None:
        workers = settings.workers
        if workers is None:
            workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // ranks.count))
        self.captions, self.settings, self.ranks = captions, settings, ranks
        self.spectra = Spectra(
            captions.sounds, ear_of(tower), limit=settings.memory_gb * 2**30, workers=workers
        )
        self._vids = [pair.vid for pair in captions.pairs]
        config = tower.config
        # segments of a recording of `max_seconds`
        self._most = max(1, 1 + int(np.ceil(max(0.0, settings.max_seconds - config.segment) / config.hop)))

    def load(self, report: Reporter = SILENT) -> None:
        """Decode everything now, where it fits in memory."""
        self.spectra.load(report)

    def steps(self) -> int:
        """Batches of a training epoch."""
        return steps(len(self._vids), self.settings.batch)

    def epoch(self, seed: int, epoch: int) -> Iterator[Pairs]:
        """Training batches, the same for the same arguments; no recording is twice in one of them. Of a
        recording longer than `max_seconds` a drawn run of segments is heard.

        With several ranks, this one's share; where it is empty, the batch's first pair stands in for it.
        """
        self.load()
        batches = epoch_batches(self._vids, self.settings.batch, seed, epoch)
        rng = np.random.default_rng([seed, epoch, 1])
        stretches = [[self._drawn(self._vids[i], rng) for i in batch] for batch in batches]
        shares = [self._share(batch) for batch in batches]
        own = self.spectra.batches([self._share(drawn) for drawn in stretches])
        for batch, share, heard in zip(batches, shares, own, strict=True):
            yield Pairs(*heard, tuple(self.captions.pairs[i].caption for i in share), len(batch))

    def _share(self, batch: Sequence[T]) -> Sequence[T]:
        return batch[self.ranks.own(len(batch))] or batch[:1]

    def _drawn(self, vid: str, rng: np.random.Generator) -> Stretch:
        count = self.spectra.counts[vid]
        first = int(rng.integers(0, max(count - self._most, 0) + 1))
        return Stretch(vid, first, min(first + self._most, count))

    def recordings(self) -> Iterator[tuple[list[str], torch.Tensor, tuple[int, ...]]]:
        """All recordings, whole, in order and `eval_batch` at a time: vids, spectra, segments of each."""
        self.load()
        vids, size = list(self.captions.sounds), self.settings.eval_batch
        groups = [vids[i : i + size] for i in range(0, len(vids), size)]
        stretches = [[Stretch(vid, 0, self.spectra.counts[vid]) for vid in group] for group in groups]
        for group, heard in zip(groups, self.spectra.batches(stretches), strict=True):
            yield group, *heard

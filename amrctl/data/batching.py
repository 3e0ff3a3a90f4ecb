"""Batches of pairs in which no recording comes twice, the same for the same seed and epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np


def steps(pairs: int, size: int) -> int:
    """Batches of an epoch. A last batch of one pair would have no negatives, and is left out."""
    count = -(-pairs // size)
    return max(1, count - (pairs % size == 1 and count > 1))


def epoch_batches(recordings: Sequence[str], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of pairs for each batch, where `recordings[i]` is the recording of pair i.

    Every pair is drawn once an epoch, in random order; one whose recording is in the batch already waits
    for the next. A recording with more sentences than there are batches keeps some for other epochs.
    """
    rng = np.random.default_rng([seed, epoch])
    waiting = deque(int(i) for i in rng.permutation(len(recordings)))
    batches: list[list[int]] = []
    for _ in range(steps(len(recordings), size)):
        batch: list[int] = []
        held: list[int] = []
        seen: set[str] = set()
        while waiting and len(batch) < size:
            pair = waiting.popleft()
            if recordings[pair] in seen:
                held.append(pair)
            else:
                seen.add(recordings[pair])
                batch.append(pair)
        waiting.extendleft(reversed(held))
        batches.append(batch)
    return batches

"""Which recordings fit a sentence, and how the moments of several recordings are put in one order.

A recording's score is the mean of its `best_of` best windows' cosines with the sentence. The score of a
moment in the archive's order is

    moment score * exp(-weight * (best recording's score - its recording's score)),

so the best recording's moments keep their own score, and a weight of 0 ranks by it alone. Read as
probabilities: the detector says how likely the moment is if the recording is the right one, the factor
how much less likely the recording is than the best one, at an inverse temperature of `weight`. Ours; the
detector alone cannot tell, because it never saw a recording without the sound that was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amrctl.archive.nearest import Ids, Nearest
from amrctl.archive.store import Offsets, Vectors
from amrctl.data.features import Rows

_BLOCK = 8192  # rows that are converted and multiplied at a time
_CANDIDATES = 16  # windows that the graph is asked for, for each recording that is wanted
_SLACK = 2  # recordings that are scored exactly, for each that is wanted

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """A recording for a sentence: its place in the index, its score (a cosine), its best window."""

    recording: int
    score: float
    window: int


def cosines(vectors: Vectors, query: Rows) -> Scores:
    """The product of every row `(n, dim)` with `query` `(dim,)`, in float32, block by block."""
    found = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        found[start : start + _BLOCK] = vectors[start : start + _BLOCK].astype(np.float32) @ query
    return found


def match(
    vectors: Vectors,
    offsets: Offsets,
    query: Rows,
    *,
    wanted: int,
    best_of: int = 1,
    nearest: Nearest | None = None,
) -> list[Match]:
    """The `wanted` recordings that fit best, best first; equal ones in the order of the index.

    `vectors` `(windows, dim)`, recording r owns rows `offsets[r]` to `offsets[r + 1]`; `query` `(dim,)`.
    With `nearest`, only recordings with a window among its proposals take part, with exact scores.
    """
    if nearest is not None:
        candidates = _proposed(nearest, offsets, query, wanted)
        if candidates is not None:
            rows = [vectors[offsets[r] : offsets[r + 1]] for r in candidates]
            lengths = np.array([len(piece) for piece in rows])
            inner = np.concatenate([[0], np.cumsum(lengths)])
            return _best(cosines(np.concatenate(rows), query), inner, candidates, wanted, best_of)
    return _best(cosines(vectors, query), offsets, np.arange(len(offsets) - 1), wanted, best_of)


def _proposed(nearest: Nearest, offsets: Offsets, query: Rows, wanted: int) -> Ids | None:
    """Recordings that own one of the nearest windows, in order; None where it takes a large part of all.

    A long recording may own all of the nearest: then more are asked for.
    """
    windows = int(offsets[-1])
    enough = min(_SLACK * wanted, len(offsets) - 1)
    count = _CANDIDATES * wanted
    while count < windows // 4:
        found = np.unique(np.searchsorted(offsets, nearest.search(query, count), side="right") - 1)
        if len(found) >= enough:
            return found
        count *= 4
    return None


def _best(scores: Scores, offsets: Offsets, recordings: Ids, wanted: int, best_of: int) -> list[Match]:
    """The best of `recordings`, whose windows' scores stand at `offsets`."""
    if best_of == 1:
        means = np.maximum.reduceat(scores, offsets[:-1]).astype(np.float64)
    else:
        means = _means(scores, offsets, best_of)
    ranked = np.lexsort((np.arange(len(means)), -means))[:wanted]
    best = [int(np.argmax(scores[offsets[r] : offsets[r + 1]])) for r in ranked]
    return [Match(int(recordings[r]), float(means[r]), w) for r, w in zip(ranked, best, strict=True)]


def _means(scores: Scores, offsets: Offsets, best_of: int) -> npt.NDArray[np.float64]:
    """Mean of each recording's `best_of` best scores, or of all where it has fewer."""
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-scores, owner))  # by recording, best first
    place = np.arange(len(scores)) - np.repeat(offsets[:-1], lengths)
    kept = np.where(place < best_of, scores[order].astype(np.float64), 0.0)
    means: npt.NDArray[np.float64] = np.add.reduceat(kept, offsets[:-1]) / np.minimum(lengths, best_of)
    return means


def factor(score: float, best: float, weight: float) -> float:
    """What the scores of a recording's moments are multiplied by, 0..1; see the top of this file."""
    return math.exp(-weight * max(best - score, 0.0))

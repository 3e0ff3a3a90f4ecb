"""Consensus fusion: windows that several sources and top ranks agree on move up.

Source: Guangzhou report (DCASE 2026 Task 6), section 3.8, eq. 9. Clusters and mean boundaries are
those of `wbf`, at a temporal IoU above 0.85; the score of a cluster is

    (max s_i + count (n - 1) + source (m - 1) + rank r) / scale

with n members out of m files, r the mean of 1 / rank of the members (rank of a window among those of
its file, from 1), and 0.05, 0.02, 0.02 as count, source and rank. Left open there, ours: s_i is the
score times its file's weight over the largest weight, as in the published fusion's "max" confidence;
`scale`, 1 + the largest bonus that any query could reach, keeps scores in 0..1 without cutting off
(which would make ties) and changes no order. Our option: the best member's boundaries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amrctl.data.predictions import Prediction
from amrctl.ensemble.clusters import Clusters, checked_coordinates, cluster, ranked
from amrctl.ensemble.stack import Stack, checked_iou, checked_keep, checked_weights, stacks, unstack
from amrctl.errors import PredictionError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bonuses:
    """Weights of the agreement bonuses, each 0 or more: per member beyond the first, per file beyond
    the first, and for the mean reciprocal rank."""

    count: float = 0.05
    source: float = 0.02
    rank: float = 0.02

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value) or value < 0:
                raise PredictionError(f"the {name} bonus {value:g} is not a number of 0 or more")


PUBLISHED = Bonuses()


def consensus(
    files: Sequence[Sequence[Prediction]],
    *,
    weights: Sequence[float] | None = None,
    iou: float = 0.85,
    bonuses: Bonuses = PUBLISHED,
    coordinates: str = "average",
    keep: int = 10,
) -> list[Prediction]:
    """Fuse the windows of several prediction files, query by query; see the head of this module.

    Weight 0 leaves a file out: it counts neither as source nor in `scale`. `coordinates`: "average"
    (score-weighted mean of the members) or "best" (boundaries of the member with the best weighted
    score; agreement then changes the score alone). Equal fused scores: the cluster with the stronger
    best member leads, then the earlier file, then the earlier place in it.

    Returns the queries in the first file's order, at most `keep` windows each, best first, scores
    in 0..1. Saliency is kept only where one file is left. Raises `PredictionError`.
    """
    given = checked_weights(weights, len(files))
    checked_iou("iou", iou)
    checked_keep(keep)
    place = checked_coordinates(coordinates)
    over = scale(files, weights=weights, bonuses=bonuses)
    done: list[Prediction] = []
    for stack in stacks(files, given / given.max()):
        found = cluster(stack, iou)
        score = (found.best + _bonus(stack, found, bonuses)) / over
        fused = ranked(stack, found, np.where(found.real, score, 0.0), place)
        done.extend(unstack(fused, fused.real, keep))
    return done


def scale(
    files: Sequence[Sequence[Prediction]],
    *,
    weights: Sequence[float] | None = None,
    bonuses: Bonuses = PUBLISHED,
) -> float:
    """1 + the bonus of a cluster that holds every window of the query with most windows, from every
    file, each first in its file: what all scores of one fusion are divided by."""
    given = checked_weights(weights, len(files))
    kept = [items for items, weight in zip(files, given, strict=True) if weight > 0]
    counts: Counter[str] = Counter()
    for items in kept:
        for item in items:
            counts[item.qid] += len(item.windows)
    most = max(counts.values(), default=0)
    largest = bonuses.count * max(most - 1, 0) + bonuses.source * (len(kept) - 1) + bonuses.rank
    if not math.isfinite(largest):
        raise PredictionError("the bonuses are too large to be added up")
    return 1.0 + largest


def _bonus(stack: Stack, found: Clusters, bonuses: Bonuses) -> Floats:
    """The agreement bonus of every cluster, `(Q, M)`; what padding gets means nothing."""
    rows, width = found.which.shape
    i, j = np.nonzero(found.which >= 0)
    cell = i * width + found.which[i, j]
    reciprocal = np.bincount(cell, weights=1.0 / stack.rank[i, j], minlength=rows * width)
    distinct = np.zeros(rows * width, dtype=np.int64)
    source = stack.source[i, j]
    for number in range(int(source.max(initial=-1)) + 1):
        present = np.zeros(rows * width, dtype=np.bool_)
        present[cell[source == number]] = True
        distinct += present
    members = np.maximum(found.members, 1)
    return np.asarray(
        bonuses.count * (members - 1)
        + bonuses.source * (distinct.reshape(rows, width) - 1)
        + bonuses.rank * reciprocal.reshape(rows, width) / members
    )

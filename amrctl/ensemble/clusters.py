"""Windows that overlap, gathered: the part that `wbf` and `consensus` share.

Source: the clustering of "weighted boxes fusion" (Solovyev, Wang and Gabruseva, 2021), see `wbf.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from amrctl import spans
from amrctl.ensemble.stack import Stack
from amrctl.errors import PredictionError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

T = TypeVar("T", np.float64, np.int64)

Coordinates = Literal["average", "best"]
COORDINATES: tuple[Coordinates, ...] = ("average", "best")
_FAR = -1.0e300  # where an unused cluster lies: it overlaps nothing


@dataclass(frozen=True)
class Clusters:
    """The clusters of Q queries in the order they were opened, padded to the M columns of the stack.

    `start`, `end`: score-weighted mean of the members, seconds; `best_start`, `best_end`: those of
    the best member; `best`, `total`: largest and summed weighted score; `members`: their number;
    all `(Q, M)`. `real` is false where a row has no such cluster. `which` (Q, M): the cluster of each
    window of the stack, -1 for padding.
    """

    start: Floats
    end: Floats
    best_start: Floats
    best_end: Floats
    best: Floats
    total: Floats
    members: Integers
    real: npt.NDArray[np.bool_]
    which: Integers


def cluster(stack: Stack, threshold: float) -> Clusters:
    """Visit the windows of every row, best first: each joins the cluster whose mean window it overlaps
    most, if their temporal IoU is above `threshold`, or opens one. Several windows of one file may
    join the same cluster.
    """
    rows, width = stack.start.shape
    start, end = np.full((rows, width), _FAR), np.full((rows, width), _FAR)
    best_start, best_end, best = np.zeros((3, rows, width))
    low, high = np.zeros((rows, width)), np.zeros((rows, width))  # hull of the members
    total = np.zeros((rows, width))
    members = np.zeros((rows, width), dtype=np.int64)
    which = np.full((rows, width), -1)
    count = np.zeros(rows, dtype=np.int64)
    for j in range(width):
        s, e, c, live = stack.start[:, j], stack.end[:, j], stack.score[:, j], stack.real[:, j]
        used = int(count.max(initial=0))
        hit = np.zeros(rows, dtype=np.bool_)
        if used:
            overlap = spans.iou(start[:, :used], end[:, :used], s[:, None], e[:, None])
            nearest = np.argmax(overlap, axis=1)
            hit = live & (overlap[np.arange(rows), nearest] > threshold)
            r = np.flatnonzero(hit)
            k = which[r, j] = nearest[r]
            total[r, k] += c[r]
            members[r, k] += 1
            # a running mean stays inside the hull and is safe for scores near 0
            share = np.divide(c[r], total[r, k], out=1.0 / members[r, k], where=total[r, k] > 0)
            start[r, k] += share * (s[r] - start[r, k])
            end[r, k] += share * (e[r] - end[r, k])
            low[r, k] = np.minimum(low[r, k], s[r])
            high[r, k] = np.maximum(high[r, k], e[r])
        r = np.flatnonzero(live & ~hit)
        k = which[r, j] = count[r]
        start[r, k], end[r, k], total[r, k], members[r, k] = s[r], e[r], c[r], 1
        best_start[r, k], best_end[r, k], best[r, k] = s[r], e[r], c[r]
        low[r, k], high[r, k] = s[r], e[r]
        count[r] += 1
    real = np.arange(width)[None, :] < count[:, None]
    start, end = np.clip(start, low, high), np.clip(end, low, high)
    return Clusters(start, end, best_start, best_end, best, total, members, real, which)


def ranked(stack: Stack, found: Clusters, score: Floats, coordinates: Coordinates) -> Stack:
    """The clusters as windows with `score` (Q, M), best first.

    Equal scores: the cluster with the stronger best member leads, then the earlier file, then the
    earlier place in it. `source` and `rank` are those of the best member.
    """
    order = np.argsort(np.where(found.real, -score, np.inf), axis=1, kind="stable")
    # windows open clusters from left to right, so the column of cluster k's first window is its opener
    first = np.zeros(found.which.shape, dtype=np.int64)
    i, j = np.nonzero(found.which >= 0)
    first[i[::-1], found.which[i, j][::-1]] = j[::-1]  # the last write is the leftmost column
    average = coordinates == "average"

    def by_score(values: npt.NDArray[T]) -> npt.NDArray[T]:
        return np.asarray(np.take_along_axis(values, order, axis=1))

    return Stack(
        stack.items,
        by_score(found.start if average else found.best_start),
        by_score(found.end if average else found.best_end),
        by_score(score),
        found.real,
        by_score(np.take_along_axis(stack.source, first, axis=1)),
        by_score(np.take_along_axis(stack.rank, first, axis=1)),
    )


def checked_coordinates(value: str) -> Coordinates:
    """`value` when it is a way to place a cluster's window; else `PredictionError`."""
    for known in COORDINATES:
        if value == known:
            return known
    raise PredictionError(f"coordinates {value}: choose {' or '.join(COORDINATES)}")

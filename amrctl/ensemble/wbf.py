"""Weighted fusion of temporal windows.

Source: Solovyev, Wang and Gabruseva, "Weighted boxes fusion", Image and Vision Computing 107 (2021),
and its one-dimensional form `weighted_boxes_fusion_1d` in the package ensemble-boxes (conf_type
"avg", no overflow). Changed: seconds in place of 0..1, float64 in place of float32, a stated order
of ties, weight 0 means that the file is absent (there: NaN), windows of score 0 fuse to their plain
mean (there: NaN), and a fused score never passes 1 (there it can, with unequal weights and several
windows of the heavy file in one cluster).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amrctl import spans
from amrctl.data.predictions import Prediction
from amrctl.ensemble.stack import Stack, checked_iou, checked_keep, checked_weights, stacks, unstack

Floats = npt.NDArray[np.float64]

_FAR = -1.0e300  # where an unused cluster lies: it overlaps nothing


def wbf(
    files: Sequence[Sequence[Prediction]],
    *,
    weights: Sequence[float] | None = None,
    iou: float = 0.55,
    keep: int = 10,
) -> list[Prediction]:
    """Fuse the windows of several prediction files, query by query.

    Windows are visited by weighted score, best first. Each joins the cluster whose fused window it
    overlaps most, if that temporal IoU is above `iou`, or opens a cluster; several windows of one
    file may join the same one. A cluster's window is the score-weighted mean of its members, its
    score is

        mean of the members' weighted scores x min(n, N) / N

    with n members and N files of weight above 0; the weights are first scaled to a mean of 1, so only
    their ratio matters. Equal fused scores: the cluster with the stronger first member leads, then
    the earlier file, then the earlier place in the file.

    Returns the queries in the first file's order, at most `keep` windows each, best first, scores
    in 0..1. Saliency is kept only where one file is left. Raises `PredictionError`.
    """
    given = checked_weights(weights, len(files))
    checked_iou("iou", iou)
    checked_keep(keep)
    sources = int((given > 0).sum())
    scaled = given / given[given > 0].mean()
    done: list[Prediction] = []
    for stack in stacks(files, scaled):
        fused = _clusters(stack, iou, sources)
        done.extend(unstack(fused, fused.real, keep))
    return done


def _clusters(stack: Stack, threshold: float, sources: int) -> Stack:
    """The clusters of every row as a stack of the same shape, sorted by fused score."""
    rows, width = stack.start.shape
    start, end = np.full((rows, width), _FAR), np.full((rows, width), _FAR)
    low, high = np.zeros((rows, width)), np.zeros((rows, width))  # hull of the members
    total = np.zeros((rows, width))
    members = np.zeros((rows, width), dtype=np.int64)
    count = np.zeros(rows, dtype=np.int64)
    for j in range(width):
        s, e, c, live = stack.start[:, j], stack.end[:, j], stack.score[:, j], stack.real[:, j]
        used = int(count.max(initial=0))
        hit = np.zeros(rows, dtype=np.bool_)
        if used:
            overlap = spans.iou(start[:, :used], end[:, :used], s[:, None], e[:, None])
            best = np.argmax(overlap, axis=1)
            hit = live & (overlap[np.arange(rows), best] > threshold)
            r = np.flatnonzero(hit)
            k = best[r]
            total[r, k] += c[r]
            members[r, k] += 1
            # a running mean stays inside the hull and is safe for scores near 0
            share = np.divide(c[r], total[r, k], out=1.0 / members[r, k], where=total[r, k] > 0)
            start[r, k] += share * (s[r] - start[r, k])
            end[r, k] += share * (e[r] - end[r, k])
            low[r, k] = np.minimum(low[r, k], s[r])
            high[r, k] = np.maximum(high[r, k], e[r])
        r = np.flatnonzero(live & ~hit)
        k = count[r]
        start[r, k], end[r, k], total[r, k], members[r, k] = s[r], e[r], c[r], 1
        low[r, k], high[r, k] = s[r], e[r]
        count[r] += 1
    real = np.arange(width)[None, :] < count[:, None]
    score = np.divide(total, members, out=np.zeros_like(total), where=members > 0)
    score *= np.minimum(members, sources) / sources
    order = np.argsort(np.where(real, -score, np.inf), axis=1, kind="stable")

    def by_score(values: Floats) -> Floats:
        return np.take_along_axis(values, order, axis=1)

    return Stack(
        stack.items,
        by_score(np.clip(start, low, high)),
        by_score(np.clip(end, low, high)),
        by_score(np.minimum(score, 1.0)),
        real,
    )

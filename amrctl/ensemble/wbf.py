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

from amrctl.data.predictions import Prediction
from amrctl.ensemble.clusters import checked_coordinates, cluster, ranked
from amrctl.ensemble.stack import checked_iou, checked_keep, checked_weights, stacks, unstack


def wbf(
    files: Sequence[Sequence[Prediction]],
    *,
    weights: Sequence[float] | None = None,
    iou: float = 0.55,
    coordinates: str = "average",
    keep: int = 10,
) -> list[Prediction]:
    """Fuse the windows of several prediction files, query by query.

    Windows are visited by weighted score, best first. Each joins the cluster whose fused window it
    overlaps most, if that temporal IoU is above `iou`, or opens a cluster; several windows of one
    file may join the same one. A cluster's window is the score-weighted mean of its members, or with
    `coordinates="best"` its best member's (the clusters are the same); its score is

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
    place = checked_coordinates(coordinates)
    sources = int((given > 0).sum())
    scaled = given / given[given > 0].mean()
    done: list[Prediction] = []
    for stack in stacks(files, scaled):
        found = cluster(stack, iou)
        score = np.divide(found.total, found.members, out=np.zeros_like(found.total), where=found.members > 0)
        score *= np.minimum(found.members, sources) / sources
        fused = ranked(stack, found, np.minimum(score, 1.0), place)
        done.extend(unstack(fused, fused.real, keep))
    return done

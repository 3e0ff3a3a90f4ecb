"""The metric written out slowly, one query and one threshold at a time, to hold the fast one against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Window = Sequence[float]


def overlap(a: Window, b: Window) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))


def union_iou(a: Window, b: Window) -> float:
    inter = overlap(a, b)
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return inter / union if union > 0 else 0.0


def hull_iou(a: Window, b: Window) -> float:
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return overlap(a, b) / hull if hull > 0 else 0.0


def recall_iou(window: Window, moments: Sequence[Window]) -> float:
    """What R1 compares with its threshold."""
    best = moments[0]
    for moment in moments[1:]:
        if union_iou(window, moment) > union_iou(window, best):
            best = moment
    return hull_iou(window, best)


def average_precision(
    windows: Sequence[Window], moments: Sequence[Window], threshold: float, *, ties: str = "numpy"
) -> float:
    """AP of one query. `ties`: among equal IoUs numpy's order, or the `later` or `earlier` moment first."""
    ranked = sorted(windows[:10], key=lambda w: -w[2])
    taken: set[int] = set()
    hits = []
    for window in ranked:
        ious = [union_iou(window, m) for m in moments]
        if ties == "numpy":
            order = [int(i) for i in np.argsort(ious)[::-1]]
        else:
            sign = -1 if ties == "later" else 1
            order = sorted(range(len(moments)), key=lambda i: (-ious[i], sign * i))
        free = [i for i in order if ious[i] >= threshold and i not in taken]
        hits.append(bool(free))
        taken.update(free[:1])
    precision = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
    total, before = 0.0, 0.0
    for k, hit in enumerate(hits):
        if hit:
            recall = sum(hits[: k + 1]) / len(moments)
            total += (recall - before) * max(precision[k:])
            before = recall
    return total

"""Score-level ensemble: the union of all windows, sorted again; no boundary is averaged.

Source: Chung-Ang University, DCASE 2026 Task 6, Submit 1 ("ranks the merged candidate windows using
decoder-based confidence scores"). Dropping near copies is our option; the report does not say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amrctl.data.predictions import Prediction
from amrctl.ensemble.stack import Stack, checked_iou, checked_keep, checked_weights, stacks, unstack
from amrctl.spans import iou


def pool(
    files: Sequence[Sequence[Prediction]],
    *,
    weights: Sequence[float] | None = None,
    keep: int = 10,
    copies_iou: float | None = None,
) -> list[Prediction]:
    """Union of the windows of several prediction files, best `keep` of each query.

    Scores are multiplied by their file's weight over the largest weight (so they stay in 0..1);
    weight 0 leaves a file out. Equal scores: the earlier file first, then the earlier place in it.
    With `copies_iou`, a window whose temporal IoU with a better kept one is above it is dropped.

    Returns the queries in the first file's order, windows best first. Saliency is kept only where
    one file is left. Raises `PredictionError`.
    """
    given = checked_weights(weights, len(files))
    checked_keep(keep)
    if copies_iou is not None:
        checked_iou("copies_iou", copies_iou)
    done: list[Prediction] = []
    for stack in stacks(files, given / given.max()):
        chosen = stack.real if copies_iou is None else _without_copies(stack, copies_iou)
        done.extend(unstack(stack, chosen, keep))
    return done


def _without_copies(stack: Stack, threshold: float) -> npt.NDArray[np.bool_]:
    """Which windows (Q, M) stay when each is compared with the better ones that stay."""
    kept = stack.real.copy()
    for j in range(1, kept.shape[1]):
        better = stack.start[:, :j], stack.end[:, :j]
        overlap = iou(*better, stack.start[:, j, None], stack.end[:, j, None])
        kept[:, j] &= ~((overlap > threshold) & kept[:, :j]).any(axis=1)
    return kept

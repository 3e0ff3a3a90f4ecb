"""Saliency as proposals: runs of high saliency become windows of their own, beside the decoder's.

Source: KAIST report (DCASE 2026 Task 6), section 3.6. Per query: sigmoid of the raw curve, divided
by its maximum; runs of frames at or above the threshold; a run's score is the mean of the divided
curve over it; the best 10. The released code keeps what lies strictly above the threshold; here, as
in the report, a frame at the threshold counts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amrctl.errors import PredictionError

Floats = npt.NDArray[np.float64]

_NOTHING = 1e-12  # a highest probability up to this says that no frame fits, as in the released code


def proposals(
    saliency: npt.NDArray[np.float32] | Floats, duration: float, *, threshold: float = 0.5, keep: int = 10
) -> Floats:
    """Windows `(n, 3)` (start, end in seconds; score in 0..1, six digits) of one query, best first.

    `saliency` `(T,)` is raw; a frame lasts `duration / T` seconds. Equal scores: the earlier run
    first. No smoothing, no least length. Raises `PredictionError` for settings out of range.
    """
    checked_threshold(threshold)
    if keep < 1:
        raise PredictionError(f"keep {keep}: at least one proposal a query must stay")
    raw = np.asarray(saliency, dtype=np.float64)
    with np.errstate(over="ignore"):
        probability = 1.0 / (1.0 + np.exp(-raw))
    top = float(probability.max(initial=0.0))
    if top <= _NOTHING:
        return np.empty((0, 3))
    relative = probability / top
    edges = np.diff(np.concatenate([[False], relative >= threshold, [False]]).astype(np.int8))
    first, after = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    score = [float(relative[a:b].mean()) for a, b in zip(first, after, strict=True)]
    step = duration / len(raw)
    windows = np.column_stack([first * step, np.minimum(after * step, duration), np.round(score, 6)])
    return np.asarray(windows[np.argsort(-windows[:, 2], kind="stable")][:keep])


def checked_threshold(value: float) -> float:
    """`value` when it is above 0 and at most 1; else `PredictionError`."""
    if not 0 < value <= 1:
        raise PredictionError(f"saliency threshold {value:g} is not above 0 and at most 1")
    return value

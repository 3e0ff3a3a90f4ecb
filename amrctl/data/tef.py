"""Temporal endpoint features: where in its recording a frame lies. Pure functions of the length.

Batches compute TEF themselves, after cutting and shifting; the copy in a feature file is for
inspection and export.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amrctl.errors import FeatureError


def tef_2d(frames: int) -> npt.NDArray[np.float32]:
    """Start and end of each frame over the length: `[t/n, (t+1)/n]`, shape `(frames, 2)`, in 0..1.

    Source: Guangzhou, DCASE 2026 Task 6, eq. 2; the same numbers as the official baseline's.
    """
    t = np.arange(frames, dtype=np.float64)
    n = max(frames, 1)
    return np.stack([t / n, (t + 1) / n], axis=1).astype(np.float32)


def tef_3d(frames: int) -> npt.NDArray[np.float32]:
    """Time from the start, time to the end, one frame's share: `[t/n, 1 - (t+1)/n, 1/n]`.

    Shape `(frames, 3)`, in 0..1. Source: Yokohama, DCASE 2026 Task 6, section 2.1.
    """
    t = np.arange(frames, dtype=np.float64)
    n = max(frames, 1)
    return np.stack([t / n, 1 - (t + 1) / n, np.full(frames, 1 / n)], axis=1).astype(np.float32)


def tef(frames: int, dims: int) -> npt.NDArray[np.float32]:
    """`tef_2d` or `tef_3d` by the number of columns; any other number raises `FeatureError`."""
    if dims == 2:
        return tef_2d(frames)
    if dims == 3:
        return tef_3d(frames)
    raise FeatureError(f"TEF has 2 or 3 columns, not {dims}; use --tef 2 or --tef 3")

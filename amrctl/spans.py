"""Arithmetic of time on numpy arrays: the one place for temporal IoU and friends.

Windows are `(start, end)` rows in seconds unless a name says otherwise; spans are
`(centre, width)` rows in 0..1 of the recording. All arithmetic is float64, because an
intersection over union that is exactly 0.7 in whole seconds must compare equal to 0.7.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def as_windows(windows: npt.ArrayLike) -> Floats:
    """Return `windows` as a float64 array of shape `(n, 2)`; an empty list gives `(0, 2)`."""
    return np.asarray(windows, dtype=np.float64).reshape(-1, 2)


def _overlap(start: Floats, end: Floats, other_start: Floats, other_end: Floats) -> tuple[Floats, Floats]:
    inter = np.maximum(np.minimum(end, other_end) - np.maximum(start, other_start), 0.0)
    return inter, (end - start) + (other_end - other_start) - inter


def iou(start: Floats, end: Floats, other_start: Floats, other_end: Floats) -> Floats:
    """Intersection over union of windows whose starts and ends broadcast against the others', in 0..1.

    Where the union is not positive (both windows empty, or reversed) the answer is 0.
    """
    inter, union = _overlap(start, end, other_start, other_end)
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=union > 0))


def temporal_iou(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Intersection over union of every window of `a` (n, 2) with every window of `b` (m, 2).

    Returns shape `(n, m)`; see `iou`.
    """
    wa, wb = as_windows(a), as_windows(b)
    return iou(wa[:, None, 0], wa[:, None, 1], wb[None, :, 0], wb[None, :, 1])


def generalised_iou(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Generalised IoU, `iou - (hull - union) / hull`, shape `(n, m)`, in -1..1 (0 for empty hulls).

    Source: Rezatofighi et al., CVPR 2019, for one dimension.
    """
    wa, wb = as_windows(a)[:, None], as_windows(b)[None]
    hull = np.maximum(wa[..., 1], wb[..., 1]) - np.minimum(wa[..., 0], wb[..., 0])
    _, union = _overlap(wa[..., 0], wa[..., 1], wb[..., 0], wb[..., 1])
    gap = np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)
    return np.asarray(temporal_iou(a, b) - gap, dtype=np.float64)


def to_centre_width(windows: npt.ArrayLike) -> Floats:
    """`(start, end)` to `(centre, width)`, same unit, shape `(n, 2)`."""
    w = as_windows(windows)
    return np.stack([(w[:, 0] + w[:, 1]) / 2, w[:, 1] - w[:, 0]], axis=1)


def to_start_end(spans: npt.ArrayLike) -> Floats:
    """`(centre, width)` to `(start, end)`, same unit, shape `(n, 2)`."""
    s = as_windows(spans)
    return np.stack([s[:, 0] - s[:, 1] / 2, s[:, 0] + s[:, 1] / 2], axis=1)


def merge(windows: npt.ArrayLike, gap: float = 0.0) -> Floats:
    """Join windows that overlap, touch, or lie at most `gap` seconds apart; sorted by start."""
    w = as_windows(windows)
    w = w[np.argsort(w[:, 0], kind="stable")]
    out: list[list[float]] = []
    for start, end in w.tolist():
        if out and start <= out[-1][1] + gap:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([start, end])
    return as_windows(out)


def frame_coverage(windows: npt.ArrayLike, frames: int, hop: float) -> Floats:
    """How much of each frame the union of `windows` covers, shape `(frames,)`, in 0..1.

    Frame t is `[t * hop, (t + 1) * hop)` seconds.
    """
    left = np.arange(frames, dtype=np.float64) * hop
    cover = np.zeros(frames)
    for start, end in merge(windows).tolist():
        cover += np.clip(np.minimum(left + hop, end) - np.maximum(left, start), 0.0, hop)
    return np.minimum(cover / hop, 1.0)

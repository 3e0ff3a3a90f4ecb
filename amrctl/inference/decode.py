"""The only place that turns outputs into seconds and scores.

Order of work: span 1.0 times the seconds it stands for, clip to the recording, sort by score,
merge the chunks of a long recording, keep the best, round. Nothing is rounded before ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amrctl.spans import Floats, to_start_end

SHORTEST = 0.01  # seconds: what a window of no length becomes when nothing is rounded
_SAME = 0.5  # IoU, within what two chunks both saw, from which their windows are one moment
_EDGE = 0.01  # of a chunk: a window that ends this close to an inner edge is cut there


@dataclass(frozen=True)
class Piece:
    """What the model said about one chunk (usually the whole) of a recording."""

    offset: float  # seconds from the recording's start
    seconds: float  # what span 1.0 stands for
    spans: npt.NDArray[np.float32]  # (N, 2) centre, width in 0..1 of `seconds`
    scores: npt.NDArray[np.float32]  # (N,) 0..1
    saliency: npt.NDArray[np.float32] | None  # (T,)
    first: bool = True  # the chunk begins where the recording begins
    last: bool = True


def decode(
    pieces: list[Piece], duration: float, hop: float, *, keep: int, rounding: float, official: bool = False
) -> Floats:
    """Windows `(n, 3)` (start, end, score), best first, within the recording, never empty.

    `rounding` is a step in seconds (1: whole seconds, halves to even; 0: none). `official` clips
    to 300 s before rounding, as the released code does, and to the duration afterwards.
    """
    windows = np.concatenate([_windows(piece, duration, hop, official) for piece in pieces])
    windows = windows[np.argsort(-windows[:, 2], kind="stable")]
    if len(pieces) > 1:
        windows = _merge_chunks(windows)
    windows = windows[:keep]
    fitted = fit(windows[:, :2], duration, rounding)
    return np.column_stack([fitted, np.round(windows[:, 2], 6)])


def fit(windows: Floats, duration: float, rounding: float) -> Floats:
    """Round (start, end) rows to multiples of `rounding` s, keep them inside the recording and not empty."""
    start, end = windows[:, 0], windows[:, 1]
    shortest = SHORTEST
    if rounding > 0:
        start, end = np.rint(start / rounding) * rounding, np.rint(end / rounding) * rounding
        shortest = rounding
    shortest = min(shortest, duration)
    start = np.clip(start, 0.0, max(duration - shortest, 0.0))
    end = np.clip(np.maximum(end, start + shortest), 0.0, duration)
    if rounding == 0 or rounding % 1:
        start, end = np.round(start, 4), np.round(end, 4)
        end = np.minimum(np.where(end <= start, start + shortest, end), duration)
    return np.column_stack([start, end])


def _windows(piece: Piece, duration: float, hop: float, official: bool) -> Floats:
    """Rows `(n, 6)`: absolute start, end; score; start and end of the chunk; 1 where an inner edge
    of the chunk cuts the window, else 0."""
    local = to_start_end(piece.spans.astype(np.float64)) * piece.seconds
    if official:
        local = np.clip(local, 0.0, 300.0)
    near = max(0.5 * hop, _EDGE * piece.seconds)
    cut = np.zeros(len(local), dtype=bool)
    if not piece.first:
        cut |= local[:, 0] <= near
    if not piece.last:
        cut |= local[:, 1] >= piece.seconds - near
    local = np.clip(local, 0.0, piece.seconds) + piece.offset
    local = np.minimum(local, duration)
    chunk = np.broadcast_to([piece.offset, piece.offset + piece.seconds], local.shape)
    return np.column_stack([local, piece.scores.astype(np.float64), chunk, cut])


def _merge_chunks(windows: Floats) -> Floats:
    """Rows of `_windows` of overlapping chunks, best first → one list, best first.

    Windows of two chunks are one moment when they agree on the stretch that both chunks saw. It has
    the boundaries of its best window that no inner edge cuts; where every one is cut (the moment is
    longer than the overlap), it reaches over all of them. Its score is the best of its windows.
    """
    whole = windows[:, 5] == 0
    owner = np.full(len(windows), -1)  # the moment that a window is part of: its best row; -1: none
    for i in range(len(windows)):
        linked = np.unique(owner[_agrees(windows, i) & (owner >= 0)]).tolist()
        if not linked:
            owner[i] = i
            continue
        unseen = [moment for moment in linked if not (whole & (owner == moment)).any()]
        if linked[0] in unseen:  # nobody saw all of the moment yet, and i may join its pieces
            owner[[i, *np.flatnonzero(np.isin(owner, unseen)).tolist()]] = linked[0]
        # else i is a near copy, or cut where the neighbour saw all of it
    best = np.unique(owner[owner >= 0])
    merged: Floats = windows[best]
    for row, moment in zip(merged, best, strict=True):
        members = windows[owner == moment]
        seen = members[members[:, 5] == 0]
        row[:2] = seen[0, :2] if len(seen) else (members[:, 0].min(), members[:, 1].max())
    return merged


def _agrees(windows: Floats, i: int) -> npt.NDArray[np.bool_]:
    """Which rows `(n,)` are of another chunk than row i and have an IoU of at least 0.5 with it
    within what both chunks saw."""
    low, high = np.maximum(windows[i, 3], windows[:, 3]), np.minimum(windows[i, 4], windows[:, 4])
    start, end = np.maximum(windows[:, 0], low), np.minimum(windows[:, 1], high)
    own_start, own_end = np.maximum(windows[i, 0], low), np.minimum(windows[i, 1], high)
    shared = np.minimum(end, own_end) - np.maximum(start, own_start)
    union = np.maximum(end, own_end) - np.minimum(start, own_start)
    return np.asarray((windows[:, 3] != windows[i, 3]) & (shared > 0) & (shared >= _SAME * union))


def join_saliency(pieces: list[Piece], hop: float) -> npt.NDArray[np.float32] | None:
    """One curve over the recording; where chunks overlap, their mean. `(T,)` float32, raw."""
    curves = [(round(p.offset / hop), p.saliency) for p in pieces if p.saliency is not None]
    if not curves:
        return None
    total = max(at + len(curve) for at, curve in curves)
    value, count = np.zeros(total), np.zeros(total)
    for at, curve in curves:
        value[at : at + len(curve)] += curve
        count[at : at + len(curve)] += 1
    return np.asarray(value / np.maximum(count, 1), dtype=np.float32)

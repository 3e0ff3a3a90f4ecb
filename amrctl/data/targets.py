"""The only place that turns labelled windows into what a batch is trained on.

Windows are seconds as labelled. Training clips them to the audio that is used, drops what starts
at or after its end (but keeps at least the last frame when a moment ends there), and counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amrctl.spans import Floats, as_windows, frame_coverage

U64 = npt.NDArray[np.uint64]


def clip_windows(
    windows: npt.ArrayLike, seconds: float, hop: float, slack: float = 2.0
) -> tuple[Floats, int]:
    """Windows within `[0, seconds]` and how many had to change.

    A moment that starts at or after the end and ends at most `slack` seconds after it becomes the
    last `hop` seconds; one that lies further out is dropped.
    """
    w = as_windows(windows)
    kept = []
    changed = 0
    for start, end in w.tolist():
        if start >= seconds:
            changed += 1
            if end <= seconds + slack:
                kept.append((max(seconds - hop, 0.0), seconds))
        else:
            changed += end > seconds
            kept.append((start, min(end, seconds)))
    return as_windows(kept), changed


def saliency_labels(windows: npt.ArrayLike, frames: int, hop: float) -> npt.NDArray[np.bool_]:
    """Frames of which moments cover at least half, shape `(frames,)`; the most covered one at least."""
    cover = frame_coverage(windows, frames, hop)
    inside = cover >= 0.5 - 1e-9
    if not inside.any() and cover.any():
        inside[int(cover.argmax())] = True
    return inside


def released_saliency_labels(first: npt.ArrayLike, frames: int, hop: float) -> npt.NDArray[np.bool_]:
    """The released code's labels: the first window only, `[floor(start), floor(end) - 1]`."""
    start, end = as_windows(first)[0].tolist()
    last = max(0, min(int(end / hop), frames) - 1)
    inside = np.zeros(frames, dtype=bool)
    inside[min(int(start / hop), last) : last + 1] = True
    return inside


def mix(*parts: npt.NDArray[np.integer[Any]] | int) -> U64:
    """Hash of integers that broadcast, uint64: the counter-based source of all draws per query.

    The finaliser is that of SplitMix64 (Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        state = np.zeros((), dtype=np.uint64)
        for part in parts:
            state = (state ^ np.asarray(part, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
        return state


def draw_windows(keys: U64, count: int, keep: int) -> npt.NDArray[np.int64]:
    """Indices of `keep` of `count` windows, smallest key first chosen, in their original order."""
    if count <= keep:
        return np.arange(count)
    return np.sort(np.argsort(keys[:count], kind="stable")[:keep])


@dataclass(frozen=True)
class Pairs:
    """Frames drawn inside and outside moments."""

    positives: npt.NDArray[np.int64]  # (B, 2)
    negatives: npt.NDArray[np.int64]  # (B, 2)
    mask: npt.NDArray[np.bool_]  # (B,)


def draw_pairs(
    inside: npt.NDArray[np.bool_], real: npt.NDArray[np.bool_], keys: U64, *, released: bool = False
) -> Pairs:
    """Two frames inside and two outside per row, without repeats where there are two.

    `inside`, `real` (B, T) bool; `keys` (B, T) random uint64. A row without any frame outside (or
    inside) has `mask` False; `released` copies the released code instead, which compares such rows
    (fewer than two outside) with themselves.
    """
    noise = (keys >> np.uint64(11)).astype(np.float64) / 2.0**53
    every = np.arange(len(keys))

    def two(pool: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The frames of the pool with the least noise; the first of them twice where it is alone."""
        left = np.where(pool, noise, 2.0)
        first = left.argmin(1)
        left[every, first] = 3.0
        count = pool.sum(1)
        return np.stack([first, np.where(count > 1, left.argmin(1), first)], axis=1), count

    positives, inside_count = two(inside & real)
    negatives, outside_count = two(~inside & real)
    mask = (inside_count > 0) & (outside_count > 0)
    if released:
        alone = outside_count < 2
        negatives[alone] = positives[alone]
        mask = inside_count > 0
    return Pairs(positives, negatives, mask)

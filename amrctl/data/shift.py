"""Random temporal shift: in training, a recording is heard from another moment on, cyclically.

Source: Yokohama report (DCASE 2026 Task 6), section 3.2: a network that hears the same features at the same
places for hundreds of epochs may learn the places; shifting the features and the moments together prevents
it. The report gives neither the range nor what happens at the ends. Ours: a cyclic roll of the real
frames by whole frames, drawn anew for every query and epoch, among the offsets that cut none of the
query's moments (0 where a moment covers all), so that nothing is lost or split. Endpoint features, position
codes and padding stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amrctl.data.targets import U64, mix
from amrctl.spans import Floats

Ints = npt.NDArray[np.int64]
_COUNTER = 1 << 33  # of the draws of one query and epoch: beyond those of windows and frames
_NEAR = 1e-6  # frames, and shares of a recording: times that are as good as equal


class Shifts:
    """Where the recordings of n queries may begin.

    `windows`: each `(m, 2)`, m > 0, seconds within the frames used; `frames`: (n,), how many those are;
    `hop`: seconds a frame.
    """

    def __init__(self, windows: Sequence[Floats], frames: Ints, hop: float) -> None:
        self.frames = frames
        self._first = np.cumsum(frames) - frames  # of each query, when the frames of all stand in a row
        query = np.repeat(np.arange(len(frames)), [len(w) for w in windows])
        start, end = np.concatenate(windows).T / hop
        longest = frames[query]
        # a beginning at frame c cuts a window when start < c < end
        low = np.clip(np.floor(start + _NEAR).astype(np.int64) + 1, 1, longest)
        high = np.clip(np.ceil(end - _NEAR).astype(np.int64), low, longest)
        change = np.zeros(int(frames.sum()) + 1, dtype=np.int64)
        np.add.at(change, self._first[query] + low, 1)
        np.add.at(change, self._first[query] + high, -1)
        free = np.cumsum(change[:-1]) == 0
        self._count = np.add.reduceat(free, self._first, dtype=np.int64)  # never 0: frame 0 is always free
        self._first_free = np.cumsum(self._count) - self._count
        self._free = np.flatnonzero(free)

    def draw(self, base: int, keys: U64) -> Ints:
        """By how many frames each query's recording moves to the right, (n,), 0 or more and less than its
        length; `base` is the epoch's random number, `keys` (n,) are the queries' own."""
        number = mix(base, keys, _COUNTER) % self._count.astype(np.uint64)
        beginning = self._free[self._first_free + number.astype(np.int64)] - self._first
        offset: Ints = (self.frames - beginning) % self.frames
        return offset

    def sources(self, offset: Ints) -> Ints:
        """For the frames of all queries in a row: which of them comes to stand in this place."""
        first, frames = np.repeat(self._first, self.frames), np.repeat(self.frames, self.frames)
        place = np.arange(len(first)) - first
        source: Ints = first + (place - np.repeat(offset, self.frames)) % frames
        return source


def rolled(spans: Floats, share: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(centre, width) spans [..., 2] moved by `share` [...] of the recording, cyclically, and whether each
    stays in one piece [...] bool."""
    centre = spans[..., 0] + share
    reach = spans[..., 1] / 2
    split = (centre - reach < 1 - _NEAR) & (centre + reach > 1 + _NEAR)
    return np.stack([np.where(centre < 1, centre, centre - 1), spans[..., 1]], axis=-1), ~split

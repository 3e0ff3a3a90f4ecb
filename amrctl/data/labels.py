"""The labels of all training queries, packed once and drawn from every epoch.

An epoch's draws (windows of queries with many, frames of the saliency pairs) are made for all
queries together, so that a batch is only gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amrctl.data.batch import Targets, Teacher
from amrctl.data.shift import Shifts, rolled
from amrctl.data.streams import ranges
from amrctl.data.targets import (
    U64,
    Pairs,
    draw_pairs,
    draw_windows,
    mix,
    released_saliency_labels,
    saliency_labels,
)
from amrctl.spans import Floats, to_centre_width

Ints = npt.NDArray[np.int64]
_FRAME = 1 << 32  # counters from here on are frames, those before are windows
_TOGETHER = 1 << 20  # frames that are drawn from together


@dataclass(frozen=True)
class Drawn:
    """One epoch's labels. `order`: packed windows, each query's drawn ones first; `inside`: packed
    bool per frame; `positives` to `pair_mask`: as in `Targets`, one row per query.

    With a temporal shift also `offset` [n] int64, frames that each recording is rolled to the right by, and
    what moved with it: `spans` of all packed windows, `teacher`. The frames above are in the new places.
    """

    order: Tensor
    inside: Tensor
    positives: Tensor
    negatives: Tensor
    pair_mask: Tensor
    offset: Tensor | None = None
    spans: Tensor | None = None
    teacher: Teacher | None = None

    def to(self, device: torch.device) -> Drawn:
        """The same on `device`."""
        moved = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved, teacher=self.teacher and _placed(self.teacher, device))


class Labels:
    """Windows and frames of n queries; rows of its answers are positions among them.

    `windows`: each `(m, 2)`, m > 0, seconds; `frames`: how many each query sees; `keys`: hashes of
    the qids; `limit`: windows drawn per epoch; `official`: the released code's targets; `shift`: roll
    the recordings (not `official`); `teacher`: spans `(k, 2)` and scores `(k,)` of each query.
    """

    def __init__(
        self,
        windows: Sequence[Floats],
        frames: Ints,
        keys: U64,
        *,
        hop: float,
        limit: int,
        official: bool,
        shift: bool = False,
        teacher: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] | None = None,
    ) -> None:
        self._windows, self._frames, self._keys = windows, frames, keys
        self._hop, self._limit, self._official = hop, limit, official
        counts = np.array([len(w) for w in windows], dtype=np.int64)
        self._chosen = np.minimum(counts, limit)
        self._left = np.zeros_like(counts) if official else counts - self._chosen
        self._first, self._first_frame = _starts(counts), _starts(frames)
        self._crowded = np.flatnonzero(counts > limit)
        seconds = np.repeat(frames, counts) * hop
        self._spans = to_centre_width(np.concatenate(windows) / seconds[:, None])
        self._shifts = Shifts(windows, frames, hop) if shift else None
        self._teacher = None if teacher is None else _teacher(teacher)
        self._answers = np.array([len(scores) for _, scores in teacher or ()], dtype=np.int64)
        self._told = self._teacher  # stays on the host
        self._inside = self._saliency(np.arange(len(self._spans)))
        self._tensors = {
            "spans": torch.from_numpy(self._spans.astype(np.float32)),
            "chosen": torch.from_numpy(self._chosen),
            "left": torch.from_numpy(self._left),
            "first": torch.from_numpy(self._first),
            "first_frame": torch.from_numpy(self._first_frame),
        }

    def place(self, device: torch.device) -> None:
        """Keep what `batch` reads on `device`."""
        self._tensors = {name: value.to(device) for name, value in self._tensors.items()}
        if self._teacher is not None:
            self._teacher = _placed(self._teacher, device)

    def draw(self, base: int) -> Drawn:
        """The labels of one epoch; `base` is its random number."""
        order = np.arange(len(self._spans))
        for i in self._crowded.tolist():
            at, count = self._first[i], len(self._windows[i])
            keys = mix(base, self._keys[i], np.arange(count))
            pick = draw_windows(keys, count, self._limit)
            if self._official:
                pick = pick[np.argsort(keys[pick], kind="stable")]  # shuffled, as released
            rest = np.setdiff1d(np.arange(count), pick)
            order[at : at + count] = at + np.concatenate([pick, rest])
        inside = self._saliency(order) if self._official and len(self._crowded) else self._inside
        moved: dict[str, Any] = {}
        if self._shifts is not None:
            offset = self._shifts.draw(base, self._keys)
            inside = inside[self._shifts.sources(offset)]
            moved = self._moved(offset)
        pairs = self._pairs(base, inside)
        return Drawn(
            order=torch.from_numpy(order),
            inside=torch.from_numpy(inside),
            positives=torch.from_numpy(pairs.positives),
            negatives=torch.from_numpy(pairs.negatives),
            pair_mask=torch.from_numpy(pairs.mask),
            **moved,
        )

    def batch(self, drawn: Drawn, rows: Ints, there: Tensor, real: Tensor, negative_row: Tensor) -> Targets:
        """The targets of some queries: `rows` (B,), the same `there` on the device of the labels.

        `real` [B, T] bool: the frames of the batch; `negative_row` [B]: see `Targets`.
        """
        t = self._tensors
        spans = t["spans"] if drawn.spans is None else drawn.spans
        first, chosen, left = (t[name][there] for name in ("first", "chosen", "left"))
        most, rest = int(self._chosen[rows].max()), int(self._left[rows].max())
        index, mask = ranges(first, chosen, most)
        beyond, ignored = ranges(first + chosen * (left > 0), left, rest)
        steps = torch.arange(real.shape[1], device=there.device)
        frame = t["first_frame"][there][:, None] + steps * real
        held = np.nonzero(np.arange(most) < self._chosen[rows][:, None])
        return Targets(
            spans=spans[drawn.order[index]] * mask[..., None],
            mask=mask,
            ignored=spans[drawn.order[beyond]] * ignored[..., None],
            ignored_mask=ignored,
            saliency=(drawn.inside[frame] & real).float(),
            positives=drawn.positives[there],
            negatives=drawn.negatives[there],
            pair_mask=drawn.pair_mask[there],
            negative_row=negative_row,
            teacher=self._answers_of(drawn.teacher or self._teacher, rows, there),
            pairs=torch.from_numpy(np.stack(held, axis=1)).to(there.device, non_blocking=True),
        )

    def _answers_of(self, teacher: Teacher | None, rows: Ints, there: Tensor) -> Teacher | None:
        if teacher is None:
            return None
        most = max(int(self._answers[rows].max()), 1)
        return replace(teacher, **{name: value[there][:, :most] for name, value in vars(teacher).items()})

    def _moved(self, offset: Ints) -> dict[str, Any]:
        """The parts of `Drawn` that a shift by `offset` frames (n,) gives.

        A teacher's window that the new beginning cuts is no target in this epoch: its offset was chosen
        for the moments.
        """
        share = offset / self._frames
        counts = [len(w) for w in self._windows]
        moved: dict[str, Any] = {"offset": torch.from_numpy(offset)}
        moved["spans"] = torch.from_numpy(rolled(self._spans, np.repeat(share, counts))[0].astype(np.float32))
        if self._told is not None:
            spans, whole = rolled(self._told.spans.double().numpy(), share[:, None])
            mask = self._told.mask & torch.from_numpy(whole)
            order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # real ones first
            moved["teacher"] = Teacher(
                torch.from_numpy(spans).float().take_along_dim(order[..., None], dim=1),
                self._told.scores.take_along_dim(order, dim=1),
                mask.take_along_dim(order, dim=1),
            )
        return moved

    def _saliency(self, order: Ints) -> npt.NDArray[np.bool_]:
        """Packed bool: which frames are inside; the released code looks at the first drawn window."""
        every = zip(self._windows, self._frames.tolist(), self._first.tolist(), strict=True)
        if self._official:
            pieces = [released_saliency_labels(w[[order[at] - at]], n, self._hop) for w, n, at in every]
        else:
            pieces = [saliency_labels(w, n, self._hop) for w, n, _ in every]
        return np.concatenate(pieces)

    def _pairs(self, base: int, inside: npt.NDArray[np.bool_]) -> Pairs:
        """Frames inside and outside for every query, drawn for many of like length together."""
        size = len(self._frames)
        found = Pairs(np.zeros((size, 2), np.int64), np.zeros((size, 2), np.int64), np.zeros(size, bool))
        by_length = np.argsort(self._frames, kind="stable")
        together = max(_TOGETHER // max(int(self._frames.max()), 1), 1)
        for at in range(0, size, together):
            rows = by_length[at : at + together]
            steps = np.arange(self._frames[rows[-1]])
            real = steps < self._frames[rows][:, None]
            labels = inside[self._first_frame[rows][:, None] + steps * real] & real
            keys = mix(base, self._keys[rows][:, None], _FRAME + steps[None])
            part = draw_pairs(labels, real, keys, released=self._official)
            found.positives[rows], found.negatives[rows], found.mask[rows] = (
                part.positives,
                part.negatives,
                part.mask,
            )
        return found


def _starts(counts: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def _placed(teacher: Teacher, device: torch.device) -> Teacher:
    return Teacher(**{name: value.to(device) for name, value in vars(teacher).items()})


def _teacher(pairs: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Teacher:
    """Ragged spans and scores → padded tensors."""
    size, most = len(pairs), max([len(scores) for _, scores in pairs] + [1])
    made = Teacher(
        torch.zeros(size, most, 2), torch.zeros(size, most), torch.zeros(size, most, dtype=torch.bool)
    )
    for i, (spans, scores) in enumerate(pairs):
        made.spans[i, : len(scores)] = torch.from_numpy(spans)
        made.scores[i, : len(scores)] = torch.from_numpy(scores)
        made.mask[i, : len(scores)] = True
    return made

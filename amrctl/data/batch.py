"""What travels from the data to the model: one padded batch of (recording, sentence) pairs.

Letters: B pairs, T frames (padded), L text tokens (padded), D feature width, M moments (padded).
Masks are True where something real stands. Spans are (centre, width) in 0..1, where 1.0 is
`seconds` (frames x hop of the features that are used).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

import torch
from torch import Tensor


@dataclass
class Teacher:
    """Soft targets from a teacher's predictions (Guangzhou report, section 3.7), best first."""

    spans: Tensor  # [B, K, 2] float32
    scores: Tensor  # [B, K] float32, 0..1
    mask: Tensor  # [B, K] bool


@dataclass
class Targets:
    """What the losses compare with."""

    spans: Tensor  # [B, M, 2] float32
    mask: Tensor  # [B, M] bool
    ignored: Tensor  # [B, K, 2] float32: moments beyond `max_windows`, neither target nor background
    ignored_mask: Tensor  # [B, K] bool
    saliency: Tensor  # [B, T] float32: 1 inside a moment, 0 outside and on padding
    positives: Tensor  # [B, 2] int64: two frames drawn inside
    negatives: Tensor  # [B, 2] int64: two frames drawn outside
    pair_mask: Tensor  # [B] bool: False where there is no frame outside to compare with
    negative_row: Tensor  # [B] int64: row whose sentence does not belong to this recording; -1: none
    teacher: Teacher | None = None
    pairs: Tensor | None = None  # [P, 2] int64: where `mask` is True, row by row


@dataclass
class Heard:
    """The recordings of a batch: what every computation reads that the sentence does not change."""

    audio: Sequence[Tensor]  # each [R, T, D] float32
    mask: Tensor  # [R, T] bool
    lengths: Tensor  # [R] int64: real frames


class Spread(Sequence[Tensor]):
    """Streams of R recordings as streams of B pairs; a stream is copied only when it is read."""

    def __init__(self, streams: Sequence[Tensor], row: Tensor) -> None:
        self._streams, self._row = streams, row
        self._made: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._streams)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        at = range(len(self))[index]
        if at not in self._made:
            self._made[at] = self._streams[at].index_select(0, self._row)
        return self._made[at]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


@dataclass
class Batch:
    """One batch; feature tuples hold one entry per stream, the main stream first."""

    qids: list[str]
    vids: list[str]
    audio: Sequence[Tensor]  # each [B, T, D] float32
    audio_mask: Tensor  # [B, T] bool
    text: tuple[Tensor, ...]  # each [B, L, D] float32; L differs between streams
    text_mask: tuple[Tensor, ...]  # each [B, L] bool
    lengths: Tensor  # [B] int64: real frames
    seconds: Tensor  # [B] float64: what span 1.0 stands for
    starts: Tensor  # [B] int64: first frame of the chunk of a long recording, else 0
    targets: Targets | None = None
    recordings: Heard | None = None  # each recording once; None: as many recordings as pairs
    row: Tensor | None = None  # [B] int64: which of `recordings` a pair is about

    def __len__(self) -> int:
        return len(self.qids)

    @property
    def heard(self) -> Heard:
        """The recordings, R of them; `spread` brings what was computed on them to the B pairs."""
        return self.recordings or Heard(self.audio, self.audio_mask, self.lengths)

    def spread(self, x: Tensor) -> Tensor:
        """`x` [R, ...], one row per recording of `heard` → [B, ...]."""
        return x if self.row is None else x.index_select(0, self.row)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        moved: Batch = _to(self, device)
        return moved


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        if value.device.type == "cpu" and torch.device(device).type == "cuda":
            value = value.pin_memory()  # from where the copy need not be waited for
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(_to(item, device) for item in value)
    if isinstance(value, Batch) and value.recordings is not None and value.row is not None:
        recordings, row = _to(value.recordings, device), _to(value.row, device)
        rest = replace(value, recordings=None, row=None, audio=())
        return replace(_to(rest, device), recordings=recordings, row=row, audio=Spread(recordings.audio, row))
    if isinstance(value, (Batch, Targets, Teacher, Heard)):
        return replace(value, **{f.name: _to(getattr(value, f.name), device) for f in fields(value)})
    return value

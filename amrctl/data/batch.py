"""What travels from the data to the model: one padded batch of (recording, sentence) pairs.

Letters: B pairs, T frames (padded), L text tokens (padded), D feature width, M moments (padded).
Masks are True where something real stands. Spans are (centre, width) in 0..1, where 1.0 is
`seconds` (frames x hop of the features that are used).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

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


@dataclass
class Batch:
    """One batch; feature tuples hold one entry per stream, the main stream first."""

    qids: list[str]
    vids: list[str]
    audio: tuple[Tensor, ...]  # each [B, T, D] float32
    audio_mask: Tensor  # [B, T] bool
    text: tuple[Tensor, ...]  # each [B, L, D] float32; L differs between streams
    text_mask: tuple[Tensor, ...]  # each [B, L] bool
    lengths: Tensor  # [B] int64: real frames
    seconds: Tensor  # [B] float64: what span 1.0 stands for
    starts: Tensor  # [B] int64: first frame of the chunk of a long recording, else 0
    targets: Targets | None = None

    def __len__(self) -> int:
        return len(self.qids)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        moved: Batch = _to(self, device)
        return moved


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(_to(item, device) for item in value)
    if isinstance(value, (Batch, Targets, Teacher)):
        return replace(value, **{f.name: _to(getattr(value, f.name), device) for f in fields(value)})
    return value

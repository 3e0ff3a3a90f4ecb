"""Sine codes of time: one for frames, one for spans."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _interleaved(angle: Tensor, width: int) -> Tensor:
    """`angle` [...] → [..., width]: sin, cos, sin, cos over frequencies 10000 ** (-2i / width)."""
    i = torch.arange(width // 2, device=angle.device, dtype=torch.float32)
    phase = angle[..., None] / (10000.0 ** (2 * i / width))
    return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(-2)


def frame_positions(mask: Tensor, width: int) -> Tensor:
    """Code of each frame, [B, T] bool → [B, T, width] float32.

    The angle of frame t is `2 pi (t + 1) / (n + 1e-6)`, n the recording's real frames; padding
    repeats the last one. Source: DETR's normalised sine code.
    """
    count = mask.to(torch.float32).cumsum(1)
    return _interleaved(count / (count[:, -1:] + 1e-6) * (2 * math.pi), width)


def span_positions(spans: Tensor, width: int) -> Tensor:
    """Code of spans, [..., 2] → [..., width]: half for the centre, half for the width (DAB-DETR)."""
    angle = spans.to(torch.float32) * (2 * math.pi)
    return _interleaved(angle, width // 2).flatten(-2)

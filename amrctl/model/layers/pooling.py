"""Means over what is real."""

from __future__ import annotations

import torch
from torch import Tensor

from amrctl.model.layers.spans import to_start_end


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real rows (0 where there is none), [B, L, H] and [B, L] bool → [B, H] float32."""
    total = rows.float().masked_fill(~mask[..., None], 0.0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def window_mean(audio: Tensor, lengths: Tensor, spans: Tensor) -> Tensor:
    """Mean of the frames that begin within each window; of one frame at least.

    `audio` [B, T, H]; `lengths` [B]: frames that span 1.0 stands for, 1..T; `spans` [B, N, 2].
    A window from frame s to e (real numbers, within the recording) takes s <= t < max(e, s + 1).
    Returns [B, N, H].
    """
    n = lengths[:, None].to(torch.float32)
    start, end = (to_start_end(spans.float()).clamp(0, 1) * n[..., None]).unbind(-1)
    start = torch.minimum(start, n - 1)
    start, end = start[..., None], end[..., None]
    t = torch.arange(audio.shape[1], device=audio.device)
    # the one frame that begins within s to s + 1, and not by that sum: it can round to a frame's beginning
    inside = (((t >= start) & (t < end)) | (t == start.ceil())).to(audio.dtype)
    return torch.matmul(inside, audio) / inside.sum(-1, keepdim=True)

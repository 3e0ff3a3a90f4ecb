"""Coarser grids of time, and the way back; each recording on its own real frames."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pool(audio: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Mean over the real frames of each run of `factor` frames.

    `audio` [B, T, D] and `mask` [B, T] bool → [B, ceil(T / factor), D], zero on padding, and its mask.
    """
    more = -audio.shape[1] % factor
    audio = functional.pad(audio.masked_fill(~mask[..., None], 0.0), (0, 0, 0, more))
    real = functional.pad(mask, (0, more)).unflatten(1, (-1, factor))
    count = real.sum(2)
    total = audio.unflatten(1, (-1, factor)).sum(2)
    return total / count.clamp(min=1)[..., None].to(total.dtype), count > 0


def upsample_weights(lengths: Tensor, frames: int, factor: int) -> Tensor:
    """What each frame takes of each coarse frame, for linear interpolation between their centres.

    `lengths` [B] int64: real frames, at least 1; `frames`: the padded length T. A coarse frame's centre is
    that of the real frames it was pooled from, so that a last one of fewer frames lies where they lie;
    beyond the first and the last centre their values hold. Returns [B, T, ceil(T / factor)] float32; rows
    add up to 1, padded frames repeat the last coarse one.
    """
    count = torch.div(lengths + factor - 1, factor, rounding_mode="floor")[:, None]
    at = torch.arange(frames, device=lengths.device)[None] + 0.5

    def centre(k: Tensor) -> Tensor:
        return (k * factor + torch.minimum((k + 1) * factor, lengths[:, None])) / 2

    low = torch.div(at - factor / 2, factor, rounding_mode="floor").long()
    low = torch.minimum(low.clamp(min=0), (count - 2).clamp(min=0))
    high = torch.minimum(low + 1, count - 1)
    left, right = centre(low), centre(high)
    share = ((at - left) / (right - left).clamp(min=1)).clamp(0, 1)
    coarse = torch.arange(-(-frames // factor), device=lengths.device)
    is_low, is_high = low[..., None] == coarse, high[..., None] == coarse
    return is_low * (1 - share)[..., None] + is_high * share[..., None]

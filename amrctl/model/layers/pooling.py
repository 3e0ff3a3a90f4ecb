"""Means over what is real, and how alike rows are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from amrctl.encoders.networks.means import masked_mean
from amrctl.model.layers.spans import to_start_end

__all__ = ["masked_mean", "window_mean"]


def off_diagonal_cosine(rows: Tensor) -> Tensor:
    """Mean absolute cosine of different rows, over all N x N places, [..., N, H] → scalar.

    Of two rows only the first learns from their cosine, as in CG-DETR's released code; the mean holds
    each pair both ways.
    """
    unit = functional.normalize(rows.float(), dim=-1)
    cosine = unit @ unit.detach().transpose(-1, -2)
    return (cosine * (1 - torch.eye(rows.shape[-2], device=rows.device))).abs().mean()


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

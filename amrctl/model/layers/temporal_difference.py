"""Temporal-difference fusion: what changes from frame to frame, mixed into every frame.

Source: Yokohama, DCASE 2026 Task 6, section 2.2: a frame, its difference from the frame before and that
of the frame after from it, fused by attention and a gated linear unit (Dauphin et al. 2017). Left open
there, ours: one softmax per frame over the three, with a query from the frame itself and a learned vector
that marks which of the three a row is; keys and values need no matrices of their own, since they would
only multiply those of query and unit; a residual path with a gate per channel that starts at zero, so
that the fusion starts as the identity, to the bit; the differences are zero at a recording's two ends.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class TemporalDifference(nn.Module):
    """audio + gate * GLU(linear(sum over {x_t, x_t - x_(t-1), x_(t+1) - x_t} of weight * row))."""

    identity_when_zero = ("gate",)
    # the gate is 0 before the first step, so nothing flows back through it
    zero_gradient = ("source", "query.weight", "query.bias", "unit.weight", "unit.bias")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.source = nn.Parameter(0.02 * torch.randn(3, width))
        self.query = nn.Linear(width, width)
        self.unit = nn.Linear(width, 2 * width)
        self.gate = nn.Parameter(torch.zeros(width))

    def fuse(self, audio: Tensor, mask: Tensor) -> Tensor:
        """`audio` [B, T, H], `mask` [B, T] bool (real frames first) → [B, T, H]."""
        rows = differences(audio, mask) + self.source.to(audio.dtype)
        scores = (rows * self.query(audio)[:, :, None]).sum(-1) / math.sqrt(audio.shape[-1])
        pooled = (scores.softmax(-1)[..., None] * rows).sum(2)
        return audio + self.gate.to(audio.dtype) * functional.glu(self.unit(pooled), dim=-1)


def differences(audio: Tensor, mask: Tensor) -> Tensor:
    """Each frame, its step from the one before and to the one after, [B, T, 3, H].

    A step from, to or within padding, or beyond the ends, is 0.
    """
    step = (audio[:, 1:] - audio[:, :-1]).masked_fill(~mask[:, 1:, None], 0.0)
    before, after = functional.pad(step, (0, 0, 1, 0)), functional.pad(step, (0, 0, 0, 1))
    return torch.stack((audio, before, after), dim=2)

"""Fourier features of time, added to the projected audio like a position code.

Source: Yokohama, DCASE 2026 Task 6, section 2.1, with Fourier features after Tancik et al. (NeurIPS
2020): frame t of n is [t / n, 1 - (t + 1) / n, 1 / n] (its distance from the start, from the end, and its
share of the recording), mapped to sines and cosines, then by a perceptron to the hidden width. Left open
there, ours: dyadic bands 2^k pi with k = 0..15, a perceptron of two layers. The raw columns are not
appended then.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amrctl.model.layers.feedforward import MLP


def tef3(lengths: Tensor, frames: int) -> Tensor:
    """`[t / n, 1 - (t + 1) / n, 1 / n]` of frames 0..T-1, `lengths` [B] → [B, T, 3] float64."""
    n = lengths[:, None].to(torch.float64)
    t = torch.arange(frames, device=lengths.device, dtype=torch.float64)
    return torch.stack((t / n, 1 - (t + 1) / n, (1 / n).expand(-1, frames)), dim=-1)


def fourier(values: Tensor, bands: int) -> Tensor:
    """sin and cos of 2^k pi x, `values` [..., C] float64 → [..., 2 C bands] float32.

    The highest band turns ten thousands of times between 0 and 1: whole turns are taken off in float64.
    """
    turns = values[..., None] * 2.0 ** torch.arange(bands, device=values.device, dtype=torch.float64)
    angle = ((turns - 2 * torch.round(turns / 2)) * math.pi).float()
    return torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(-2)


class FourierTef(nn.Module):
    """MLP(fourier(tef)), to be added to the projected audio."""

    def __init__(self, width: int, bands: int) -> None:
        super().__init__()
        self.bands = bands
        self.mlp = MLP(6 * bands, width, width, 2)

    def forward(self, lengths: Tensor, frames: int) -> Tensor:
        """The code of frames 0..T-1 of recordings of so many real frames, `lengths` [B] → [B, T, width]."""
        code: Tensor = self.mlp(fourier(tef3(lengths, frames), self.bands))
        return code

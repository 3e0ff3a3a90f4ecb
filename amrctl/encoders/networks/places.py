"""The convolution by which WavLM tells places, 128 taps over 49 frames, as products on spectra over time.

Most taps meet nothing but padding, and a product of spectra costs a tenth of the sum over taps. Everything
is float32; the numbers are those of the convolution within rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LONGEST = 128  # frames; the spectra of longer ones would take more memory than they save time


class Places:
    """A grouped `nn.Conv1d` with stride 1 that pads its input by half its taps, on a CPU."""

    def __init__(self, convolution: Any) -> None:
        # A weight that is computed from others is computed once.
        self.weight = convolution.weight.detach().float().contiguous()
        self.bias: Tensor = convolution.bias.detach().float()
        self.groups, self.padding = int(convolution.groups), int(convolution.padding[0])
        self.spectra: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """`(n, T, H)` float32 to the same: as many frames as there were, from the first."""
        n, length, width = x.shape
        if length > LONGEST:
            heard = x.transpose(1, 2), self.weight, self.bias
            summed: Tensor = functional.conv1d(*heard, padding=self.padding, groups=self.groups)
            return summed[:, :, :length].transpose(1, 2).contiguous()
        if length not in self.spectra:
            self.spectra[length] = self._spectra(length)
        there, filters, back = self.spectra[length]
        parts = (n, len(filters) // self.groups, 2, self.groups, width // self.groups)
        waves = (there @ x).view(parts).permute(1, 3, 0, 2, 4).reshape(len(filters), n, -1)
        waves = torch.bmm(waves, filters).view(parts[1], self.groups, n, 2, -1)
        frames = back @ waves.permute(2, 0, 3, 1, 4).reshape(n, -1, width)
        return frames + self.bias

    def _spectra(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """For F frequencies: T frames to 2F (cosines and sines), the filters, and back to T frames.

        The filters are `(F x groups, 2D, 2D)`, complex products written as real ones.
        """
        taps = self.weight.shape[2]
        lags = torch.arange(taps, dtype=torch.float64) - self.padding
        near = lags.abs() < length
        lags = lags[near]
        # So long that what comes around an edge falls into what is cut off.
        period = length + int(lags.abs().max())
        turns = torch.arange(period // 2 + 1, dtype=torch.float64) * (2 * torch.pi / period)
        angles = turns[:, None] * torch.arange(length)
        there = torch.stack([angles.cos(), -angles.sin()], dim=1)
        twice = torch.full((len(turns), 1, 1), 2.0, dtype=torch.float64)
        twice[0] = 1
        if period % 2 == 0:
            twice[-1] = 1
        back = there * twice / period

        phases = turns[:, None] * lags
        weight = self.weight[:, :, near].double().unflatten(0, (self.groups, -1))
        cos = torch.einsum("goik,fk->fgio", weight, phases.cos())
        sin = torch.einsum("goik,fk->fgio", weight, phases.sin())
        upper, lower = torch.cat([cos, sin], dim=3), torch.cat([-sin, cos], dim=3)
        filters = torch.cat([upper, lower], dim=2).flatten(0, 1)
        return there.flatten(0, 1).float(), filters.float(), back.flatten(0, 1).t().contiguous().float()

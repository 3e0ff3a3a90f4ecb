"""A small convolutional network on log-mel spectra, trained from scratch: no weights to download.

Ours, for `retrieval-small`, in the manner of the convolutional encoders that audio retrieval began with:
blocks of a 3 x 3 convolution, group norm, GELU and halving of both axes; then the mean over bands, and
over time the mean plus the maximum (steady sounds, single events). A segment's mean level is taken off,
since sentences rarely speak of it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from amrctl.encoders.dual.masking import Masking, mask
from amrctl.encoders.dual.towers import AudioConfig, AudioTower, Memory
from amrctl.encoders.mel import decibels, hann, mel_bank, mel_power
from amrctl.registry import component

RATE, FFT, STEP, BANDS = 16_000, 512, 320, 64
LOW, HIGH = 50.0, 8000.0  # Hz
SCALE = 15.0  # dB: about the spread of everyday sounds around their mean
GROUPS = 8


class Config(AudioConfig):
    """Size of the network."""

    kind: Literal["cnn"] = "cnn"
    channels: list[int] = Field(default=[32, 64, 128, 256], min_length=1, description="of each block")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the last block's output")
    masking: Masking | None = Masking()


@component("retrieval-audio", "cnn", Config)
class Cnn(AudioTower):
    """16 kHz, 64 bands, 50 spectra a second."""

    sample_rate = RATE

    def __init__(self, config: Config, memory: Memory | None = None) -> None:
        super().__init__()
        self.config: Config = config
        self.front = _Levels()
        sizes = [1, *config.channels]
        self.blocks = nn.Sequential(
            *(_Block(a, b) for a, b in pairwise(sizes)),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.width = sizes[-1]
        self.least = 2 ** len(config.channels) * STEP / RATE

    def forward(self, spectra: Tensor) -> Tensor:
        """[N, T, 64] to [N, W]."""
        if self.training and self.config.masking is not None:
            spectra = mask(spectra, self.config.masking)
        maps = self.blocks(spectra.unsqueeze(1)).mean(dim=3)
        rows: Tensor = self.dropout(maps.mean(dim=2) + maps.amax(dim=2))
        return rows


class _Levels(nn.Module):
    """[N, S] samples at 16 kHz to [N, S // 320 + 1, 64]: decibels around the segment's mean, / 15."""

    bank: Tensor
    taper: Tensor

    def __init__(self) -> None:
        super().__init__()
        bank = mel_bank(rate=RATE, fft=FFT, bands=BANDS, low=LOW, high=HIGH, scale="htk")
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("taper", hann(FFT), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        level = decibels(mel_power(samples, self.bank, self.taper, STEP))
        return (level - level.mean(dim=(1, 2), keepdim=True)) / SCALE


class _Block(nn.Sequential):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS if after % GROUPS == 0 else 1, after),
            nn.GELU(),
            nn.AvgPool2d(2),
        )

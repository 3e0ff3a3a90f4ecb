"""Mel spectrograms in float32 by torch, many windows at a time: what the pretrained encoders share.

Every front end here is the same sum: Hann window, centred short-time Fourier transform with reflected
ends, power, mel bank; they differ in sizes, banks and logarithms. torch is imported on the first call
only, since the whole folder is imported to look a name up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Scale = Literal["slaney", "htk", "kaldi"]
FLOOR = 1e-10  # -100 dB


def mel_bank(
    *, rate: int, fft: int, bands: int, low: float, high: float, scale: Scale, area: bool = False
) -> Tensor:
    """Triangular mel filters, `(fft // 2 + 1, bands)` float32, from `low` to `high` Hz.

    `area` divides each triangle by half its width in Hz (Slaney's norm); without it peaks are 1. On the
    scale `kaldi` the sides are straight in mel, on the others in Hz. Computed in float64.
    """
    import numpy as np
    import torch
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        num_frequency_bins=fft // 2 + 1,
        num_mel_filters=bands,
        min_frequency=low,
        max_frequency=high,
        sampling_rate=rate,
        norm="slaney" if area else None,
        mel_scale=scale,
        triangularize_in_mel_space=scale == "kaldi",
    )
    return torch.from_numpy(np.ascontiguousarray(bank, dtype=np.float32))


def hann(size: int, *, periodic: bool = True) -> Tensor:
    """A Hann window, `(size,)` float32, computed in float64."""
    import torch

    return torch.hann_window(size, periodic=periodic, dtype=torch.float64).float()


def mel_power(samples: Tensor, bank: Tensor, window: Tensor, hop: int) -> Tensor:
    """Power in mel bands: `(n, samples)` to `(n, samples // hop + 1, bands)`, all float32.

    `bank`: `(fft // 2 + 1, bands)`, which tells the size of the transform; a shorter `window` lies in its
    middle. Frame i is centred on sample `i * hop`; half a transform is reflected at both ends, so that
    `samples` must be longer than that.
    """
    import torch

    spectrum = torch.stft(
        samples,
        2 * (bank.shape[0] - 1),
        hop_length=hop,
        win_length=window.shape[0],
        window=window,
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    return power.transpose(1, 2) @ bank


def decibels(power: Tensor, floor: float = FLOOR) -> Tensor:
    """`10 log10(max(power, floor))`, dB relative to 1, of the shape of `power`."""
    return 10 * power.clamp(min=floor).log10()

"""`logmel`: one second of sound in 229 numbers; no weights, nothing to download.

Mono 16 kHz, window 1 s, hop 1 s. Inside the second: 97 power spectra (512 samples, periodic Hann
of unit energy, hop 160, no padding), 64 triangular mel bands of peak 1 (HTK scale, 50 to 8000 Hz),
decibels with a floor at -100. From each band the tilt of pink noise is taken off (its level in that
band, less the mean over bands): it stands for the background, and keeps a constant offset from
making all rows alike once they are scaled to length 1. `level` is the second's mean over bands and
time; `shape` is what remains without it, and does not change with gain. Columns (each is centred,
divided by a fixed number, so that values are of order 1, and clipped to -5..5; nothing is learnt or
normalised per file):

- 0-127 patch: shape, means of 4 quarters of the second (in order of time) x 32 band pairs; / 15 dB
- 128-159 fine: lower less upper band of each pair, mean over time, half; / 2.5 dB
- 160-191 change: mean absolute step over 30 ms per band pair; less 3 dB, / 2 dB
- 192-215 rhythm: share of envelope motion in 4 groups of 16 bands x 6 rates (1-2, 3-4, 5-7, 8-12,
  13-19, 20-35 cycles per 0.97 s); less 0.4, / 0.2
- 216-223 summit: loudest 10 spectra over the mean, in 8 groups of 8 bands; less 5 dB, / 5 dB
- 224 level (+50 dB, / 20 dB); 225 standard deviation of the level over time (less 3 dB, / 3 dB);
  226 onset: largest mean rise over 30 ms (less 5 dB, / 5 dB); 227 peakedness: level of the mean
  power less the mean level, no tilt (less 5 dB, / 5 dB); 228 quietest 10 spectra (+55 dB, / 20 dB)

The shares of the parts were chosen on 1-second pieces of noisy everyday sounds (half to learn from,
half to judge): the patch alone named 47% of them right, all parts 66%.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.fft
import scipy.sparse

from amrctl.encoders.base import AUDIO, Rows, Weightless
from amrctl.registry import component

RATE, FFT, STEP, BANDS = 16_000, 512, 160, 64
FRAMES = (RATE - FFT) // STEP + 1  # 97
LOW, HIGH = 50.0, 8000.0  # Hz
FLOOR = 1e-10  # -100 dB
RATES = (1, 3, 5, 8, 13, 20, 36)  # edges of the rhythm groups, cycles per 97 spectra
LIMIT = 5.0  # a click in digital silence would otherwise be 15 in one column, and all of the row
DIM = 4 * 32 + 32 + 32 + 4 * 6 + 8 + 5


def mel_bank() -> Rows:
    """Triangles of peak 1, evenly spaced on the HTK mel scale, shape `(BANDS, FFT // 2 + 1)`."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (LOW, HIGH))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(FFT, 1 / RATE)
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


def pink_tilt(bank: Rows) -> Rows:
    """Level of noise with power density 1/f in each band, less the mean, dB, shape `(BANDS,)`."""
    hertz = np.fft.rfftfreq(FFT, 1 / RATE)
    hertz[0] = hertz[1]  # no band reaches down to 0 Hz
    level = 10 * np.log10(bank.astype(np.float64) @ (1 / hertz))
    return np.asarray(level - level.mean(), dtype=np.float32)


@component(AUDIO, "logmel", Weightless)
class LogMel:
    """The audio encoder `logmel`; see the top of this file."""

    name = "logmel"
    sample_rate = RATE
    window = 1.0
    hop = 1.0
    dim = DIM

    def __init__(self, config: Weightless | None = None) -> None:
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)
        self._window = (hann / np.sqrt((hann**2).sum())).astype(np.float32)
        bank = mel_bank()
        # Sparse, not BLAS: the order of the sums, and so the last bit, is the same on any thread count.
        self._bank = scipy.sparse.csr_array(bank)
        self._tilt = pink_tilt(bank)
        taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAMES) / (FRAMES - 1))
        self._taper = taper.astype(np.float32)[:, None]

    def encode(self, windows: Rows) -> Rows:
        """`(n, 16000)` samples to `(n, 229)` float32; a row depends on its own window only."""
        if windows.ndim != 2 or windows.shape[1] != RATE:
            raise ValueError(f"logmel takes windows of {RATE} samples, not shape {windows.shape}")
        # One window at a time: equal shapes give equal bits however many windows come together.
        rows = [self._one(np.ascontiguousarray(window, dtype=np.float32)) for window in windows]
        return np.stack(rows) if rows else np.zeros((0, DIM), np.float32)

    def decibels(self, samples: Rows) -> Rows:
        """Mel levels of one window, dB, shape `(FRAMES, BANDS)`."""
        frames = np.lib.stride_tricks.sliding_window_view(samples, FFT)[::STEP] * self._window
        spectrum = scipy.fft.rfft(frames, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        mel = np.ascontiguousarray((self._bank @ power.T).T)
        return np.asarray(10 * np.log10(mel + np.float32(FLOOR)), dtype=np.float32)

    def _one(self, samples: Rows) -> Rows:
        raw = self.decibels(samples)
        tilted = raw - self._tilt
        level = tilted.mean()
        shape = tilted - level
        pairs = shape.reshape(FRAMES, 32, 2)
        pair = pairs.mean(axis=2)

        patch = np.stack([quarter.mean(axis=0) for quarter in np.array_split(pair, 4)]) / 15
        fine = (pairs[:, :, 0] - pairs[:, :, 1]).mean(axis=0) / 2 / 2.5
        change = (np.abs(pair[3:] - pair[:-3]).mean(axis=0) - 3) / 2

        groups = np.sort(shape.reshape(FRAMES, 8, 8).mean(axis=2), axis=0)
        summit = (groups[-10:].mean(axis=0) - groups.mean(axis=0) - 5) / 5

        course = np.sort(tilted.mean(axis=1))
        rise = np.maximum(tilted[3:] - tilted[:-3], 0).mean(axis=1).max()
        peaked = 10 * np.log10((10 ** (raw / 10)).mean()) - raw.mean()
        scalars = [
            (level + 50) / 20,
            (course.std() - 3) / 3,
            (rise - 5) / 5,
            (peaked - 5) / 5,
            (course[:10].mean() + 55) / 20,
        ]
        parts = [patch.ravel(), fine, change, self._rhythm(shape), summit, scalars]
        row = np.concatenate(parts, dtype=np.float32, casting="same_kind")
        return np.clip(row, -LIMIT, LIMIT)

    def _rhythm(self, shape: Rows) -> Rows:
        """Share of each rate in the motion of each band group's envelope, `(24,)`, groups first."""
        envelope = shape.reshape(FRAMES, 4, 16).mean(axis=2)
        envelope = (envelope - envelope.mean(axis=0)) * self._taper
        spectrum = scipy.fft.rfft(envelope, axis=0)
        power = spectrum.real**2 + spectrum.imag**2
        total = np.sqrt(power[RATES[0] : RATES[-1]].sum(axis=0)) + 3  # 3 dB: a still sound has no rhythm
        share = [np.sqrt(power[a:b].sum(axis=0)) / total for a, b in pairwise(RATES)]
        return np.asarray((np.stack(share, axis=1).ravel() - 0.4) / 0.2, dtype=np.float32)

    def attributes(self) -> Mapping[str, Any]:
        return {"version": 1, "normalisation": "fixed centres and scales", "parameters": 0}

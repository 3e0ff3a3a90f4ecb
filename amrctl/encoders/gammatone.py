"""`gammatone`: one second of sound through a model of the inner ear, in 229 numbers; no weights.

Mono 16 kHz, window 1 s, hop 1 s. 64 gammatone filters of order 4 (impulse response t^3 exp(-2 pi b t)
cos(2 pi f t), b = 1.019 ERB(f), peak gain 1), their centres evenly spaced in ERB-rate from 50 to 7600 Hz
(Glasberg and Moore 1990: ERB(f) = 24.7 + 0.108 f, nearly). The filters work on the spectrum of the second
(152 ms of silence after it, for the ringing), each within 5 b of its centre, where 57 dB are gone. A wide
filter answers quicker than a narrow one, unlike the equal windows of a spectrogram. Energies of 62 frames of
16 ms, decibels with a floor at -100; from each band the tilt of pink noise is taken off (as `logmel`
does). `level` is the second's mean over bands and time, `shape` what remains without it, which does not
change with gain. Columns (each is centred, divided by a fixed number and clipped to -5..5; nothing is
learnt or normalised per file):

- 0-63 mean: shape, mean over time; / 12 dB
- 64-127 spread: standard deviation over time; less 4 dB, / 3 dB
- 128-159 change: mean absolute step over 32 ms per band pair; less 4 dB, / 3 dB
- 160-191 peak: loudest 6 frames less the mean, per band pair; less 8 dB, / 6 dB
- 192-223 trend: second half less first half of the second, per band pair; / 6 dB
- 224 level (+50 dB, / 20 dB); 225 standard deviation of the level over time (less 3 dB, / 3 dB);
  226 onset: largest mean rise over 32 ms (less 5 dB, / 5 dB); 227 centre and 228 width of the mean
  energy over bands (centre less 32, / 16 bands; standard deviation less 12, / 6 bands; no tilt)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

from amrctl.encoders.base import AUDIO, Rows, Weightless
from amrctl.registry import component

RATE, BANDS = 16_000, 64
LOW, HIGH = 50.0, 7600.0  # Hz
FRAME = 256  # samples
FRAMES = RATE // FRAME  # 62, and half of one that is left out
SIZE = 72 * FRAME  # samples of the transform: the second and its ringing
REACH = 5.0  # of a filter's b on each side of its centre
FLOOR = 1e-10  # -100 dB
LIMIT = 5.0
LAG = 2  # frames of a step
DIM = 2 * BANDS + 3 * BANDS // 2 + 5
Doubles = npt.NDArray[np.float64]


def erb(hertz: float) -> float:
    """Equivalent rectangular bandwidth at a frequency, Hz."""
    return 24.7 * (1 + 4.37 * hertz / 1000)


def centres() -> Doubles:
    """Centre frequencies, evenly spaced in ERB-rate, Hz, shape `(BANDS,)`."""
    low, high = (np.log1p(4.37 * hertz / 1000) for hertz in (LOW, HIGH))
    return np.asarray(np.expm1(np.linspace(low, high, BANDS)) / 4.37 * 1000)


def response(hertz: npt.NDArray[Any], centre: float) -> npt.NDArray[np.complex128]:
    """What the filter of a centre does to frequencies, of the shape of `hertz`; 1 at the centre.

    The transform of the complex gammatone; that of the real one differs by its mirror image at -centre.
    """
    b = 1.019 * erb(centre)
    return np.asarray((1 + 1j * (hertz - centre) / b) ** -4)


def pink_tilt() -> Doubles:
    """Level of noise with power density 1/f behind each filter, less the mean, dB, shape `(BANDS,)`."""
    hertz = np.fft.rfftfreq(SIZE, 1 / RATE)[1:]
    level = [10 * np.log10((np.abs(response(hertz, centre)) ** 2 / hertz).sum()) for centre in centres()]
    return np.asarray(level - np.mean(level))


class _Filter:
    """One filter: which bins of the spectrum it reads, and what it does to them."""

    def __init__(self, centre: float) -> None:
        step = RATE / SIZE
        reach = REACH * 1.019 * erb(centre)
        bins = np.arange(round((centre - reach) / step), round((centre + reach) / step) + 1)
        # a sampled filter: what lies beyond the ends of the spectrum is its other side
        self.bins = bins % SIZE
        # as many points as hold the band, and at least 8 a frame: the signal moved down to 0 Hz
        self.points = 8 * SIZE // FRAME
        while self.points < len(bins):
            self.points *= 2
        gain = response(bins * step, centre) * (np.sqrt(2.0) * self.points / SIZE)
        self.gain = gain.astype(np.complex64)

    def energies(self, spectrum: npt.NDArray[np.complex64]) -> Rows:
        """Mean power of each frame, `(FRAMES,)`; that of a sine of amplitude 1 at the centre is 1/2."""
        signal = scipy.fft.ifft(spectrum[self.bins] * self.gain, self.points)
        power = signal.real**2 + signal.imag**2
        return np.asarray(power.reshape(SIZE // FRAME, -1).mean(axis=1)[:FRAMES])


@component(AUDIO, "gammatone", Weightless)
class Gammatone:
    """The audio encoder `gammatone`; see the top of this file."""

    name = "gammatone"
    sample_rate = RATE
    window = 1.0
    hop = 1.0
    dim = DIM

    def __init__(self, config: Weightless | None = None) -> None:
        self._filters = [_Filter(float(centre)) for centre in centres()]
        self._tilt = pink_tilt().astype(np.float32)

    def encode(self, windows: Rows) -> Rows:
        """`(n, 16000)` samples to `(n, 229)` float32; a row depends on its own window only."""
        if windows.ndim != 2 or windows.shape[1] != RATE:
            raise ValueError(f"gammatone takes windows of {RATE} samples, not shape {windows.shape}")
        rows = [self._one(np.ascontiguousarray(window, dtype=np.float32)) for window in windows]
        return np.stack(rows) if rows else np.zeros((0, DIM), np.float32)

    def decibels(self, samples: Rows) -> Rows:
        """Levels of one window behind the filters, dB, shape `(FRAMES, BANDS)`."""
        spectrum = scipy.fft.fft(samples, SIZE)
        power = np.stack([one.energies(spectrum) for one in self._filters], axis=1)
        return np.asarray(10 * np.log10(power + np.float32(FLOOR)), dtype=np.float32)

    def _one(self, samples: Rows) -> Rows:
        raw = self.decibels(samples)
        tilted = raw - self._tilt
        level = tilted.mean()
        shape = tilted - level
        pair = shape.reshape(FRAMES, BANDS // 2, 2).mean(axis=2)
        half = FRAMES // 2

        mean = shape.mean(axis=0) / 12
        spread = (shape.std(axis=0) - 4) / 3
        change = (np.abs(pair[LAG:] - pair[:-LAG]).mean(axis=0) - 4) / 3
        peak = (np.sort(pair, axis=0)[-6:].mean(axis=0) - pair.mean(axis=0) - 8) / 6
        trend = (pair[half:].mean(axis=0) - pair[:half].mean(axis=0)) / 6

        course = tilted.mean(axis=1)
        rise = np.maximum(tilted[LAG:] - tilted[:-LAG], 0).mean(axis=1).max()
        energy = (10 ** (raw / 10)).mean(axis=0)
        share, band = energy / energy.sum(), np.arange(BANDS)
        centre = (share * band).sum()
        width = np.sqrt((share * (band - centre) ** 2).sum())
        scalars = [
            (level + 50) / 20,
            (course.std() - 3) / 3,
            (rise - 5) / 5,
            (centre - BANDS / 2) / (BANDS / 4),
            (width - 12) / 6,
        ]
        row = np.concatenate([mean, spread, change, peak, trend, scalars]).astype(np.float32)
        return np.clip(row, -LIMIT, LIMIT)

    def attributes(self) -> Mapping[str, Any]:
        return {"version": 1, "normalisation": "fixed centres and scales", "parameters": 0}

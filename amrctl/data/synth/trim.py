"""An event clip as it is mixed: silence trimmed off, repeated or cut to length.

Source: trimming by 1-s blocks is that of the generator of Clotho-Moment; the rest is ours. Samples are
float32, mono, shape `(n,)`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amrctl.data.synth.settings import SynthSettings

Samples = npt.NDArray[np.float32]

SILENCE_BLOCK = 0.05  # seconds
SILENCE_DROP = 30.0  # dB below the loudest block
BLOCKS_DROP = 5.0  # dB below the mean power (Clotho-Moment)


def trim_silence(samples: Samples, rate: int) -> Samples:
    """From the first to the last 50-ms block within 30 dB of the loudest block; () for digital silence."""
    size = max(1, round(SILENCE_BLOCK * rate))
    power = _block_power(samples, size)
    if len(power) == 0 or power.max() <= 0:
        return samples[:0]
    loud = np.flatnonzero(power >= power.max() * 10 ** (-SILENCE_DROP / 10))
    return samples[loud[0] * size : (loud[-1] + 1) * size]


def trim_blocks(samples: Samples, rate: int) -> Samples:
    """Clotho-Moment's rule: from the first to the last 1-s block above the mean power - 5 dB.

    An incomplete last block is dropped, so that the length is whole seconds, unless there is no
    other. Returns () for digital silence.
    """
    whole = samples[: len(samples) // rate * rate] if len(samples) >= rate else samples
    power = _block_power(whole, rate)
    if len(power) == 0 or power.max() <= 0:
        return samples[:0]
    loud = np.flatnonzero(power > power.mean() * 10 ** (-BLOCKS_DROP / 10))
    return whole[loud[0] * rate : (loud[-1] + 1) * rate]


def _block_power(samples: Samples, size: int) -> npt.NDArray[np.float64]:
    starts = np.arange(0, len(samples), size)
    if len(starts) == 0:
        return np.zeros(0)
    sums = np.add.reduceat(samples.astype(np.float64) ** 2, starts)
    return np.asarray(sums / np.minimum(size, len(samples) - starts))


def fit(samples: Samples, settings: SynthSettings) -> Samples:
    """Trim a clip, repeat it end to end up to `min_event`, cut it to `max_event`."""
    rate = settings.rate
    if settings.trim == "silence":
        samples = trim_silence(samples, rate)
    elif settings.trim == "blocks":
        samples = trim_blocks(samples, rate)
    elif not samples.any():
        return samples[:0]
    least = round(settings.min_event * rate)
    if 0 < len(samples) < least:
        samples = np.tile(samples, -(-least // len(samples)))[:least]
    return np.ascontiguousarray(samples[: round(settings.max_event * rate)])

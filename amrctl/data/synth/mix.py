"""From a plan to samples: backgrounds, levels, the sum.

Source: the levels "peak" are those of the generator of Clotho-Moment; the rest is ours. Samples are
float32, mono, shape `(n,)`; full scale is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amrctl.data.synth.plan import Planner, RecordingPlan, generator
from amrctl.data.synth.pool import Shelf
from amrctl.data.synth.settings import SynthSettings
from amrctl.errors import AudioError

Samples = npt.NDArray[np.float32]

PEAK = 0.99  # of full scale: a louder mix is scaled down to this
_FULL = 32767 / 32768  # the largest 16-bit sample: what "peak-normalised to 1" can be in a file
_CROSSFADE = 0.5  # seconds, where a background that is too short is repeated
_ALONE = 0.1  # root mean square (-20 dB) of an event that has no background to be compared with
_TILT = {"white": 0.0, "blue": 0.5, "pink": -0.5, "brown": -1.0}  # exponent of the amplitude over frequency
_NOISE_EDGE = 40.0  # Hz: below it, coloured noise is flat, so that it is not one slow wave


def read_piece(path: Path, rate: int, start: float, seconds: float) -> Samples:
    """Mono samples of a part of a file at `rate`, without reading what lies before; may be shorter."""
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(path) as sound:
            source = int(sound.samplerate)
            sound.seek(min(round(start * source), sound.frames))
            block = sound.read(round(seconds * source), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: not a readable sound file ({error}); replace it") from None
    if not np.isfinite(block).all():
        raise AudioError(f"{path}: holds samples that are not finite numbers; replace the file")
    mono = block.mean(axis=1, dtype=np.float32)
    if source != rate and len(mono):
        mono = soxr.resample(mono, source, rate, quality="HQ")
    return np.asarray(mono, dtype=np.float32)


def repeat_to(samples: Samples, size: int, overlap: int) -> Samples:
    """Repeat `samples` until there are `size`, with crossfades of equal power over `overlap` samples."""
    overlap = min(overlap, len(samples) // 2)
    out = samples
    ramp = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(1, overlap)).astype(np.float32)
    while len(out) < size:
        seam = out[len(out) - overlap :] * ramp[::-1] + samples[:overlap] * ramp
        out = np.concatenate([out[: len(out) - overlap], seam, samples[overlap:]])
    return out[:size]


def coloured_noise(rng: np.random.Generator, size: int, rate: int, colour: str) -> Samples:
    """Noise with root mean square 1 whose power falls (or rises) with frequency; "none" is silence.

    Power over frequency: white f^0, pink f^-1, brown f^-2, blue f^1, flat below 40 Hz.
    """
    if colour == "none":
        return np.zeros(size, np.float32)
    import scipy.fft

    padded = scipy.fft.next_fast_len(size, real=True)
    spectrum = scipy.fft.rfft(rng.standard_normal(padded, dtype=np.float32))
    if _TILT[colour]:
        frequency = np.maximum(scipy.fft.rfftfreq(padded, 1 / rate), _NOISE_EDGE).astype(np.float32)
        spectrum *= (frequency / 1000) ** np.float32(_TILT[colour])
    noise = scipy.fft.irfft(spectrum, padded)[:size]
    return np.asarray(noise / np.sqrt(np.mean(noise**2, dtype=np.float64)), dtype=np.float32)


def _background(plan: RecordingPlan, settings: SynthSettings) -> tuple[Samples, float]:
    """The background with its gain, and its root mean square before the gain."""
    size = round(plan.duration * settings.rate)
    if plan.background is None:
        ground = coloured_noise(
            generator(settings.seed, plan.split, plan.index, 1), size, settings.rate, plan.colour
        )
    else:
        ground = read_piece(plan.background, settings.rate, plan.background_start, plan.duration)
        if len(ground) == 0:
            raise AudioError(
                f"{plan.background}: no samples at {plan.background_start:.1f} s; replace the file"
            )
        if len(ground) < size:
            ground = repeat_to(ground, size, round(_CROSSFADE * settings.rate))
        ground = ground[:size]
    before = float(np.sqrt(np.mean(ground**2, dtype=np.float64)))
    gain = 1.0
    if plan.background_level is not None:
        gain = 10 ** (plan.background_level / 20)
        if settings.levels == "snr" and before > 0:
            gain /= before
    return ground * np.float32(gain), before


def _faded(samples: Samples, count: int) -> Samples:
    """Raised-cosine fades over `count` samples at both ends (at most a quarter of the sound each)."""
    count = min(count, len(samples) // 4)
    if count < 1:
        return samples
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(count) + 0.5) / count)).astype(np.float32)
    out = samples.copy()
    out[:count] *= ramp
    out[len(out) - count :] *= ramp[::-1]
    return out


@dataclass(frozen=True)
class Rendered:
    """A mixed recording and what it is the sum of.

    `mix` = `background` + every stem (first sample, samples), all with the final scale.
    """

    mix: Samples
    background: Samples
    stems: tuple[tuple[int, Samples], ...]
    scale: float


def render(plan: RecordingPlan, planner: Planner, shelf: Shelf) -> Rendered:
    """Mix one recording. Raises `AudioError` for sounds that cannot be used."""
    s = planner.settings
    ground, before = _background(plan, s)
    mix = ground.copy()
    stems: list[tuple[int, Samples]] = []
    for placed in plan.events:
        first = round(placed.start * s.rate)
        last = min(round(placed.end * s.rate), len(mix))
        # rounding a moment to the grid may cut up to half a step off the sound
        sound = _faded(shelf.samples(placed.clip)[: last - first], round(s.fade * s.rate))
        under = ground[first : first + len(sound)].astype(np.float64)
        sound = sound * np.float32(_gain(sound, under, placed.level, before, s))
        mix[first : first + len(sound)] += sound
        stems.append((first, sound))
    peak = float(np.abs(mix).max())
    scale = 1.0
    if s.levels == "peak" and peak > 0:
        scale = _FULL / peak
    elif peak > PEAK:
        scale = PEAK / peak
    factor = np.float32(scale)
    return Rendered(
        mix * factor, ground * factor, tuple((first, sound * factor) for first, sound in stems), scale
    )


def _gain(
    sound: Samples, under: npt.NDArray[np.float64], level: float, before: float, settings: SynthSettings
) -> float:
    energy = float(np.sum(sound.astype(np.float64) ** 2))
    if energy <= 0:
        return 0.0
    if settings.levels == "peak" and before > 0:
        return 10 ** (level / 20) * before / float(np.abs(sound).max())
    noise = float(np.sum(under**2))
    if noise <= 0:  # nothing to compare with
        return float(_ALONE / np.sqrt(energy / len(sound)))
    return float(np.sqrt(10 ** (level / 10) * noise / energy))

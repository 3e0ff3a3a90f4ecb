"""`gammatone` against filters that work in time, scipy's design of them, and sounds whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from amrctl.encoders.base import AudioEncoder, Rows, load_audio_encoder
from amrctl.encoders.gammatone import Doubles, Gammatone, centres, erb, pink_tilt, response
from tests.encoders.test_logmel import TIME, noise

ENCODER = Gammatone()


def slow_levels(samples: Rows) -> Doubles:
    """Convolution with t^3 exp(-2 pi b t) exp(2 pi i f t), its power averaged over 16 ms, dB."""
    t = np.arange(16000) / 16000
    levels = []
    for centre in centres():
        b = 2 * np.pi * 1.019 * 24.7 * (4.37 * centre / 1000 + 1)
        impulse = b**4 / 6 / 16000 * t**3 * np.exp(-b * t) * np.exp(2j * np.pi * centre * t)
        heard = scipy.signal.fftconvolve(samples.astype(np.float64), impulse)[: 62 * 256]
        power = 2 * (np.abs(heard) ** 2).reshape(62, 256).mean(axis=1)
        levels.append(10 * np.log10(power + 1e-10))
    return np.stack(levels, axis=1)


def slow_row(raw: Doubles) -> list[float]:
    """The module's text, word by word, from levels (62, 64)."""
    hertz = np.arange(1, 9217) * 16000 / 18432
    pink = np.array(
        [
            10 * np.log10(sum((1 + ((hertz - c) / (1.019 * (24.7 + 0.107939 * c))) ** 2) ** -4 / hertz))
            for c in centres()
        ]
    )
    tilted = raw - (pink - pink.mean())
    level = tilted.mean()
    shape = tilted - level
    pair = [(shape[:, 2 * p] + shape[:, 2 * p + 1]) / 2 for p in range(32)]
    row = [shape[:, b].mean() / 12 for b in range(64)]
    row += [(np.sqrt(np.mean((shape[:, b] - shape[:, b].mean()) ** 2)) - 4) / 3 for b in range(64)]
    row += [(np.mean([abs(x[t + 2] - x[t]) for t in range(60)]) - 4) / 3 for x in pair]
    row += [(np.mean(sorted(x)[56:]) - np.mean(x) - 8) / 6 for x in pair]
    row += [(np.mean(x[31:]) - np.mean(x[:31])) / 6 for x in pair]
    course = tilted.mean(axis=1)
    onset = max(np.maximum(tilted[t + 2] - tilted[t], 0).mean() for t in range(60))
    row += [(level + 50) / 20, (course.std() - 3) / 3, (onset - 5) / 5]
    energy = np.mean(10 ** (raw / 10), axis=0)
    centre = sum(b * e for b, e in enumerate(energy)) / sum(energy)
    width = np.sqrt(sum((b - centre) ** 2 * e for b, e in enumerate(energy)) / sum(energy))
    row += [(centre - 32) / 16, (width - 12) / 6]
    return [min(max(float(value), -5.0), 5.0) for value in row]


SOUNDS: dict[str, Rows] = {
    "white": noise(1)[0],
    "chirp": (0.3 * np.sin(2 * np.pi * (200 + 1500 * TIME) * TIME)).astype(np.float32) + noise(2)[0],
    "bursts": noise(3, 1.0)[0] * (np.sin(2 * np.pi * 4 * TIME) > 0.3) + noise(4)[0] / 10,
}


@pytest.mark.parametrize("kind", SOUNDS)
def test_levels_are_those_of_filters_in_time(kind: str) -> None:
    samples = SOUNDS[kind].astype(np.float32)
    apart = ENCODER.decibels(samples) - slow_levels(samples)
    # the encoder reads the power of a narrow filter at 8 points a frame, here it is read at all 256
    assert np.abs(np.median(apart, axis=0)).max() < 0.15
    assert np.quantile(np.abs(apart), 0.95) < 0.8
    assert np.quantile(np.abs(apart[:, 32:]), 0.95) < 0.2


@pytest.mark.parametrize("kind", SOUNDS)
def test_rows_are_the_definition(kind: str) -> None:
    samples = SOUNDS[kind].astype(np.float32)
    row = ENCODER.encode(samples[None])
    assert row.shape == (1, 229)
    assert row.dtype == np.float32
    np.testing.assert_allclose(row[0], slow_row(ENCODER.decibels(samples).astype(np.float64)), atol=1e-3)
    apart = np.abs(row[0] - slow_row(slow_levels(samples)))
    assert np.median(apart) < 0.01
    assert apart.max() < 0.15


@pytest.mark.parametrize("band", [9, 20, 30, 40, 50])
def test_the_filters_are_scipys(band: int) -> None:
    """Frequency response of scipy's IIR design (Slaney 1993), within 2 b of the centre."""
    centre = float(centres()[band])
    b = 1.019 * erb(centre)
    hertz = np.linspace(max(centre - 2 * b, 20), centre + 2 * b, 41)
    _, wanted = scipy.signal.freqz(*scipy.signal.gammatone(centre, "iir", fs=16000), worN=hertz, fs=16000)
    ours = 20 * np.log10(np.abs(response(hertz, centre)))
    near = 20 * np.log10(np.abs(wanted)) - 20 * np.log10(np.abs(wanted[np.abs(hertz - centre).argmin()]))
    assert np.abs(ours - near).max() < 0.5


def test_centres_are_even_in_erb_rate() -> None:
    found = centres()
    assert (found[0], found[-1]) == (pytest.approx(50), pytest.approx(7600))
    rate = 21.4 * np.log10(1 + 0.00437 * found)
    np.testing.assert_allclose(np.diff(rate), np.diff(rate)[0], rtol=1e-9)
    assert erb(1000.0) == pytest.approx(132.64, abs=0.01)


@pytest.mark.parametrize("band", [3, 20, 40, 60])
def test_a_sine_has_its_power_in_its_own_band(band: int) -> None:
    window = (0.2 * np.sin(2 * np.pi * centres()[band] * TIME)).astype(np.float32)
    levels = ENCODER.decibels(window)[10:].mean(axis=0)
    assert int(levels.argmax()) == band
    assert levels[band] == pytest.approx(10 * np.log10(0.2**2 / 2), abs=0.05)
    assert levels[band] - levels[band - 3] > 5


def test_protocol_and_shapes() -> None:
    encoder = load_audio_encoder("gammatone")
    assert isinstance(encoder, AudioEncoder)
    told = (encoder.name, encoder.sample_rate, encoder.window, encoder.hop, encoder.dim)
    assert told == ("gammatone", 16000, 1.0, 1.0, 229)
    with pytest.raises(ValueError, match="16000 samples"):
        encoder.encode(np.zeros((2, 8000), np.float32))
    assert encoder.encode(np.zeros((0, 16000), np.float32)).shape == (0, 229)


def test_a_row_is_its_own_windows_alone() -> None:
    windows = noise(5, seconds=4)
    together = ENCODER.encode(windows)
    for i in range(4):
        np.testing.assert_array_equal(ENCODER.encode(windows[i : i + 1])[0], together[i])
    np.testing.assert_array_equal(ENCODER.encode(windows[::-1])[::-1], together)


def test_gain_moves_only_the_level() -> None:
    windows = noise(6, seconds=3)
    moved = ENCODER.encode(10 * windows) - ENCODER.encode(windows)
    np.testing.assert_allclose(moved[:, 224], 1, atol=1e-3)  # 20 dB in units of 20 dB
    np.testing.assert_allclose(np.delete(moved, 224, axis=1), 0, atol=2e-3)


def test_pink_background_is_near_zero_and_values_are_of_order_one() -> None:
    background = ENCODER.encode(noise(7, slope=1.0, seconds=10))
    assert np.abs(background[:, :64].mean(axis=0)).max() < 0.15
    sounds = np.concatenate([ENCODER.encode(noise(8, slope, 4)) for slope in (0.0, 1.0, 2.0)])
    assert np.sqrt((sounds**2).mean()) < 1.5
    assert pink_tilt().mean() == pytest.approx(0, abs=1e-9)


def test_silence_and_extremes_are_finite() -> None:
    square = np.sign(np.sin(2 * np.pi * 997 * TIME))
    impulse = np.zeros(16000)
    impulse[8000] = 1
    rows = ENCODER.encode(np.stack([np.zeros(16000), np.ones(16000), square, impulse]).astype(np.float32))
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() <= 5
    assert rows[0, 224] == pytest.approx(-2.5, abs=1e-4)  # the floor: (-100 + 50) / 20


def test_time_lies_in_the_trend() -> None:
    half = noise(11).copy()
    half[:, 8000:] /= 100
    forward, backward = ENCODER.encode(np.concatenate([half, half[:, ::-1]]))[:, 192:224]
    assert (forward < -2).all()
    assert (backward > 2).all()

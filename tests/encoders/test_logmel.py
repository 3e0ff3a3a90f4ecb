"""`logmel` against its definition written a second time in float64, and sounds whose answer is known."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from amrctl.encoders.base import AudioEncoder, Rows, load_audio_encoder
from amrctl.encoders.logmel import LogMel
from amrctl.errors import FeatureError

ENCODER = LogMel()
TIME = np.arange(16000) / 16000


def noise(seed: int, slope: float = 0.0, seconds: int = 1) -> Rows:
    """Noise of power density 1/f^slope, shape `(seconds, 16000)`, root mean square 0.05."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.standard_normal(16000 * seconds))
    spectrum[0] = 0
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-slope / 2)
    samples = np.fft.irfft(spectrum)
    rows: Rows = (0.05 * samples / samples.std()).reshape(seconds, 16000).astype(np.float32)
    return rows


def slow_row(samples: Rows) -> list[float]:
    """The module's text, word by word, in float64 with a plain Fourier sum and loops."""
    k, n = np.arange(257), np.arange(512)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / 512)
    hann = hann / np.sqrt(np.sum(hann**2))
    fourier = np.exp(-2j * np.pi * np.outer(k, n) / 512)
    mels = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 8000 / 700), 66)
    edges = 700 * (10 ** (mels / 2595) - 1)
    hertz = k * 16000 / 512
    bank = np.stack([np.interp(hertz, edges[b : b + 3], [0, 1, 0], left=0, right=0) for b in range(64)])
    pink = 10 * np.log10(bank @ (1 / np.maximum(hertz, hertz[1])))
    raw = np.zeros((97, 64))
    for t in range(97):
        piece = samples[160 * t : 160 * t + 512].astype(np.float64) * hann
        raw[t] = 10 * np.log10(bank @ np.abs(fourier @ piece) ** 2 + 1e-10)
    tilted = raw - (pink - pink.mean())
    level = tilted.mean()
    shape = tilted - level

    row: list[float] = []
    for first, last in ((0, 25), (25, 49), (49, 73), (73, 97)):
        row += [shape[first:last, 2 * p : 2 * p + 2].mean() / 15 for p in range(32)]
    row += [(shape[:, 2 * p].mean() - shape[:, 2 * p + 1].mean()) / 2 / 2.5 for p in range(32)]
    pair = [(shape[:, 2 * p] + shape[:, 2 * p + 1]) / 2 for p in range(32)]
    row += [(np.mean([abs(x[t + 3] - x[t]) for t in range(94)]) - 3) / 2 for x in pair]
    for g in range(4):
        course = shape[:, 16 * g : 16 * g + 16].mean(axis=1)
        course = (course - course.mean()) * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(97) / 96))
        power = [
            abs(sum(course * np.exp(-2j * np.pi * cycle * np.arange(97) / 97))) ** 2 for cycle in range(49)
        ]
        total = np.sqrt(sum(power[1:36])) + 3
        for first, last in ((1, 3), (3, 5), (5, 8), (8, 13), (13, 20), (20, 36)):
            row.append((np.sqrt(sum(power[first:last])) / total - 0.4) / 0.2)
    for g in range(8):
        loudness = sorted(shape[t, 8 * g : 8 * g + 8].mean() for t in range(97))
        row.append((np.mean(loudness[-10:]) - np.mean(loudness) - 5) / 5)
    course = tilted.mean(axis=1)
    onset = max(np.maximum(tilted[t + 3] - tilted[t], 0).mean() for t in range(94))
    row += [(level + 50) / 20, (course.std() - 3) / 3, (onset - 5) / 5]
    row += [(10 * np.log10(np.mean(10 ** (raw / 10))) - raw.mean() - 5) / 5]
    row += [(np.mean(sorted(course)[:10]) + 55) / 20]
    return [min(max(float(value), -5.0), 5.0) for value in row]


@pytest.mark.parametrize("kind", ["white", "chirp", "bursts"])
def test_rows_are_the_definition(kind: str) -> None:
    samples: Rows = {
        "white": noise(1)[0],
        "chirp": (0.3 * np.sin(2 * np.pi * (200 + 1500 * TIME) * TIME)).astype(np.float32) + noise(2)[0] / 20,
        "bursts": noise(3)[0] * (np.sin(2 * np.pi * 4 * TIME) > 0.3) + noise(4)[0] / 50,
    }[kind]
    samples = samples.astype(np.float32)
    row = ENCODER.encode(samples[None])
    assert row.shape == (1, 229)
    assert row.dtype == np.float32
    np.testing.assert_allclose(row[0], slow_row(samples), atol=2e-3)


def test_protocol_and_names() -> None:
    encoder = load_audio_encoder("logmel")
    assert isinstance(encoder, AudioEncoder)
    assert (encoder.name, encoder.sample_rate, encoder.window, encoder.hop, encoder.dim) == (
        "logmel",
        16000,
        1.0,
        1.0,
        229,
    )
    with pytest.raises(FeatureError, match="no audio encoder is called 'lgomel'; did you mean 'logmel'"):
        load_audio_encoder("lgomel")
    with pytest.raises(ValueError, match="16000 samples"):
        encoder.encode(np.zeros((2, 8000), np.float32))
    assert encoder.encode(np.zeros((0, 16000), np.float32)).shape == (0, 229)


def test_a_row_is_its_own_windows_alone() -> None:
    windows = noise(5, seconds=6)
    together = ENCODER.encode(windows)
    for i in range(6):
        np.testing.assert_array_equal(ENCODER.encode(windows[i : i + 1])[0], together[i])
    np.testing.assert_array_equal(ENCODER.encode(windows[::-1])[::-1], together)


def test_gain_moves_only_the_two_levels() -> None:
    windows = noise(6, seconds=3)
    quiet, loud = ENCODER.encode(windows), ENCODER.encode(10 * windows)
    moved = loud - quiet
    np.testing.assert_allclose(moved[:, [224, 228]], 1, atol=1e-3)  # 20 dB in units of 20 dB
    others = np.delete(moved, [224, 228], axis=1)
    np.testing.assert_allclose(others, 0, atol=1e-3)


def test_pink_background_is_near_zero_and_values_are_of_order_one() -> None:
    background = ENCODER.encode(noise(7, slope=1.0, seconds=20))
    assert np.abs(background[:, :128].mean(axis=0)).max() < 0.1
    sounds = np.concatenate([ENCODER.encode(noise(8, slope, 4)) for slope in (0.0, 1.0, 2.0)])
    assert np.sqrt((sounds**2).mean()) < 1.5
    assert np.abs(sounds).max() < 5


def test_silence_and_extremes_are_finite() -> None:
    square = np.sign(np.sin(2 * np.pi * 997 * TIME))
    impulse = np.zeros(16000)
    impulse[8000] = 1
    rows = ENCODER.encode(np.stack([np.zeros(16000), np.ones(16000), square, impulse]).astype(np.float32))
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() == 5
    assert rows[0, 224] == pytest.approx(-2.5, abs=1e-4)  # the floor: (-100 + 50) / 20


@pytest.mark.parametrize("hertz", [200.0, 1000.0, 3000.0, 6000.0])
def test_a_tone_stands_in_its_own_band(hertz: float) -> None:
    window = 0.2 * np.sin(2 * np.pi * hertz * TIME)[None] + noise(9) / 100
    patch = ENCODER.encode(window.astype(np.float32))[0, :128].reshape(4, 32)
    mel = 2595 * np.log10(1 + np.array([50.0, hertz, 8000.0]) / 700)
    band = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 65 - 1  # centres at 0..63
    assert all(abs(int(quarter.argmax()) - band / 2) <= 1 for quarter in patch)


@pytest.mark.parametrize(("rate", "column"), [(4, 1), (10, 3), (16, 4), (25, 5)])
def test_rhythm_finds_the_rate(rate: int, column: int) -> None:
    envelope = 1 + 0.9 * np.sin(2 * np.pi * rate * TIME)
    row = ENCODER.encode((noise(10)[0] * envelope)[None].astype(np.float32))[0]
    assert row[192:216].reshape(4, 6).mean(axis=0).argmax() == column


def test_time_lies_in_the_patch() -> None:
    half = noise(11).copy()
    half[:, 8000:] /= 100
    forward, backward = ENCODER.encode(np.concatenate([half, half[:, ::-1]]))[:, :128].reshape(2, 4, 32)
    assert (forward[:2].mean(axis=1) > forward[2:].mean(axis=1) + 1).all()
    np.testing.assert_allclose(forward.mean(axis=1), backward.mean(axis=1)[::-1], atol=0.3)


def test_no_torch_for_extraction() -> None:
    program = (
        "import sys; import amrctl.data.extract; from amrctl.encoders.base import *; "
        "load_audio_encoder('logmel'); load_text_encoder('words'); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"

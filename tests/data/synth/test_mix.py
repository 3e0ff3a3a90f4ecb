"""Levels and times, measured in the samples."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from amrctl.data.audio import find_audio
from amrctl.data.manifest import read_manifest
from amrctl.data.splits import divide, shares
from amrctl.data.synth import synthesise
from amrctl.data.synth.mix import coloured_noise, render, repeat_to
from amrctl.data.synth.trim import fit, trim_blocks, trim_silence
from tests.data.synth.helpers import RATE, clip_folder, planned, settings, tone


def test_measured_snr_is_the_drawn_one_and_the_mix_is_the_sum() -> None:
    planner, shelf, plans = planned(settings(recordings=6, snr=(-5.0, 25.0), overlap=True, repeats=(1, 2)))
    seen = 0
    for plan in plans:
        made = render(plan, planner, shelf)
        total = made.background.astype(np.float64)
        for placed, (first, stem) in zip(plan.events, made.stems, strict=True):
            under = made.background[first : first + len(stem)].astype(np.float64)
            ratio = 10 * np.log10((stem.astype(np.float64) ** 2).sum() / (under**2).sum())
            assert ratio == pytest.approx(placed.level, abs=0.01)
            assert -5 <= placed.level <= 25
            total[first : first + len(stem)] += stem
            seen += 1
        assert np.allclose(made.mix, total, atol=1e-5)
        assert np.abs(made.mix).max() <= 0.99 + 1e-6
        before = made.background.astype(np.float64) / made.scale
        assert 20 * np.log10(np.sqrt((before**2).mean())) == pytest.approx(plan.background_level, abs=0.01)
    assert seen > 10


def test_moments_are_where_the_energy_is(tmp_path: Path) -> None:
    """Without background, samples are there inside the labelled moments and nowhere else."""
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    folder = clip_folder(
        tmp_path / "clips",
        {f"{n}.wav": (noise[: size * RATE // 10], RATE) for n, size in (("a", 13), ("b", 20), ("c", 7))},
        [("file", "caption", "event"), *((f"{n}.wav", f"sound {n}", n) for n in "abc")],
    )
    made = settings(
        events=str(folder), recordings=8, noise=("none",), repeats=(1, 2), events_per_recording=(1, 3)
    )
    result = synthesise(made, tmp_path / "out")
    manifest = read_manifest(result.manifests[""])
    files = find_audio(result.audio, manifest.recordings)
    assert len(files) == 8
    for vid, duration in manifest.recordings.items():
        samples, rate = soundfile.read(files[vid])
        assert (rate, len(samples)) == (RATE, 20 * RATE)
        assert duration == 20
        loud = np.abs(samples).reshape(-1, RATE // 10).max(axis=1) > 1e-3
        labelled = np.zeros_like(loud)
        for query in manifest:
            for start, end in query.windows or () if query.vid == vid else ():
                labelled[round(start * 10) : round(end * 10)] = True
        assert np.array_equal(loud, labelled)


def test_snapped_moments_are_whole_seconds_and_hold_the_sound() -> None:
    planner, shelf, plans = planned(settings(recordings=10, snap=True, noise=("none",), max_event=5.4))
    for plan in plans:
        made = render(plan, planner, shelf)
        for placed, (first, stem) in zip(plan.events, made.stems, strict=True):
            assert placed.start.is_integer()
            assert placed.end.is_integer()
            assert first == placed.start * RATE
            assert len(stem) <= (placed.end - placed.start) * RATE
            assert len(stem) >= (placed.end - placed.start - 0.5) * RATE


def test_fades_and_several_rates_and_channels(tmp_path: Path) -> None:
    stereo = np.stack([tone(2, 440, 44_100), 0 * tone(2, 440, 44_100)], axis=1)
    folder = clip_folder(
        tmp_path / "clips",
        {"a.wav": (stereo, 44_100), "b.flac": (tone(2, 440, 8_000), 8_000)},
        [("file", "caption"), ("a.wav", "a tone"), ("b.flac", "another tone")],
    )
    made = settings(events=str(folder), noise=("none",), fade=0.25, events_per_recording=(2, 2))
    planner, shelf, plans = planned(made)
    for first, stem in render(plans[0], planner, shelf).stems:
        assert len(stem) == pytest.approx(2 * RATE, abs=RATE // 20)
        assert abs(stem[0]) < 1e-3
        middle = stem[RATE // 2 : -RATE // 2]
        assert np.abs(stem[: RATE // 8]).max() < 0.55 * np.abs(middle).max()
        frequency = np.fft.rfftfreq(len(middle), 1 / RATE)[np.abs(np.fft.rfft(middle)).argmax()]
        assert frequency == pytest.approx(440, abs=1)
        assert first >= 0


def test_trimming_by_hand() -> None:
    x = np.zeros(10 * 100, np.float32)  # 100 Hz: blocks of 5 samples
    x[200:300], x[300:400] = 1.0, 0.1
    x[600:605] = 0.03  # 30.5 dB below the loudest block: not heard as part of the sound
    assert np.array_equal(trim_silence(x, 100), x[200:400])
    assert len(trim_silence(np.zeros(50, np.float32), 100)) == 0

    power = np.array([0.01, 4.0, 0.1, 1.6, 0.3, 0.01])  # mean 1.003; 5 dB less: 0.317
    y = np.repeat(np.sqrt(power), 100).astype(np.float32)
    y = np.concatenate([y, np.full(60, 3, np.float32)])  # an incomplete block is dropped
    mean_of_whole = power.mean()
    assert 0.3 < mean_of_whole * 10**-0.5 < 0.32
    assert np.array_equal(trim_blocks(y, 100), y[100:400])
    assert len(trim_blocks(np.ones(60, np.float32), 100)) == 60


def test_short_clips_repeat_and_long_ones_are_cut() -> None:
    x = np.arange(1, 51, dtype=np.float32)
    base = settings(trim="none", min_event=1.2, max_event=2.0)
    short = fit(x, dataclasses.replace(base, rate=100))
    assert np.array_equal(short, np.concatenate([x, x, x[:20]]))
    assert np.array_equal(fit(np.tile(x, 9), dataclasses.replace(base, rate=100)), np.tile(x, 4))


def test_repeated_background_keeps_its_power_and_has_no_click() -> None:
    x = np.random.default_rng(0).normal(size=4_000).astype(np.float32)
    out = repeat_to(x, 30_000, 400)
    assert len(out) == 30_000
    assert np.array_equal(out[:3_600], x[:3_600])
    power = (out.astype(np.float64) ** 2)[:28_000].reshape(-1, 400).mean(axis=1)
    assert 0.6 < power.min() < power.max() < 1.6
    slow = repeat_to(np.sin(np.arange(1_000) / 90).astype(np.float32), 5_000, 100)
    assert np.abs(np.diff(slow)).max() < 0.05


@pytest.mark.parametrize(("colour", "slope"), [("white", 0), ("pink", -1), ("brown", -2), ("blue", 1)])
def test_colour_of_noise(colour: str, slope: float) -> None:
    x = coloured_noise(np.random.default_rng(1), 20 * RATE, RATE, colour)
    assert np.sqrt((x.astype(np.float64) ** 2).mean()) == pytest.approx(1, abs=1e-4)
    frequency, power = scipy.signal.welch(x.astype(np.float64), RATE, nperseg=1024)
    use = (frequency > 200) & (frequency < 6_000)
    fitted = np.polyfit(np.log10(frequency[use]), np.log10(power[use]), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.1)


@given(st.integers(0, 20_000), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_shares_sum_and_stay_within_one(total: int, weights: list[int]) -> None:
    fractions = {str(i): w / sum(weights) for i, w in enumerate(weights)}
    got = shares(total, fractions)
    assert sum(got.values()) == total
    assert all(abs(got[name] - total * share) < 1 for name, share in fractions.items())


def test_division_is_even_within_events_and_over_single_clips() -> None:
    parts = {"train": 0.8, "val": 0.1, "test": 0.1}
    kinds = [(f"kind{k}", f"{k}-{n}") for k in range(10) for n in range(10)]
    got = divide(kinds, parts, 3)
    for k in range(10):
        assert Counter(got[f"{k}-{n}"] for n in range(10)) == {"train": 8, "val": 1, "test": 1}
    single = divide([(str(n), str(n)) for n in range(1_000)], parts, 3)
    assert Counter(single.values()) == {"train": 800, "val": 100, "test": 100}
    assert single != divide([(str(n), str(n)) for n in range(1_000)], parts, 4)

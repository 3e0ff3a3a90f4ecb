"""The embedded sounds: different to the ear of a simple classifier, audible throughout, reproducible."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from amrctl.data.captions import read_captions
from amrctl.data.soundbank import KINDS, LONGEST, SHORTEST, render, write_bank
from amrctl.data.soundbank_captions import CAPTIONS
from amrctl.errors import AmrctlError, OutputError

RATE = 16_000
Array = npt.NDArray[np.float64]


def log_mel(samples: npt.ArrayLike) -> Array:
    """(frames, 40) of 32 ms every 10 ms; written here so that no code of the package judges itself."""
    x = np.asarray(samples, dtype=np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(x, 512)[::160] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    hertz = np.linspace(0, RATE / 2, 257)
    edges = 700 * (10 ** (np.linspace(0.1, 2.85, 42) * 1000 / 2595) - 1)
    left, mid, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank = np.maximum(0, np.minimum((hertz - left) / (mid - left), (right - hertz) / (right - mid)))
    return np.asarray(np.log(1e-6 + power @ bank.T))


@pytest.fixture(scope="module")
def clips() -> dict[str, list[npt.NDArray[np.float32]]]:
    return {kind: [render(kind, [0, number]) for number in range(10)] for kind in KINDS}


def test_kinds_and_sentences() -> None:
    assert len(KINDS) >= 14
    assert set(CAPTIONS) == set(KINDS)
    every = [text for kind in KINDS for text in CAPTIONS[kind]]
    assert min(len(CAPTIONS[kind]) for kind in KINDS) >= 4
    assert len(set(every)) == len(every)


def test_level_length_and_sound_in_every_second(clips: dict[str, list[npt.NDArray[np.float32]]]) -> None:
    for kind, sounds in clips.items():
        for sound in sounds:
            assert sound.dtype == np.float32
            assert SHORTEST <= len(sound) / RATE <= LONGEST
            assert np.abs(sound).max() == pytest.approx(0.7)
            seconds = sound[: len(sound) // RATE * RATE].reshape(-1, RATE).astype(np.float64)
            rms = np.sqrt((seconds**2).mean(axis=1))
            assert rms.min() > rms.max() * 10 ** (-20 / 20), kind


@pytest.mark.parametrize("snr", [None, 10.0])
@pytest.mark.parametrize("whole", [True, False])
def test_nearest_centroid_tells_unheard_clips(
    clips: dict[str, list[npt.NDArray[np.float32]]], snr: float | None, whole: bool
) -> None:
    """Mean log-mel of a clip, or of single seconds; silent or over pink noise."""
    rng = np.random.default_rng(5)

    def features(sound: npt.NDArray[np.float32]) -> Array:
        x = sound.astype(np.float64)
        if snr is not None:
            spectrum = np.fft.rfft(rng.standard_normal(len(x)))
            noise = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1), len(x))
            x = x + noise * np.sqrt((x**2).mean() / (noise**2).mean() / 10 ** (snr / 10))
        mel = log_mel(x)
        if whole:
            return np.asarray(mel.mean(axis=0, keepdims=True))
        return np.stack([mel[i : i + 100].mean(axis=0) for i in range(0, len(mel) - 99, 100)])

    found = {kind: [features(sound) for sound in sounds] for kind, sounds in clips.items()}
    centroids = np.stack([np.concatenate(found[kind][:5]).mean(axis=0) for kind in KINDS])
    right = total = 0
    for truth, kind in enumerate(KINDS):
        held_out = np.concatenate(found[kind][5:])
        nearest = ((held_out[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
        right, total = right + int((nearest == truth).sum()), total + len(nearest)
    assert total >= 5 * len(KINDS)
    assert right / total > 0.95


def test_seed_decides_and_clips_vary() -> None:
    for kind in KINDS:
        assert np.array_equal(render(kind, [3, 1]), render(kind, [3, 1]))
        first, second = render(kind, [3, 1], seconds=2.0), render(kind, [3, 2], seconds=2.0)
        assert not np.allclose(first, second)
    assert len(render("bell", [0], rate=32_000, seconds=3.0)) == 96_000


def test_write_bank(tmp_path: Path) -> None:
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    chosen = ("bell", "dog", "rain")
    path = write_bank(tmp_path / "a", clips_per_kind=4, seed=2, kinds=chosen, splits=shares)
    clips = read_captions(path)
    assert [len([c for c in clips if c.event == k]) for k in chosen] == [4, 4, 4]
    for kind in chosen:
        splits = sorted(str(c.split) for c in clips if c.event == kind)
        assert splits == ["test", "train", "train", "val"]
        assert {c.captions for c in clips if c.event == kind} == {CAPTIONS[kind]}
    assert {p.name for p in (tmp_path / "a").glob("*.flac")} == {c.names[0] for c in clips}
    sound, rate = soundfile.read(tmp_path / "a" / "dog-03.flac")
    assert rate == RATE
    assert np.allclose(sound, render("dog", [2, 3]), atol=1 / 32_000)

    write_bank(tmp_path / "b", clips_per_kind=4, seed=2, kinds=chosen, splits=shares)
    digests = [
        [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((tmp_path / name).iterdir())]
        for name in "ab"
    ]
    assert digests[0] == digests[1]
    with pytest.raises(OutputError, match="exists"):
        write_bank(tmp_path / "a", clips_per_kind=1, kinds=chosen)


def test_faults() -> None:
    with pytest.raises(AmrctlError, match=r"no 'sirene'; did you mean 'siren'\?"):
        render("sirene", [0])
    with pytest.raises(AmrctlError, match="at least 16000 Hz, not 8000"):
        render("siren", [0], rate=8_000)
    with pytest.raises(AmrctlError, match=r"0\.1 to 12 s, not 99"):
        render("siren", [0], seconds=99)
    with pytest.raises(AmrctlError, match="at least one clip"):
        write_bank("never", clips_per_kind=0)

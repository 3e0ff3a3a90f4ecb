"""Reading sound: known tones, the resampler's own one-piece answer, and every fault by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from amrctl.data.audio import Samples, find_audio, load_mono, probe, stream_mono
from amrctl.errors import AudioError


def tone(rate: int, seconds: float, hertz: float = 440.0) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(22050, 1), (44100, 2), (48000, 1)])
def test_any_format_rate_and_channel_count_gives_the_same_tone(
    tmp_path: Path, suffix: str, rate: int, channels: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([tone(rate, 2.0)] * channels, axis=1), rate)
    assert probe(path)[:2] == (rate, channels)
    heard, true = load_mono(path, 16000), tone(16000, 2.0)
    assert heard.dtype == np.float32
    assert abs(len(heard) - 32000) <= 1
    middle = slice(4000, 28000)
    assert np.abs(heard[middle] - true[middle]).max() < 0.02  # lossy formats included


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    left = tone(16000, 0.5)
    soundfile.write(path, np.stack([left, -left, 3 * left / 4, left / 4], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(load_mono(path, 16000), left / 4, atol=1e-7)


@pytest.mark.parametrize("rate", [16000, 22050, 44100])
def test_blocks_change_no_bit_and_equal_the_resampler_in_one_piece(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    noise = (0.1 * np.random.default_rng(0).standard_normal(rate * 7 + 123)).astype(np.float32)
    soundfile.write(path, noise, rate, subtype="FLOAT")
    whole = load_mono(path, 16000)
    expected = noise if rate == 16000 else soxr.resample(noise, rate, 16000, quality="HQ")
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    for seconds in (0.013, 1.0, 2.5, 100.0):
        blocks = list(stream_mono(path, 16000, seconds))
        assert {len(block) for block in blocks[:-1]} <= {round(16000 * seconds)}
        assert 1 <= len(blocks[-1]) <= max(round(16000 * seconds), 1)
        np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_reading_in_pieces_leaves_no_gap(tmp_path: Path, suffix: str) -> None:
    """Long enough for several reads; the library's own reading in one piece is the truth."""
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(48000, 6.0), 48000)
    whole, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_array_equal(load_mono(path, 48000), whole)
    assert np.abs(whole - tone(48000, 6.0)).max() < 0.1


def test_one_sample_is_a_sound(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(1), 48000)
    assert len(load_mono(tmp_path / "a.wav", 16000)) == 1


def test_faults_name_the_file_and_the_place(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    with pytest.raises(AudioError, match=r"x\.wav: no such sound file"):
        load_mono(path, 16000)
    soundfile.write(path, np.zeros(0), 16000)
    with pytest.raises(AudioError, match=r"x\.wav: holds no samples"):
        load_mono(path, 16000)
    for bad in (np.nan, np.inf):
        samples = np.stack([tone(8000, 20), tone(8000, 20)], axis=1)
        samples[100_000, 1] = bad
        soundfile.write(path, samples, 8000, subtype="FLOAT")
        with pytest.raises(AudioError, match=r"x\.wav: sample 100000 \(12\.500 s\) is not a finite number"):
            load_mono(path, 16000)
    path.write_bytes(b"these are words, not samples" * 50)
    for read in (probe, lambda p: load_mono(p, 16000)):
        with pytest.raises(AudioError, match=r"x\.wav: not a readable sound file"):
            read(path)
    path.with_suffix(".mp3").write_bytes(b"nor is this" * 50)
    with pytest.raises(AudioError, match=r"x\.mp3: not a readable sound file \(no sound format"):
        probe(path.with_suffix(".mp3"))
    path.write_bytes(b"")
    with pytest.raises(AudioError, match=r"x\.wav: not a readable sound file"):
        load_mono(path, 16000)


def test_a_file_that_was_cut_off_is_no_short_file(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 10), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"x\.flac: (not a readable|ends after)"):
        load_mono(path, 16000)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_find_audio_by_stem_anywhere_below(tmp_path: Path) -> None:
    root = tmp_path / "audio"
    files = {
        "-dash_id": touch(root / "-dash_id.FLAC"),
        "deep": touch(root / "a" / "b" / "deep.mp3"),
        "with.dot": touch(root / "with.dot.ogg"),
    }
    touch(root / "deep.txt")
    touch(tmp_path / "outside.wav")
    assert find_audio(root, ["deep", "-dash_id", "with.dot", "deep"]) == files
    assert list(find_audio(root, ["with.dot", "deep"])) == ["with.dot", "deep"]


def test_find_audio_faults(tmp_path: Path) -> None:
    root = tmp_path / "audio"
    touch(root / "two.wav")
    touch(root / "sub" / "two.flac")
    touch(root / "fine.wav")
    (root / "leak.wav").symlink_to(touch(tmp_path / "secret.wav"))
    with pytest.raises(AudioError, match=r"recording two has 2 files: .*two\.wav and .*two\.flac"):
        find_audio(root, ["fine", "two"])
    with pytest.raises(AudioError, match=r"leak\.wav is a link out of"):
        find_audio(root, ["leak"])
    with pytest.raises(AudioError, match=r"no audio for recording \.\./secret under .*1 more"):
        find_audio(root, ["../secret", "gone", "fine"])
    with pytest.raises(AudioError, match=r"nowhere is not a folder"):
        find_audio(tmp_path / "nowhere", ["fine"])
    bad: dict[str, str] = {}
    assert list(find_audio(root, ["gone", "fine", "two"], bad=bad)) == ["fine"]
    assert list(bad) == ["gone", "two"]

"""Which seconds are heard for a window, and that every way of reading them gives the same samples."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from amrctl.data.audio import Samples, load_mono, load_span
from amrctl.errors import AudioError
from amrctl.rerank import prompt, sounds
from amrctl.rerank.base import Candidate
from amrctl.rerank.prompt import stretch
from amrctl.rerank.sounds import RATE, Sounds


def window(start: float, end: float, vid: str = "v") -> Candidate:
    return Candidate("q", "x", vid, 0.0, start, end)


@pytest.mark.parametrize(
    ("start", "end", "duration", "heard"),
    [
        (10, 14, 60, (8, 16)),
        (1, 5, 60, (0, 7)),
        (50, 58, 60, (46, 60)),
        (0, 60, 60, (0, 60)),
        (59, 62, 60, (58.5, 60)),  # ends after the recording: the window is what is there
        (100, 300, 600, (50, 350)),  # 400 s would be too long
        (0, 250, 600, (0, 275)),
        (100, 450, 600, (100, 400)),  # its first 300 s
    ],
)
def test_stretch(start: float, end: float, duration: float, heard: tuple[float, float]) -> None:
    assert stretch(start, end, duration) == heard


@given(start=st.floats(0, 599), length=st.floats(0.01, 600), duration=st.floats(1, 600))
def test_stretch_holds_the_window_and_no_more_than_is_allowed(
    start: float, length: float, duration: float
) -> None:
    if start >= duration:
        with pytest.raises(ValueError, match="the recording ends at"):
            stretch(start, start + length, duration)
        return
    first, last = stretch(start, start + length, duration)
    end = min(start + length, duration)
    assert 0 <= first <= start < last <= duration
    assert last - first <= 300 + 1e-9
    if end - start <= 150:
        assert first == max(0.0, start - (end - start) / 2)
        assert last == min(duration, end + (end - start) / 2)


def test_the_question_tells_times_within_the_stretch() -> None:
    text = prompt.question("a {bell}\n rings ", 6, 1.504, 4.5)
    assert "lasts 6 seconds. One interval of it begins at 1.5 seconds and ends at 4.5 seconds.\n" in text
    assert "\nDescription: a {bell} rings\n" in text


@pytest.mark.parametrize(
    ("suffix", "rate", "channels", "tolerance"),
    [("wav", 44100, 2, 2e-4), ("flac", 16000, 1, 1e-9), ("ogg", 22050, 1, 2e-4), ("mp3", 44100, 1, 1e-6)],
)
def test_a_stretch_has_the_samples_of_the_whole(
    tmp_path: Path, suffix: str, rate: int, channels: int, tolerance: float
) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / f"v.{suffix}"
    soundfile.write(path, 0.2 * random.standard_normal((rate * 9, channels)), rate)
    whole = load_mono(path, RATE)
    for start, end in ((0.0, 1.0), (2.3, 5.71), (7.5, 9.0), (0.4, 8.9), (8.0, 12.0)):
        found = load_span(path, RATE, start, end)
        wanted = whole[round(start * RATE) : round(end * RATE)]
        assert abs(len(found) - len(wanted)) <= 1
        n = min(len(found), len(wanted))
        np.testing.assert_allclose(found[:n], wanted[:n], rtol=0, atol=tolerance)
    with pytest.raises(AudioError, match="holds nothing from 20 to 21 s"):
        load_span(path, RATE, 20, 21)


def test_long_recordings_are_read_by_stretches_and_sound_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "v.wav", 0.2 * random.standard_normal(22050 * 20), 22050)
    short = Sounds(tmp_path, ["v"]).hear(window(5, 8))
    monkeypatch.setattr(sounds, "WHOLE", 10.0)
    monkeypatch.setattr(sounds, "load_mono", lambda *_: pytest.fail("the whole recording was read"))
    long = Sounds(tmp_path, ["v"]).hear(window(5, 8))
    assert (long.length, long.start, long.end) == (short.length, short.start, short.end) == (6.0, 1.5, 4.5)
    np.testing.assert_allclose(long.samples, short.samples, rtol=0, atol=2e-4)


def test_a_recording_is_resampled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for vid in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{vid}.wav", np.ones(44100), 44100)
    read: list[str] = []

    def counted(path: Path, rate: int) -> Samples:
        read.append(path.stem)
        return load_mono(path, rate)

    monkeypatch.setattr(sounds, "load_mono", counted)
    heard = Sounds(tmp_path, ["a", "b", "c"])
    for vid in "aababcc":
        heard.hear(window(0, 0.5, vid))
    assert read == ["a", "b", "c"]
    assert len(heard._held) == 2


def test_evidence_is_the_hash_of_the_file_wherever_it_lies(tmp_path: Path) -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(8000, 0.25), 16000, format="FLAC")
    data = stream.getvalue()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "v.flac").write_bytes(data)
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "0.tar", "w") as tar:
        for name, content in (("0.json", json.dumps({"vid": "v", "name": "v"}).encode()), ("0.flac", data)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    plain = Sounds(tmp_path / "plain", ["v"])
    assert plain.evidence(window(0, 0.5)) == hashlib.sha256(data).hexdigest()
    # what is shorter than a front end can take is followed by silence, and said with its true times
    tiny = plain.hear(window(0.2, 0.21))
    assert len(tiny.samples) == 1600
    assert (tiny.samples[:320] != 0).all()
    assert (tiny.samples[320:] == 0).all()
    assert tiny.length == pytest.approx(0.02)


def test_mistakes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "v.wav", np.ones(16000), 16000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match="no audio for recording w"):
        Sounds(tmp_path, ["v", "w"])
    with pytest.raises(AudioError, match=r"bad\.wav: not a readable sound file"):
        Sounds(tmp_path, ["bad"]).evidence(window(0, 1, "bad"))
    with pytest.raises(AudioError, match=r"qid q: window \[5, 6\] is outside .*v.wav, which lasts 1.00 s"):
        Sounds(tmp_path, ["v"]).evidence(window(5, 6))

"""One pass for several encoders: what each hears, how often a file is read, and what a kill changes."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import soundfile

from amrctl import registry
from amrctl.data import hearing
from amrctl.data.audio import Samples, Sound, stream_rates
from amrctl.data.extract import Extracted, extract
from amrctl.data.feature_writer import FeatureWriter
from amrctl.data.features import FeatureFile
from amrctl.data.framing import encode_file
from amrctl.data.hearing import Heard, groups, hear
from amrctl.data.manifest import Manifest, Query
from amrctl.data.tars import find_recordings
from amrctl.encoders.base import AUDIO, TEXT, AudioEncoder, EncoderConfig, Rows, Sentence, load_audio_encoder
from amrctl.errors import AudioError, FeatureError, OutputError


class Crowd:
    """Rows that give away which windows came together: each is the window's sums and the batch's."""

    name: ClassVar[str] = "crowd"
    sample_rate: ClassVar[int] = 8000
    network: ClassVar[object] = object()

    def __init__(self, config: EncoderConfig) -> None:
        self.window, self.hop = config.window or 1.0, config.hop or 1.0
        self.batch, self.dim = config.batch or 4, 3
        self.weights = config.checkpoint

    def encode(self, windows: Rows) -> Rows:
        assert 1 <= len(windows) <= self.batch
        own = np.stack([windows.sum(axis=1), np.abs(windows).sum(axis=1)], axis=1)
        return np.concatenate([own, np.full((len(windows), 1), windows.sum())], axis=1).astype(np.float32)

    def attributes(self) -> Mapping[str, Any]:
        return {"version": 1, "checkpoint": self.weights, "checkpoint_sha256": f"{self.weights:*^64}"[:64]}


class Slow(Crowd):
    name: ClassVar[str] = "slow"
    sample_rate: ClassVar[int] = 4000


class Reader:
    """A text encoder whose rows tell how many sentences came together."""

    name: ClassVar[str] = "reader"

    def __init__(self, config: EncoderConfig) -> None:
        self.batch, self.dim = config.batch or 4, 2

    def encode(self, sentences: Sequence[str]) -> list[Sentence]:
        total = sum(map(len, sentences))
        return [Sentence(np.array([[len(s), total]], np.float32)) for s in sentences]

    def attributes(self) -> Mapping[str, Any]:
        return {"version": 1}


class WithDefault(EncoderConfig):
    default_checkpoint: ClassVar[str | None] = "one"


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.kinds(AUDIO)
    for slot, build in ((AUDIO, Crowd), (AUDIO, Slow), (TEXT, Reader)):
        entry = registry.Component(slot, build.name, WithDefault, build)
        monkeypatch.setitem(registry._found, (slot, build.name), entry)


LENGTHS = {"a": 3.0, "b": 0.4, "c": 6.0, "d": 2.5, "e": 1.0, "f": 4.6, "g": 9.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "audio"
    made.mkdir()
    for seed, (vid, seconds) in enumerate(LENGTHS.items()):
        rate = (8000, 16000, 11025)[seed % 3]
        samples = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * rate))
        soundfile.write(made / f"{vid}.wav", samples, rate)
    return made


def manifest(lengths: Mapping[str, float] = LENGTHS) -> Manifest:
    queries = [
        Query(f"q{vid}", f"sound {vid * i}", vid, s, ((0.0, 0.3),))
        for i, (vid, s) in enumerate(lengths.items())
    ]
    return Manifest(None, tuple(queries))


def run(out: Path, folder: Path, **more: Any) -> Extracted:
    given: dict[str, Any] = {
        "audio": folder,
        "audio_encoder": ["crowd", "slow", "logmel"],
        "dtype": "float32",
    }
    return extract(manifest(), out, **{**given, **more})


def datasets(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    with h5py.File(str(path), "r") as file:
        file.visititems(
            lambda n, item: found.update({n: item[()].tolist()}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def test_groups_follow_from_the_list_alone() -> None:
    assert list(groups({"a": 5, "b": 5, "c": 100, "d": 1, "e": 2}, 10)) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(groups({}, 10)) == []


def test_every_encoder_hears_what_it_would_hear_alone(folder: Path) -> None:
    encoders = [load_audio_encoder(name, hop=0.5) for name in ("crowd", "slow", "logmel")]
    recordings = [(vid, folder / f"{vid}.wav") for vid in LENGTHS]
    answers = list(hear(recordings, encoders))
    assert [answer.vid for answer in answers if isinstance(answer, Heard)] == list(LENGTHS)
    for answer in answers:
        assert isinstance(answer, Heard)
        assert answer.seconds == pytest.approx(LENGTHS[answer.vid], abs=1e-4)
        for encoder in encoders:
            alone = encode_file(folder / f"{answer.vid}.wav", encoder)
            own = slice(2) if encoder.name != "logmel" else slice(None)  # less what the batch adds
            np.testing.assert_array_equal(answer.rows[encoder.name][:, own], alone[:, own])


def test_batches_are_full_across_recordings(folder: Path) -> None:
    sizes: list[int] = []

    encoder = load_audio_encoder("crowd")
    encode = encoder.encode

    def counted(windows: Rows) -> Rows:
        sizes.append(len(windows))
        return encode(windows)

    vars(encoder)["encode"] = counted
    list(hear([(vid, folder / f"{vid}.wav") for vid in LENGTHS], [encoder]))
    assert sum(sizes) == 3 + 1 + 6 + 3 + 1 + 5 + 9
    assert sizes == [4] * 7


def test_a_file_is_opened_once_and_a_later_stream_reads_once_more(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, tuple[int, ...]]] = []

    def counted(sound: Sound, rates: Sequence[int]) -> Iterator[tuple[Samples, ...]]:
        assert isinstance(sound, Path)
        read.append((sound.stem, tuple(rates)))
        return stream_rates(sound, rates)

    monkeypatch.setattr(hearing, "stream_rates", counted)
    out = tmp_path / "f.h5"
    run(out, folder, audio_encoder=["crowd", "logmel"])
    assert read == [(vid, (8000, 16000)) for vid in LENGTHS]
    read.clear()
    done = run(out, folder)
    assert read == [(vid, (4000,)) for vid in LENGTHS]
    assert [(one.name, one.count, one.rows, one.dim) for one in done.stored] == [
        ("crowd", 7, 28, 3),
        ("slow", 7, 28, 3),
        ("logmel", 7, 28, 229),
    ]
    whole = tmp_path / "whole.h5"
    run(whole, folder)
    assert datasets(out) == datasets(whole)


@pytest.mark.parametrize("stop", [2, 9, 11, 16, 21])
def test_a_kill_changes_no_batch(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(hearing.groups, "__defaults__", (10.0,))
    options: dict[str, Any] = {"text_encoder": "reader", "batch": 3}
    whole, broken = tmp_path / "whole.h5", tmp_path / "broken.h5"
    run(whole, folder, **options)
    put, left = FeatureWriter.put, [stop]  # 7 sentences, then 7 recordings of three streams

    def dying(self: FeatureWriter, *args: Any, **more: Any) -> None:
        put(self, *args, **more)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "put", dying)
        with pytest.raises(KeyboardInterrupt):
            run(broken, folder, **options)
    assert not broken.exists()
    run(broken, folder, **options, workers=3)
    assert datasets(broken) == datasets(whole)


def test_a_bad_recording_touches_no_other(tmp_path: Path, folder: Path) -> None:
    nan = np.random.default_rng(0).uniform(-0.3, 0.3, 5 * 70000)
    nan[300_000] = np.nan
    soundfile.write(folder / "c.wav", nan, 8000, subtype="FLOAT")
    (folder / "g.wav").write_bytes(b"nothing")
    answers = list(hear([(vid, folder / f"{vid}.wav") for vid in LENGTHS], [load_audio_encoder("crowd")]))
    faults = {answer[0]: answer[1] for answer in answers if not isinstance(answer, Heard)}
    assert [a.vid for a in answers if isinstance(a, Heard)] == ["a", "b", "d", "e", "f"]
    assert isinstance(faults["c"], AudioError)
    assert "sample 300000" in str(faults["c"])
    done = run(tmp_path / "f.h5", folder, skip_bad=True)
    assert (list(done.skipped), done.recordings) == (["c", "g"], 5)
    with pytest.raises(AudioError, match=r"c\.wav: sample 300000"):
        run(tmp_path / "g.h5", folder)


def test_other_weights_and_settings_are_not_mixed(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "f.h5"
    run(out, folder, audio_encoder="crowd:one")
    assert not run(out, folder, audio_encoder="crowd", batch=2, workers=2).fresh  # the same weights
    for options, said in (
        ({"audio_encoder": "crowd:two"}, r"made with checkpoint_sha256 \*{12}\.\.\., not \*{12}\.\.\.;"),
        ({"audio_encoder": "crowd", "hop": 0.5}, "made with hop 1.0, not 0.5; choose another --out"),
        ({"audio_encoder": "crowd", "window": 2.0}, r"made with window 1\.0, not 2\.0;"),
    ):
        with pytest.raises(OutputError, match=f"has audio stream 'crowd' already, {said}"):
            run(out, folder, **options)
    with pytest.raises(FeatureError, match="--audio-encoder crowd is named twice"):
        run(out, folder, audio_encoder=["crowd:one", "crowd:two"])
    with FeatureFile(out) as file:
        assert file.resolve("audio", "crowd").checkpoint_sha256 == f"{'one':*^64}"


def test_memory_is_flat_over_a_recording_in_a_tar(tmp_path: Path) -> None:
    encoders: list[AudioEncoder] = [load_audio_encoder("logmel"), load_audio_encoder("crowd")]
    peaks = []
    for minutes in (1, 1, 4):
        held = io.BytesIO()
        samples = np.random.default_rng(0).uniform(-0.3, 0.3, minutes * 60 * 8000)
        soundfile.write(held, samples, 8000, format="WAV")
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, content in (("0.wav", held.getvalue()), ("0.json", b'{"bg": {"path": "b/W/0.wav"}}')):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        del held, samples
        recordings = list(find_recordings(tmp_path / "a.tar", ["W_0"]).items())
        tracemalloc.start()
        (answer,) = hear(recordings, encoders)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert isinstance(answer, Heard)
        assert len(answer.rows["logmel"]) == minutes * 60
    assert peaks[2] < 1.5 * peaks[1]

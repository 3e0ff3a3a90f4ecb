"""Extraction: framing against a naive cut, bounded memory, and every way a run can go wrong."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amrctl.data import extract_jobs as module
from amrctl.data.audio import load_mono
from amrctl.data.extract import Extracted, Stored, extract, import_streams
from amrctl.data.feature_writer import FeatureWriter, StreamSpec
from amrctl.data.features import FeatureFile
from amrctl.data.framing import encode_file, frame_count
from amrctl.data.hearing import hear
from amrctl.data.manifest import Manifest, Query
from amrctl.data.tef import tef_2d
from amrctl.encoders.base import AudioEncoder, Rows, load_audio_encoder, load_text_encoder
from amrctl.errors import AmrctlError, AudioError, FeatureError, ManifestError, OutputError
from amrctl.progress import Reporter


@dataclass
class Ear:
    """An encoder that repeats what it heard: its row is the window itself."""

    sample_rate: int
    window: float
    hop: float
    name: str = "ear"

    @property
    def dim(self) -> int:
        return round(self.window * self.sample_rate)

    def encode(self, windows: Rows) -> Rows:
        assert 1 <= len(windows) <= 32
        return windows

    def attributes(self) -> Mapping[str, Any]:
        return {}


class Listener(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def noise(seconds: float, rate: int = 8000, seed: int = 0) -> Rows:
    samples: Rows = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * rate)).astype(np.float32)
    return samples


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("framing") / "a.wav"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.integers(1, 4000),
    window=st.sampled_from([0.2, 1.0, 1.7, 3.0]),
    hop=st.sampled_from([0.25, 1 / 3, 1.0, 2.0]),
    block=st.sampled_from([0.11, 1.0, 30.0]),
)
def test_frames_are_the_naive_cut(file: Path, samples: int, window: float, hop: float, block: float) -> None:
    rate = 50
    sound = np.arange(1, samples + 1, dtype=np.float32) / 8192
    soundfile.write(file, sound, rate, subtype="FLOAT")
    ear = Ear(rate, window, hop)
    assert isinstance(ear, AudioEncoder)
    frames = encode_file(file, ear, block)
    whole = int(samples / rate / hop + 1e-9)
    rest = samples / rate - whole * hop
    count = max(1, whole + (rest >= hop / 2 - 1e-9))
    padded = np.concatenate([sound, np.zeros(10 * rate, np.float32)])
    naive = [padded[round(i * hop * rate) :][: ear.dim] for i in range(count)]
    np.testing.assert_array_equal(frames, np.stack(naive))


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.01, 1), (0.5, 1), (1.49, 1), (1.5, 2), (2.0, 2), (299.0, 299), (299.6, 300)]
)
def test_how_many_frames(seconds: float, frames: int) -> None:
    assert frame_count(round(seconds * 16000), 16000, 1.0) == frames


def test_blocks_change_no_bit_of_logmel(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(70.6, 11025), 11025)
    encoder = load_audio_encoder("logmel")
    rows = encode_file(path, encoder)
    assert rows.shape == (71, encoder.dim)
    sound = np.pad(load_mono(path, 16000), (0, 16000))[: 71 * 16000]
    np.testing.assert_array_equal(rows, encoder.encode(sound.reshape(71, 16000)))
    for block in (0.3, 7.0, 1000.0):
        np.testing.assert_array_equal(encode_file(path, encoder, block), rows)


def test_five_minutes_take_the_memory_of_one(tmp_path: Path) -> None:
    encoder = load_audio_encoder("logmel")
    peaks, rows = [], []
    for minutes in (1, 5):
        path = tmp_path / f"{minutes}.wav"
        soundfile.write(path, np.stack([noise(60.0 * minutes, 16000)] * 2, axis=1), 16000)
        encode_file(path, encoder)  # what is made once is made
        tracemalloc.start()
        rows.append(encode_file(path, encoder))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.25 * peaks[0]
    assert rows[1].shape == (300, encoder.dim)


def manifest(vids: Mapping[str, float], sentences: Sequence[str] = ("a dog barks", "rain falls")) -> Manifest:
    queries = [
        Query(f"{vid}_{n}", sentence, vid, duration, ((0.0, 1.0),))
        for vid, duration in vids.items()
        for n, sentence in enumerate(sentences)
    ]
    return Manifest(None, tuple(queries))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three recordings: `a` 3 s, `b` 2.5 s stereo at another rate, `c` 4 s."""
    made = tmp_path / "audio"
    (made / "sub").mkdir(parents=True)
    soundfile.write(made / "a.wav", noise(3, seed=1), 8000)
    soundfile.write(made / "sub" / "b.flac", np.stack([noise(2.5, 22050, seed) for seed in (2, 3)], 1), 22050)
    soundfile.write(made / "c.ogg", noise(4, 16000, seed=4), 16000)
    return made


VIDS = {"c": 4.0, "a": 3.0, "b": 2.5}


def run(out: Path, folder: Path, **more: Any) -> Extracted:
    given: dict[str, Any] = {"audio": folder, "audio_encoder": "logmel", "text_encoder": "words"}
    return extract(manifest(VIDS), out, **{**given, **more})


def datasets(path: Path) -> dict[str, Any]:
    """Every data set of a feature file, by name."""
    found: dict[str, Any] = {}
    with h5py.File(str(path), "r") as file:
        file.visititems(
            lambda n, item: found.update({n: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def same(first: Path, second: Path) -> bool:
    a, b = datasets(first), datasets(second)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].tolist() == b[name].tolist() for name in a
    )


def test_what_is_stored_is_what_the_encoders_said(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "f.h5"
    done = run(out, folder, dtype="float32", tef=3)
    stored = (Stored("audio", "logmel", 3, 10, 229), Stored("text", "words", 6, 21, 256))
    assert done == Extracted(out, {"audio": "logmel", "text": "words"}, 3, 10, 6, 21, {}, True, stored)
    encoder, words = load_audio_encoder("logmel"), load_text_encoder("words")
    with FeatureFile(out) as file:
        info = file.resolve("audio", "auto")
        assert (info.encoder, info.sample_rate, info.window, info.hop, info.dim) == (
            "logmel",
            16000,
            1,
            1,
            229,
        )
        packed = file.load("audio", "logmel")
        assert list(packed.index) == ["c", "a", "b"]  # the manifest's order
        for vid, name in (("a", "a.wav"), ("b", "sub/b.flac"), ("c", "c.ogg")):
            np.testing.assert_array_equal(packed.get(vid), encode_file(folder / name, encoder))
        tokens = file.load("text", "words")
        (dog,) = words.encode(["a dog barks"])
        np.testing.assert_array_equal(tokens.get("b_0"), dog.tokens)
        pooled = file.pooled("words", ["b_0", "a_1"])
        assert pooled is not None
        assert dog.pooled is not None
        np.testing.assert_array_equal(pooled[0], dog.pooled)
        ends = file.load("tef", "3d").get("a").tolist()
        assert np.ravel(ends).tolist() == pytest.approx([v / 3 for v in (0, 2, 1, 1, 1, 1, 2, 0, 1)])


def test_workers_and_float16(tmp_path: Path, folder: Path) -> None:
    run(tmp_path / "one.h5", folder)
    run(tmp_path / "two.h5", folder, workers=2)
    assert same(tmp_path / "one.h5", tmp_path / "two.h5")
    run(tmp_path / "wide.h5", folder, dtype="float32")
    narrow, wide = datasets(tmp_path / "one.h5"), datasets(tmp_path / "wide.h5")
    assert narrow["audio/logmel/rows"].dtype == np.float16
    np.testing.assert_array_equal(narrow["audio/logmel/rows"], wide["audio/logmel/rows"].astype(np.float16))


def test_the_same_again_and_one_more_stream(tmp_path: Path, folder: Path) -> None:
    step, whole = tmp_path / "step.h5", tmp_path / "whole.h5"
    run(whole, folder)
    assert run(step, folder, text_encoder=None).streams == {"audio": "logmel"}
    before = step.stat().st_mtime_ns
    again = run(step, folder, text_encoder=None)
    assert (again.fresh, again.recordings, step.stat().st_mtime_ns) == (False, 3, before)
    added = run(step, folder)  # the audio is there, the text is not
    assert added.fresh
    assert same(step, whole)
    assert not run(step, folder).fresh
    assert not run(step, folder, audio_encoder=None, audio=None).fresh
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio", "step.h5", "whole.h5"]


def test_other_input_is_refused_and_overwritten_on_request(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "f.h5"
    run(out, folder)
    soundfile.write(folder / "a.wav", noise(5, seed=9), 8000)
    for changed in ({}, {"dtype": "float32"}, {"tef": 3}):
        with pytest.raises(OutputError, match="has audio stream 'logmel' already"):
            run(out, folder, text_encoder=None, **changed)
    assert run(out, folder, overwrite=True).frames == 12
    assert not run(out, folder).fresh
    out.write_text("notes")
    with pytest.raises(OutputError, match=r"f\.h5 is not a readable HDF5 file"):
        run(out, folder)
    assert out.read_text() == "notes"


def test_a_run_stopped_by_a_fault_goes_on(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.h5"
    good = (folder / "a.wav").read_bytes()
    (folder / "a.wav").write_bytes(good[:44])
    with pytest.raises(AudioError, match=r"a\.wav: holds no samples"):
        run(out, folder)
    assert not out.exists()
    heard: list[str] = []

    def listen(recordings: Sequence[tuple[str, Path]], encoders: Sequence[AudioEncoder]) -> Iterator[Any]:
        heard.extend(vid for vid, _ in recordings)
        return hear(recordings, encoders)

    monkeypatch.setattr(module, "hear", listen)
    assert run(out, folder, skip_bad=True).skipped == {
        "a": f"{folder / 'a.wav'}: holds no samples; replace it"
    }
    assert heard == ["a", "b"]  # `c` was stored by the first run
    heard.clear()
    assert not run(out, folder, skip_bad=True).fresh
    assert run(out, folder, skip_bad=True).skipped == {"a": "a was skipped when the file was made"}
    (folder / "a.wav").write_bytes(good)
    assert run(out, folder, overwrite=True).skipped == {}
    assert heard == ["c", "a", "b"]


@pytest.mark.parametrize("workers", [1, 2])
def test_skip_bad_lists_every_fault(tmp_path: Path, folder: Path, workers: int) -> None:
    (folder / "c.ogg").unlink()
    nan = noise(3)
    nan[100] = np.nan
    soundfile.write(folder / "a.wav", nan, 8000, subtype="FLOAT")
    out = tmp_path / "f.h5"
    with pytest.raises(AudioError, match="no audio for recording c under"):
        run(out, folder, workers=workers)
    done = run(out, folder, workers=workers, skip_bad=True)
    assert (done.recordings, done.queries, list(done.skipped)) == (1, 6, ["c", "a"])
    assert "sample 100 (0.013 s)" in done.skipped["a"]
    with FeatureFile(out) as file:
        assert file.ids("audio", "logmel") == ["b"]
        assert file.ids("tef", "2d") == ["b"]


def test_a_workers_fault_comes_through_as_it_is(tmp_path: Path, folder: Path) -> None:
    (folder / "a.wav").write_bytes(b"no sound" * 100)
    with pytest.raises(AudioError) as caught:
        run(tmp_path / "f.h5", folder, workers=2)
    assert str(caught.value).startswith(f"{folder / 'a.wav'}: not a readable sound file")
    assert "\n" not in str(caught.value)


def test_faults_before_any_work(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "f.h5"
    with pytest.raises(ManifestError, match="no queries"):
        extract(Manifest(None, ()), out, audio=folder, audio_encoder="logmel")
    with pytest.raises(FeatureError, match="nothing to extract"):
        extract(manifest(VIDS), out)
    with pytest.raises(AudioError, match="needs --audio DIR"):
        extract(manifest(VIDS), out, audio_encoder="logmel")
    with pytest.raises(FeatureError, match="write float16 or float32"):
        run(out, folder, dtype="int8")
    with pytest.raises(FeatureError, match="2 or 3 columns"):
        run(out, folder, tef=4)
    for path in folder.rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(AudioError, match=r"not one of 3 recordings can be read; the first: .*c\.ogg"):
        run(out, folder, skip_bad=True)
    assert not out.exists()


def test_durations_that_disagree_are_counted_once(tmp_path: Path, folder: Path) -> None:
    told = manifest({"a": 3.9, "b": 20.0, "c": 6.0})
    listener = Listener()
    extract(told, tmp_path / "f.h5", audio=folder, audio_encoder="logmel", report=listener)
    assert listener.notes == [
        "2 of 3 recordings are more than 1 s longer or shorter than their manifest says; "
        "worst: b, 2.5 s in the file, not 20"
    ]


def test_what_a_kill_after_the_rename_leaves_is_cleared(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.h5"
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    run(out, folder)
    monkeypatch.undo()
    assert (tmp_path / "f.h5.part").is_dir()
    assert not run(out, folder).fresh
    assert not (tmp_path / "f.h5.part").exists()


def test_a_dead_worker_is_told(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_encode_here", _die)
    with pytest.raises(AmrctlError, match=r"a worker process died .* fewer --workers"):
        run(tmp_path / "f.h5", folder, workers=2)


def _die(*_: Any) -> None:
    import os

    os._exit(1)


def test_import_twice_says_so(tmp_path: Path, folder: Path) -> None:
    source = tmp_path / "npz"
    source.mkdir()
    for vid, length in (("a", 3), ("b", 2), ("c", 4)):
        np.savez(source / f"{vid}.npz", features=np.random.default_rng(length).random((length, 5)))
    out = tmp_path / "f.h5"
    first = import_streams(manifest(VIDS), out, "clap", audio_npz=source)
    assert (first.fresh, first.recordings, first.frames, first.queries) == (True, 3, 9, 0)
    assert not import_streams(manifest(VIDS), out, "clap", audio_npz=source).fresh
    np.savez(source / "a.npz", features=np.zeros((4, 5)))
    with pytest.raises(OutputError, match="has audio stream 'clap' already"):
        import_streams(manifest(VIDS), out, "clap", audio_npz=source)
    assert import_streams(manifest(VIDS), out, "clap", audio_npz=source, overwrite=True).frames == 10
    with FeatureFile(out) as file:
        assert file.resolve("audio", "auto").dtype == "float64"
        np.testing.assert_array_equal(file.load("tef", "2d").get("b"), [[0, 0.5], [0.5, 1]])


def test_streams_of_other_lengths_have_endpoint_features_of_their_own(tmp_path: Path) -> None:
    """A centred grid has a frame more than a plain one."""
    out = tmp_path / "f.h5"

    def write(overwrite: bool, **frames: int) -> dict[str, tuple[int, str]]:
        writer = FeatureWriter(out, frames, overwrite, [("audio", name) for name in frames])
        for name, count in frames.items():
            writer.put("audio", name, "a", np.ones((count, 3), np.float32))
        writer.finish([StreamSpec("audio", name, ["a"], {"hop": 1.0}) for name in frames], {"2d": tef_2d})
        with FeatureFile(out) as file:
            for name in file.streams("tef"):
                ends = file.load("tef", name).get("a")
                np.testing.assert_array_equal(ends, tef_2d(len(ends)))
            return {
                name: (sum(file.lengths("tef", name).values()), info.attrs["of"])
                for name, info in file.streams("tef").items()
            }

    assert write(False, centred=61, plain=60, also=60) == {"2d": (61, "centred"), "2d-also": (60, "also")}
    assert write(True, also=61) == {"2d": (61, "centred"), "2d-plain": (60, "plain")}

"""`search` hears what `extract-tef` and `predict` hear, whatever the recording."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.manifest import read_manifest
from amrctl.data.npz import import_npz
from amrctl.data.predictions import read_predictions
from amrctl.errors import AmrctlError, CheckpointError
from amrctl.model import checkpoint
from amrctl.pipeline.search import Found, SearchRequest, search
from amrctl.spans import temporal_iou
from tests.pipeline import heard
from tests.pipeline.heard import RATE, SENTENCES, Heard


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    return heard.make(tmp_path_factory.mktemp("heard") / "data")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of every length and kind; the detector reads 20 frames at a time."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    samples: dict[str, tuple[np.ndarray, int, str]] = {
        "blink": (heard.sound(0.1, (0, 0.1), (1, 1)), RATE, "wav"),
        "odd": (heard.sound(7.77, (2, 4), (5, 7)), RATE, "flac"),
        "stereo": (0.1 * rng.standard_normal((3 * 44_100 + 17, 2)), 44_100, "wav"),
        "silence": (np.zeros(9 * 8000), 8000, "wav"),
        "limit": (heard.sound(20, (2, 4), (5, 7)), RATE, "wav"),
        "long": (heard.sound(53.4, (12, 19), (30, 48)), RATE, "ogg"),
    }
    found = {}
    for name, (sound, rate, suffix) in samples.items():
        found[name] = folder / f"{name}.{suffix}"
        soundfile.write(found[name], sound, rate)
    return found


def ask(made: Heard, audio: Path, **change: object) -> Found:
    options: dict[str, object] = {"checkpoint": made.checkpoint, "device": "cpu", **change}
    return search(SearchRequest(audio, SENTENCES, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["blink", "odd", "stereo", "silence", "limit", "long"])
def test_the_same_as_extract_and_predict(
    made: Heard, recordings: dict[str, Path], tmp_path: Path, name: str
) -> None:
    path = recordings[name]
    info = soundfile.info(path)
    record = {"vid": name, "duration": info.frames / info.samplerate}
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(
        "\n".join(json.dumps({"qid": i, "query": sentence, **record}) for i, sentence in enumerate(SENTENCES))
    )
    heard.extract(tmp_path / "f.h5", path.parent, manifest)
    inputs = ["--checkpoint", made.checkpoint, "--features", tmp_path / "f.h5", "--test", manifest]
    for rounding in (None, 0.0):
        out = tmp_path / f"{rounding}.jsonl"
        exact = [] if rounding is None else ["--round", rounding]
        heard.amrctl("predict", *inputs, "--saliency", "--device", "cpu", "--out", out, "-q", *exact)
        found = ask(made, path, top=10, drop_copies=1.0, rounding=rounding, saliency=True)
        for item, wanted in zip(found.items, read_predictions(out), strict=True):
            assert item.query == wanted.query
            np.testing.assert_array_equal(item.windows, wanted.windows)
            np.testing.assert_array_equal(item.saliency, wanted.saliency)
            assert len(item.windows) > 0


def test_twice_is_the_same_and_sentences_do_not_mix(made: Heard, recordings: dict[str, Path]) -> None:
    first, again = (ask(made, recordings["long"], saliency=True) for _ in range(2))
    assert first.to_json() == again.to_json()
    turned = search(
        SearchRequest(recordings["long"], SENTENCES[::-1], made.checkpoint, device="cpu", saliency=True)
    )
    for a, b in zip(first.items, turned.items[::-1], strict=True):
        assert a.query == b.query
        np.testing.assert_allclose(a.windows[0, 2], b.windows[0, 2], atol=1e-5)
        np.testing.assert_allclose(a.saliency, b.saliency, atol=1e-4)  # type: ignore[arg-type]
    assert not np.array_equal(first.items[0].windows, first.items[1].windows)


def test_top_min_score_and_copies(made: Heard, recordings: dict[str, Path]) -> None:
    path = recordings["long"]
    everything = ask(made, path, top=99, drop_copies=1.0, rounding=0.0)
    windows = everything.items[0].windows
    assert len(windows) > 6
    np.testing.assert_array_equal(
        ask(made, path, top=2, drop_copies=1.0, rounding=0.0).items[0].windows, windows[:2]
    )
    bar = float(windows[2, 2])
    few = ask(made, path, top=99, drop_copies=1.0, rounding=0.0, min_score=bar)
    np.testing.assert_array_equal(few.items[0].windows, windows[windows[:, 2] >= bar])
    assert few.best == everything.best == tuple(item.windows[0, 2] for item in everything.items)
    kept = ask(made, path, top=99, drop_copies=0.3, rounding=0.0).items[0].windows
    overlap = temporal_iou(kept[:, :2], kept[:, :2])
    assert (overlap[~np.eye(len(kept), dtype=bool)] <= 0.3).all()
    assert kept[0].tolist() == windows[0].tolist()
    none = ask(made, path, min_score=1.0)
    assert [query["moments"] for query in none.to_json()["queries"]] == [[], []]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sentences": ()}, "at least one sentence"),
        ({"sentences": ("rain", " ")}, "sentence 2 of 2 is empty"),
        ({"audio": Path("no.wav")}, "no.wav: no such sound file"),
        ({"top": 0}, "--top 0"),
        ({"min_score": float("nan")}, "--min-score nan is not in 0..1"),
        ({"drop_copies": 1.5}, "--drop-copies 1.5 is not in 0..1"),
        ({"audio_encoders": ("logmel", "logmel")}, "reads 1 audio streams, --audio-encoder names 2"),
        ({"audio_encoders": ("logmell",)}, "did you mean 'logmel'"),
        ({"checkpoint": Path("none.safetensors")}, "none.safetensors does not exist"),
        ({"sets": ("inference.kep=1",)}, "kep: unknown key"),
    ],
)
def test_faults_are_one_line(
    made: Heard, recordings: dict[str, Path], change: dict[str, object], says: str
) -> None:
    request = replace(SearchRequest(recordings["odd"], SENTENCES, made.checkpoint, device="cpu"), **change)  # type: ignore[arg-type]
    with pytest.raises(AmrctlError) as told:
        search(request)
    assert says in str(told.value)
    assert "\n" not in str(told.value)


def test_features_of_an_encoder_that_is_not_here(
    made: Heard, recordings: dict[str, Path], tmp_path: Path
) -> None:
    folder, manifest = tmp_path / "npz", read_manifest(made.train)
    folder.mkdir()
    rng = np.random.default_rng(0)
    for vid in [*manifest.recordings, *read_manifest(made.test).recordings]:
        np.savez(folder / f"{vid}.npz", features=rng.standard_normal((12, 5)).astype(np.float32))
    heard.extract(tmp_path / "f.h5", made.audio, made.train, made.test, sides=("text",))
    both = tmp_path / "both.jsonl"
    both.write_text(made.train.read_text() + made.test.read_text())
    import_npz(tmp_path / "f.h5", folder, None, "ms-clap", read_manifest(both))
    foreign = heard.train(replace(made, features=tmp_path / "f.h5"), tmp_path / "run")
    with pytest.raises(CheckpointError) as told:
        ask(made, recordings["odd"], checkpoint=foreign)
    for part in ("'ms-clap'", "5 numbers", "logmel", "--audio-npz", "--audio-encoder"):
        assert part in str(told.value)
    with pytest.raises(CheckpointError, match=r"ms-clap \(5\); what logmel, words give has width 229"):
        ask(made, recordings["odd"], checkpoint=foreign, audio_encoders=("logmel",))


def test_a_diverged_checkpoint_is_told(made: Heard, recordings: dict[str, Path], tmp_path: Path) -> None:
    loaded = checkpoint.read(made.checkpoint)
    loaded.tensors = {name: tensor * float("nan") for name, tensor in loaded.tensors.items()}
    checkpoint.write(tmp_path / "nan.safetensors", loaded)
    with pytest.raises(CheckpointError, match="not finite"):
        ask(made, recordings["odd"], checkpoint=tmp_path / "nan.safetensors")


def test_official_behaviour_does_not_end_at_the_limit(made: Heard, recordings: dict[str, Path]) -> None:
    whole = ask(made, recordings["long"], sets=("compat=official",), saliency=True).items[0].saliency
    assert whole is not None
    assert len(whole) == 53
    short = ask(made, recordings["limit"], sets=("compat=official",), saliency=True).items[0].saliency
    assert short is not None
    assert len(short) == 20


def test_samples_are_never_in_memory_as_a_whole(made: Heard, tmp_path: Path) -> None:
    """Ten minutes at 48 kHz are 115 MB as float32; one minute costs the same memory."""
    peaks = []
    for minutes in (1, 10):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", 48_000, 1, "PCM_16") as out:
            for _ in range(minutes):
                out.write(np.zeros(60 * 48_000))
        tracemalloc.start()
        ask(made, path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 8e6


@settings(max_examples=25, deadline=None)
@given(seconds=st.floats(0.01, 65), rounding=st.sampled_from([0.0, 0.1, 1.0]))
def test_any_duration(
    made: Heard, tmp_path_factory: pytest.TempPathFactory, seconds: float, rounding: float
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.wav"
    soundfile.write(path, heard.sound(seconds, (0, seconds / 2), (0, 0)), RATE)
    found = ask(made, path, rounding=rounding)
    assert found.duration == pytest.approx(seconds, abs=1 / RATE)
    for item in found.items:
        start, end, score = item.windows.T
        assert len(item.windows) > 0
        assert ((start >= 0) & (start < end) & (end <= found.duration)).all()
        assert ((score >= 0) & (score <= 1) & (np.diff(score, prepend=1.0) <= 0)).all()

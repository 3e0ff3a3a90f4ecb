"""Checkpoints on features that are the same, more, longer or others than in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from amrctl.data.features import FeatureFile
from amrctl.data.manifest import read_manifest
from amrctl.data.npz import import_npz
from amrctl.data.predictions import Prediction, read_predictions
from amrctl.ensemble.saliency import proposals
from amrctl.errors import RecipeError
from amrctl.pipeline.predict import PredictRequest, predict
from amrctl.progress import Reporter
from tests.pipeline import heard
from tests.pipeline.heard import RATE, Heard


class Notes(Reporter):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    return heard.make(tmp_path_factory.mktemp("heard") / "data")


def run(made: Heard, out: Path, notes: Reporter | None = None, **change: object) -> list[Prediction]:
    settings: dict[str, object] = {"checkpoints": (made.checkpoint,), "features": made.features}
    settings |= {"test": (made.test,), "out": out, "device": "cpu", "rounding": 0.0, **change}
    return predict(PredictRequest(**settings), notes or Reporter())  # type: ignore[arg-type]


def same(a: list[Prediction], b: list[Prediction]) -> bool:
    return all(np.array_equal(x.windows, y.windows) for x, y in zip(a, b, strict=True))


def test_a_long_recording_is_its_chunks_put_together(made: Heard, tmp_path: Path) -> None:
    """45 s, 20 frames at a time: 0-20, 10-30, 20-40, 25-45, each also predicted as its own file."""
    audio, long = tmp_path / "audio", heard.sound(45, (13, 18), (30, 41))
    audio.mkdir()
    starts = (0, 10, 20, 25)
    soundfile.write(audio / "long.wav", long, RATE)
    lines = [{"qid": 0, "query": heard.SENTENCES[0], "vid": "long", "duration": 45}]
    for start in starts:
        soundfile.write(audio / f"part{start}.wav", long[start * RATE : (start + 20) * RATE], RATE)
        lines.append(lines[0] | {"qid": start + 1, "vid": f"part{start}", "duration": 20})
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    heard.extract(tmp_path / "f.h5", audio, manifest)
    notes = Notes()
    whole, *parts = run(
        made,
        tmp_path / "p.jsonl",
        notes,
        features=tmp_path / "f.h5",
        test=(manifest,),
        saliency=True,
    )
    assert [note for note in notes.said if "overlapping chunks" in note]

    value, count = np.zeros(45), np.zeros(45)
    for start, part in zip(starts, parts, strict=True):
        assert part.saliency is not None
        value[start : start + 20] += part.saliency
        count[start : start + 20] += 1
    assert whole.saliency is not None
    np.testing.assert_allclose(whole.saliency, value / count, atol=1e-5)

    shifted = [part.windows + np.array([start, start, 0]) for start, part in zip(starts, parts, strict=True)]
    told = np.concatenate(shifted)
    assert whole.windows[0, 2] == told[:, 2].max()
    for edge in whole.windows[:, :2].ravel():  # merging takes boundaries that some chunk gave
        assert np.abs(told[:, :2] - edge).min() < 1e-3
    assert (whole.windows[:, :2] >= 0).all()
    assert (whole.windows[:, :2] <= 45).all()


def test_what_fits_does_not_depend_on_the_limit(made: Heard, tmp_path: Path) -> None:
    small = run(made, tmp_path / "a.jsonl", sets=("train.max_frames=12",))
    large = run(made, tmp_path / "b.jsonl", sets=("train.max_frames=5000",))
    assert same(small, large)
    assert not same(small, run(made, tmp_path / "c.jsonl", sets=("train.max_frames=11",)))


def test_official_behaviour_says_what_it_does_not_read(made: Heard, tmp_path: Path) -> None:
    notes = Notes()
    run(made, tmp_path / "a.jsonl", notes, sets=("train.max_frames=11", "compat=official"))
    assert [note for note in notes.said if "4 queries" in note and "only the beginning" in note]


def test_auto_is_the_stream_of_training_where_there_are_several(made: Heard, tmp_path: Path) -> None:
    features = tmp_path / "f.h5"
    shutil.copy(made.features, features)
    folder = tmp_path / "npz"
    folder.mkdir()
    manifest = read_manifest(made.test)
    for vid in manifest.recordings:
        np.savez(folder / f"{vid}.npz", features=np.ones((12, 3), np.float32))
    import_npz(features, folder, None, "a-first", manifest)
    with FeatureFile(features) as file:
        assert list(file.streams("audio")) == ["a-first", "logmel"]
    notes = Notes()
    assert same(run(made, tmp_path / "a.jsonl", notes, features=features), run(made, tmp_path / "b.jsonl"))
    assert notes.said == []


def test_features_of_another_making_are_told(made: Heard, tmp_path: Path) -> None:
    folder = tmp_path / "npz"
    folder.mkdir()
    manifest = read_manifest(made.test)
    for vid in manifest.recordings:
        np.savez(folder / f"{vid}.npz", features=np.ones((12, 229), np.float32))
    heard.extract(tmp_path / "f.h5", made.audio, made.test, sides=("text",))
    import_npz(
        tmp_path / "f.h5", folder, None, "logmel", manifest, attrs={"encoder_version": 7, "sample_rate": 8000}
    )
    notes = Notes()
    run(made, tmp_path / "p.jsonl", notes, features=tmp_path / "f.h5")
    assert len(notes.said) == 1
    assert "encoder_version 7, trained with 1" in notes.said[0]
    assert "sample_rate 8000, trained with 16000" in notes.said[0]


def test_provenance_of_predictions(made: Heard, tmp_path: Path) -> None:
    run(made, tmp_path / "p.jsonl")
    meta = read_predictions(tmp_path / "p.jsonl").meta
    assert [Path(c["path"]) for c in meta["checkpoints"]] == [made.checkpoint]
    assert meta["checkpoints"][0]["trained_on"][0]["path"] == str(made.train)
    assert (meta["audio_encoders"], meta["text_encoders"]) == (["logmel"], ["words"])
    assert meta["datasets"] == ["data/train.jsonl"]
    assert meta["operation"] == "predict"


def test_saliency_proposals_are_those_of_the_saved_curve(made: Heard, tmp_path: Path) -> None:
    """Also where the curve was put together from chunks; by the recipe, by the option, or not at all."""
    cut = "train.max_frames=7"
    raw = run(made, tmp_path / "raw.jsonl", saliency=True, sets=(cut, "inference.keep=8"))
    low = "inference.saliency_proposals={threshold: 0.95, keep: 2}"
    asked = run(made, tmp_path / "asked.jsonl", sets=(cut, low, "inference.keep=8"))
    for before, after in zip(raw, asked, strict=True):
        assert before.saliency is not None
        assert after.saliency is None
        more = proposals(before.saliency, 12.0, threshold=0.95, keep=2)
        assert len(more) > 0
        both = np.concatenate([before.windows, more])
        np.testing.assert_allclose(after.windows, both[np.argsort(-both[:, 2], kind="stable")][:8], atol=1e-4)
    off = run(made, tmp_path / "off.jsonl", sets=(cut, low, "inference.saliency_proposals=null"))
    assert same(off, run(made, tmp_path / "plain.jsonl", sets=(cut,)))
    option = run(made, tmp_path / "option.jsonl", sets=(cut, low), saliency_proposals=0.5)
    assert not same(option, asked)
    meta = read_predictions(tmp_path / "option.jsonl").meta
    assert meta["saliency_proposals"] == {"threshold": 0.5, "keep": 2}


def test_without_a_saliency_head_there_are_no_proposals(made: Heard, tmp_path: Path) -> None:
    sets = ("losses.saliency=null", "model.auxiliary=[]", "model.heads=[foreground, span]")
    other = heard.train(made, tmp_path / "run", *(part for item in sets for part in ("--set", item)))
    with pytest.raises(RecipeError, match="needs the head 'saliency'"):
        run(made, tmp_path / "p.jsonl", checkpoints=(other,), saliency_proposals=0.5)
    assert not (tmp_path / "p.jsonl").exists()

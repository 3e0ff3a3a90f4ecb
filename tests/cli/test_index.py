"""`amrctl index` and `amrctl search --index` through the real command."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from amrctl.archive.store import read
from amrctl.data.framing import windows
from amrctl.encoders.base import load_audio_encoder, load_text_encoder
from tests.archive.pair import TONES, detector, pair, write
from tests.conftest import Cli
from tests.encoders.test_laion_clap import model
from tests.encoders.test_laion_clap import write as write_laion

assert pair  # a fixture


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector(tmp_path_factory.mktemp("detector") / "d.safetensors")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for i, word in enumerate(TONES):
        write(tmp_path / "sounds" / f"{word}.wav", word, 8 + i, seed=i)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_index_then_search(cli: Cli, here: Path, pair: str, checkpoint: Path) -> None:
    command = ("index", "sounds", "--audio-encoder", pair, "--window", 4, "--features-for", checkpoint)
    done = cli(*command, "--out", "a.index", "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert (made["added"], made["recordings"], made["windows"], made["fresh"]) == (3, 3, 14, True)
    assert (made["window"], made["hop"], made["features"], made["nearest"]) == (4, 2, ["logmel"], False)
    again = cli("index", "sounds", "--out", "a.index")
    assert again.code == 0
    assert "a.index is up to date; nothing to do" in again.err

    ask = ("search", "--index", "a.index", "--checkpoint", checkpoint, "--device", "cpu")
    done = cli(*ask, "sounds/low.wav", "a high tone", "--json")  # the first is a sentence like any other
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [query["query"] for query in found["queries"]] == ["sounds/low.wav", "a high tone"]
    assert found["queries"][1]["recordings"][0]["file"] == "high.wav"
    assert found["encoders"] == {"audio": ["logmel"], "text": ["words"]}
    assert found["skipped"] == {}
    for query in found["queries"]:
        assert 0 < len(query["moments"]) <= 10
        for moment in query["moments"]:
            assert set(moment) == {"file", "start", "end", "score", "moment_score", "recording_score"}
            assert 0 <= moment["start"] < moment["end"]
            assert 0 <= moment["score"] <= moment["moment_score"] <= 1

    shown = cli(*ask, "a high tone")
    assert shown.out.splitlines()[0].startswith("a.index: 3 recordings, 0.0 h (exact)")
    assert "high.wav" in shown.out
    rows = list(csv.DictReader(io.StringIO(cli(*ask, "a high tone", 'rain, or "so"', "--csv").out)))
    assert list(rows[0]) == ["query", "rank", "file", "start", "end", "score"]
    assert {row["query"] for row in rows} == {"a high tone", 'rain, or "so"'}
    moments = found["queries"][1]["moments"]
    assert [row["file"] for row in rows[: len(moments)]] == [moment["file"] for moment in moments]
    alone = cli("search", "sounds/low.wav", "a tone", "--checkpoint", checkpoint, "--csv", "--device", "cpu")
    assert [row["rank"] for row in csv.DictReader(io.StringIO(alone.out))] == ["1", "2", "3"]


def test_unreadable_files_change_the_exit_code(cli: Cli, here: Path, pair: str) -> None:
    (here / "sounds/broken.ogg").write_text("no sound")
    done = cli("index", "sounds", "--audio-encoder", pair, "--out", "a.index")
    assert done.code == 1
    assert "cannot be heard: broken.ogg: not a readable sound file" in done.err
    assert "Traceback" not in done.err
    assert len(json.loads((here / "a.index/index.json").read_text())["recordings"]) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["index", "sounds", "--audio-encoder", "logmel", "--out", "a"], "logmel shares no space with sent"),
        (["index", "sounds", "--out", "a"], "--audio-encoder is missing"),
        (["index", "none", "--audio-encoder", "logmel", "--out", "a"], "none is not a folder"),
        (["index", "sounds", "--out", "a", "--detector-encoder", "logmel"], "needs one --features-for"),
        (["search", "--index", "a", "rain", "--checkpoint", "c"], "archive a does not exist"),
        (["search", "--index", "sounds", "rain", "--checkpoint", "c"], "sounds is no archive"),
        (["search", "a.wav", "rain", "--checkpoint", "c", "--csv", "--json"], "choose one"),
        (["search", "--index", "a", "rain", "--checkpoint", "c", "--saliency"], "--saliency shows the curve"),
    ],
)
def test_mistakes(cli: Cli, here: Path, words: list[str], says: str) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert done.err.count("\n") == 1
    assert not (here / "a").exists()


def test_a_real_network(
    cli: Cli, here: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A narrow LAION-CLAP with random weights, whose two sides share a space."""
    pytest.importorskip("transformers")
    weights = write_laion(tmp_path_factory.mktemp("clap") / "hub", model())
    command = ("index", "sounds", "--audio-encoder", f"laion-clap:{weights}", "--features-for", checkpoint)
    assert cli(*command, "--out", "one", "-q").code == 0
    ask = ("search", "--index", "one", "--checkpoint", checkpoint, "--device", "cpu", "dog", "--json")
    found = json.loads(cli(*ask).out)
    hits = found["queries"][0]["recordings"]
    assert len(hits) == 3
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)

    archive = read(here / "one")
    reader = load_text_encoder(f"laion-clap:{weights}")
    hearer = load_audio_encoder(f"laion-clap:{weights}", window=10.0, hop=5.0)
    sentence = reader.encode(["dog"])[0].pooled
    assert sentence is not None
    for hit in hits:  # a cosine, worked out again from the sound
        first = next(windows(here / "sounds" / hit["file"], hearer))
        row = hearer.encode(first).astype(np.float64)
        cosine = row @ sentence / np.linalg.norm(row, axis=1) / np.linalg.norm(sentence)
        assert hit["score"] == pytest.approx(cosine.max(), abs=2e-3)
    assert archive.encoder.space.startswith("laion-clap:")

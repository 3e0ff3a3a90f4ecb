"""`amrctl rerank` through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from amrctl.data.manifest import write_manifest
from amrctl.data.predictions import Prediction, read_predictions, write_predictions
from amrctl.spans import temporal_iou
from tests.conftest import Cli
from tests.rerank.test_similarity import world


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """`w.h5`, `train.jsonl`, and predictions `p.jsonl` whose right window is never first."""
    _, manifest = world(tmp_path)
    write_manifest(tmp_path / "train.jsonl", manifest.queries[:60])
    items = []
    for query in manifest.queries[60:]:
        ((start, end),) = query.windows or ()
        rows = [[0, 30, 0.60], [max(start - 9, 0), end + 1, 0.58], [start, end, 0.55], [end, end + 3, 0.5]]
        items.append(Prediction(query.qid, query.query, query.vid, 30.0, np.array(rows)))
    write_predictions(tmp_path / "p.jsonl", items, {"datasets": ["made"]})
    return tmp_path


def test_rerank_improves_moves_no_boundary_and_is_free_again(cli: Cli, made: Path) -> None:
    command = ["rerank", made / "p.jsonl", "--verifier", "similarity", "--features", made / "w.h5"]
    command += ["--train", made / "train.jsonl", "--beta", "0.35", "--cache", made / "cache", "--json"]
    done = cli(*command, "--out", made / "r.jsonl")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["asked"], told["remembered"], told["kind"]) == (80, 0, "ridge")
    before, after = read_predictions(made / "p.jsonl"), read_predictions(made / "r.jsonl")
    right = 0
    for a, b in zip(before, after, strict=True):
        assert sorted(map(tuple, a.windows[:, :2].tolist())) == sorted(map(tuple, b.windows[:, :2].tolist()))
        assert (np.diff(b.windows[:, 2]) <= 0).all()
        right += temporal_iou(a.windows[2, :2], b.windows[0, :2])[0, 0] == 1
    assert right >= 18
    assert after.meta["verifier"] == "similarity (ridge, beta 0.35, top 10)"
    assert after.meta["datasets"] == ["made"]
    again = cli(*command, "--out", made / "s.jsonl")
    assert json.loads(again.out)["asked"] == 0
    assert (made / "s.jsonl").read_bytes() == (made / "r.jsonl").read_bytes()


def test_beta_zero_gives_the_same_bytes(cli: Cli, made: Path) -> None:
    command = ["rerank", made / "p.jsonl", "--features", made / "w.h5", "--train", made / "train.jsonl"]
    done = cli(*command, "--beta", 0, "--cache", made / "cache", "--out", made / "r.jsonl")
    assert done.code == 0, done.err
    assert (made / "r.jsonl").read_bytes() == (made / "p.jsonl").read_bytes()
    assert not (made / "cache").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--verifier", "similarty"], "did you mean 'similarity'?"),
        (["--beta", "2"], "--beta 2"),
        ([], "--train MANIFEST"),
        (["--features", "none.h5"], "none.h5 does not exist"),
        (["--audio-stream", "z"], "no audio stream 'z'"),
    ],
)
def test_mistakes_write_nothing(cli: Cli, made: Path, options: list[str], words: str) -> None:
    done = cli("rerank", made / "p.jsonl", "--features", made / "w.h5", *options, "--out", made / "r.jsonl")
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1
    assert not (made / "r.jsonl").exists()


AUDIO = ["--audio", "."]
HTTP = ["--verifier", "http", *AUDIO, "--model", "m", "--endpoint"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--verifier similarity needs --features"),
        (["--verifier", "qwen2.5-omni"], "--verifier qwen2.5-omni needs --audio"),
        (["--verifier", "qwen2.5-omni:"], "write it as qwen2.5-omni:FOLDER"),
        (["--verifier", "http:x"], "write it as http"),
        (["--verifier", "http", *AUDIO], "--verifier http needs --endpoint and --model"),
        (["--verifier", "qwen2.5-omni", "--endpoint", "x"], "does not go with --endpoint; leave it out"),
        (["--features", "f", "--precision", "bf16"], "does not go with --precision; leave it out"),
        ([*HTTP, "http://127.0.0.1:9"], "no audio for recording v30"),
        ([*HTTP, "http://127.0.0.1:9", "--api-key-env", "NOT_THERE"], "no such environment variable"),
        ([*HTTP, "http://127.0.0.1:9", "--beta-grid", "0.1,2", "--val", "v"], "0.1,2: 2 is not in 0..1"),
        ([*HTTP, "http://127.0.0.1:9", "--beta-grid", "0.1"], "--beta-grid needs --val"),
        ([*HTTP, "http://127.0.0.1:9", "--val", "v"], "--val goes with --beta-grid"),
    ],
)
def test_options_that_do_not_go_together(cli: Cli, made: Path, options: list[str], words: str) -> None:
    (made / "audio").mkdir()
    options = [str(made / "audio") if option == "." else option for option in options]
    if "NOT_THERE" in options:
        for query in read_predictions(made / "p.jsonl"):
            (made / "audio" / f"{query.vid}.wav").touch()
    done = cli("rerank", made / "p.jsonl", *options, "--out", made / "r.jsonl")
    assert (done.code, words in done.err) == (2, True), done.err
    assert done.err.count("\n") == 1
    assert not (made / "r.jsonl").exists()


def test_the_list_names_every_verifier_and_what_it_needs(cli: Cli) -> None:
    done = cli("rerank", "--list")
    assert (done.code, done.err) == (0, "")
    cards = {card["name"]: card for card in json.loads(cli("rerank", "--list", "--json").out)}
    assert set(cards) == {"similarity", "qwen2.5-omni", "http"}
    assert all(name in done.out for name in cards)
    assert cards["qwen2.5-omni"]["needs"] == ["transformers"]
    assert cards["qwen2.5-omni"]["weights"] in done.out
    assert cli("rerank").code == 2


def test_existing_output_is_refused(cli: Cli, made: Path) -> None:
    (made / "r.jsonl").write_text("mine")
    done = cli("rerank", made / "p.jsonl", "--features", made / "w.h5", "--out", made / "r.jsonl")
    assert done.code == 2
    assert "--overwrite" in done.err
    assert (made / "r.jsonl").read_text() == "mine"

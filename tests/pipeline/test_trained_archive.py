"""A dual encoder trained here, a detector on its features, an archive of its vectors: one chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Cli
from tests.pipeline.heard import RECIPE
from tests.retrieval.small import SETS, make


@pytest.fixture
def chain(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`dual` and `detector`, run folders; `f.h5`; `sounds/audio`, three seconds a recording."""
    monkeypatch.chdir(tmp_path)
    sounds = make(Path("sounds"), clips=2, held_out=1)
    for name, source in (("m", sounds.train), ("v", sounds.val)):
        lines = [json.loads(line) for line in source.read_text().splitlines()]
        Path(f"{name}.jsonl").write_text(
            "".join(
                json.dumps(
                    {"qid": f"{name}{i}", "query": line["caption"], "vid": line["vid"], "duration": 2.5,
                     "relevant_windows": [[0, 2]]}
                ) + "\n"
                for i, line in enumerate(lines)
            )
        )  # fmt: skip
    Path("little.yaml").write_text(RECIPE)
    sets = [word for item in (*SETS, "train.epochs=1") for word in ("--set", item)]
    common = ("--device", "cpu", "--precision", "fp32", "-q")
    for words in (
        ("finetune", "--recipe", "retrieval-small", "--train", sounds.train, "--val", sounds.val, *sets,
         "--audio", sounds.audio, "--out", "dual", *common),
        ("extract-tef", "--manifest", "m.jsonl", "v.jsonl", "--audio", sounds.audio, "--audio-encoder",
         "amrctl:dual", "--text-encoder", "amrctl:dual", "--out", "f.h5", "-q"),
        ("finetune", "--recipe", "little.yaml", "--train", "m.jsonl", "--val", "v.jsonl",
         "--features", "f.h5", "--out", "detector", *common),
    ):  # fmt: skip
        told = cli(*words)
        assert told.code == 0, told.err
    return tmp_path


def test_the_checkpoint_leads_to_the_encoder_that_was_trained_here(chain: Path, cli: Cli) -> None:
    ask = ("--checkpoint", "detector", "--device", "cpu", "--json")
    sound = "sounds/audio/bell, no. 0 (x).wav"
    alone = cli("search", sound, "a bell rings", *ask, "--round", 0)
    assert alone.code == 0, alone.err
    assert json.loads(alone.out)["encoders"] == {
        side: ["amrctl:dual/best.safetensors"] for side in ("audio", "text")
    }

    index = ("index", "sounds/audio", "--audio-encoder", "amrctl:dual", "--features-for", "detector")
    told = cli(*index, "--out", "a.index")
    assert told.code == 2
    assert (
        told.err == "amrctl: --window 10: dual/best.safetensors hears at most 2 s; give --window 2 or less\n"
    )
    for name in ("plain.index", "a.index"):
        words = index if name == "a.index" else index[:4]
        told = cli(*words, "--window", 2, "--out", name)
        assert told.code == 0, told.err
    many = ("--round", 0, "--top", 99, "--recordings", 24)
    answers = [
        cli("search", "--index", name, "a bell rings", *ask, *many) for name in ("plain.index", "a.index")
    ]
    assert [answer.code for answer in answers] == [0, 0], answers[0].err
    heard, kept = (json.loads(answer.out)["queries"] for answer in answers)
    assert heard == kept  # the sound and the archive give the detector the same rows
    of_file = [
        (m["start"], m["end"], m["moment_score"]) for m in kept[0]["moments"] if sound.endswith(m["file"])
    ]
    found = [(m["start"], m["end"], m["score"]) for m in json.loads(alone.out)["queries"][0]["moments"]]
    np.testing.assert_allclose(of_file[: len(found)], found, atol=2e-4)


def test_weights_that_were_moved_are_asked_for_by_the_option_that_names_them(chain: Path, cli: Cli) -> None:
    index = ("index", "sounds/audio", "--window", 2, "--features-for", "detector", "--out", "a.index")
    assert cli(*index, "--audio-encoder", "amrctl:dual").code == 0
    shutil.move("dual", "elsewhere")
    search = ("search", "--index", "a.index", "bell", "--checkpoint", "detector", "--device", "cpu")
    named = ("--index-encoder", "amrctl:elsewhere")
    for words, says in (
        (
            ("search", "sounds/audio/bell, no. 0 (x).wav", "bell", "--checkpoint", "detector"),
            "with --text-encoder",
        ),
        (search, "with --index-encoder, as amrctl:WEIGHTS"),
        ((*search, *named), "with --text-encoder, as amrctl:WEIGHTS"),
        (("index", "sounds/audio", "--out", "a.index"), "with --audio-encoder, as amrctl:WEIGHTS"),
        ((*index, "--audio-encoder", "amrctl:elsewhere"), "with --features-for and --detector-encoder"),
    ):
        told = cli(*words)
        assert told.code == 2
        assert says in told.err
        assert told.err.count("\n") == 1
    # the archive keeps the detector's rows, so that its audio encoder is not needed
    assert cli(*search, *named, "--text-encoder", "amrctl:elsewhere").code == 0
    elsewhere = ("--audio-encoder", "amrctl:elsewhere", "--text-encoder", "amrctl:elsewhere")
    told = cli(*index, *elsewhere, "--detector-encoder", "amrctl:elsewhere", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["added"] == 0
    told = cli("index", "sounds/audio", "--out", "a.index")
    assert told.code == 0, told.err
    assert cli(*search, "--text-encoder", "amrctl:elsewhere").code == 0

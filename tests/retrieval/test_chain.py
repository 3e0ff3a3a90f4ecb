"""A dual encoder through the real command, end to end, and its resuming to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from amrctl.data.caption_lists import read_list, read_set
from amrctl.data.pairs import PairSet
from amrctl.data.score_matrix import read_scores
from amrctl.encoders.dual.load import load_dual
from amrctl.encoders.dual.model import audio_tower
from amrctl.errors import AmrctlError
from amrctl.recipe import RetrievalRecipe, load_any
from amrctl.training import loop
from tests.conftest import Cli
from tests.retrieval.small import SETS, Sounds, make


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Sounds:
    return make(tmp_path_factory.mktemp("sounds"))


def training(sounds: Sounds, out: Path, *sets: str) -> list[object]:
    words = [word for item in (*SETS, *sets) for word in ("--set", item)]
    return [
        "finetune", "--recipe", "retrieval-small", "--train", sounds.train, "--val", sounds.val,
        "--audio", sounds.audio, *words, "--device", "cpu", "--precision", "fp32", "--out", out,
    ]  # fmt: skip


def test_from_captions_to_challenge_file(sounds: Sounds, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    told = cli(*training(sounds, run, "train.epochs=7"), "--json")
    assert told.code == 0, told.err
    assert "from scratch" in told.err
    assert set(json.loads(told.out)["best"]) == {"mAP@10", "R@1"}
    scores = tmp_path / "scores.h5"
    told = cli(
        "predict", "--checkpoint", run, "--audio", sounds.audio, "--test", sounds.test, "--out", scores
    )
    assert told.code == 0, told.err
    matrix = read_scores(scores)
    assert matrix.scores.shape == (24, 24)
    assert matrix.meta["checkpoints"][0]["trained_on"][0]["path"] == str(sounds.train)

    kinds: dict[str, list[str]] = {}
    for query, vid in zip(matrix.queries, matrix.written_for, strict=True):
        kinds.setdefault(query, []).append(vid)
    extra = tmp_path / "extra.jsonl"
    extra.write_text("".join(json.dumps({"query": q, "relevant": v}) + "\n" for q, v in kinds.items()))
    told = cli("evaluate", scores, "--relevant", extra, "--json")
    assert told.code == 0, told.err
    for labels in json.loads(told.out)["sets"]:
        for metric in ("mAP@10", "R@1"):
            assert labels["metrics"][metric] >= 3 * labels["guessing"][metric], labels

    # the score is the cosine of what the encoder says of sound and sentence alone
    dual = load_dual(run)
    heard, rate = soundfile.read(sounds.audio / matrix.files[3], dtype="float32")
    assert rate == dual.sample_rate
    by_hand = dual.embed_text([matrix.queries[5]])[0] @ dual.embed_audio(heard)
    assert matrix.scores[5, 3] == pytest.approx(by_hand, abs=1e-5)

    blind = tmp_path / "blind.jsonl"
    blind.write_text(json.dumps({"caption": "a bell rings"}) + "\n")
    out = tmp_path / "blind.h5"
    assert (
        cli("predict", "--checkpoint", run, "--audio", sounds.audio, "--test", blind, "--out", out).code == 0
    )
    assert len(read_scores(out).files) == len(list(sounds.audio.iterdir()))
    told = cli("evaluate", out)
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "give --relevant FILE" in told.err
    told = cli("submit", out, "--task", "dcase2025", "--label", "Doe_X_task6_1", "--out", tmp_path / "sub")
    assert told.code == 0, told.err


def test_features_of_a_trained_encoder(sounds: Sounds, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    assert cli(*training(sounds, run, "train.epochs=1")).code == 0
    vid = read_list(sounds.test)[0].names[0]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"qid": 1, "query": "a dog barks", "vid": vid, "duration": 2.5}) + "\n")
    features = tmp_path / "f.h5"
    name = f"amrctl:{run}"
    told = cli(
        "extract-tef", "--manifest", manifest, "--audio", sounds.audio, "--audio-encoder", name,
        "--text-encoder", name, "--dtype", "float32", "--out", features,
    )  # fmt: skip
    assert told.code == 0, told.err
    dual = load_dual(run)
    spaces: list[Any] = []

    def look(where: str, node: Any) -> None:
        if "space" in node.attrs:
            spaces.append((node.attrs["space"], node.attrs["checkpoint_sha256"]))

    with h5py.File(str(features), "r") as file:
        file.visititems(look)
    assert spaces == [(dual.space, dual.sha256)] * 2
    told = cli("inspect", run / "best.safetensors")
    assert told.code == 0, told.err
    assert "retrieval-small" in told.out


def test_a_run_that_was_cut_off_ends_with_the_same_bits(
    sounds: Sounds, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ("train.epochs=3", "train.ema={decay: 0.9}", "model.audio.masking={}", "model.audio.dropout=0.2")
    assert cli(*training(sounds, tmp_path / "whole", *sets)).code == 0
    original, left = loop._Run._step, 6 + 3  # of 6 steps an epoch: in the middle of the second

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(loop._Run, "_step", dying)
    assert cli(*training(sounds, tmp_path / "cut", *sets)).code == 130
    monkeypatch.setattr(loop._Run, "_step", original)
    told = cli(*training(sounds, tmp_path / "cut", *sets))
    assert told.code == 0, told.err
    assert "goes on after epoch 1" in told.err
    for name in ("last", "best", "best.R@1"):
        one, two = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "cut"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_spectra_in_memory_and_streamed_are_the_same(sounds: Sounds) -> None:
    recipe = load_any("retrieval-small", "finetune", [*SETS, "train.max_seconds=1"])
    assert isinstance(recipe, RetrievalRecipe)
    captions = read_set([sounds.val], [sounds.audio])
    tower = audio_tower(recipe.model)
    held = PairSet(captions, tower, recipe.train)
    assert held.spectra.in_memory
    settings = recipe.train.model_copy(update={"memory_gb": 0.0, "workers": 1})
    streamed = PairSet(captions, tower, settings)
    assert not streamed.spectra.in_memory
    torch.manual_seed(5)
    for one, two in zip(held.epoch(3, 1), streamed.epoch(3, 1), strict=True):
        assert one.counts == two.counts == (1,) * len(one)
        assert one.sentences == two.sentences
        torch.testing.assert_close(one.spectra, two.spectra, rtol=0, atol=1e-5)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))  # reading draws nothing from the training's random numbers


def test_annotations_of_other_data_sets_and_exclusion(tmp_path: Path, sounds: Sounds) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    source = next(sounds.audio.iterdir())
    for name in ("VCR,rewind,opendoor", "YabcdefghijK_30", "12345", "odd.name (2)"):
        shutil.copy(source, audio / f"{name}.wav")
    clotho, caps, wav = tmp_path / "clotho.csv", tmp_path / "caps.csv", tmp_path / "wav.json"
    clotho.write_text(
        'file_name,caption_1,caption_2\n"VCR,rewind,opendoor.wav",one,two\nodd.name (2).wav,x,y\n'
    )
    caps.write_text("audiocap_id,youtube_id,start_time,caption\n7,abcdefghijK,30,a car\n")
    wav.write_text(json.dumps({"data": [{"id": "12345", "caption": "a bird"}]}))
    found = read_set([clotho, caps, wav], [audio], excluded=["12345"])
    assert {(p.vid, p.caption) for p in found.pairs} == {
        ("VCR,rewind,opendoor", "one"), ("VCR,rewind,opendoor", "two"), ("odd.name (2)", "x"),
        ("odd.name (2)", "y"), ("YabcdefghijK_30", "a car"),
    }  # fmt: skip
    assert "1 of 6 captions" in found.notes[0]
    (audio / "odd.name (2).wav").unlink()
    with pytest.raises(AmrctlError, match=r"clotho.csv:3: no audio for recording odd.name \(2\)"):
        read_set([clotho], [audio])
    assert len(read_set([clotho], [audio], skip_bad=True).pairs) == 2


def test_a_network_that_begins_with_random_weights_is_told(sounds: Sounds, tmp_path: Path, cli: Cli) -> None:
    """JKU's recipe without its weights: what is frozen would stay random for ever."""
    words = training(sounds, tmp_path / "run")
    words[2] = "jku-passt-roberta"
    sets = [word for word in words if word != "--set" and "=" not in str(word)]
    told = cli(*sets, "--set", f"model.text.checkpoint={tmp_path / 'none'}")
    assert told.code == 2
    assert (
        "passt begins with random weights, what of it is frozen too; name trained ones with --set" in told.err
    )
    assert "write --set model.text.checkpoint=FOLDER" in told.err.splitlines()[-1]
    assert "random" not in cli(*training(sounds, tmp_path / "small", "train.epochs=1")).err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("finetune", "--recipe", "retrieval-small", "--features", "f.h5"), "leave --features out"),
        (("finetune", "--recipe", "retrieval-small"), "--audio DIR is missing"),
        (("pretrain", "--recipe", "qd-detr", "--audio", "."), "leave --audio out"),
        (("pretrain", "--recipe", "qd-detr"), "--features F.h5 is missing"),
        (("finetune", "--recipe", "retrieval-small", "--audio", ".", "--set", "train.metrics=[mAP]"), "mAP"),
    ],
)
def test_wrong_combinations_are_one_clear_line(
    sounds: Sounds, tmp_path: Path, cli: Cli, words: tuple[str, ...], told: str
) -> None:
    found = cli(*words, "--train", sounds.train, "--val", sounds.val, "--out", tmp_path / "run")
    lines = [line for line in found.err.splitlines() if "from scratch" not in line]
    assert (found.code, len(lines)) == (2, 1)
    assert told in lines[0]
    assert not (tmp_path / "run").exists()

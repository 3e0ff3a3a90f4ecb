"""The whole chain through the real command, from nothing to challenge files, on recordings of seconds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from amrctl.cli.app import main
from amrctl.data.features import FeatureFile
from amrctl.data.manifest import Manifest, read_manifest
from amrctl.data.predictions import Predictions, read_predictions
from amrctl.model.checkpoint import read_metadata
from amrctl.submission.form import COLUMNS

LABEL = "Chain_Test_task6_1"
SETS = ("model.hidden_dim=32", "model.decoder.queries=6", "train.epochs=2", "train.batch=8")


@dataclass(frozen=True)
class Chain:
    """Where the chain ran, and what each of its commands printed."""

    at: Path
    told: dict[str, str]
    notes: dict[str, str]

    def json(self, step: str) -> Any:
        return json.loads(self.told[step])

    def manifest(self, split: str) -> Manifest:
        return read_manifest(self.at / f"data/{split}.jsonl")

    def predictions(self, name: str) -> Predictions:
        return read_predictions(self.at / f"{name}.jsonl")


def steps() -> dict[str, str]:
    """Name → command, in order; all paths are relative, no word holds a blank."""
    train = "--train data/train.jsonl --val data/val.jsonl --device cpu --precision fp32 " + " ".join(
        f"--set {key}" for key in SETS
    )
    target = f"{train} --features f.h5"
    predict = "predict --features f.h5 --device cpu"
    test = f"{predict} --test data/test.jsonl --round 0"
    evaluate = "evaluate --test data/test.jsonl"
    return {
        "synth": "synth --events builtin --clips-per-kind 3 --recordings 12 --length 14-17 --snap "
        "--events-per-recording 3 --max-event 3 --splits train=0.5,val=0.25,test=0.25 --seed 3 --workers 1 "
        "--out data",
        "extract": "extract-tef --manifest data/train.jsonl data/val.jsonl data/test.jsonl "
        "--audio data/audio --audio-encoder logmel --text-encoder words --workers 1 --out f.h5",
        "pretrain": f"pretrain --recipe qd-detr {target} --out pre",
        "finetune": f"finetune --recipe qd-detr {target} --init pre --seeds 0-1 --out runs",
        "soup": "soup runs --uniform --out soup.safetensors",
        "teach": f"{predict} --checkpoint runs/seed-0 --test data/train.jsonl --round 0 --out teacher.jsonl",
        "distill": f"distill --teacher teacher.jsonl --init soup.safetensors {target} --out student",
        "a": f"{test} --checkpoint student/best.safetensors --saliency --out a.jsonl",
        "b": f"{test} --checkpoint runs/seed-0 runs/seed-1 --saliency --out b.jsonl",
        "seconds": f"{predict} --test data/test.jsonl --checkpoint student --out seconds.jsonl",
        "wbf": "fuse a.jsonl b.jsonl --wbf --weights 0.7,0.3 --out wbf.jsonl",
        "pool": "fuse a.jsonl b.jsonl --pool --keep 12 --out pool.jsonl",
        "rerank": "rerank wbf.jsonl --features f.h5 --train data/train.jsonl --beta 0.4 --top-k 5 "
        "--cache cache --out rr.jsonl",
        "again": "rerank wbf.jsonl --features f.h5 --train data/train.jsonl --beta 0.4 --top-k 5 "
        "--cache cache --out rr2.jsonl",
        "evaluate": f"{evaluate} rr.jsonl --against a.jsonl b.jsonl --resamples 200 --out metrics.json",
        "submit": f"submit seconds.jsonl rr.jsonl --queries data/test.jsonl --label {LABEL} --out sub",
        "check": "submit --check sub/Chain_Test_task6.zip --queries data/test.jsonl",
        "official": "convert soup.safetensors --out soup.ckpt",
        "ours": "convert soup.ckpt --out back.safetensors",
        "from-official": f"{test} --checkpoint soup.ckpt --out c.jsonl",
        "from-ours": f"{test} --checkpoint back.safetensors --out d.jsonl",
        "on-official": f"finetune --recipe qd-detr {target} --init soup.ckpt --out on-official",
        "on-ours": f"finetune --recipe qd-detr {target} --init back.safetensors --out on-ours",
    }


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    at = tmp_path_factory.mktemp("chain")
    told, notes = {}, {}
    with contextlib.chdir(at):
        for name, command in steps().items():
            out, err = io.StringIO(), io.StringIO()
            words = ["amrctl", *command.split(), "--json"]
            code: object = 0
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                mock.patch.object(sys, "argv", words),
            ):
                try:
                    main()
                except SystemExit as stop:
                    code = stop.code
            assert not code, (name, err.getvalue())
            told[name], notes[name] = out.getvalue(), err.getvalue()
    return Chain(at, told, notes)


def test_recordings_and_their_labels(chain: Chain) -> None:
    assert chain.json("synth")["recordings"] == {"train": 6, "val": 3, "test": 3}
    for split in ("train", "val", "test"):
        manifest = chain.manifest(split)
        assert len(manifest) == 3 * len(manifest.recordings)
        assert manifest.whole_seconds
        for vid, seconds in manifest.recordings.items():
            samples, rate = soundfile.read(chain.at / f"data/audio/{vid}.flac")
            assert len(samples) == seconds * rate


def test_features_of_everything(chain: Chain) -> None:
    told = chain.json("extract")
    with FeatureFile(chain.at / "f.h5") as file:
        queries = [query for split in ("train", "val", "test") for query in chain.manifest(split)]
        assert told["queries"] == len(queries) == 36
        assert set(file.ids("text", "words")) == {query.qid for query in queries}
        rows = file.load("audio", "logmel")
        assert rows.rows.shape == (told["frames"], 229)
        for query in queries:
            assert len(rows.get(query.vid)) == int(np.ceil(query.duration))


def test_training_goes_on_from_the_pretrained_weights(chain: Chain) -> None:
    pre = read_metadata(chain.at / "pre/best.safetensors")["provenance"]
    for seed in (0, 1):
        run = chain.at / f"runs/seed-{seed}"
        made = read_metadata(run / "best.safetensors")["provenance"]
        assert made["ancestry"][1:] == pre["ancestry"]
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert [entry["epoch"] for entry in log] == [1, 2]
        assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    student = read_metadata(chain.at / "student/best.safetensors")
    terms = {term["kind"] for term in student["recipe"]["losses"]}
    assert {"span", "giou", "label", "saliency", "teacher-span", "teacher-score"} == terms
    assert student["recipe"]["model"]["hidden_dim"] == 32
    assert [parent["path"] for parent in student["provenance"]["parents"]] == [
        "soup.safetensors",
        "teacher.jsonl",
    ]


def test_the_soup_is_the_mean(chain: Chain) -> None:
    soup = load_file(chain.at / "soup.safetensors")
    parts = [load_file(chain.at / f"runs/seed-{seed}/best.safetensors") for seed in (0, 1)]
    assert soup.keys() == parts[0].keys()
    for key, mean in soup.items():
        wanted = ((parts[0][key].double() + parts[1][key].double()) / 2).float()
        torch.testing.assert_close(mean, wanted, rtol=1e-6, atol=1e-8)
    assert any(not torch.equal(parts[0][key], parts[1][key]) for key in soup)


@pytest.mark.parametrize("name", ["a", "b", "seconds", "wbf", "pool", "rr", "c", "d"])
def test_every_query_is_answered_within_its_recording(chain: Chain, name: str) -> None:
    queries, found = chain.manifest("test"), chain.predictions(name)
    assert [item.qid for item in found] == [query.qid for query in queries]
    for query, item in zip(queries, found, strict=True):
        assert (item.vid, item.query, item.duration) == (query.vid, query.query, query.duration)
        start, end, score = item.windows.T
        assert len(start) >= 1
        assert (start >= 0).all()
        assert (start < end).all()
        assert (end <= query.duration).all()
        assert (np.diff(score) <= 0).all()
        if name == "seconds":
            assert np.array_equal(item.windows[:, :2], item.windows[:, :2].round())
    assert found.meta["datasets"]
    assert {c["recipe"] for c in found.meta["checkpoints"]} == {"qd-detr"}


def test_the_teacher_answered_the_training_set(chain: Chain) -> None:
    assert {item.qid for item in chain.predictions("teacher")} == set(chain.manifest("train").by_qid)


def test_several_checkpoints_are_one_pool(chain: Chain) -> None:
    hashes = [c["sha256"] for c in chain.predictions("b").meta["checkpoints"]]
    assert len(set(hashes)) == 2
    for item in chain.predictions("b"):
        assert len(item.windows) == 10  # of 2 x 6
        assert item.saliency is None
    assert "--saliency: curves of several checkpoints cannot be pooled" in chain.notes["b"]
    for item in chain.predictions("a"):
        assert item.saliency is not None
        assert len(item.saliency) == np.ceil(item.duration)


def test_fusion_holds_all_windows_or_means_of_them(chain: Chain) -> None:
    a, b = chain.predictions("a").by_qid, chain.predictions("b").by_qid
    for item in chain.predictions("pool"):
        every = np.concatenate([a[item.qid].windows, b[item.qid].windows])
        best = every[np.argsort(-every[:, 2], kind="stable")][:12]
        assert {tuple(row) for row in item.windows.tolist()} <= {tuple(row) for row in every.tolist()}
        np.testing.assert_array_equal(item.windows[:, 2], best[:, 2])
    for item in chain.predictions("wbf"):
        every = np.concatenate([a[item.qid].windows, b[item.qid].windows])
        assert item.windows[:, 0].min() >= every[:, 0].min() - 1e-9
        assert item.windows[:, 1].max() <= every[:, 1].max() + 1e-9
    assert chain.predictions("wbf").meta["fusion"]["weights"] == [0.7, 0.3]


def test_reranking_moves_no_boundary_and_asks_once(chain: Chain) -> None:
    before = chain.predictions("wbf").by_qid
    for item in chain.predictions("rr"):
        assert {tuple(w) for w in item.windows[:, :2].tolist()} == {
            tuple(w) for w in before[item.qid].windows[:, :2].tolist()
        }
    first, second = chain.json("rerank"), chain.json("again")
    assert first["asked"] == second["remembered"] > 0
    assert second["asked"] == 0
    assert (chain.at / "rr.jsonl").read_bytes() == (chain.at / "rr2.jsonl").read_bytes()
    assert chain.predictions("rr").meta["verifier"].startswith("similarity")


def test_the_numbers_are_those_of_a_plain_count(chain: Chain) -> None:
    told = chain.json("evaluate")
    assert json.loads((chain.at / "metrics.json").read_text())["brief"] == told["brief"]
    queries = chain.manifest("test")

    def recall(name: str, threshold: float) -> float:
        found, hits = chain.predictions(name).by_qid, 0
        for query in queries:
            start, end, _ = found[query.qid].windows[0].tolist()
            hits += any(
                min(end, b) - max(start, a) >= threshold * (max(end, b) - min(start, a))
                for a, b in query.windows or ()
            )
        return 100 * hits / len(queries)

    for threshold in (0.5, 0.7):
        ours, theirs = recall("rr", threshold), (recall("a", threshold) + recall("b", threshold)) / 2
        assert told["brief"][f"MR-full-R1@{threshold}"] == round(ours, 2)
        paired = told["against"]["metrics"][f"R1@{threshold}"]
        assert paired["mean"] == pytest.approx(ours)
        assert paired["against"] == pytest.approx(theirs)
        assert paired["difference"] == pytest.approx(ours - theirs)
        assert 0 <= paired["p"] <= 1
    assert told["trained_on_reference"] is False


def test_the_package_holds_what_was_predicted(chain: Chain) -> None:
    assert chain.json("check")["faults"] == []
    assert chain.json("check")["labels"] == chain.json("submit")["labels"] == [LABEL, LABEL[:-1] + "2"]
    with zipfile.ZipFile(chain.at / "sub/Chain_Test_task6.zip") as package:
        names = package.namelist()
        for number, name in ((1, "seconds"), (2, "rr")):
            one = f"Chain_Test_task6_{number}"
            inside = next(n for n in names if n.endswith(f"{one}.output.jsonl"))
            lines = [json.loads(line) for line in package.read(inside).decode().splitlines()]
            answers = chain.predictions(name)
            assert [line["qid"] for line in lines] == [item.qid for item in answers]
            for line, item in zip(lines, answers, strict=True):
                assert line["pred_relevant_windows"] == item.windows[:10, :2].tolist()
            table = (chain.at / f"sub/{one}.output.csv").read_text().splitlines()
            assert table[0] == ",".join(COLUMNS)
            assert len(table) == 1 + sum(min(len(item.windows), 10) for item in answers)
            assert "logmel" in (chain.at / f"sub/{one}.meta.yaml").read_text()


def test_there_and_back_again_keeps_every_bit(chain: Chain) -> None:
    left, right = load_file(chain.at / "soup.safetensors"), load_file(chain.at / "back.safetensors")
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key
    assert (chain.at / "c.jsonl").read_bytes() == (chain.at / "d.jsonl").read_bytes()
    left, right = (load_file(chain.at / f"{run}/best.safetensors") for run in ("on-official", "on-ours"))
    for key in left:  # trained on from either
        assert torch.equal(left[key], right[key]), key


def test_search_on_a_screen_that_knows_ascii_only(chain: Chain) -> None:
    """The real command in a process of its own: a sentence in no ASCII, an ASCII screen."""
    recording = next(iter(chain.manifest("test").recordings))
    command = ["search", f"data/audio/{recording}.flac", "une cloche – 鐘", "--checkpoint", "student"]
    done = subprocess.run(
        [sys.executable, "-m", "amrctl", *command, "--device", "cpu", "--top", "2", "--saliency"],
        cwd=chain.at,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode("ascii").splitlines()
    assert shown[0].startswith(f"data/audio/{recording}.flac: 0:1")
    moments = [line.split() for line in shown if line.split()[:1] in (["1"], ["2"])]
    assert len(moments) == 2
    for _, _, seconds, score, bar in moments:
        start, end = map(float, seconds.split("-"))
        assert 0 <= start < end <= 17
        assert 0 <= float(score) <= 1
        assert "#" in bar


KINDS = {
    "data/test.jsonl": "manifest",
    "f.h5": "features",
    "a.jsonl": "predictions",
    "a.jsonl.meta.json": "provenance of predictions",
    "soup.safetensors": "checkpoint",
    "student/best.safetensors": "checkpoint",
    "soup.ckpt": "PyTorch file",
    "student": "run folder",
    "runs": "folder of several seeds",
    "metrics.json": "metrics",
    "sub": "submission package",
    "sub/Chain_Test_task6.zip": "submission package",
}


def test_every_file_is_explained(chain: Chain) -> None:
    with contextlib.chdir(chain.at):
        for path, kind in KINDS.items():
            out = io.StringIO()
            with (
                contextlib.redirect_stdout(out),
                mock.patch.object(sys, "argv", ["amrctl", "inspect", path, "--json"]),
                contextlib.suppress(SystemExit),
            ):
                main()
            told = json.loads(out.getvalue())
            assert told["kind"] == kind, path
            assert told["facts"], path


def test_nothing_else_is_left(chain: Chain) -> None:
    left = [str(path.relative_to(chain.at)) for path in chain.at.rglob("*") if path.name.startswith(".")]
    assert left == []
    assert {path.name for path in chain.at.iterdir() if path.is_dir()} == {
        *("data", "pre", "on-official", "on-ours", "runs", "student", "cache", "sub")
    }

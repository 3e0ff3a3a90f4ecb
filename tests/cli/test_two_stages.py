"""Two pre-trainings, fine-tuning on two joined manifests, soups: the order of work of a published system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amrctl import provenance
from amrctl.data.manifest import read_manifest
from amrctl.model.checkpoint import read_metadata
from amrctl.run_folder import find_checkpoint
from tests.conftest import Cli, Result

SMALL = ("model.hidden_dim=32", "model.decoder.queries=6", "train.epochs=1", "train.batch=8")
RECIPE = (
    "train.shift=true",
    "train.schedule={kind: cosine, warmup: 0.05}",
    "train.optimizer={kind: periodic-asam, lr: 1.0e-3, every: 2}",
)


def test_the_chain_of_two_pretrainings(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(words: str) -> Result:
        result = cli(*words.split(), "--json")
        assert result.code == 0, (words, result.err)
        return result

    sets = [word for change in (*SMALL, *RECIPE) for word in ("--set", change)]

    def train(verb: str, train: str, val: str, more: str) -> Result:
        words = f"{verb} --recipe qd-detr --train {train} --val {val} --features f.h5 --device cpu {more}"
        result = cli(*words.split(), "--precision", "fp32", *sets)
        assert result.code == 0, (words, result.err)
        return result

    bank = "synth --events builtin --clips-per-kind 3 --max-event 3 --workers 1 --rate 16000 --out"
    run(f"{bank} pre --prefix pre --recordings 6 --length 14-17 --splits train=0.5,val=0.5")
    five = "--preset five-minute --recordings 4 --length 40 --splits train=0.75,val=0.25"
    told = run(f"{bank} mid --prefix mid {five}")
    assert json.loads(told.out)["recordings"] == {"train": 3, "val": 1}
    assert json.loads(told.out)["queries"] == {"train": 9, "val": 3}  # 2.877 and 2.828 a recording
    run(f"{bank} own --prefix own --recordings 8 --length 14-17 --splits train=0.5,val=0.25,test=0.25 --snap")
    folders = {"pre": ("train", "val"), "mid": ("train", "val"), "own": ("train", "val", "test")}
    for name, splits in folders.items():
        manifests = " ".join(f"{name}/{split}.jsonl" for split in splits)
        run(
            f"extract-tef --manifest {manifests} --audio {name}/audio --audio-encoder logmel "
            f"--text-encoder words --workers 1 --out {name}.h5"
        )
    for name in folders:
        Path("f.h5").unlink(missing_ok=True)
        Path("f.h5").symlink_to(f"{name}.h5")
        init, out = {"pre": ("", "one"), "mid": ("--init one", "two"), "own": ("--init two", "runs")}[name]
        if name == "own":
            train(
                "finetune",
                "own/train.jsonl own/test.jsonl",
                "own/val.jsonl",
                f"{init} --seeds 0-1 --out {out}",
            )
        else:
            train("pretrain", f"{name}/train.jsonl", f"{name}/val.jsonl", f"{init} --out {out}")

    made = read_metadata(Path("runs/seed-0/best.safetensors"))
    origin = made["provenance"]
    assert [provenance.short(e["path"]) for e in origin["trained_on"]] == [
        "own/train.jsonl", "own/test.jsonl", "mid/train.jsonl", "pre/train.jsonl",
    ]  # fmt: skip
    first, second = (provenance.sha256(find_checkpoint(run)) for run in ("one", "two"))
    assert origin["ancestry"][:2] == [second, first]
    assert made["recipe"]["train"]["shift"] is True
    run("soup runs --uniform --out uniform.safetensors")
    told = run(
        "soup runs --fisher --fisher-data own/val.jsonl --features own.h5 --device cpu --out c.safetensors"
    )
    assert json.loads(told.out)["fisher"]["queries"] == len(read_manifest("own/val.jsonl"))
    uniform, weighed = load_file("uniform.safetensors"), load_file("c.safetensors")
    assert any(not torch.equal(uniform[key], weighed[key]) for key in uniform)
    words = "soup runs --fisher --fisher-data own/test.jsonl --features own.h5 --out d.safetensors"
    refused = cli(*words.split())
    assert (refused.code, "was trained on own/test.jsonl" in refused.err) == (2, True)
    for split, caution in (("train", True), ("test", True), ("val", False)):
        test = f"--test own/{split}.jsonl"
        run(f"predict --checkpoint c.safetensors --features own.h5 {test} --out {split}.jsonl")
        result = cli(*f"evaluate {split}.jsonl {test} --resamples 100".split())
        assert result.code == 0
        assert ("CAUTION" in result.err) == caution, split

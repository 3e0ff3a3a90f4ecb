"""`pretrain` and `finetune` through the real command: results, resuming rules, every user's mistake."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from amrctl.model.checkpoint import read_metadata
from amrctl.training import loop, run
from tests.conftest import Cli
from tests.training.tiny import Tiny, make

FAST = ("--set", "train.epochs=2", "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"))


def inputs(tiny: Tiny, **changes: Path) -> list[object]:
    given = {"recipe": tiny.recipe, "train": tiny.train, "val": tiny.val, "features": tiny.features} | changes
    return [word for name, path in given.items() for word in (f"--{name}", path)]


def test_pretrain_then_finetune_several_seeds(tiny: Tiny, tmp_path: Path, cli: Cli) -> None:
    pre, runs = tmp_path / "pre", tmp_path / "runs"
    result = cli("pretrain", *inputs(tiny), "--out", pre, *FAST, "--json")
    assert (result.code, json.loads(result.out)["checkpoint"]) == (0, str(pre / "best.safetensors"))
    assert "from scratch" not in result.err
    parent = read_metadata(pre / "best.safetensors")
    assert parent["recipe"]["train"]["schedule"]["kind"] == "constant"  # the recipe's pretrain block

    result = cli("finetune", *inputs(tiny), "--init", pre, "--seeds", "0-1", "--out", runs, *FAST)
    assert result.code == 0, result.err
    assert "mean" in result.out
    assert "std" in result.out
    for seed in (0, 1):
        origin = read_metadata(runs / f"seed-{seed}" / "best.safetensors")["provenance"]
        assert origin["seed"] == seed
        assert origin["ancestry"][1:] == parent["provenance"]["ancestry"]
        assert origin["parents"][0]["sha256"] == origin["ancestry"][0]
        assert {"train", "val", "features"} == origin["inputs"].keys()
    left, right = (load_file(runs / f"seed-{seed}" / "last.safetensors") for seed in (0, 1))
    assert any(not torch.equal(left[key], right[key]) for key in left)

    # more seeds in the same folder: only the new one trains
    result = cli("finetune", *inputs(tiny), "--init", pre, "--seeds", "0-2", "--out", runs, *FAST, "--json")
    assert result.code == 0
    assert result.err.count("nothing to do") == 2
    summary = json.loads(result.out)
    assert [entry["seed"] for entry in summary["seeds"]] == [0, 1, 2]
    values = [entry["best"]["mAP"]["value"] for entry in summary["seeds"]]
    assert summary["summary"]["mAP"]["mean"] == pytest.approx(sum(values) / 3)
    assert json.loads((runs / "seeds.json").read_text())["done"] == [0, 1, 2]


def test_several_training_manifests_are_one(tiny: Tiny, tmp_path: Path, cli: Cli) -> None:
    lines = tiny.train.read_text().splitlines(keepends=True)
    parts = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    parts[0].write_text("".join(lines[:7]))
    parts[1].write_text("".join(lines[7:]))
    given = ("--recipe", tiny.recipe, "--val", tiny.val, "--features", tiny.features, *FAST)
    for name, words in (
        ("whole", ("--train", tiny.train)),
        ("row", ("--train", *parts)),
        ("repeated", ("--train", parts[0], "--train", parts[1])),
    ):
        result = cli("finetune", *words, *given, "--out", tmp_path / name)
        assert result.code == 0, result.err
    whole, row, repeated = (
        load_file(tmp_path / n / "last.safetensors") for n in ("whole", "row", "repeated")
    )
    assert all(torch.equal(whole[key], row[key]) for key in whole)
    assert all(torch.equal(whole[key], repeated[key]) for key in whole)
    seen = read_metadata(tmp_path / "row" / "best.safetensors")["provenance"]["trained_on"]
    assert [entry["path"] for entry in seen] == [str(part) for part in parts]
    twice = cli("finetune", "--train", tiny.train, parts[1], *given, "--out", tmp_path / "twice")
    assert twice.code == 2
    assert f"{parts[1]}:1: qid 7 is also at {tiny.train}:8; qids must differ over all files" in twice.err
    assert not (tmp_path / "twice").exists()


def test_the_seeds_share_what_was_read(
    tiny: Tiny, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    original = run.load

    def counted(*args: Any) -> run.Job:
        loads.append(1)
        return original(*args)

    monkeypatch.setattr(run, "load", counted)
    result = cli("finetune", *inputs(tiny), "--seeds", "0-2", "--out", tmp_path / "runs", *FAST)
    assert (result.code, len(loads)) == (0, 1)


def test_existing_out(tiny: Tiny, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    first = cli("finetune", *inputs(tiny), "--out", run, *FAST)
    assert first.code == 0
    assert "no --init: training from scratch" in first.err
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    again = cli("finetune", *inputs(tiny), "--out", run, *FAST)
    assert (again.code, "finished before (epoch 2); nothing to do" in again.err) == (0, True)
    other = cli("finetune", *inputs(tiny), "--out", run, *FAST, "--set", "train.batch=4", "--seed", "3")
    assert other.code == 2
    assert "recipe.train.batch: 5 there, 4 now; seed: 0 there, 3 now" in other.err
    swapped = cli("finetune", *inputs(tiny, val=tiny.train), "--out", run, *FAST)
    assert swapped.code == 2
    assert "val.0: content " in swapped.err
    several = cli("finetune", *inputs(tiny), "--out", run, *FAST, "--seeds", "0-1")
    assert (several.code, "holds a single run" in several.err) == (2, True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before

    (run / "mine.txt").write_text("kept")
    replaced = cli("finetune", *inputs(tiny), "--out", run, *FAST, "--seed", "3", "--overwrite")
    assert replaced.code == 0
    assert read_metadata(run / "last.safetensors")["provenance"]["seed"] == 3
    assert (run / "mine.txt").read_text() == "kept"
    (run / "state.pt").write_bytes(b"not a state")
    broken = cli("finetune", *inputs(tiny), "--out", run, *FAST, "--seed", "3")
    assert (broken.code, "state.pt cannot be read" in broken.err) == (2, True)


def test_a_folder_of_something_else_is_left_alone(tiny: Tiny, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = cli("finetune", *inputs(tiny), "--out", tmp_path, *FAST)
    assert result.code == 2
    assert "is not a run folder (it holds notes.txt)" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    result = cli("finetune", *inputs(tiny), "--out", tmp_path / "notes.txt", *FAST)
    assert (result.code, "is a file; --out needs a folder" in result.err) == (2, True)


def test_two_processes_do_not_share_a_folder(tiny: Tiny, tmp_path: Path, cli: Cli) -> None:
    fcntl = pytest.importorskip("fcntl")
    run = tmp_path / "run"
    run.mkdir()
    handle = os.open(run, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    result = cli("finetune", *inputs(tiny), "--out", run, *FAST)
    os.close(handle)
    assert (result.code, "another process is training in" in result.err) == (2, True)


def test_a_failed_seed_does_not_lose_the_others(
    tiny: Tiny, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop._Run._step

    def failing(self: loop._Run, batch: Any, where: str, watch: Any) -> Any:
        if self.seed == 1 and where.startswith("epoch 2"):
            raise loop.DivergedError(f"{where}: the loss term 'span' is nan")
        return original(self, batch, where, watch)

    monkeypatch.setattr(loop._Run, "_step", failing)
    runs = tmp_path / "runs"
    result = cli("finetune", *inputs(tiny), "--seeds", "0-2", "--out", runs, *FAST, "--json")
    assert result.code == 1
    assert "seed 1 failed: epoch 2, step 1: the loss term 'span' is nan" in result.err
    listed = json.loads((runs / "seeds.json").read_text())
    assert (listed["seeds"], listed["done"]) == ([0, 1, 2], [0, 2])
    assert [entry["seed"] for entry in listed["failed"]] == [1]
    assert [entry["seed"] for entry in json.loads(result.out)["seeds"]] == [0, 2]
    refused = cli("soup", runs, "--uniform", "--out", tmp_path / "soup.safetensors")
    assert (refused.code, "1 of 3 seeds failed" in refused.err) == (2, True)
    # the failed one goes on from its last commit
    monkeypatch.setattr(loop._Run, "_step", original)
    result = cli("finetune", *inputs(tiny), "--seeds", "0-2", "--out", runs, *FAST)
    assert result.code == 0
    assert "seed-1: goes on after epoch 1 of 2" in result.err
    assert json.loads((runs / "seeds.json").read_text())["failed"] == []


def test_mistakes_are_one_line_and_leave_nothing(tiny: Tiny, tmp_path: Path, cli: Cli) -> None:
    wide = make(tmp_path / "wide", audio_dim=7)
    run = tmp_path / "run"
    assert cli("finetune", *inputs(wide), "--out", tmp_path / "w", *FAST, "--set", "train.epochs=1").code == 0
    small = tmp_path / "small.yaml"
    small.write_text(tiny.recipe.read_text().replace("hidden_dim: 16", "hidden_dim: 24"))
    blind = tmp_path / "blind.jsonl"
    lines = [json.loads(line) for line in tiny.val.read_text().splitlines()]
    blind.write_text("".join(json.dumps({**entry, "relevant_windows": None}) + "\n" for entry in lines))
    init = tmp_path / "w" / "best.safetensors"
    cases: list[tuple[list[object], str]] = [
        ([*inputs(tiny), "--init", init], "was trained on audio features noise (7)"),
        ([*inputs(wide, recipe=small), "--init", init], "does not fit recipe"),
        ([*inputs(tiny), "--init", tmp_path / "none"], "none does not exist"),
        ([*inputs(tiny, features=tiny.train)], "train.jsonl is not a readable HDF5 file"),
        ([*inputs(tiny, val=blind)], "blind.jsonl:1: qid 12"),
        (
            [*inputs(tiny), "--set", "train.metrics=[R1@0.6]"],
            "no metric is called 'R1@0.6'; did you mean 'R1@0.",
        ),
        ([*inputs(tiny), "--set", "train.schedule.kind=cosin"], "did you mean 'cosine'"),
        ([*inputs(tiny), "--set", "train.schedule.warmup=1"], "train.schedule.warmup"),
        # what shows only when the network runs
        (
            [*inputs(tiny), "--set", "model.hooks=[film]", "--seeds", "0-1"],
            "add 'sentence-token' to model.fusion",
        ),
        ([*inputs(tiny), "--set", "inference.score=product"], "needs the head 'quality'"),
        ([*inputs(tiny), "--precision", "half"], "--precision half: there is auto, fp32, bf16"),
        ([*inputs(tiny), "--device", "tpu"], "--device tpu"),
        ([*inputs(tiny), "--seeds", "4-0"], "--seeds 4-0"),
        ([*inputs(tiny), "--seed", "1", "--seeds", "0-1"], "give one of them"),
    ]
    for arguments, message in cases:
        result = cli("finetune", *arguments, "--out", run)
        assert (result.code, result.out) == (2, ""), arguments
        last = result.err.strip().splitlines()[-1]
        assert last.startswith("amrctl: ")
        assert message in last
        assert not run.exists()

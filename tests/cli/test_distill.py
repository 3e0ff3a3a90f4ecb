"""`distill` through the real command: what the teacher adds, and what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amrctl.data.predictions import read_predictions, write_predictions
from amrctl.model.checkpoint import read_metadata
from tests.conftest import Cli
from tests.training.tiny import Tiny, make

CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"))


def data(tiny: Tiny) -> list[object]:
    return ["--train", tiny.train, "--val", tiny.val, "--features", tiny.features, *CPU]


def test_distill_from_the_labels_as_teacher(tiny: Tiny, tmp_path: Path, cli: Cli) -> None:
    base = tmp_path / "base"
    result = cli("finetune", "--recipe", tiny.recipe, *data(tiny), "--out", base, "--set", "train.epochs=1")
    assert result.code == 0
    student = base / "best.safetensors"
    predicted = tmp_path / "p.jsonl"
    result = cli(
        *("predict", "--checkpoint", student, "--features", tiny.features, "--test", tiny.train),
        *("--round", "0", "--out", predicted),
    )
    assert result.code == 0, result.err

    run = tmp_path / "run"
    common = ["distill", "--teacher", predicted, predicted, "--init", student, *data(tiny)]
    result = cli(*common, "--out", run, "--set", "train.epochs=2", "--score-weight", "0.25", "--json")
    assert result.code == 0, result.err
    assert "rounded" not in result.err
    assert json.loads(result.out)["teacher"]["files"] == [str(predicted)] * 2
    meta = read_metadata(run / "last.safetensors")
    weights = {term["kind"]: term["weight"] for term in meta["recipe"]["losses"]}
    truth = {"span": 10, "giou": 1, "label": 4, "saliency": 1}
    assert weights == truth | {"teacher-span": 2.0, "teacher-score": 0.25}
    assert meta["recipe"]["stage"] == "finetune"
    parents = [entry["path"] for entry in meta["provenance"]["parents"]]
    assert parents == [str(student), str(predicted), str(predicted)]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(entry["terms"]["teacher-span"] > 0 and entry["terms"]["teacher-score"] > 0 for entry in log)
    assert "span" in log[0]["terms"]

    # the terms are part of the loss: without weight the same run ends elsewhere
    off = tmp_path / "off"
    none = ["--span-weight", "0", "--score-weight", "0"]
    assert cli(*common, "--out", off, "--set", "train.epochs=2", *none).code == 0
    left, right = load_file(run / "last.safetensors"), load_file(off / "last.safetensors")
    assert any(not torch.equal(left[key], right[key]) for key in left)

    # top-k decides the run: another value is another run
    other = cli(*common, "--out", run, "--set", "train.epochs=2", "--score-weight", "0.25", "--top-k", "1")
    assert (other.code, "teacher.top_k: 3 there, 1 now" in other.err) == (2, True)

    short = tmp_path / "short.jsonl"
    full = read_predictions(predicted)
    write_predictions(short, full.items[:-1], full.meta | {"rounding": 1})
    result = cli(
        *("distill", "--teacher", short, "--recipe", tiny.recipe, *data(tiny)),
        *("--out", tmp_path / "x"),
    )
    assert result.code == 2
    assert "1 of 12 training queries are missing, the first is qid 11" in result.err
    assert "no --init: training from scratch" in result.err
    assert "short.jsonl: windows are rounded" in result.err
    assert not (tmp_path / "x").exists()
    result = cli("distill", "--teacher", predicted, *data(tiny), "--out", tmp_path / "x")
    assert (result.code, "needs --recipe, or --init" in result.err) == (2, True)

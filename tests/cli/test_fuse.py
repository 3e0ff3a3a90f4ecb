"""`amrctl fuse` through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from amrctl.data.predictions import Prediction, meta_path, read_predictions, write_predictions
from amrctl.ensemble.pool import pool
from amrctl.ensemble.wbf import wbf
from tests.conftest import Cli


def write(path: Path, seed: int, queries: int = 3, **meta: object) -> Path:
    g = np.random.default_rng(seed)
    items = []
    for q in range(queries):
        start = g.uniform(0, 50, 4)
        rows = np.stack([start, start + g.uniform(5, 50, 4), np.sort(g.uniform(0, 1, 4))[::-1]], axis=1)
        items.append(Prediction(f"q{q}", "a bell rings", f"v{q}", 100.0, rows))
    write_predictions(path, items, {"datasets": [f"set{seed}"], "rounding": 0, **meta})
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"p{i}.jsonl", i) for i in range(3)]


def test_wbf_writes_what_the_library_gives_and_its_provenance(
    cli: Cli, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "r.jsonl"
    done = cli(
        "fuse", *files, "--wbf", "--weights", "0.5,0.3,0", "--iou", "0.4", "--keep", 5, "--out", out, "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["fusion"] == {
        "kind": "wbf",
        "iou": 0.4,
        "weights": [0.5, 0.3, 0.0],
        "keep": 5,
    }
    found = read_predictions(out)
    wanted = wbf([read_predictions(f).items for f in files], weights=[0.5, 0.3, 0], iou=0.4, keep=5)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.windows, b.windows)
    assert found.meta["datasets"] == ["set0", "set1"]  # the third file is absent
    assert [Path(p["path"]).name for p in found.meta["parents"]] == ["p0.jsonl", "p1.jsonl"]
    assert found.meta["operation"] == "fuse"
    assert done.err == ""


def test_pool(cli: Cli, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    done = cli("fuse", *files, "--pool", "--drop-copies", "0.9", "--out", out)
    assert done.code == 0, done.err
    assert "r.jsonl" in done.out
    found = read_predictions(out)
    for a, b in zip(found, pool([read_predictions(f).items for f in files], copies_iou=0.9), strict=True):
        np.testing.assert_array_equal(a.windows, b.windows)
        assert len(a.windows) == 10


def test_rounded_members_are_told(cli: Cli, files: list[Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    items = [
        Prediction(p.qid, p.query, p.vid, 100.0, np.array([[1.0, 5.0, 0.5]]))
        for p in read_predictions(files[0])
    ]
    write_predictions(whole, items, {})
    done = cli("fuse", files[0], whole, "--wbf", "--out", tmp_path / "r.jsonl")
    assert done.code == 0
    assert done.err.count("--round 0") == 1
    assert "whole.jsonl" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--wbf or --pool"),
        (["--wbf", "--pool"], "--wbf or --pool"),
        (["--pool", "--iou", "0.5"], "--drop-copies"),
        (["--wbf", "--drop-copies", "0.5"], "belongs to --pool"),
        (["--wbf", "--weights", "1,2"], "2 weights for 3"),
        (["--wbf", "--weights", "1,x,2"], "--weights 1,x,2"),
        (["--wbf", "--iou", "7"], "iou 7"),
        (["--pool", "--weights", "0,0,0"], "every weight is 0"),
    ],
)
def test_mistakes_write_nothing(
    cli: Cli, files: list[Path], tmp_path: Path, options: list[str], words: str
) -> None:
    out = tmp_path / "r.jsonl"
    done = cli("fuse", *files, *options, "--out", out)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1
    assert not out.exists()
    assert not meta_path(out).exists()


def test_other_queries_and_existing_output(cli: Cli, files: list[Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", 9, queries=4)
    out = tmp_path / "r.jsonl"
    done = cli("fuse", files[0], other, "--wbf", "--out", out)
    assert (done.code, out.exists()) == (2, False)
    assert "q3" in done.err
    assert "other.jsonl" in done.err
    out.write_text("mine")
    done = cli("fuse", *files, "--wbf", "--out", out)
    assert done.code == 2
    assert "--overwrite" in done.err
    assert out.read_text() == "mine"
    assert cli("fuse", *files, "--wbf", "--out", out, "--overwrite", "--quiet").code == 0
    assert len(read_predictions(out)) == 3

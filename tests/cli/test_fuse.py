"""`amrctl fuse` through the real command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amrctl.data.predictions import Prediction, meta_path, read_predictions, write_predictions
from amrctl.ensemble.consensus import Bonuses, consensus
from amrctl.ensemble.normalise import calibrate, normalise
from amrctl.ensemble.pool import pool
from amrctl.ensemble.saliency import proposals
from amrctl.ensemble.wbf import wbf
from tests.conftest import Cli


def write(path: Path, seed: int, queries: int = 3, *, curve: bool = False, **meta: object) -> Path:
    g = np.random.default_rng(seed)
    items = []
    for q in range(queries):
        start = g.uniform(0, 50, 4)
        rows = np.stack([start, start + g.uniform(5, 50, 4), np.sort(g.uniform(0, 1, 4))[::-1]], axis=1)
        raw = g.normal(0, 2, 40).astype(np.float32) if curve else None
        items.append(Prediction(f"q{q}", "a bell rings", f"v{q}", 100.0, rows, raw))
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


def test_rounding_comes_after_the_fusion(cli: Cli, files: list[Path], tmp_path: Path) -> None:
    exact, whole = tmp_path / "exact.jsonl", tmp_path / "whole.jsonl"
    assert cli("fuse", *files, "--wbf", "--out", exact).code == 0
    assert cli("fuse", *files, "--wbf", "--round", "1", "--out", whole).code == 0
    for a, b in zip(read_predictions(exact), read_predictions(whole), strict=True):
        start, end = np.rint(a.windows[:, 0]), np.rint(a.windows[:, 1])
        assert (b.windows[:, 0] == np.minimum(start, 99)).all()
        assert (b.windows[:, 1] == np.minimum(np.maximum(end, start + 1), 100)).all()
        assert (b.windows[:, 2] == a.windows[:, 2]).all()
    assert json.loads(meta_path(whole).read_text())["rounding"] == 1
    assert cli("fuse", *files, "--wbf", "--round", "-1", "--out", tmp_path / "x.jsonl").code == 2


def test_pool(cli: Cli, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    done = cli("fuse", *files, "--pool", "--drop-copies", "0.9", "--out", out)
    assert done.code == 0, done.err
    assert "r.jsonl" in done.out
    found = read_predictions(out)
    for a, b in zip(found, pool([read_predictions(f).items for f in files], copies_iou=0.9), strict=True):
        np.testing.assert_array_equal(a.windows, b.windows)
        assert len(a.windows) == 10


def test_consensus_with_every_option_is_what_the_library_gives(
    cli: Cli, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "r.jsonl"
    base = ("fuse", *files, "--consensus", "--out", out)
    done = cli(*base, "--json")
    assert done.code == 0, done.err
    how = json.loads(done.out)["fusion"]
    assert how == {
        "kind": "consensus",
        "iou": 0.85,
        "bonuses": {"count": 0.05, "source": 0.02, "rank": 0.02},
        "scale": pytest.approx(1 + 11 * 0.05 + 2 * 0.02 + 0.02),
        "weights": [1, 1, 1],
        "keep": 10,
    }
    members = [read_predictions(f).items for f in files]
    same(read_predictions(out).items, consensus(members))
    assert read_predictions(out).meta["fusion"] == how
    options = ["--weights", "0.5,0.3,0", "--iou", 0.4, "--keep", 5, "--coordinates", "best"]
    options += ["--bonus-count", 0.5, "--bonus-source", 0, "--bonus-rank", 0.1, "--normalise", "minmax"]
    done = cli(*base, *options, "--overwrite")
    assert done.code == 0, done.err
    wanted = consensus(
        normalise(members[:2], "minmax"),
        weights=[0.5, 0.3],
        iou=0.4,
        bonuses=Bonuses(0.5, 0, 0.1),
        coordinates="best",
        keep=5,
    )
    same(read_predictions(out).items, wanted)
    assert read_predictions(out).meta["fusion"]["normalise"] == "minmax"


def test_calibration(cli: Cli, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    numbers = ["--temperature", "1,2,0.5", "--offset", "0,-1,1"]
    done = cli("fuse", *files, "--pool", *numbers, "--out", out)
    assert done.code == 0, done.err
    members = [read_predictions(f).items for f in files]
    same(read_predictions(out).items, pool(calibrate(members, temperatures=[1, 2, 0.5], offsets=[0, -1, 1])))


def same(found: Sequence[Prediction], wanted: Sequence[Prediction]) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.windows, b.windows)


def test_saliency_adds_windows_before_any_fusion(cli: Cli, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"s{i}.jsonl", i, curve=True) for i in range(2)]
    out = tmp_path / "r.jsonl"
    for way, fusion in (((), pool), (("--wbf",), wbf)):
        options = ("--saliency", "--threshold", 0.7, "--keep", 7)
        done = cli("fuse", *paths, *way, *options, "--out", out, "--overwrite")
        assert done.code == 0, done.err
        members = []
        for path in paths:
            added = []
            for item in read_predictions(path):
                assert item.saliency is not None
                more = proposals(item.saliency, 100.0, threshold=0.7)
                added.append(replace(item, windows=np.concatenate([item.windows, more])))
            members.append(added)
        found = read_predictions(out)
        for a, b in zip(found, fusion(members, keep=7), strict=True):
            np.testing.assert_allclose(a.windows, b.windows, atol=1e-4)
        assert found.meta["fusion"]["saliency"] == {"threshold": 0.7, "keep": 10}
    # a file that is left out needs no curve
    plain = write(tmp_path / "plain.jsonl", 5)
    weights = ("--weights", "1,0", "--overwrite")
    assert cli("fuse", paths[0], plain, "--saliency", *weights, "--out", out).code == 0
    # with rounded windows the new ones are rounded too
    whole = write(tmp_path / "whole.jsonl", 1, curve=True, rounding=5)
    assert cli("fuse", whole, "--saliency", "--out", out, "--overwrite").code == 0
    before = {tuple(row) for item in read_predictions(whole) for row in item.windows.tolist()}
    new = [r for i in read_predictions(out) for r in i.windows.tolist() if tuple(r) not in before]
    assert new
    assert all(edge % 5 == 0 for row in new for edge in row[:2])


def test_saliency_that_is_not_there(cli: Cli, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    done = cli("fuse", files[0], "--saliency", "--out", out)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "p0.jsonl: qid q0 has no pred_saliency_scores" in done.err
    assert "predict --saliency" in done.err
    assert not out.exists()


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
        ([], "--consensus, --wbf or --pool"),
        (["--wbf", "--pool"], "--consensus, --wbf or --pool"),
        (["--pool", "--iou", "0.5"], "--drop-copies"),
        (["--wbf", "--drop-copies", "0.5"], "belongs to --pool"),
        (["--wbf", "--weights", "1,2"], "2 weights for 3"),
        (["--wbf", "--weights", "1,x,2"], "--weights 1,x,2"),
        (["--wbf", "--iou", "7"], "iou 7"),
        (["--pool", "--weights", "0,0,0"], "every weight is 0"),
        (["--pool", "--consensus"], "choose one way to fuse"),
        (["--consensus", "--drop-copies", "0.5"], "--consensus fuses near copies itself"),
        (["--wbf", "--bonus-count", "0.1"], "--bonus-count belongs to --consensus"),
        (["--consensus", "--bonus-rank", "-1"], "rank bonus -1"),
        (["--consensus", "--coordinates", "middle"], "coordinates middle: choose average or best"),
        (["--pool", "--coordinates", "best"], "--pool changes no boundary"),
        (["--pool", "--threshold", "0.5"], "--threshold belongs to --saliency"),
        (["--saliency", "--threshold", "0"], "saliency threshold 0"),
        (["--saliency", "--iou", "0.5"], "--drop-copies"),
        (["--pool", "--normalise", "zscore"], "normalise zscore: choose none, rank, minmax"),
        (["--pool", "--normalise", "rank", "--temperature", "1,1,1"], "choose one way to change scores"),
        (["--pool", "--temperature", "1,2"], "2 temperatures for 3"),
        (["--pool", "--offset", "a,b,c"], "--offset a,b,c"),
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

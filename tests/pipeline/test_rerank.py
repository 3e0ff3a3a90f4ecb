"""Choosing beta on labels: one question a window, the best R1@0.7, then mAP, then the smaller weight."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amrctl.data.manifest import Manifest, Query, read_manifest, write_manifest
from amrctl.data.predictions import Prediction, Predictions, read_predictions, write_predictions
from amrctl.errors import AmrctlError, PredictionError
from amrctl.evaluation.moments import evaluate
from amrctl.pipeline.rerank import Tried, choose, rerank_file
from amrctl.rerank.base import Candidate
from amrctl.rerank.cache import Cache
from amrctl.rerank.rerank import questions, rerank
from amrctl.spans import temporal_iou
from tests.conftest import Cli
from tests.rerank.test_similarity import world


class Oracle:
    """Knows the labels, but not well."""

    name, version, told, parameters = "oracle", "1", "half blind", 5

    def __init__(self, labels: Manifest) -> None:
        self.labels, self.asked = labels.by_qid, 0

    def facts(self) -> Mapping[str, Any]:
        return {"weights_sha256": "abc"}

    def fingerprint(self) -> str:
        return ""

    def evidence(self, candidate: Candidate) -> str:
        return ""

    def score(self, requests: Sequence[Candidate]) -> list[float]:
        self.asked += len(requests)
        return [self._one(request) for request in requests]

    def _one(self, request: Candidate) -> float:
        true = np.array(self.labels[request.qid].windows)
        iou = temporal_iou(np.array([[request.start, request.end]]), true).max()
        noise = np.random.default_rng(round(1000 * request.start + request.end)).uniform()
        return float(0.5 * iou + 0.5 * noise)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Predictions, Manifest]:
    random = np.random.default_rng(0)
    queries, items = [], []
    for i in range(80):
        start = float(random.integers(0, 40))
        true = (start, start + float(random.integers(4, 12)))
        queries.append(Query(f"q{i}", f"sound {i}", f"v{i % 9}", 60.0, (true,)))
        rows = [(*true, 0.0), (true[0] + 1, true[1], 0.0), (true[0], true[1] + 9, 0.0), (0.0, 60.0, 0.0)]
        rows += [(float(s), float(s + 5), 0.0) for s in random.integers(0, 50, 6)]
        windows = np.array(rows)
        windows[:, 2] = np.clip(random.normal(0.5, 0.2, len(rows)), 0.01, 0.99)
        windows = windows[np.argsort(-windows[:, 2])]
        items.append(Prediction(f"q{i}", f"sound {i}", f"v{i % 9}", 60.0, windows))
    write_manifest(tmp_path / "val.jsonl", queries)
    counts = {"trainable": 7, "frozen": 11}
    write_predictions(tmp_path / "p.jsonl", items, {"checkpoints": [{"sha256": "c"}], "parameters": counts})
    return read_predictions(tmp_path / "p.jsonl"), read_manifest(tmp_path / "val.jsonl")


def test_the_choice_is_the_best_and_each_window_is_asked_once(
    made: tuple[Predictions, Manifest], tmp_path: Path
) -> None:
    file, val = made
    betas = [0.9, 0.1, 0.5, 0.3, 1.0]
    judge = Oracle(val)
    out = tmp_path / "r.jsonl"
    done = rerank_file(file, judge, out, betas=betas, top_k=6, val=val, cache=Cache(tmp_path / "c"))
    different = {(c.qid, c.start, c.end) for c in questions(file.items, 6)}
    assert judge.asked == done.answers.asked == len(different) > 400
    direct = {}
    for beta in (0.0, *betas):
        items = rerank(file.items, Oracle(val), beta=beta, top_k=6).items
        brief = evaluate(items, val)["brief"]
        direct[beta] = (brief["MR-full-R1@0.7"], brief["MR-full-mAP"])
    for one in done.tried:
        assert (one.r1, one.map) == pytest.approx(direct[one.beta], abs=0.006)
    assert [t.beta for t in done.tried] == sorted(direct)
    best = max(betas, key=lambda beta: direct[beta])
    assert done.beta == best
    assert direct[best] > direct[0.0]  # an oracle helps
    assert len({r1 for r1, _ in direct.values()}) > 3
    after = read_predictions(out)
    wanted = rerank(file.items, Oracle(val), beta=best, top_k=6).items
    for a, b in zip(after, wanted, strict=True):
        np.testing.assert_array_equal(a.windows, b.windows)
    assert after.meta["rerank"]["beta"] == best
    assert [row["beta"] for row in after.meta["rerank"]["grid"]] == sorted(direct)
    assert after.meta["rerank"]["chosen_on"]["path"].endswith("val.jsonl")
    assert after.meta["parameters"] == {"trainable": 7, "frozen": 16}
    # the same verifier twice is counted once, another on top
    twice = rerank_file(after, Oracle(val), tmp_path / "s.jsonl", betas=[0.5], top_k=6)
    assert twice.answers.asked > 0
    meta = read_predictions(tmp_path / "s.jsonl").meta
    assert meta["parameters"] == {"trainable": 7, "frozen": 16}
    assert meta["verifier"].count("oracle (half blind") == 2


def test_ties() -> None:
    rows = [Tried(0.1, 50.0, 30.0), Tried(0.3, 60.0, 20.0), Tried(0.2, 60.0, 21.0), Tried(0.4, 60.0, 21.0)]
    assert choose(rows) == 0.2
    assert choose(rows[::-1]) == 0.2


def test_mistakes_ask_nothing(made: tuple[Predictions, Manifest], tmp_path: Path) -> None:
    file, val = made
    judge = Oracle(val)
    other = Manifest(None, val.queries[:70])
    blind = Manifest(None, tuple(Query(q.qid, q.query, q.vid, 60.0, None) for q in val))
    for betas, labels, said in (
        ([0.1, 0.2], None, "several and labels"),
        ([], val, "one beta is needed"),
        ([0.1, float("nan")], val, "beta nan is not in 0..1"),
        ([0.1], other, "q70"),
        ([0.1], blind, "have no relevant_windows"),
    ):
        with pytest.raises(AmrctlError, match=said):
            rerank_file(file, judge, tmp_path / "r.jsonl", betas=betas, top_k=5, val=labels)
    assert judge.asked == 0
    assert not (tmp_path / "r.jsonl").exists()
    with pytest.raises(PredictionError, match="top-k 0"):
        rerank_file(file, judge, tmp_path / "r.jsonl", betas=[0.1], top_k=0)


def test_the_command_with_the_similarity_verifier(cli: Cli, tmp_path: Path) -> None:
    _, manifest = world(tmp_path)
    write_manifest(tmp_path / "train.jsonl", manifest.queries[:60])
    write_manifest(tmp_path / "val.jsonl", manifest.queries[60:])
    items = []
    for query in manifest.queries[60:]:
        ((start, end),) = query.windows or ()
        rows = [[0, 30, 0.60], [max(start - 9, 0), end + 1, 0.58], [start, end, 0.5], [end, end + 3, 0.4]]
        items.append(Prediction(query.qid, query.query, query.vid, 30.0, np.array(rows)))
    write_predictions(tmp_path / "p.jsonl", items, {})
    command = [
        "rerank",
        tmp_path / "p.jsonl",
        "--features",
        tmp_path / "w.h5",
        "--train",
        tmp_path / "train.jsonl",
    ]
    command += ["--cache", tmp_path / "c", "--val", tmp_path / "val.jsonl", "--beta-grid", "0.05,0.6,0.4"]
    done = cli(*command, "--out", tmp_path / "r.jsonl")
    assert done.code == 0, done.err
    assert "detector alone" in done.out
    told = json.loads(cli(*command, "--out", tmp_path / "s.jsonl", "--json").out)
    assert (told["asked"], told["remembered"]) == (0, 80)
    grid = {row["beta"]: row["R1@0.7"] for row in told["grid"]}
    assert grid[0] == 0 < grid[told["beta"]]
    assert told["beta"] == min(b for b in (0.05, 0.6, 0.4) if grid[b] == max(grid.values()))
    assert f"beta {told['beta']:g} is the best by R1@0.7, then mAP" in done.out

"""What `evaluate` tells: means over files, strata, comparisons, notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amrctl import provenance
from amrctl.data.manifest import Manifest, Query, read_manifest
from amrctl.data.predictions import Prediction, Predictions, read_predictions
from amrctl.errors import PredictionError
from amrctl.evaluation.moments import METRICS, evaluate, pair
from amrctl.evaluation.report import report, trained_on
from amrctl.evaluation.strata import strata

GOLDEN = Path(__file__).parent / "golden"
GOOD = [(0.0, 10.0, 0.9)]
BAD = [(200.0, 210.0, 0.9)]


def labels(count: int = 40, per_recording: int = 2) -> Manifest:
    """`count` queries with the moment 0-10 s."""
    rows = (Query(f"q{i}", "a sound", f"v{i // per_recording}", 300.0, ((0.0, 10.0),)) for i in range(count))
    return Manifest(None, tuple(rows), ())


def predictions(manifest: Manifest, right: int, **meta: Any) -> Predictions:
    """The first `right` queries answered rightly, the others wrongly."""
    items = (
        Prediction(q.qid, q.query, q.vid, q.duration, np.array(GOOD if i < right else BAD))
        for i, q in enumerate(manifest)
    )
    return Predictions(None, tuple(items), meta)


def test_one_file_keeps_the_official_blocks() -> None:
    manifest = read_manifest(GOLDEN / "decimals.manifest.jsonl")
    file = read_predictions(GOLDEN / "decimals.predictions.jsonl")
    told = report([file], manifest)
    assert {"brief": told["brief"], "full": told["full"]} == json.loads(
        (GOLDEN / "decimals.official.json").read_text()
    )
    assert told["extra"] == evaluate(file, manifest)["extra"]
    assert told["reference"]["sha256"] == provenance.sha256(GOLDEN / "decimals.manifest.jsonl")
    assert told["files"][0]["sha256"] == provenance.sha256(GOLDEN / "decimals.predictions.jsonl")
    assert told["metrics"]["R1@0.5"]["sd"] is None
    for name in METRICS:
        told_metric = told["metrics"][name]
        assert told_metric["low"] <= told_metric["mean"] <= told_metric["high"]
    json.dumps(told, allow_nan=False)


def test_several_files_are_averaged() -> None:
    manifest = labels()
    told = report([predictions(manifest, 10), predictions(manifest, 20), predictions(manifest, 30)], manifest)
    assert told["brief"]["MR-full-R1@0.7"] == 50.0
    assert told["metrics"]["R1@0.7"]["files"] == [25.0, 50.0, 75.0]
    assert told["metrics"]["R1@0.7"]["sd"] == pytest.approx(25.0)
    assert [f["brief"]["MR-full-R1@0.7"] for f in told["files"]] == [25.0, 50.0, 75.0]


def test_the_mean_is_rounded_once() -> None:
    """1/7 and 2/7 of seven queries: the mean of the rounded values would be 21.43 or 21.42 by luck."""
    manifest = labels(7)
    told = report([predictions(manifest, 1), predictions(manifest, 2)], manifest)
    assert told["brief"]["MR-full-R1@0.5"] == 21.43  # 3 / 14


def test_file_order_does_not_pair_the_wrong_queries() -> None:
    manifest = labels()
    file = predictions(manifest, 15)
    turned = Predictions(None, file.items[::-1], {})
    told = report([file], manifest, against=[turned])
    for row in told["against"]["metrics"].values():
        assert (row["difference"], row["low"], row["high"]) == (0.0, 0.0, 0.0)
        assert (row["p"], row["beats"]) == (1.0, False)


def test_file_order_changes_no_interval_and_no_stratum() -> None:
    manifest = read_manifest(GOLDEN / "decimals.manifest.jsonl")
    shuffled = read_predictions(GOLDEN / "decimals.predictions.jsonl")
    ordered = Predictions(None, tuple(shuffled.by_qid[q.qid] for q in manifest), {})
    first, second = report([shuffled], manifest), report([ordered], manifest)
    for key in ("metrics", "strata"):
        assert json.dumps(first[key]) == json.dumps(second[key])


def test_a_better_system_beats() -> None:
    manifest = labels(100)
    ours, theirs = [predictions(manifest, n) for n in (60, 70)], [predictions(manifest, n) for n in (20, 30)]
    told = report(ours, manifest, against=theirs)["against"]["metrics"]["R1@0.7"]
    assert told["difference"] == pytest.approx(40.0)
    assert told["low"] < 40 < told["high"]
    assert told["p"] == pytest.approx(2 / 2001)
    assert told["beats"] is True
    back = report(theirs, manifest, against=ours)["against"]["metrics"]["R1@0.7"]
    assert back["difference"] == -told["difference"]
    assert (back["low"], back["high"]) == pytest.approx((-told["high"], -told["low"]))
    assert back["p"] == told["p"]
    assert back["beats"] is False


def test_seeds_in_another_order_are_no_difference() -> None:
    manifest = read_manifest(GOLDEN / "decimals.manifest.jsonl")
    file = read_predictions(GOLDEN / "decimals.predictions.jsonl")
    flat = Predictions(None, tuple(predictions(manifest, 7)), {})
    other = Predictions(None, tuple(predictions(manifest, 30)), {})
    told = report([file, flat, other], manifest, against=[other, file, flat])
    assert {row["p"] for row in told["against"]["metrics"].values()} == {1.0}


def test_a_single_recording_gives_no_interval_and_no_verdict() -> None:
    manifest = labels(5, per_recording=5)
    told = report([predictions(manifest, 5)], manifest, against=[predictions(manifest, 0)])
    assert told["metrics"]["mAP"]["low"] is None
    row = told["against"]["metrics"]["mAP"]
    assert (row["difference"], row["low"], row["p"], row["beats"]) == (100.0, None, 1.0, False)


def test_partial_scores_what_all_files_have() -> None:
    manifest = labels(10)
    whole = predictions(manifest, 5)
    extra = Prediction("other", "a sound", "v", 300.0, np.array(GOOD))
    part = Predictions(None, (*whole.items[2:], extra), {})
    with pytest.raises(PredictionError, match="2 of 10 queries have no prediction"):
        report([part], manifest)
    told = report([whole], manifest, against=[part], partial=True)
    assert told["reference"]["queries"] == 8
    assert told["reference"]["of_queries"] == 10
    assert told["brief"]["MR-full-R1@0.5"] == 37.5
    assert told["against"]["brief"] == told["brief"]
    notes = "\n".join(told["notes"])
    assert "no prediction for 2 queries (first: q0, q1)" in notes
    assert "1 predictions are for other queries (first: other)" in notes
    assert "scored on 8 of 10 queries; not the official number" in notes
    none = Predictions(None, (extra,), {})
    with pytest.raises(PredictionError, match="answered by every file"):
        report([none], manifest, partial=True)


def test_notes_tell_what_a_reader_should_know() -> None:
    manifest = Manifest(
        None,
        (
            *labels(4).queries,
            Query("odd", "a sound", "v9", 300.0, ((3.0, 3.0),)),
        ),
        ("a note of the manifest",),
    )
    windows = {
        "q0": np.zeros((0, 3)),
        "q1": np.array([(0, 10, 0.1), (20, 30, 0.8)]),
        "q2": np.array([(i, i + 5, 0.5) for i in range(12)], dtype=np.float64),
        "q3": np.array(GOOD),
        "odd": np.array(GOOD),
    }
    items = tuple(
        Prediction(q.qid, q.query, "elsewhere" if q.qid == "q3" else q.vid, q.duration, windows[q.qid])
        for q in manifest
    )
    notes = "\n".join(report([Predictions(None, items, {})], manifest)["notes"])
    assert "a note of the manifest" in notes
    assert "1 predictions have no windows (first: q0); they score 0" in notes
    assert "1 predictions do not list their best-scored window first (first: q1)" in notes
    assert "1 predictions list more than 10 windows (first: q2)" in notes
    assert "1 predictions name another recording than the manifest (first: q3)" in notes
    assert "1 queries have no moment of 0 to 1500 s and are left out (first: odd)" in notes
    assert "by place in the list" not in notes


SEEN = {"sha256": "c", "trained_on": [{"path": "m", "sha256": "abc"}]}


class TestTrainedOn:
    def test_known(self) -> None:
        assert trained_on({"checkpoints": [SEEN]}, "abc") is True
        assert trained_on({"checkpoints": [SEEN]}, "def") is False
        assert trained_on({"checkpoints": [{"sha256": "d"}, SEEN]}, "abc") is True

    @pytest.mark.parametrize(
        "meta",
        [{}, {"checkpoints": "unknown"}, {"checkpoints": []}, {"checkpoints": [{"sha256": "d"}, SEEN]}],
    )
    def test_unknown(self, meta: dict[str, Any]) -> None:
        assert trained_on(meta, "def") is None

    def test_is_reported_for_either_side(self) -> None:
        source = GOLDEN / "decimals.manifest.jsonl"
        manifest = read_manifest(source)
        seen = {"trained_on": [{"path": "m", "sha256": provenance.sha256(source)}]}
        clean, stained = predictions(manifest, 3), predictions(manifest, 3, checkpoints=[seen])
        told = report([clean], manifest, against=[stained])
        assert told["files"][0]["trained_on_reference"] is None
        assert told["against"]["files"][0]["trained_on_reference"] is True
        assert told["trained_on_reference"] is True
        assert report([clean], manifest)["trained_on_reference"] is None


def test_strata_divide_the_queries() -> None:
    made = [  # moments, recording length -> moment_length, moments, recording_length
        ([(41.1, 44.1)], 60.0, "<= 3 s", "1", "<= 60 s"),
        ([(0.0, 2.0), (10.0, 16.0)], 60.5, "3-10 s", "2-3", "60-180 s"),
        ([(10.0 * i, 10.0 * i + 1) for i in range(4)], 180.0, "<= 3 s", "4-10", "60-180 s"),
        ([(0.0, 30.0)], 181.0, "10-30 s", "1", "> 180 s"),
        ([(0.0, 31.0), (50.0, 50.0)], 300.0, "> 30 s", "1", "> 180 s"),  # an empty moment does not count
        ([(10.0 * i, 10.0 * i + 4) for i in range(11)], 300.0, "3-10 s", "> 10", "> 180 s"),
    ]
    queries = tuple(Query(f"q{i}", "a", f"v{i}", d, tuple(w)) for i, (w, d, *_) in enumerate(made))
    manifest = Manifest(None, queries, ())
    file = predictions(manifest, 6)
    found: dict[str, list[str]] = {}
    for kind, name, members in strata(pair(file, manifest)):
        for i in np.flatnonzero(members).tolist():
            found.setdefault(f"{i} {kind.key}", []).append(name)
    for i, (_, _, *names) in enumerate(made):
        kinds = ("moment_length", "moments", "recording_length")
        assert [found[f"{i} {kind}"] for kind in kinds] == [[name] for name in names]
    told = report([file], manifest)
    for rows in told["strata"].values():
        assert sum(row["queries"] for row in rows) == len(made)
        parts = [row["queries"] * (row["metrics"]["mIoU"]["mean"] or 0) for row in rows]
        assert sum(parts) / len(made) == pytest.approx(told["metrics"]["mIoU"]["mean"])
    # the window 0-10 s: 2/10, 1/10, 10/30, 10/31, 4/10 of the moments that begin at 0
    assert told["metrics"]["mIoU"]["mean"] == pytest.approx(100 * (0.2 + 0.1 + 1 / 3 + 10 / 31 + 0.4) / 6)
    empty = report([predictions(labels(), 3)], labels())["strata"]["moments"][3]
    assert empty["queries"] == 0
    assert empty["metrics"]["mAP"] == {"mean": None, "low": None, "high": None}

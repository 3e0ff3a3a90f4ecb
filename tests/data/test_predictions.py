"""Prediction files: round trips, a named line for every fault, provenance that adds nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amrctl import provenance
from amrctl.data.predictions import (
    Prediction,
    Predictions,
    merge_meta,
    meta_path,
    read_predictions,
    require_same_queries,
    write_predictions,
)
from amrctl.errors import OutputError, PredictionError

GOOD: dict[str, Any] = {
    "qid": "a_1",
    "query": "a dog barks",
    "vid": "a",
    "duration": 60,
    "pred_relevant_windows": [[3, 9.5, 0.75], [1, 2, 0.75]],
}


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), "utf-8")
    return path


def message(path: Path, **options: bool) -> str:
    with pytest.raises(PredictionError) as caught:
        read_predictions(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def item(qid: str, windows: Sequence[Sequence[float]] = ((0, 1, 0.5),), vid: str = "a") -> Prediction:
    return Prediction(qid, "q", vid, 60.0, np.array(windows, np.float64).reshape(-1, 3))


def test_the_official_form(tmp_path: Path) -> None:
    saliency = np.array([0.1, -3.25, 1e-20], np.float32)
    path = tmp_path / "p.jsonl"
    windows = np.array([[3, 9.5, 0.75], [1, 2, 0.1]])
    write_predictions(
        path, [Prediction("7", "q", "v", 10.0, windows, saliency, True)], {"operation": "predict"}
    )
    assert path.read_text() == (
        '{"qid": 7, "query": "q", "vid": "v", "duration": 10, "pred_relevant_windows": [[3, 9.5, 0.75], '
        '[1, 2, 0.1]], "pred_saliency_scores": [0.1, -3.25, 1e-20]}\n'
    )
    read = read_predictions(path)
    assert read.meta == {"operation": "predict"}
    assert meta_path(path) == tmp_path / "p.jsonl.meta.json"
    (only,) = read
    assert read.by_qid["7"] is only
    assert only.windows.dtype == np.float64
    assert only.int_qid
    assert np.array_equal(only.windows, windows)
    assert only.saliency is not None
    assert only.saliency.dtype == np.float32
    assert np.array_equal(only.saliency, saliency)
    with pytest.raises(OutputError, match="--overwrite"):
        write_predictions(path, [item("1")], {})


def test_files_of_other_programs(tmp_path: Path) -> None:
    official = {k: v for k, v in GOOD.items() if k != "duration"}
    path = lines(tmp_path / "p.jsonl", official, {**official, "qid": 5, "pred_relevant_windows": []})
    first, second = read_predictions(path)
    assert np.isnan(first.duration)
    assert (second.qid, second.windows.shape) == ("5", (0, 3))
    assert read_predictions(path).meta == {}
    write_predictions(tmp_path / "again.jsonl", [first], {})
    assert json.loads((tmp_path / "again.jsonl").read_text()) == official


def test_the_challenge_form_gets_scores_by_position(tmp_path: Path) -> None:
    path = lines(tmp_path / "c.jsonl", {**GOOD, "pred_relevant_windows": [[5, 6], [1, 2], [3, 4], [0, 9]]})
    assert "every window must be [start, end, score] (a challenge file has none" in message(path)
    (only,) = read_predictions(path, scores=False)
    assert only.windows.tolist() == [[5, 6, 1], [1, 2, 0.75], [3, 4, 0.5], [0, 9, 0.25]]
    (scored,) = read_predictions(lines(path, {**GOOD, "pred_relevant_windows": [[5, 6, -7.5]]}), scores=False)
    assert scored.windows.tolist() == [[5, 6, -7.5]]


def windows(*rows: Any) -> dict[str, Any]:
    return {**GOOD, "pred_relevant_windows": list(rows)}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", ["not valid JSON"]),
        ("[]", ["object per line", "a list"]),
        ("[" * 100_000, ["not valid JSON"]),
        ('{"qid": "b", "pred_relevant_windows": [[1, 2, NaN]]}', ["NaN is not a finite"]),
        ({**GOOD, "qid": [1]}, ["qid is missing"]),
        ({k: v for k, v in GOOD.items() if k != "vid"}, ["a_1", "vid is missing"]),
        ({**GOOD, "duration": "60"}, ["a_1", "duration"]),
        ({**GOOD, "duration": -1}, ["a_1", "duration"]),
        (
            {k: v for k, v in GOOD.items() if k != "pred_relevant_windows"},
            ["a_1", "pred_relevant_windows is missing"],
        ),
        (windows([1, 2, 0.5], [1, 2]), ["a_1", "every window must be [start, end, score]"]),
        (windows(7), ["a_1", "every window must be"]),
        (windows([1, "2", 0.5]), ["a_1", '[1, "2", 0.5]', "not a number"]),
        (windows([1, 2, True]), ["a_1", "not a number"]),
        (windows([2, 2, 0.5]), ["a_1", "[2, 2] does not end"]),
        (windows([3, 2, 0.5]), ["a_1", "[3, 2] does not end"]),
        (windows([1, 2, 1.01]), ["a_1", "score 1.01 is outside 0..1"]),
        (windows([1, 2, -0.1]), ["a_1", "score -0.1 is outside 0..1"]),
        ({**GOOD, "pred_saliency_scores": [1, None]}, ["a_1", "pred_saliency_scores"]),
        ({**GOOD, "pred_saliency_scores": [1e39]}, ["a_1", "too large for float32"]),
        ({**GOOD, "qid": "z"}, ["qid z is on line 1"]),
    ],
)
def test_every_fault_names_file_line_and_qid(tmp_path: Path, record: Any, words: list[str]) -> None:
    path = lines(tmp_path / "p.jsonl", {**GOOD, "qid": "z"}, "", record)
    text = message(path)
    assert text.startswith(f"{path}:3: "), text
    assert all(word in text for word in words), text


def test_files_that_are_no_predictions(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\n\xff\xfe")
    assert message(tmp_path / "binary").startswith(f"{tmp_path / 'binary'}:2: not UTF-8")
    (tmp_path / "empty").write_text("")
    assert "no prediction" in message(tmp_path / "empty")
    assert "cannot read" in message(tmp_path / "absent")
    path = lines(tmp_path / "p.jsonl", GOOD)
    meta_path(path).write_text("{")
    assert message(path).startswith(f"{meta_path(path)}: not valid JSON")
    meta_path(path).write_text("[]")
    assert "a list" in message(path)


@pytest.mark.parametrize(
    "bad",
    [
        Prediction("x", "q", "v", 9.0, np.array([[1, np.nan, 0.5]])),
        Prediction("x", "q", "v", 9.0, np.array([[2, 1, 0.5]])),
        Prediction("x", "q", "v", 9.0, np.array([[1, 2, 1.5]])),
        Prediction("x", "q", "v", 9.0, np.array([[1.0, 2]])),
        Prediction("x", "q", "v", 9.0, np.array([[1, 2, 0.5]]), np.array([np.inf], np.float32)),
    ],
)
def test_the_writer_refuses_what_the_reader_would(tmp_path: Path, bad: Prediction) -> None:
    with pytest.raises(PredictionError, match="qid x"):
        write_predictions(tmp_path / "p.jsonl", [item("fine"), bad], {})
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_the_two_renames_mixes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_predictions(path, [item("old")], {"operation": "old"})
    program = (
        "import os, signal, sys, numpy as np\n"
        "from amrctl.data.predictions import Prediction, write_predictions\n"
        "real, left = os.replace, [int(sys.argv[2])]\n"
        "def replace(a, b):\n"
        "    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    left[0] -= 1; real(a, b)\n"
        "os.replace = replace\n"
        "p = Prediction('new', 'q', 'v', 9.0, np.array([[1, 2, 0.5]]))\n"
        "write_predictions(sys.argv[1], [p], {'operation': 'new'}, overwrite=True)\n"
    )
    for renames in (0, 1):
        done = subprocess.run([sys.executable, "-c", program, str(path), str(renames)], check=False)
        assert done.returncode == -9
        assert (
            not path.exists()
            or read_predictions(path).meta["operation"] == read_predictions(path).items[0].qid
        )
    subprocess.run([sys.executable, "-c", program, str(path), "9"], check=True, env=os.environ)
    assert read_predictions(path).meta == {"operation": "new"}
    assert [p.qid for p in read_predictions(path)] == ["new"]


def test_same_queries() -> None:
    def file(name: str, *items: Prediction) -> Predictions:
        return Predictions(Path(name), items, {})

    a = file("A", item("1"), item("2"))
    require_same_queries([a, file("B", item("2"), item("1"))])
    require_same_queries([])
    with pytest.raises(
        PredictionError, match=r"A and B answer different queries \(2 and 1\); qid 2 is not in B"
    ):
        require_same_queries([a, file("B", item("1"))])
    with pytest.raises(PredictionError, match=r"A and C .* \(2 and 3\); qid 3 is not in A"):
        require_same_queries([a, a, file("C", item("1"), item("2"), item("3"))])
    with pytest.raises(PredictionError, match="qid 2 is about recording a in one and b in the other"):
        require_same_queries([a, file("B", item("1"), item("2", vid="b"))])


def leaf(sha: str, trainable: int, encoder: str = "ms-clap", frozen: int = 100) -> dict[str, Any]:
    return {
        "checkpoints": [{"sha256": sha, "path": f"{sha}.safetensors", "recipe": "r", "trained_on": []}],
        "parameters": {"trainable": trainable, "frozen": frozen},
        "audio_encoders": [encoder],
        "text_encoders": [encoder],
        "datasets": ["castella"],
        "rounding": 0,
    }


def test_merging_provenance_counts_nothing_twice(tmp_path: Path) -> None:
    parent = lines(tmp_path / "p.jsonl", GOOD)
    ab = merge_meta([leaf("a", 7), leaf("b", 8)], "fuse", [parent])
    assert [c["sha256"] for c in ab["checkpoints"]] == ["a", "b"]
    assert ab["parameters"] == {"trainable": 15, "frozen": 100}  # one frozen encoder behind both
    assert (ab["audio_encoders"], ab["datasets"], ab["rounding"]) == (["ms-clap"], ["castella"], 0)
    assert ab["parents"] == [{"path": str(parent), "sha256": provenance.sha256(parent)}]
    assert ab["operation"] == "fuse"
    again = merge_meta([ab, leaf("b", 8), leaf("c", 1, "logmel", 5)], "fuse", [], iou=0.85)
    assert again["parameters"] == {"trainable": 16, "frozen": 105}
    assert [c["sha256"] for c in again["checkpoints"]] == ["a", "b", "c"]
    assert again["audio_encoders"] == ["ms-clap", "logmel"]
    assert again["iou"] == 0.85
    reranked = merge_meta([{**again, "verifier": "similarity"}], "rerank", [], verifier="similarity")
    assert (reranked["verifier"], reranked["parameters"]) == ("similarity", again["parameters"])
    json.dumps(again, allow_nan=False)


def test_what_a_file_does_not_tell_stays_unknown() -> None:
    merged = merge_meta([leaf("a", 7), {}], "fuse", [])
    assert "parameters" not in merged
    assert "rounding" not in merged
    assert merged["audio_encoders"] == ["ms-clap", "unknown"]
    assert "parameters" not in merge_meta([merged, leaf("b", 8)], "fuse", [])  # and stays so


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
UNIT = st.floats(0, 1)


@st.composite
def predictions(draw: st.DrawFn) -> list[Prediction]:
    found: dict[str, Prediction] = {}
    for _ in range(draw(st.integers(1, 4))):
        int_qid = draw(st.booleans())
        qid = str(draw(st.integers())) if int_qid else draw(TEXT)
        time = st.floats(-10, 1e4)
        rows = draw(st.lists(st.tuples(time, time, UNIT).filter(lambda w: w[0] < w[1]), max_size=4))
        curve = draw(
            st.none() | st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1)
        )
        duration = draw(st.floats(0, 1e4, exclude_min=True) | st.just(float("nan")))
        saliency = None if curve is None else np.array(curve, np.float32)
        array = np.array(rows, np.float64).reshape(-1, 3)
        found[qid] = Prediction(qid, draw(TEXT), draw(TEXT), duration, array, saliency, int_qid)
    return list(found.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(predictions())
def test_what_is_written_is_read_back(tmp_path: Path, made: list[Prediction]) -> None:
    path = tmp_path / "p.jsonl"
    write_predictions(path, made, {}, overwrite=True)
    for a, b in zip(made, read_predictions(path), strict=True):
        assert (a.qid, a.query, a.vid, a.int_qid) == (b.qid, b.query, b.vid, b.int_qid)
        assert a.duration == b.duration or (np.isnan(a.duration) and np.isnan(b.duration))
        assert np.array_equal(a.windows, b.windows)
        assert (a.saliency is None) == (b.saliency is None)
        assert a.saliency is None or np.array_equal(a.saliency, b.saliency)  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("qid", "query", "vid", "duration", "pred_relevant_windows", "pred_saliency_scores")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda change: json.dumps({**GOOD, **change}))
    | st.text(),
    st.binary(max_size=3),
    st.integers(0, 40),
    st.booleans(),
)
def test_a_broken_file_gives_a_prediction_error_and_nothing_else(
    tmp_path: Path, line: str, junk: bytes, at: int, scores: bool
) -> None:
    data = line.encode("utf-8", "surrogatepass")
    path = tmp_path / "p.jsonl"
    path.write_bytes(data[:at] + junk + data[at:])
    try:
        read = read_predictions(path, scores=scores)
    except PredictionError as error:
        assert str(path) in str(error)  # noqa: PT017  both outcomes are right, a third would escape
    else:
        assert len(read) >= 1

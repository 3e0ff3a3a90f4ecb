"""The teacher's windows: union, near copies, top K, ranks, clipping."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amrctl.data.manifest import Manifest, Query
from amrctl.data.predictions import Prediction, Predictions
from amrctl.data.teacher import TeacherSet
from amrctl.errors import PredictionError

Rows = list[tuple[float, float, float]]


def file(*rows: Rows, name: str = "p.jsonl", vid: str = "v") -> Predictions:
    items = tuple(
        Prediction(str(i), "sentence", vid, 60.0, np.array(r, dtype=np.float64).reshape(-1, 3))
        for i, r in enumerate(rows)
    )
    return Predictions(Path(name), items, {})


def test_union_drops_near_copies_and_keeps_the_best() -> None:
    a = file([(0, 20, 0.9), (30, 40, 0.2)])
    b = file([(0.4, 20, 0.95), (31, 40, 0.5), (50, 51, 0.1)])
    teacher = TeacherSet.from_predictions([a, b], top_k=3)
    # (0, 20) is 98% of (0.4, 20) and goes; (30, 40) is 90% of (31, 40) and stays
    assert teacher.windows["0"].tolist() == [[0.4, 20, 0.95], [31, 40, 0.5], [30, 40, 0.2]]
    assert len(TeacherSet.from_predictions([a, b], top_k=1).windows["0"]) == 1


def test_an_overlap_of_exactly_the_limit_is_no_copy() -> None:
    teacher = TeacherSet.from_predictions([file([(0, 20, 0.9), (0, 19, 0.8)])], top_k=5)
    assert len(teacher.windows["0"]) == 2  # 19 / 20 = 0.95


def test_ranks_make_scales_comparable() -> None:
    loud = file([(0, 10, 0.9), (20, 30, 0.8), (40, 50, 0.7)])
    quiet = file([(5, 20, 0.02), (30, 45, 0.01)])
    plain = TeacherSet.from_predictions([loud, quiet], top_k=2)
    assert plain.windows["0"][:, 0].tolist() == [0, 20]
    ranked = TeacherSet.from_predictions([loud, quiet], top_k=2, rank_normalise=True)
    assert ranked.windows["0"].tolist() == [[0, 10, 1], [5, 20, 1]]
    assert loud.items[0].windows[1, 2] == 0.8  # the files are left alone


def test_spans_are_clipped_to_the_seconds_that_are_used() -> None:
    teacher = TeacherSet.from_predictions([file([(10, 30, 0.9), (45, 55, 0.5), (-4, 4, 0.3)])])
    spans, scores = teacher.spans_for("0", 40.0)
    np.testing.assert_allclose(spans, [[0.5, 0.5], [0.05, 0.1]])
    np.testing.assert_allclose(scores, [0.9, 0.3])
    assert spans.dtype == scores.dtype == np.float32
    spans, scores = teacher.spans_for("0", 3.0)
    assert spans.shape == (1, 2)
    empty, none = TeacherSet.from_predictions([file([])]).spans_for("0", 3.0)
    assert empty.shape == (0, 2)
    assert none.shape == (0,)


def test_missing_queries_and_other_recordings_are_named() -> None:
    queries = tuple(Query(str(i), "sentence", "v", 60.0, ((0.0, 5.0),)) for i in range(3))
    teacher = TeacherSet.from_predictions([file([], [], [], [])])
    teacher.require(Manifest(None, queries))
    with pytest.raises(PredictionError, match=r"p\.jsonl: 1 of 3 training queries are missing.*qid 2"):
        TeacherSet.from_predictions([file([], [])]).require(Manifest(None, queries))
    with pytest.raises(PredictionError, match="qid 0 is about recording other"):
        TeacherSet.from_predictions([file([], [], [], vid="other")]).require(Manifest(None, queries))
    with pytest.raises(PredictionError, match="different queries"):
        TeacherSet.from_predictions([file([]), file([], [], name="q.jsonl")])
    with pytest.raises(PredictionError, match="at least one prediction file"):
        TeacherSet.from_predictions([])


windows = st.tuples(st.integers(0, 30), st.integers(1, 30), st.integers(0, 10)).map(
    lambda w: (float(w[0]), float(w[0] + w[1]), w[2] / 10)
)


@given(st.lists(st.lists(windows, max_size=6), min_size=1, max_size=3), st.integers(1, 5))
def test_union_against_an_obvious_one(members: list[Rows], top_k: int) -> None:
    made = TeacherSet.from_predictions([file(m) for m in members], top_k=top_k).windows["0"]
    ordered = [sorted(m, key=lambda w: -w[2]) for m in members]
    kept: Rows = []
    for window in sorted(itertools.chain(*ordered), key=lambda w: -w[2]):
        copies = False
        for other in kept:
            inter = max(0.0, min(window[1], other[1]) - max(window[0], other[0]))
            union = (window[1] - window[0]) + (other[1] - other[0]) - inter
            copies |= inter / union > 0.95
        if not copies:
            kept.append(window)
    assert made.tolist() == [list(window) for window in kept[:top_k]]

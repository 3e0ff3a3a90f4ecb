"""The pool against a plain list of windows, sorted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.predictions import Prediction
from amrctl.ensemble.pool import pool
from amrctl.errors import PredictionError
from amrctl.spans import temporal_iou

Row = tuple[float, float, float]


def one(rows: list[Row], qid: str = "q1", saliency: bool = False) -> Prediction:
    curve = np.arange(4, dtype=np.float32) if saliency else None
    return Prediction(qid, "rain falls", "v1", 100.0, np.array(rows, dtype=np.float64).reshape(-1, 3), curve)


def plain(files: list[list[Row]], weights: list[float], keep: int, copies: float | None) -> list[Row]:
    """The definition, window by window."""
    top = max(weights)
    union = [(s, e, p * (w / top)) for rows, w in zip(files, weights, strict=True) if w for s, e, p in rows]
    out: list[Row] = []
    for row in sorted(union, key=lambda r: -r[2]):
        if copies is None or all(temporal_iou(row[:2], o[:2])[0, 0] <= copies for o in out):
            out.append(row)
    return out[:keep]


window = st.tuples(st.integers(0, 9), st.integers(1, 6), st.integers(0, 4)).map(
    lambda t: (float(t[0]), float(t[0] + t[1]), t[2] / 4)
)


@settings(max_examples=200, deadline=None)
@given(
    files=st.lists(st.lists(window, max_size=6), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=4, max_size=4),
    keep=st.integers(1, 12),
    copies=st.sampled_from([None, 0.0, 0.5, 0.95, 1.0]),
)
def test_equals_the_plain_definition(
    files: list[list[Row]], weights: list[float], keep: int, copies: float | None
) -> None:
    weights = [*weights[: len(files) - 1], 1.0]
    found = pool([[one(rows)] for rows in files], weights=weights, keep=keep, copies_iou=copies)
    assert [tuple(row) for row in found[0].windows.tolist()] == plain(files, weights, keep, copies)


def test_near_copies_stay_unless_asked_for() -> None:
    files = [[one([(10, 30, 0.9)])], [one([(10, 30.5, 0.8), (10, 40, 0.7)])]]
    assert len(pool(files)[0].windows) == 3
    assert pool(files, copies_iou=0.95)[0].windows[:, 2].tolist() == [0.9, 0.7]


def test_one_file_is_unchanged_saliency_included() -> None:
    item = one([(10, 30, 0.9), (1, 2, 0.9)], saliency=True)
    [found] = pool([[item]])
    np.testing.assert_array_equal(found.windows, item.windows)
    assert found.saliency is item.saliency
    assert pool([[item], [item]])[0].saliency is None
    assert pool([[one([])], [item]], weights=[0, 1])[0].saliency is item.saliency


def test_mistakes() -> None:
    with pytest.raises(PredictionError, match="copies_iou 2"):
        pool([[one([])]], copies_iou=2)
    with pytest.raises(PredictionError, match="different queries: 1 in file 1, 1 in file 2"):
        pool([[one([])], [one([], "q2")]])

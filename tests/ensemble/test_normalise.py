"""Scores on one scale: by hand, and that no file's own order changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.predictions import Prediction
from amrctl.ensemble.normalise import calibrate, normalise
from amrctl.errors import PredictionError


def one(scores: list[float], qid: str = "q1") -> Prediction:
    rows = [[i, i + 1.5, score] for i, score in enumerate(scores)]
    return Prediction(qid, "rain falls", "v1", 99.0, np.array(rows, dtype=np.float64).reshape(-1, 3))


def scores(files: list[list[Prediction]]) -> list[list[float]]:
    return [item.windows[:, 2].tolist() for items in files for item in items]


def test_ranks_by_hand() -> None:
    files = [[one([0.2, 0.9, 0.2, 0.4])], [one([1e-6, 1e-9])], [one([])]]
    # the longest list has four windows; equal scores: the earlier place is better
    assert scores(normalise(files, "rank")) == [[0.5, 1.0, 0.25, 0.75], [1.0, 0.75], []]
    assert scores(normalise(files, "none")) == scores(files)


def test_minmax_by_hand() -> None:
    files = [[one([0.25, 0.75, 0.5])], [one([0.125, 0.125])], [one([])]]
    assert scores(normalise(files, "minmax")) == [[0.0, 1.0, 0.5], [1.0, 1.0], []]


def test_calibration_by_hand() -> None:
    files = [[one([0.0, 0.5, 0.9, 1.0])], [one([0.3])]]
    found = scores(calibrate(files, temperatures=[2, 1], offsets=[1, 0]))
    odds = [math.e, 3 * math.e]  # logit 0 and log 9, halved, plus 1
    assert found[0] == pytest.approx([0, odds[0] / (1 + odds[0]), odds[1] / (1 + odds[1]), 1])
    assert found[1] == [0.3]  # untouched to the bit
    assert scores(calibrate(files)) == scores(files)


@settings(max_examples=100, deadline=None)
@given(
    drawn=st.lists(st.lists(st.floats(0, 1), max_size=8), min_size=1, max_size=4),
    temperature=st.floats(0.05, 20),
    offset=st.floats(-5, 5),
)
def test_windows_keep_their_place_and_their_order(
    drawn: list[list[float]], temperature: float, offset: float
) -> None:
    files = [[one(values)] for values in drawn]
    each = len(files)
    every = [normalise(files, kind) for kind in ("rank", "minmax")]
    every.append(calibrate(files, temperatures=[temperature] * each, offsets=[offset] * each))
    for made in every:
        for [before], [after] in zip(files, made, strict=True):
            np.testing.assert_array_equal(before.windows[:, :2], after.windows[:, :2])
            new = after.windows[np.argsort(-before.windows[:, 2], kind="stable"), 2]
            assert (np.diff(new) <= 0).all()
            assert ((new >= 0) & (new <= 1)).all()


def test_mistakes() -> None:
    files = [[one([0.5])], [one([0.5])]]
    with pytest.raises(PredictionError, match="normalise zscore: choose none, rank, minmax"):
        normalise(files, "zscore")
    with pytest.raises(PredictionError, match="1 temperatures for 2 prediction files"):
        calibrate(files, temperatures=[1])
    with pytest.raises(PredictionError, match="temperature 0 is not above 0"):
        calibrate(files, temperatures=[1, 0])
    with pytest.raises(PredictionError, match="offset nan is not a finite number"):
        calibrate(files, offsets=[0, math.nan])

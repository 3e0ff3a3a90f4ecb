"""Saliency as proposals against a loop over frames, and boxes that return themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.ensemble.saliency import proposals
from amrctl.errors import PredictionError


def plain(raw: list[float], duration: float, threshold: float, keep: int) -> list[tuple[float, float, float]]:
    """Frame by frame, as the report says it."""
    chance = [1 / (1 + math.exp(-value)) for value in raw]
    share = [value / max(chance) for value in chance]
    found, run = [], []
    for t, value in enumerate([*share, -1.0]):
        if value >= threshold:
            run.append(value)
        elif run:
            step = duration / len(raw)
            found.append(((t - len(run)) * step, t * step, sum(run) / len(run)))
            run = []
    return sorted(found, key=lambda row: -round(row[2], 6))[:keep]


@settings(max_examples=200, deadline=None)
@given(
    raw=st.lists(st.integers(-90, 90).map(lambda i: i / 10), min_size=1, max_size=40),
    duration=st.floats(0.5, 400),
    threshold=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    keep=st.integers(1, 12),
)
def test_equals_the_loop(raw: list[float], duration: float, threshold: float, keep: int) -> None:
    found = proposals(np.array(raw), duration, threshold=threshold, keep=keep)
    wanted = plain(raw, duration, threshold, keep)
    np.testing.assert_allclose(found, np.array(wanted).reshape(-1, 3), rtol=1e-6, atol=1.1e-6)
    assert len(found) > 0  # the highest frame always stands
    assert (found[:, 1] <= duration).all()
    assert ((found[:, 2] >= threshold - 1e-6) & (found[:, 2] <= 1)).all()


def test_boxes_come_back() -> None:
    curve = np.full(60, -30.0, dtype=np.float32)
    curve[5:12], curve[40:41] = 2.0, 2.0
    # 60 frames of a 90 s recording: 1.5 s each; equal scores keep the order of time
    assert proposals(curve, 90.0).tolist() == [[7.5, 18.0, 1.0], [60.0, 61.5, 1.0]]
    assert proposals(np.full(4, 3.0), 10.0).tolist() == [[0.0, 10.0, 1.0]]


def test_a_frame_at_the_threshold_counts() -> None:
    curve = np.array([0.0, 0.0, -1e-6])
    assert proposals(curve, 3.0, threshold=1.0).tolist() == [[0.0, 2.0, 1.0]]


def test_nothing_fits() -> None:
    assert proposals(np.full(9, -50.0), 9.0).shape == (0, 3)
    assert proposals(np.empty(0), 9.0).shape == (0, 3)
    # large values neither overflow nor warn
    assert proposals(np.array([1e30, -1e30, 3e38]), 3.0).tolist() == [[0.0, 1.0, 1.0], [2.0, 3.0, 1.0]]


@pytest.mark.parametrize(
    "options", [{"threshold": 0.0}, {"threshold": math.nan}, {"threshold": 1.1}, {"keep": 0}]
)
def test_mistakes(options: dict[str, float]) -> None:
    with pytest.raises(PredictionError, match=r"threshold|keep 0"):
        proposals(np.zeros(4), 4.0, **options)  # type: ignore[arg-type]

"""Arithmetic of time: hand-worked values, a slow obvious twin, and what must hold for any window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amrctl import spans

SECOND = st.integers(0, 40)
WINDOW = st.tuples(SECOND, SECOND).map(lambda p: (float(min(p)), float(max(p))))
WINDOWS = st.lists(WINDOW, max_size=6)


def cells(windows: list[tuple[float, float]]) -> set[int]:
    """The whole seconds that windows with whole-second bounds cover."""
    return {t for start, end in windows for t in range(int(start), int(end))}


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ((0, 10), (0, 10), 1.0, 1.0),
        ((0, 10), (5, 15), 5 / 15, 5 / 15),
        ((0, 10), (10, 20), 0.0, 0.0),  # touching: the hull is full
        ((0, 10), (30, 40), 0.0, -20 / 40),
        ((0, 20), (5, 10), 5 / 20, 5 / 20),
        ((3, 3), (3, 3), 0.0, 0.0),  # no length at all
        ((3, 3), (0, 10), 0.0, 0.0),
        ((3, 3), (8, 8), 0.0, -1.0),
    ],
)
def test_iou_and_giou_by_hand(
    a: tuple[float, float], b: tuple[float, float], iou: float, giou: float
) -> None:
    assert spans.temporal_iou([a], [b])[0, 0] == iou
    assert spans.generalised_iou([a], [b])[0, 0] == pytest.approx(giou, abs=1e-15)


def test_whole_second_ratio_equals_its_decimal() -> None:
    # the metric compares with >= 0.7: float32 or another order of operations would miss this
    assert spans.temporal_iou([(0, 14)], [(0, 20)])[0, 0] == 0.7


@given(WINDOWS, WINDOWS)
def test_iou_counts_seconds(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> None:
    got = spans.temporal_iou(a, b)
    assert got.shape == (len(a), len(b))
    for i, wa in enumerate(a):
        for j, wb in enumerate(b):
            union = cells([wa]) | cells([wb])
            assert got[i, j] == (len(cells([wa]) & cells([wb])) / len(union) if union else 0.0)
    giou = spans.generalised_iou(a, b)
    assert ((giou <= got) & (giou >= -1)).all()


@given(WINDOWS)
def test_centre_width_round_trip(windows: list[tuple[float, float]]) -> None:
    there = spans.to_centre_width(windows)
    assert there.shape == (len(windows), 2)
    np.testing.assert_allclose(spans.to_start_end(there), spans.as_windows(windows))


def test_centre_width_by_hand() -> None:
    assert spans.to_centre_width([(2, 6)]).tolist() == [[4, 4]]
    assert spans.to_start_end([(0.5, 0.2)]).tolist() == [[0.4, 0.6]]


@given(WINDOWS, st.integers(0, 3))
def test_merge_covers_the_same_and_leaves_gaps(windows: list[tuple[float, float]], gap: int) -> None:
    merged = spans.merge(windows, gap)
    assert cells([(a, b) for a, b in merged.tolist()]) >= cells(windows)
    assert (merged[1:, 0] - merged[:-1, 1] > gap).all()
    if gap == 0:
        assert cells([(a, b) for a, b in merged.tolist()]) == cells(windows)


def test_merge_by_hand() -> None:
    assert spans.merge([(5, 7), (0, 2), (2, 3), (6, 9)]).tolist() == [[0, 3], [5, 9]]
    assert spans.merge([(0, 9), (1, 2)]).tolist() == [[0, 9]]
    assert spans.merge([(0, 1), (3, 4)], gap=2).tolist() == [[0, 4]]
    assert spans.merge([]).shape == (0, 2)


@given(WINDOWS, st.integers(1, 45))
def test_coverage_counts_seconds(windows: list[tuple[float, float]], frames: int) -> None:
    wanted = [float(t in cells(windows)) for t in range(frames)]
    assert spans.frame_coverage(windows, frames, 1.0).tolist() == wanted


def test_coverage_by_hand() -> None:
    # overlapping windows are not counted twice; frame 2 of 0.5 s hop is [1.0, 1.5)
    got = spans.frame_coverage([(0.1, 0.35), (0.25, 0.5), (1.25, 9.0)], 4, 0.5)
    np.testing.assert_allclose(got, [0.8, 0.0, 0.5, 1.0])


def test_a_window_needs_two_numbers() -> None:
    with pytest.raises(ValueError, match="reshape"):
        spans.as_windows([1.0, 2.0, 3.0])

"""Seconds and scores: worked by hand, and an ideal detector on long recordings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.inference.decode import SHORTEST, Piece, decode, fit, join_saliency


def piece(
    windows: Sequence[tuple[float, float, float]],
    seconds: float = 10.0,
    offset: float = 0.0,
    first: bool = True,
    last: bool = True,
) -> Piece:
    """What a model would have to say for these (start, end, score), in seconds of the recording."""
    rows = np.array(windows, dtype=np.float64).reshape(-1, 3)
    centre, width = (rows[:, 0] + rows[:, 1]) / 2 - offset, rows[:, 1] - rows[:, 0]
    spans = (np.column_stack([centre, width]) / seconds).astype(np.float32)
    return Piece(offset, seconds, spans, rows[:, 2].astype(np.float32), None, first, last)


def chunked(windows: list[list[tuple[float, float, float]]]) -> list[Piece]:
    """Chunks of 20 s that begin every 10 s."""
    last = len(windows) - 1
    return [piece(part, 20.0, 10.0 * i, i == 0, i == last) for i, part in enumerate(windows)]


@pytest.mark.parametrize(
    ("window", "rounding", "wanted"),
    [
        ((2.5, 7.5), 1, (2, 8)),  # halves to even
        ((0.5, 1.5), 1, (0, 2)),
        ((3.2, 3.4), 1, (3, 4)),  # never empty
        ((9.6, 9.9), 1, (9, 10)),  # nor past the end
        ((-3.0, 1.2), 1, (0, 1)),
        ((7.0, 13.0), 1, (7, 10)),
        ((2.26, 4.74), 0.5, (2.5, 4.5)),
        ((0.11, 0.31), 0.1, (0.1, 0.3)),  # not 0.30000000000000004
        ((2.123456, 4.5), 0, (2.1235, 4.5)),
        ((5.0, 5.0), 0, (5.0, 5.0 + SHORTEST)),
        ((12.0, 14.0), 0, (10 - SHORTEST, 10)),
    ],
)
def test_rounding_and_clipping_by_hand(
    window: tuple[float, float], rounding: float, wanted: tuple[float, float]
) -> None:
    got = fit(np.array([window]), 10.0, rounding)
    assert tuple(got[0].tolist()) == pytest.approx(wanted, abs=1e-12)
    if rounding == 0.1:
        assert got.tolist() == [[0.1, 0.3]]


def test_a_recording_shorter_than_the_step_is_one_window() -> None:
    assert fit(np.array([[0.02, 0.05], [0.0, 0.1]]), 0.1, 1.0).tolist() == [[0, 0.1], [0, 0.1]]


def test_span_one_is_the_chunk_not_the_duration() -> None:
    # 10 frames of 1 s stand for a recording of 9.6 s: half of 10 s is 5 s, and the end is clipped
    got = decode([piece([(5, 10, 0.5)])], 9.6, 1.0, keep=5, rounding=0)
    np.testing.assert_allclose(got, [[5, 9.6, 0.5]], atol=1e-6)


def test_official_clips_to_300_seconds_first() -> None:
    long = piece([(100, 390, 0.9)], seconds=400)
    assert decode([long], 400, 1.0, keep=1, rounding=1, official=True)[0, 1] == 300
    assert decode([long], 400, 1.0, keep=1, rounding=1)[0, 1] == 390


def test_ranking_comes_before_rounding_ties_keep_their_order() -> None:
    close = [(1, 2, 0.50000010), (3, 4, 0.50000016), (5, 6, 0.9), (7, 8, 0.9)]
    got = decode([piece(close)], 10.0, 1.0, keep=4, rounding=1)
    assert got[:, 0].tolist() == [5, 7, 3, 1]
    assert got[2, 2] == got[3, 2] == 0.5  # six digits are kept
    assert decode([piece(close)], 10.0, 1.0, keep=2, rounding=1)[:, 0].tolist() == [5, 7]


spans = st.lists(
    st.tuples(*[st.floats(0, 1, width=32)] * 3), min_size=1, max_size=8
)  # what a sigmoid can give


@settings(deadline=None)
@given(
    spans=spans,
    frames=st.integers(1, 40),
    missing=st.floats(-0.6, 0.6),
    rounding=st.sampled_from([0.0, 0.1, 0.5, 1.0, 7.0]),
    keep=st.integers(1, 8),
)
def test_windows_lie_within_are_not_empty_and_come_best_first(
    spans: list[tuple[float, float, float]], frames: int, missing: float, rounding: float, keep: int
) -> None:
    duration = max(frames + missing, 0.001)
    rows = np.array(spans, dtype=np.float32)
    got = decode(
        [Piece(0.0, float(frames), rows[:, :2], rows[:, 2], None)],
        duration,
        1.0,
        keep=keep,
        rounding=rounding,
    )
    assert got.shape == (min(keep, len(spans)), 3)
    assert (got[:, 0] >= 0).all()
    assert (got[:, 1] <= duration).all()
    assert (got[:, 0] < got[:, 1]).all()
    assert (np.diff(got[:, 2]) <= 0).all()
    assert ((got[:, 2] >= 0) & (got[:, 2] <= 1)).all()


def test_one_chunk_is_never_merged() -> None:
    copies = [(1.0, 5.0, 0.9), (1.0, 5.0, 0.8), (1.1, 5.0, 0.7)]
    assert len(decode([piece(copies)], 10.0, 1.0, keep=10, rounding=0)) == 3


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        # cut by the first chunk's end, whole in the second: the second's boundaries
        ([[(17, 20, 0.9)], [(17, 24, 0.8)]], [(17, 24, 0.9)]),
        ([[(4, 12, 0.6)], [(10, 12, 0.9)]], [(4, 12, 0.9)]),
        # whole in both: the better one
        ([[(12, 17, 0.7)], [(12.2, 17, 0.9)]], [(12.2, 17, 0.9)]),
        # longer than what two chunks share: all of it
        ([[(5, 20, 0.5)], [(10, 30, 0.7)], [(20, 36, 0.6)]], [(5, 36, 0.7)]),
        # the middle of a long moment comes last and joins both ends
        ([[(5, 20, 0.9)], [(10, 30, 0.2)], [(20, 36, 0.8)]], [(5, 36, 0.9)]),
        # different sounds stay apart
        ([[(1, 4, 0.9), (11, 14, 0.3)], [(15, 18, 0.8)]], [(1, 4, 0.9), (15, 18, 0.8), (11, 14, 0.3)]),
        # a vague window over a cut sound does not swallow it
        ([[(16, 20, 0.9)], [(10.8, 29, 0.05)]], [(16, 20, 0.9), (10.8, 29, 0.05)]),
        # nor do near copies survive in either chunk
        ([[(17, 20, 0.9), (17.2, 20, 0.1)], [(17, 24, 0.8), (17.1, 24, 0.2)]], [(17, 24, 0.9)]),
    ],
)
def test_chunks_by_hand(
    told: list[list[tuple[float, float, float]]], wanted: list[tuple[float, float, float]]
) -> None:
    got = decode(chunked(told), 10.0 * len(told) + 10, 1.0, keep=10, rounding=0)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@settings(deadline=None)
@given(
    gaps=st.lists(st.tuples(st.floats(0.3, 15), st.floats(0.4, 45)), min_size=1, max_size=6),
    tail=st.floats(0.3, 25),
    seed=st.integers(0, 2**16),
)
def test_an_ideal_detector_on_chunks_tells_exactly_the_events(
    gaps: list[tuple[float, float]], tail: float, seed: int
) -> None:
    """Each chunk reports the visible part of every event; together they must give the events."""
    events, at = [], 0.0
    for gap, length in gaps:
        events.append((at + gap, at + gap + length))
        at += gap + length
    duration = at + tail
    limit = 20
    total = max(int(np.ceil(duration)), limit)
    starts = sorted({*range(0, max(total - limit, 0), limit // 2), total - limit})
    rng = np.random.default_rng(seed)
    pieces = []
    for start in starts:
        seen = [(max(s, start), min(e, start + limit, duration)) for s, e in events]
        rows = [(s, e, float(rng.uniform(0.1, 1))) for s, e in seen if e - s > 0.1]
        pieces.append(piece(rows, limit, start, start == starts[0], start == starts[-1]))
    got = decode(pieces, duration, 1.0, keep=50, rounding=0)
    np.testing.assert_allclose(got[np.argsort(got[:, 0]), :2], events, atol=2e-3)
    assert (np.diff(got[:, 2]) <= 0).all()


def test_saliency_of_chunks_is_their_mean_where_they_overlap() -> None:
    def curve(offset: float, values: list[float]) -> Piece:
        empty = np.zeros((0, 2), np.float32)
        return Piece(offset, 2.0, empty, np.zeros(0, np.float32), np.array(values, np.float32))

    joined = join_saliency([curve(0, [1, 2, 3, 4]), curve(1, [5, 6, 7, 8])], 0.5)
    assert joined is not None
    assert joined.tolist() == [1, 2, 4, 5, 7, 8]
    assert joined.dtype == np.float32
    assert join_saliency([piece([(1, 2, 0.5)])], 1.0) is None

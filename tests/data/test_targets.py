"""From labelled seconds to what a batch is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amrctl.data.targets import (
    clip_windows,
    draw_pairs,
    draw_windows,
    mix,
    released_saliency_labels,
    saliency_labels,
)


@pytest.mark.parametrize(
    ("windows", "wanted", "changed"),
    [
        ([(0, 10), (280, 300)], [(0, 10), (280, 300)], 0),
        ([(280, 301)], [(280, 300)], 1),  # ends late: cut
        ([(300, 301)], [(299, 300)], 1),  # starts at the end, ends within the slack: the last second
        ([(300.5, 302)], [(299, 300)], 1),
        ([(300, 302.5)], [], 1),  # beyond the slack
        ([(299, 4800)], [(299, 300)], 1),  # the labels' own slip, in a longer recording
        ([(350, 400), (5, 6)], [(5, 6)], 1),
        ([], [], 0),
    ],
)
def test_windows_are_clipped_to_the_features(
    windows: list[tuple[float, float]], wanted: list[tuple[float, float]], changed: int
) -> None:
    kept, count = clip_windows(windows, 300.0, 1.0)
    assert [tuple(w) for w in kept.tolist()] == wanted
    assert count == changed
    assert kept.shape == (len(wanted), 2)


def test_a_cut_keeps_nothing_of_what_lies_behind_it() -> None:
    kept, _ = clip_windows([(290, 310), (300, 301)], 300.0, 1.0, 0.0)
    assert kept.tolist() == [[290, 300]]


def test_the_last_second_of_a_recording_shorter_than_one_hop() -> None:
    kept, _ = clip_windows([(0.5, 1.0)], 0.5, 1.0)
    assert kept.tolist() == [[0.0, 0.5]]


def test_frames_are_positive_from_half_covered() -> None:
    got = saliency_labels([(1.5, 3.4), (3.4, 3.5)], 6, 1.0)
    assert got.tolist() == [False, True, True, True, False, False]  # frame 3: 0.4 + 0.1
    assert saliency_labels([(1.51, 3.49)], 6, 1.0).tolist() == [False, False, True, False, False, False]
    # all moments count, also one too short to fill half a frame when it is the only one
    assert saliency_labels([(0, 1), (4, 6)], 6, 1.0).tolist() == [True, False, False, False, True, True]
    assert saliency_labels([(2.2, 2.4)], 6, 1.0).tolist() == [False, False, True, False, False, False]
    assert saliency_labels([(1.0, 2.0)], 8, 0.5).tolist() == [False, False, True, True, *[False] * 4]
    assert not saliency_labels([(9, 12)], 6, 1.0).any()


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(1, 9)), max_size=4))
def test_whole_second_labels_are_the_covered_seconds(moments: list[tuple[int, int]]) -> None:
    windows = [(s, s + n) for s, n in moments]
    wanted = [any(s <= t < e for s, e in windows) for t in range(20)]
    assert saliency_labels(windows, 20, 1.0).tolist() == wanted


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        ((2, 5), [2, 3, 4]),
        ((2.7, 5.9), [2, 3, 4]),  # floor of both ends, the last frame left out
        ((8, 15), [8, 9]),
        ((10, 12), [9]),  # starts at the end
        ((3, 3.5), [2]),  # floor(end) - 1 lies before the start
        ((0, 0.5), [0]),
    ],
)
def test_released_labels(window: tuple[float, float], inside: list[int]) -> None:
    assert np.flatnonzero(released_saliency_labels([window], 10, 1.0)).tolist() == inside


# --- draws -------------------------------------------------------------------------------------------


def test_the_hash_is_splitmix64() -> None:
    """First outputs of the published generator for seed 1234567 (Vigna's reference vectors)."""
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    step = 0x9E3779B97F4A7C15
    assert [int(mix((1234567 + i * step) % 2**64)) for i in range(3)] == wanted


def test_the_hash_broadcasts_and_depends_on_every_part() -> None:
    grid = mix(3, np.arange(5, dtype=np.uint64)[:, None], np.arange(7)[None])
    assert grid.shape == (5, 7)
    assert grid.dtype == np.uint64
    assert int(grid[4, 6]) == int(mix(3, 4, 6))
    assert len(np.unique(grid)) == 35
    assert int(mix(3, 4)) != int(mix(4, 3))


def test_windows_are_drawn_uniformly_in_their_order() -> None:
    count, keep, draws = 8, 5, 4000
    seen = np.zeros(count)
    pairs = np.zeros((count, count))
    for epoch in range(draws):
        chosen = draw_windows(mix(epoch, 99, np.arange(count)), count, keep)
        assert len(chosen) == keep
        assert (np.diff(chosen) > 0).all()
        seen[chosen] += 1
        pairs[np.ix_(chosen, chosen)] += 1
    p = keep / count
    assert (abs(seen / draws - p) < 4.5 * np.sqrt(p * (1 - p) / draws)).all()
    p = keep * (keep - 1) / (count * (count - 1))
    apart = pairs[~np.eye(count, dtype=bool)] / draws
    assert (abs(apart - p) < 4.5 * np.sqrt(p * (1 - p) / draws)).all()
    assert draw_windows(mix(0, np.arange(5)), 5, 5).tolist() == [0, 1, 2, 3, 4]
    assert draw_windows(mix(0, np.arange(9)), 0, 5).tolist() == []


def test_frames_are_drawn_uniformly_from_inside_and_outside() -> None:
    rows, frames = 6000, 12
    inside = np.zeros((rows, frames), dtype=bool)
    inside[:, 3:7] = True
    real = np.ones_like(inside)
    real[:, 10:] = False
    pairs = draw_pairs(inside, real, mix(1, np.arange(rows)[:, None], np.arange(frames)[None]))
    assert pairs.mask.all()
    for drawn, pool in ((pairs.positives, range(3, 7)), (pairs.negatives, [0, 1, 2, 7, 8, 9])):
        assert set(drawn.ravel().tolist()) == set(pool)  # never padding
        assert (drawn[:, 0] != drawn[:, 1]).all()
        share = np.bincount(drawn.ravel(), minlength=frames)[list(pool)] / rows
        p = 2 / len(pool)
        assert (abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / rows)).all()


def test_rows_with_little_to_draw_from() -> None:
    inside = np.array([[1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    real = np.ones((4, 4), dtype=bool)
    keys = mix(7, np.arange(4)[:, None], np.arange(4)[None])
    pairs = draw_pairs(inside, real, keys)
    assert pairs.mask.tolist() == [False, True, True, False]  # nothing outside; nothing inside
    assert pairs.positives[1].tolist() == [1, 1]
    assert pairs.negatives[2].tolist() == [3, 3]
    # the released code compares a row that has fewer than two frames outside with itself
    released = draw_pairs(inside, real, keys, released=True)
    assert released.mask.tolist() == [True, True, True, False]
    for row in (0, 2):
        assert released.negatives[row].tolist() == released.positives[row].tolist()
    assert released.negatives[1].tolist() == pairs.negatives[1].tolist()


def test_a_single_frame() -> None:
    one = np.ones((1, 1), dtype=bool)
    pairs = draw_pairs(one, one, mix(1, np.zeros((1, 1), dtype=np.uint64)))
    assert pairs.positives.tolist() == [[0, 0]]
    assert pairs.mask.tolist() == [False]

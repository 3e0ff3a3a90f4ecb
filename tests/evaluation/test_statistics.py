"""The bootstrap against all resamples counted out, closed forms, and a normal approximation."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from amrctl.evaluation import statistics
from amrctl.evaluation.statistics import groups, interval, p_values, resampled_means


def test_groups_follow_first_appearance() -> None:
    assert groups(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_distribution_equals_all_resamples_counted_out() -> None:
    """Three recordings of 1, 2 and 3 queries: 27 equally likely draws, each a ratio of sums."""
    values = np.array([1.0, 0.0, 0.5, 0.25, 0.75, 0.125])
    group = np.array([0, 1, 1, 2, 2, 2])
    exact: Counter[float] = Counter()
    for draw in itertools.product(range(3), repeat=3):
        drawn = np.concatenate([values[group == recording] for recording in draw])
        exact[round(float(drawn.mean()), 9)] += 1
    n = 40_000
    got = Counter(np.round(resampled_means(values[:, None], group, resamples=n, seed=1)[:, 0], 9).tolist())
    assert set(got) == set(exact)
    for value, count in exact.items():
        share = count / 27
        assert abs(got[value] / n - share) < 5 * np.sqrt(share * (1 - share) / n)


def test_recordings_are_drawn_and_not_queries() -> None:
    """Ten copies of each query under one recording must not make the interval narrower."""
    values = np.random.default_rng(0).random((50, 1))
    single = interval(resampled_means(values, np.arange(50), seed=3))
    copied = interval(resampled_means(np.repeat(values, 10, axis=0), np.repeat(np.arange(50), 10), seed=3))
    np.testing.assert_allclose(copied, single, rtol=1e-12)


def test_width_agrees_with_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=(400, 1))
    low, high = interval(resampled_means(values, np.arange(400), resamples=4000, seed=0))
    error = values.std() / np.sqrt(400)
    assert (high - low)[0] == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_p_agrees_with_the_normal_test() -> None:
    generator = np.random.default_rng(2)
    for shift in (0.0, 0.05, 0.1, 0.2):
        gap = generator.normal(shift, 1, size=(400, 1))
        z = gap.mean() / (gap.std() / np.sqrt(400))
        expected = 2 * stats.norm.sf(abs(z))
        got = p_values(resampled_means(gap, np.arange(400), resamples=8000, seed=4))[0]
        assert got == pytest.approx(expected, abs=0.03)


def test_p_by_hand() -> None:
    always, never, mixed, noise = (
        np.full(99, 0.1),
        np.full(99, -0.1),
        np.r_[np.full(96, 0.1), np.full(3, -0.1)],
        1e-17,
    )
    got = p_values(np.stack([always, never, mixed, np.zeros(99), np.full(99, noise)], axis=1))
    assert got.tolist() == [0.02, 0.02, 0.08, 1.0, 1.0]


def test_p_and_interval_tell_the_same_story() -> None:
    generator = np.random.default_rng(5)
    gap = generator.normal(generator.uniform(-0.3, 0.3, size=60), 1, size=(100, 60))
    means = resampled_means(gap, np.arange(100), seed=0)
    low, high = interval(means)
    away = (low > 0) | (high < 0)
    p = p_values(means)
    clear = np.abs(p - 0.05) > 0.003  # at the edge the +1 and the interpolated percentile may differ
    assert ((p < 0.05) == away)[clear].all()
    assert 5 < away.sum() < 55


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    truth, runs = 0.4, 400
    values = (generator.random((80, runs)) < truth).astype(np.float64)  # column = one experiment
    low, high = interval(resampled_means(values, np.arange(80), resamples=1000, seed=0))
    assert 0.91 < ((low <= truth) & (truth <= high)).mean() < 0.985


def test_same_seed_same_numbers_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((30, 2))
    group = np.arange(30) // 2
    whole = resampled_means(values, group, resamples=501, seed=9)
    assert (whole == resampled_means(values, group, resamples=501, seed=9)).all()
    assert (whole != resampled_means(values, group, resamples=501, seed=10)).any()
    monkeypatch.setattr(statistics, "_CELLS", 100)
    np.testing.assert_allclose(resampled_means(values, group, resamples=501, seed=9), whole, rtol=1e-12)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        resampled_means(np.zeros((3, 1)), np.arange(2))
    with pytest.raises(ValueError, match="empty"):
        resampled_means(np.zeros((0, 1)), np.arange(0))

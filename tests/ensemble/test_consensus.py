"""Consensus fusion against a window-by-window implementation, by hand, and by its properties."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.predictions import Prediction
from amrctl.ensemble.consensus import Bonuses, consensus, scale
from amrctl.ensemble.wbf import wbf
from amrctl.errors import PredictionError
from amrctl.spans import temporal_iou

Floats = npt.NDArray[np.float64]
Row = tuple[float, float, float]
NONE = Bonuses(0, 0, 0)


def one(windows: object, qid: str = "q1") -> Prediction:
    return Prediction(qid, "a dog barks", "v1", 300.0, np.asarray(windows, dtype=np.float64).reshape(-1, 3))


def fuse(*files: object, **options: object) -> Floats:
    """Fuse one query."""
    return consensus([[one(f)] for f in files], **options)[0].windows  # type: ignore[arg-type]


def plain(
    files: list[list[Row]], weights: list[float], iou: float, bonuses: Bonuses, coordinates: str
) -> list[Row]:
    """Eq. 9, window by window."""
    used = [(rows, w / max(weights)) for rows, w in zip(files, weights, strict=True) if w > 0]
    queue = []
    for number, (rows, w) in enumerate(used):
        for rank, (s, e, p) in enumerate(sorted(rows, key=lambda row: -row[2]), start=1):
            queue.append((s, e, p * w, number, rank))
    queue.sort(key=lambda row: -row[2])
    clusters: list[list[tuple[float, float, float, int, int]]] = []

    def mean(members: list[tuple[float, float, float, int, int]]) -> tuple[float, float]:
        total = sum(m[2] for m in members)
        shares = [m[2] / total if total else 1 / len(members) for m in members]
        return tuple(sum(m[i] * w for m, w in zip(members, shares, strict=True)) for i in (0, 1))  # type: ignore[return-value]

    for window in queue:
        overlaps = [float(temporal_iou([mean(c)], [window[:2]])[0, 0]) for c in clusters]
        if overlaps and max(overlaps) > iou:
            clusters[overlaps.index(max(overlaps))].append(window)
        else:
            clusters.append([window])
    largest = bonuses.count * max(len(queue) - 1, 0) + bonuses.source * (len(used) - 1) + bonuses.rank
    out = []
    for members in clusters:
        n, m = len(members), len({member[3] for member in members})
        r = sum(1 / member[4] for member in members) / n
        score = max(member[2] for member in members)
        score += bonuses.count * (n - 1) + bonuses.source * (m - 1) + bonuses.rank * r
        start, end = mean(members) if coordinates == "average" else members[0][:2]
        out.append((start, end, score / (1 + largest)))
    return sorted(out, key=lambda row: -row[2])


def test_by_hand() -> None:
    # IoU 100/105 > 0.85: one cluster of both; weights 0.9 and 0.1 are 1 and 1/9
    found = fuse([[0, 100, 0.6]], [[0, 105, 0.9], [200, 220, 0.3]], weights=[0.9, 0.1])
    over = 1 + 0.05 * 2 + 0.02 * 1 + 0.02
    end = (100 * 0.6 + 105 * 0.1) / 0.7
    np.testing.assert_allclose(
        found,
        [[0, end, (0.6 + 0.05 + 0.02 + 0.02) / over], [200, 220, (0.3 / 9 + 0.02 / 2) / over]],
        rtol=1e-12,
    )
    # the threshold is strict: 17/20 is exactly 0.85
    assert len(fuse([[0, 20, 0.9]], [[0, 17, 0.8]])) == 2
    assert len(fuse([[0, 20, 0.9]], [[0, 17.01, 0.8]])) == 1


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[Row]], list[float]]:
    """One to four files whose windows are near copies of a few moments; scores differ, may be 0."""
    counts = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = iter(g.permutation(sum(counts)) / (sum(counts) + 1))
    files = []
    for n in counts:
        rows = []
        for moment in g.integers(0, 3, n):
            start, width = 40.0 * moment + g.uniform(0, 2), g.uniform(18, 22)
            rows.append((float(start), float(start + width), float(next(scores))))
        files.append(rows)
    weights = [draw(st.sampled_from([0.0, 0.1, 0.7, 0.9])) for _ in counts]
    weights[draw(st.integers(0, len(counts) - 1))] = 0.9
    return files, weights


bonus = st.sampled_from([0.0, 0.02, 0.05, 0.5])


@settings(max_examples=250, deadline=None)
@given(
    case=cases(),
    iou=st.sampled_from([0.0, 0.55, 0.85, 1.0]),
    bonuses=st.builds(Bonuses, bonus, bonus, bonus),
    coordinates=st.sampled_from(["average", "best"]),
)
def test_equals_the_plain_definition(
    case: tuple[list[list[Row]], list[float]], iou: float, bonuses: Bonuses, coordinates: str
) -> None:
    files, weights = case
    found = fuse(*files, weights=weights, iou=iou, bonuses=bonuses, coordinates=coordinates, keep=100)
    wanted = np.array(plain(files, weights, iou, bonuses, coordinates)).reshape(-1, 3)
    np.testing.assert_allclose(found[:, 2], wanted[:, 2], rtol=0, atol=1e-12)
    near = (
        np.round(found, 9)[np.lexsort(np.round(found, 9).T)],
        np.round(wanted, 9)[np.lexsort(np.round(wanted, 9).T)],
    )
    np.testing.assert_allclose(*near, rtol=0, atol=2e-9)  # equal scores may swap where sums round apart
    assert ((found[:, 2] >= 0) & (found[:, 2] <= 1)).all()


@settings(max_examples=60, deadline=None)
@given(case=cases(), turn=st.integers(0, 3))
def test_the_order_of_files_does_not_matter(case: tuple[list[list[Row]], list[float]], turn: int) -> None:
    """But for ties, which distinct scores and an odd share of ranks leave out."""
    files, weights = case
    weights = [w * (1 + 0.01 * i) for i, w in enumerate(weights)]
    k = turn % len(files)
    here = fuse(*files, weights=weights, keep=100)
    there = fuse(*files[k:], *files[:k], weights=weights[k:] + weights[:k], keep=100)
    by_place = np.lexsort(np.round(here, 6).T), np.lexsort(np.round(there, 6).T)
    np.testing.assert_allclose(here[by_place[0]], there[by_place[1]], rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(case=cases(), weight=st.floats(0.01, 9))
def test_one_source_without_merging_or_bonuses_is_unchanged(
    case: tuple[list[list[Row]], list[float]], weight: float
) -> None:
    rows = sorted(case[0][0], key=lambda row: -row[2])
    for coordinates in ("average", "best"):
        options = {"weights": [weight], "iou": 1.0, "coordinates": coordinates}
        found = fuse(rows, bonuses=NONE, **options)
        np.testing.assert_array_equal(found, np.array(rows).reshape(-1, 3))


def test_weight_zero_is_absent_from_the_scale_too() -> None:
    a, b = [[10, 20, 0.9], [30, 44, 0.3]], [[11, 21, 0.8], [200, 220, 1.0]]
    np.testing.assert_array_equal(fuse(a, b, weights=[0.4, 0]), fuse(a))
    np.testing.assert_array_equal(fuse(a, b, weights=[0, 0.3]), fuse(b))
    files = [[one(a)], [one(b)]]
    assert scale(files) == pytest.approx(1 + 3 * 0.05 + 0.02 + 0.02)
    assert scale(files, weights=[1, 0]) == pytest.approx(1 + 0.05 + 0.02)


def test_full_agreement_at_the_top_scores_exactly_one() -> None:
    found = fuse([[10, 20, 1.0]], [[10, 20, 1.0]], [[10, 20, 1.0]])
    np.testing.assert_allclose(found, [[10, 20, 1.0]], rtol=1e-15)
    assert found[0, 2] <= 1


def test_agreement_beats_a_lone_slightly_better_window() -> None:
    files = [[100, 120, 0.62], [10, 30, 0.6]], [[10.5, 30.5, 0.58]]
    assert fuse(*files)[0, 0] == pytest.approx(10.246, abs=1e-3)
    assert fuse(*files, coordinates="best")[0, :2].tolist() == [10, 30]
    assert fuse(*files, bonuses=NONE)[0, 0] == 100


def test_best_coordinates_keep_the_clusters_of_wbf() -> None:
    files = [[[0, 10, 0.9]], [[1, 11, 0.8], [1, 11, 0.1]]]
    found = wbf([[one(f)] for f in files], coordinates="best", iou=0.7)[0].windows
    mean = wbf([[one(f)] for f in files], iou=0.7)[0].windows
    assert found[:, :2].tolist() == [[0, 10]]
    np.testing.assert_array_equal(found[:, 2], mean[:, 2])


def test_many_queries_at_once_equal_single_ones() -> None:
    """But for the scale, which is one number for all queries of a fusion."""
    g = np.random.default_rng(4)
    files: list[list[Prediction]] = [[], []]
    for q in range(600):
        for file in files:
            start = g.uniform(0, 20, n := int(g.integers(0, 6)))
            file.append(
                one(np.stack([start, start + g.uniform(15, 20, n), g.uniform(0, 1, n)], axis=1), f"q{q}")
            )
    together = consensus(files)
    for q in (0, 255, 256, 511, 599):
        mine = [[file[q]] for file in files]
        alone = consensus(mine)[0].windows
        np.testing.assert_array_equal(together[q].windows[:, :2], alone[:, :2])
        np.testing.assert_allclose(together[q].windows[:, 2] * scale(files), alone[:, 2] * scale(mine))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bonuses": (-0.1, 0, 0)}, "count bonus -0.1"),
        ({"bonuses": (0, float("nan"), 0)}, "source bonus nan"),
        ({"bonuses": (0, 0, float("inf"))}, "rank bonus inf"),
        ({"bonuses": (1e308, 1e308, 1e308)}, "too large"),
        ({"coordinates": "middle"}, "coordinates middle: choose average or best"),
        ({"iou": float("nan")}, "iou nan"),
        ({"weights": [0, 0]}, "every weight is 0"),
    ],
)
def test_mistakes(options: dict[str, object], words: str) -> None:
    rows = [[1, 2, 0.5], [3, 4, 0.5], [5, 6, 0.5]]

    def call() -> None:
        given = dict(options)
        if "bonuses" in given:
            given["bonuses"] = Bonuses(*given["bonuses"])  # type: ignore[misc]
        fuse(rows, rows, **given)

    with pytest.raises(PredictionError, match=words):
        call()

"""The moment metrics: golden files, a slow implementation, and cases worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.manifest import Manifest, Query, read_manifest
from amrctl.data.predictions import Prediction
from amrctl.errors import ManifestError, PredictionError, RecipeError
from amrctl.evaluation.moments import METRICS, THRESHOLDS, Scores, evaluate, headline, pair, score
from tests.evaluation import slow

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(p.name.removesuffix(".official.json") for p in GOLDEN.glob("*.official.json"))

Windows = list[tuple[float, float]]
Scored = list[tuple[float, float, float]]


def prediction(qid: str, windows: Scored, vid: str = "v") -> Prediction:
    array = np.array(windows, dtype=np.float64).reshape(-1, 3)
    return Prediction(qid, "a sound", vid, 300.0, array)


def manifest(*moments: Windows | None) -> Manifest:
    """Queries q0, q1, ... about one recording."""
    rows = (None if m is None else tuple(m) for m in moments)
    return Manifest(None, tuple(Query(f"q{i}", "a sound", "v", 300.0, m) for i, m in enumerate(rows)), ())


def one(windows: Scored, moments: Windows) -> Scores:
    return score([np.array(windows).reshape(-1, 3)], [np.array(moments)])


def test_golden_files_are_found() -> None:
    assert len(NAMES) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_official_numbers(name: str) -> None:
    rows = [json.loads(line) for line in (GOLDEN / f"{name}.predictions.jsonl").read_text().splitlines()]
    items = [prediction(r["qid"], r["pred_relevant_windows"], r["vid"]) for r in rows]
    official = json.loads((GOLDEN / f"{name}.official.json").read_text())
    ours = evaluate(items, read_manifest(GOLDEN / f"{name}.manifest.jsonl"))
    # as text: the same keys in the same order, and the same digits
    assert json.dumps({"brief": ours["brief"], "full": ours["full"]}) == json.dumps(official)


def test_real_labels_allow_no_more_than_the_official_script_says(shared: Path) -> None:
    """Perfect windows on CASTELLA test: 58 queries have more than 10 moments, so mAP ends at 98.79."""
    labels = read_manifest(shared / "data" / "annotations" / "castella_test_release.jsonl")
    perfect = [prediction(q.qid, [(s, e, 1.0) for s, e in q.windows or ()], q.vid) for q in labels]
    brief = evaluate(perfect, labels)["brief"]
    assert brief["MR-full-R1@0.7"] == 100.0
    assert brief["MR-full-mAP"] == 98.79


whole = st.integers(0, 30).map(float)
decimal = st.integers(0, 3000).map(lambda n: n / 100)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Scored], list[Windows]]:
    """A few queries; coarse times, so that ties, exact thresholds and copies come up all the time."""
    time = draw(st.sampled_from([whole, decimal]))
    level = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    predicted, moments = [], []
    for _ in range(draw(st.integers(1, 4))):
        pairs = draw(st.lists(st.tuples(time, time).filter(lambda w: w[0] != w[1]), min_size=1, max_size=13))
        labelled = [(min(w), max(w)) for w in pairs]
        near = st.sampled_from(labelled)
        window = st.one_of(near, st.tuples(time, time).map(lambda w: (min(w), max(w))))
        predicted.append(draw(st.lists(st.tuples(window, level).map(lambda p: (*p[0], p[1])), max_size=14)))
        moments.append(labelled)
    return predicted, moments


@settings(max_examples=150, deadline=None)
@given(cases())
def test_agrees_with_the_slow_implementation(case: tuple[list[Scored], list[Windows]]) -> None:
    predicted, moments = case
    got = score([np.array(p).reshape(-1, 3) for p in predicted], [np.array(m) for m in moments])
    for i, (windows, labelled) in enumerate(zip(predicted, moments, strict=True)):
        ious = [slow.recall_iou(w, labelled) for w in windows[:5]]
        assert got.iou1[i] == (ious[0] if ious else 0.0)
        assert got.iou5[i] == max(ious, default=0.0)
        expected = [slow.average_precision(windows, labelled, t) for t in THRESHOLDS]
        np.testing.assert_allclose(got.ap[i], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("moments", "wrong"), [(10, 0), (11, 6), (12, 5), (15, 5), (15, 0)])
def test_many_hits_add_up_as_numpy_adds_them(moments: int, wrong: int) -> None:
    """With eight or more terms numpy sums in another order; the official last bit follows it."""
    labelled = [(10.0 * i, 10.0 * i + 5) for i in range(moments)]
    windows = [(*w, 1 - i / 20) for i, w in enumerate(labelled[:10])]
    windows[wrong] = (200.0, 201.0, 1 - wrong / 20)
    hits = np.arange(10) != wrong
    found = np.cumsum(hits)
    envelope = np.maximum.accumulate((found / np.arange(1, 11))[::-1])[::-1]
    terms = (np.diff(found / moments, prepend=0.0) * envelope)[hits]
    expected = float(np.sum(np.append(terms, 0.0)))  # a moment is always left over
    assert one(windows, labelled).ap[0].tolist() == [expected] * 10


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 16, 17, 25])
def test_equal_ious_follow_the_sort_that_the_official_script_calls(count: int) -> None:
    """Windows over two touching moments each, then one of the two: which was taken decides."""
    labelled = [(5.0 * i, 5.0 * i + 5) for i in range(count)]
    for first in range(count - 1):
        both = (labelled[first][0], labelled[first + 1][1], 0.9)
        for then in (first, first + 1):
            windows = [both, (*labelled[then], 0.8)]
            assert one(windows, labelled).ap[0, 0] == slow.average_precision(windows, labelled, 0.5)


class TestByHand:
    def test_perfect(self) -> None:
        got = one([(0, 5, 0.9), (20, 30, 0.8)], [(0, 5), (20, 30)])
        assert {name: got.values(name)[0] for name in METRICS} == dict.fromkeys(METRICS, 1.0)

    def test_recall_takes_the_first_listed_window_and_map_the_best_scored(self) -> None:
        got = one([(50, 60, 0.1), (0, 10, 0.9)], [(0, 10)])
        assert got.values("R1@0.5")[0] == 0
        assert got.values("R5@0.7")[0] == 1
        assert got.values("mAP")[0] == 1  # sorted by score the hit comes first

    def test_the_sixth_window_is_outside_r5_and_the_eleventh_outside_map(self) -> None:
        wrong = [(100.0 + i, 101.0 + i, 1.0) for i in range(10)]
        assert one([*wrong[:5], (0, 10, 1.0)], [(0, 10)]).values("R5@0.5")[0] == 0
        assert one([*wrong[:4], (0, 10, 1.0)], [(0, 10)]).values("R5@0.5")[0] == 1
        assert one([*wrong, (0, 10, 1.0)], [(0, 10)]).values("mAP")[0] == 0
        assert one([*wrong[:9], (0, 10, 1.0)], [(0, 10)]).values("mAP@0.5")[0] == pytest.approx(1 / 10)

    def test_equal_scores_keep_list_order(self) -> None:
        assert one([(50, 60, 0.5), (0, 10, 0.5)], [(0, 10)]).values("mAP")[0] == 0.5
        assert one([(0, 10, 0.5), (50, 60, 0.5)], [(0, 10)]).values("mAP")[0] == 1.0

    def test_an_iou_exactly_on_the_threshold_passes(self) -> None:
        got = one([(0, 14, 1.0)], [(0, 20)])  # 14 / 20
        assert got.values("R1@0.7")[0] == 1
        assert got.ap[0].tolist() == [1.0] * 5 + [0.0] * 5

    def test_float_noise_is_float64_noise_only(self) -> None:
        """0.7 s of 1 s at an offset where 32-bit floats fall below 0.7."""
        start, end = 100.0, 100.7
        assert np.float32(end) - np.float32(start) < 0.7
        assert one([(start, end, 1.0)], [(100.0, 101.0)]).iou1[0] == slow.hull_iou((start, end), (100, 101))
        # The last decimal of 100.7 - 100 is lost in float64 too; the official script has the same loss.
        assert one([(0, 0.7, 1.0)], [(0, 1)]).values("R1@0.7")[0] == 1

    def test_of_equal_ious_recall_takes_the_first_moment(self) -> None:
        # Both overlaps are 6.2 of 12.4 s, but in float64 intersection / hull is 0.5 and a bit less.
        early, late = (0.6, 9.9), (6.8, 16.1)
        assert slow.union_iou((3.7, 13.0), early) == slow.union_iou((3.7, 13.0), late)
        assert one([(3.7, 13.0, 1.0)], [early, late]).values("R1@0.5")[0] == 1
        assert one([(3.7, 13.0, 1.0)], [late, early]).values("R1@0.5")[0] == 0

    def test_a_second_hit_on_one_moment_is_false(self) -> None:
        got = one([(0, 10, 0.9), (0, 9, 0.8), (20, 30, 0.7)], [(0, 10), (20, 30)])
        # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
        assert got.values("mAP@0.5")[0] == pytest.approx(0.5 + 0.5 * 2 / 3)

    def test_each_threshold_is_matched_on_its_own(self) -> None:
        # At 0.5 the first window takes the moment; at 0.7 only the second one reaches it.
        got = one([(0, 6, 0.9), (0, 10, 0.8)], [(0, 10)])
        assert got.ap[0, 0] == 1.0
        assert got.ap[0, 4] == 0.5

    def test_a_window_takes_its_next_best_free_moment(self) -> None:
        # Both windows overlap the first moment best; the second one then takes the other moment.
        moments = [(0.0, 10.0), (2.0, 14.0)]
        got = one([(0, 10, 0.9), (1, 11, 0.8)], moments)  # IoUs 9/11 and 9/13
        assert got.ap[0, :5].tolist() == [1.0, 1.0, 1.0, 1.0, 0.5]

    def test_of_touching_equal_moments_the_later_is_taken_first(self) -> None:
        # (0, 10) has IoU 0.5 with both halves; the second window then fits only (0, 5).
        moments = [(0.0, 5.0), (5.0, 10.0)]
        assert one([(0, 10, 0.9), (0, 5, 0.8)], moments).ap[0, 0] == 1.0
        assert one([(0, 10, 0.9), (5, 10, 0.8)], moments).ap[0, 0] == 0.5

    def test_more_moments_than_windows_that_count(self) -> None:
        moments = [(10.0 * i, 10.0 * i + 5) for i in range(12)]
        got = one([(*m, 0.5) for m in moments], moments)
        assert got.values("mAP")[0] == pytest.approx(10 / 12)

    def test_windows_without_length_score_nothing(self) -> None:
        got = one([(5, 5, 0.9), (0, 10, 0.8)], [(0, 10)])
        assert got.iou1[0] == 0
        assert got.values("mAP")[0] == 0.5

    def test_no_windows_score_zero_and_stay_in_the_mean(self) -> None:
        paired = pair(
            [prediction("q0", []), prediction("q1", [(0, 10, 1.0)])], manifest([(0, 10)], [(0, 10)])
        )
        assert paired.empty == ("q0",)
        blocks = evaluate(list(paired.predictions), manifest([(0, 10)], [(0, 10)]))
        assert blocks["brief"]["MR-full-R1@0.5"] == blocks["brief"]["MR-full-mAP"] == 50.0
        assert blocks["extra"] == {"R5@0.5": 50.0, "R5@0.7": 50.0, "mIoU": 50.0}

    def test_nothing_predicted_at_all(self) -> None:
        assert evaluate([prediction("q0", [])], manifest([(0, 10)]))["full"]["MR-mAP"]["average"] == 0.0


def test_only_moments_of_0_to_1500_s_count() -> None:
    labels = manifest([(5, 5), (0, 10)], [(7, 7)], [(0, 1501)], [(0, 1500)])
    items = [prediction(f"q{i}", [(0, 10, 1.0)]) for i in range(4)]
    paired = pair(items, labels)
    assert paired.dropped == ("q1", "q2")
    assert [q.qid for q in paired.queries] == ["q0", "q3"]
    assert paired.moments[0] == [(0, 10)]
    assert evaluate(items, labels)["brief"]["MR-full-R1@0.5"] == 50.0


def test_the_order_of_the_prediction_file_changes_nothing() -> None:
    labels = manifest([(0, 10)], [(20, 30)], [(5, 9)])
    items = [prediction(f"q{i}", [(0, 10, 1.0), (21, 30, 0.5)]) for i in range(3)]
    assert evaluate(items, labels) == evaluate(items[::-1], labels)


def test_headline_is_the_unrounded_block() -> None:
    labels = manifest([(0, 10)], [(20, 30)], [(0, 9)])
    items = [prediction(f"q{i}", [(0, 10, 1.0), (21, 30, 0.5)]) for i in range(3)]
    quick: dict[str, float] = headline(items, labels, METRICS)
    full: dict[str, Any] = evaluate(items, labels)
    assert quick["R1@0.5"] == pytest.approx(200 / 3)
    for name in METRICS:
        told = full["extra"].get(name, full["brief"].get(f"MR-full-{name}"))
        assert round(quick[name], 2) == told


def test_unknown_metric_is_named() -> None:
    with pytest.raises(RecipeError, match=r"unknown metric 'R1@0\.75'; did you mean"):
        headline([prediction("q0", [])], manifest([(0, 10)]), ["R1@0.75"])


def test_queries_must_be_the_same_on_both_sides() -> None:
    labels = manifest([(0, 10)], [(0, 10)], [(0, 10)])
    with pytest.raises(
        PredictionError,
        match=r"2 of 3 queries have no prediction \(first: q1, q2\); 1 of 2 predictions .* \(first: q9\)",
    ):
        pair([prediction("q0", []), prediction("q9", [])], labels)
    with pytest.raises(PredictionError, match="answered twice"):
        pair([prediction("q0", []), prediction("q0", [])], manifest([(0, 10)]))


def test_labels_are_needed() -> None:
    with pytest.raises(ManifestError, match=r"1 of 2 queries have no relevant_windows \(first: q1\)"):
        pair([prediction("q0", []), prediction("q1", [])], manifest([(0, 10)], None))
    with pytest.raises(PredictionError, match="nothing to score"):
        pair([prediction("q0", [])], manifest([(3, 3)]))


@pytest.mark.parametrize("moments", [[], [[]]])
def test_score_refuses_queries_without_moments(moments: list[Windows]) -> None:
    with pytest.raises(ValueError, match="a moment for every query"):
        score([[(0, 1, 1.0)]], moments)

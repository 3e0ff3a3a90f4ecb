"""Weighted window fusion against the published function, by hand, and by its properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.predictions import Prediction
from amrctl.ensemble.wbf import wbf
from amrctl.errors import PredictionError
from amrctl.spans import temporal_iou

Floats = npt.NDArray[np.float64]
File = list[Prediction]


def one(windows: object, qid: str = "q1") -> Prediction:
    """A prediction of a 300 s recording."""
    return Prediction(qid, "a dog barks", "v1", 300.0, np.asarray(windows, dtype=np.float64).reshape(-1, 3))


def fuse(*files: object, **options: object) -> Floats:
    """Fuse one query."""
    return wbf([[one(f)] for f in files], **options)[0].windows  # type: ignore[arg-type]


def test_agrees_with_the_published_one_dimensional_function() -> None:
    golden = json.loads((Path(__file__).parent / "golden" / "wbf_published.json").read_text())
    for case in golden["cases"]:
        found = fuse(*case["files"], weights=case["weights"], iou=case["iou"], keep=1000)
        # the published function adds up in float32, relative to the recording's length
        np.testing.assert_allclose(found, case["fused"], rtol=0, atol=2e-6 * case["duration"] + 1e-5)
    assert len(golden["cases"]) > 50


def test_by_hand() -> None:
    # 0.9 and 0.6 overlap with IoU 8/12 > 0.55: mean weighted 3 to 2; the third stands alone
    found = fuse([[10, 20, 0.9]], [[12, 22, 0.6], [100, 110, 0.8]])
    np.testing.assert_allclose(found, [[10.8, 20.8, 0.75], [100, 110, 0.4]], rtol=1e-12)
    # file weights 3 to 1 become 1.5 and 0.5
    found = fuse([[10, 20, 0.6]], [[12, 22, 0.6]], weights=[3, 1])
    np.testing.assert_allclose(found, [[10.5, 20.5, 0.6]], rtol=1e-12)
    # the threshold is strict: IoU exactly 0.5
    assert len(fuse([[0, 10, 0.9]], [[0, 5, 0.6]], iou=0.5)) == 2


def test_many_queries_at_once_equal_single_ones() -> None:
    g = np.random.default_rng(3)
    files: list[File] = [[], [], []]
    for q in range(1100):
        for file in files:
            start = g.uniform(0, 200, n := int(g.integers(0, 7)))
            rows = np.stack([start, start + g.uniform(1, 90, n), g.uniform(0, 1, n)], axis=1)
            file.append(one(rows, f"q{q}"))
    together = wbf(files, weights=[1, 2, 0.5])
    assert [p.qid for p in together] == [f"q{q}" for q in range(1100)]
    for q in (0, 1, 511, 512, 700, 1099):
        alone = wbf([[file[q]] for file in files], weights=[1, 2, 0.5])
        np.testing.assert_array_equal(together[q].windows, alone[0].windows)
    # files may list their queries in another order
    again = wbf([files[0], files[1][::-1], files[2]], weights=[1, 2, 0.5])
    for a, b in zip(together, again, strict=True):
        np.testing.assert_array_equal(a.windows, b.windows)


def test_ties_keep_source_order() -> None:
    found = fuse([[50, 60, 0.5], [10, 20, 0.5]], [[90, 99, 0.5], [70, 80, 0.5]])
    assert found[:, 0].tolist() == [50, 10, 90, 70]


def test_weight_zero_leaves_the_file_out() -> None:
    a, b = [[10, 20, 0.9], [30, 44, 0.3]], [[11, 21, 0.8], [200, 220, 1.0]]
    np.testing.assert_array_equal(fuse(a, b, weights=[1, 0]), fuse(a))
    np.testing.assert_array_equal(fuse(a, b, weights=[0, 0.3]), fuse(b))


def test_scores_near_and_at_zero_stay_numbers() -> None:
    tiny = 5e-324
    found = fuse([[10.25, 20.5, tiny]], [[10.75, 21.5, tiny]])
    np.testing.assert_allclose(found[:, :2], [[10.5, 21.0]])
    found = fuse([[10, 20, 0.0], [40, 50, 0.0]], [[11, 21, 0.0]], [[12, 22, 0.0]])
    np.testing.assert_allclose(found, [[11, 21, 0], [40, 50, 0]])


def test_a_heavy_file_with_several_windows_in_a_cluster_stays_below_one() -> None:
    # the published function gives 1.8 here
    found = fuse([[10, 20, 1.0], [10, 20, 1.0]], [[200, 210, 0.5]], weights=[0.9, 0.1])
    assert found[:, 2].tolist() == [1.0, pytest.approx(0.05)]


def test_empty_answers_and_keep() -> None:
    assert fuse([], []).shape == (0, 3)
    many = [[i * 20, i * 20 + 10, 1 - i / 20] for i in range(14)]
    assert len(fuse(many)) == 10
    assert len(fuse(many, keep=3)) == 3


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ([[[1, 2, 0.5]]], {"weights": [1, 1]}, "2 weights for 1"),
        ([[[1, 2, 0.5]]], {"weights": [-1]}, "weight -1"),
        ([[[1, 2, 0.5]]], {"weights": [float("nan")]}, "weight nan"),
        ([[[1, 2, 0.5]]], {"weights": [0]}, "every weight is 0"),
        ([[[1, 2, 0.5]]], {"iou": 1.5}, "iou 1.5"),
        ([[[1, 2, 0.5]]], {"keep": 0}, "keep 0"),
        ([], {}, "no prediction file"),
        ([[[1, 2, 0.5]], [[5, 5, 0.5]]], {}, "file 2: qid q1 has the window [5, 5]"),
        ([[[1, 2, 1.5]]], {}, "score 1.5"),
        ([[[1, float("inf"), 0.5]]], {}, "inf"),
        ([[[1, 2, float("nan")]]], {}, "score nan"),
    ],
)
def test_mistakes(files: list[object], options: dict[str, object], words: str) -> None:
    with pytest.raises(PredictionError, match=words.replace("[", r"\[").replace("]", r"\]")):
        fuse(*files, **options)


def test_files_over_different_queries() -> None:
    row = [[1.0, 2.0, 0.5]]
    with pytest.raises(PredictionError, match="q2 is in file 2 and not in file 1"):
        wbf([[one(row)], [one(row), one(row, "q2")]])
    with pytest.raises(PredictionError, match="twice"):
        wbf([[one(row), one(row)]])
    other = Prediction("q1", "a dog barks", "v2", 300.0, np.array(row))
    with pytest.raises(PredictionError, match="v1 in file 1 and v2 in file 2"):
        wbf([[one(row)], [other]])


@st.composite
def sources(draw: st.DrawFn) -> list[Floats]:
    """One to four files of up to six windows; scores are all different."""
    files = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**32 - 1))
    g = np.random.default_rng(seed)
    scores = (g.permutation(sum(files)) + g.uniform(0.05, 0.95)) / (sum(files) + 1)
    out = []
    for n in files:
        start = g.uniform(0, 60, n)
        mine, scores = np.sort(scores[:n])[::-1], scores[n:]
        out.append(np.stack([start, start + g.uniform(0.5, 40, n), mine], axis=1))
    return out


@settings(max_examples=150, deadline=None)
@given(files=sources(), weights=st.lists(st.floats(0.01, 5), min_size=4, max_size=4), iou=st.floats(0, 1))
def test_scores_and_boundaries_stay_in_bounds(files: list[Floats], weights: list[float], iou: float) -> None:
    found = fuse(*files, weights=weights[: len(files)], iou=iou, keep=100)
    members = np.concatenate(files)
    assert len(found) <= len(members)
    assert bool(len(found)) == bool(len(members))
    assert ((found[:, 2] >= 0) & (found[:, 2] <= 1)).all()
    assert (np.diff(found[:, 2]) <= 0).all()
    assert (found[:, 0] < found[:, 1]).all()
    for start, end, _ in found:  # inside the hull of what overlaps it (with itself, if alone)
        near = members[temporal_iou(members[:, :2], [[start, end]])[:, 0] > 0]
        assert near[:, 0].min() <= start < end <= near[:, 1].max()


@settings(max_examples=100, deadline=None)
@given(files=sources(), weights=st.lists(st.floats(0.01, 5), min_size=4, max_size=4), turn=st.integers(0, 3))
def test_the_order_of_files_does_not_matter(files: list[Floats], weights: list[float], turn: int) -> None:
    weights = weights[: len(files)]
    k = turn % len(files)
    here = fuse(*files, weights=weights, keep=100)
    there = fuse(*files[k:], *files[:k], weights=weights[k:] + weights[:k], keep=100)
    by_place = np.lexsort(here.T), np.lexsort(there.T)
    np.testing.assert_allclose(here[by_place[0]], there[by_place[1]], rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(files=sources(), weight=st.floats(0.01, 9))
def test_one_source_is_unchanged(files: list[Floats], weight: float) -> None:
    alone = files[0]
    np.testing.assert_array_equal(fuse(alone, weights=[weight], iou=1.0), alone)

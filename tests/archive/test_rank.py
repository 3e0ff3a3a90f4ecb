"""Recordings are ranked as brute force ranks them; the graph proposes nearly all of the best."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.archive import nearest, rank
from amrctl.archive.rank import factor, match
from amrctl.errors import ArchiveError

Array = npt.NDArray[np.float32]
needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


def unit(rows: npt.NDArray) -> Array:
    scaled: Array = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def clustered(rng: np.random.Generator, count: int, dim: int, clusters: int, spread: float) -> Array:
    """Rows of length 1 around centres; cosine within a cluster about 1 / (1 + spread²)."""
    centres = rng.standard_normal((clusters, dim))
    return unit(centres[rng.integers(0, clusters, count)] + spread * rng.standard_normal((count, dim)))


def brute(
    vectors: npt.NDArray, lengths: list[int], query: Array, best_of: int
) -> list[tuple[float, int, int]]:
    """Score, recording and best window of every recording, best first, by loops in float64."""
    found, first = [], 0
    for recording, length in enumerate(lengths):
        scores = [float(np.dot(row.astype(np.float64), query)) for row in vectors[first : first + length]]
        best = sorted(scores, reverse=True)[:best_of]
        found.append((sum(best) / len(best), recording, scores.index(max(scores))))
        first += length
    return sorted(found, key=lambda entry: (-entry[0], entry[1]))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    best_of=st.integers(1, 4),
    wanted=st.integers(1, 25),
    block=st.sampled_from([1, 3, 8192]),
    seed=st.integers(0, 99),
)
def test_exact_is_brute_force(lengths: list[int], best_of: int, wanted: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((sum(lengths), 7))).astype(np.float16)
    query = unit(rng.standard_normal(7))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank, "_BLOCK", block)
        found = match(vectors, offsets, query, wanted=wanted, best_of=best_of)
    truth = brute(vectors, lengths, query, best_of)[:wanted]
    np.testing.assert_allclose([m.score for m in found], [t[0] for t in truth], atol=1e-6)
    assert [(m.recording, m.window) for m in found] == [t[1:] for t in truth]


def test_equal_recordings_keep_their_order() -> None:
    vectors = np.tile(unit(np.ones(4)), (6, 1))
    found = match(vectors, np.array([0, 2, 3, 6]), vectors[0], wanted=3)
    assert [(m.recording, m.window) for m in found] == [(0, 0), (1, 0), (2, 0)]


@needs_faiss
def test_the_graph_finds_what_is_near(tmp_path: Path) -> None:
    """Clustered vectors; the sentences' side of a space lies apart from the sounds', as in trained ones."""
    rng = np.random.default_rng(0)
    dim, recordings, windows = 64, 600, 10
    vectors = clustered(rng, recordings * windows, dim, 150, 0.9).astype(np.float16)
    offsets = np.arange(0, len(vectors) + 1, windows)
    gap = 0.7 * rng.standard_normal(dim)
    queries = unit(vectors[rng.integers(0, len(vectors), 60)] * np.sqrt(dim) + gap)
    graph = nearest.build(vectors, tmp_path / "g.faiss")
    assert nearest.build(vectors, tmp_path / "again.faiss").links == graph.links
    assert (tmp_path / "g.faiss").read_bytes() == (tmp_path / "again.faiss").read_bytes()
    opened = nearest.Nearest(tmp_path / "g.faiss", vectors)
    truth = [np.argsort(-rank.cosines(vectors, query), kind="stable") for query in queries]
    for count in (5, 10):
        shared = [
            len(set(opened.search(q, count)) & set(t[:count])) for q, t in zip(queries, truth, strict=True)
        ]
        assert np.mean(shared) / count > 0.95
    hits = 0
    for query in queries:
        exact = match(vectors, offsets, query, wanted=5)
        quick = match(vectors, offsets, query, wanted=5, nearest=opened)
        hits += len({m.recording for m in exact} & {m.recording for m in quick})
        scores = {m.recording: m.score for m in exact}
        for m in quick:  # what it finds has its exact score
            assert m.score == pytest.approx(scores.get(m.recording, m.score), abs=1e-6)
    assert hits / (5 * len(queries)) > 0.98


@needs_faiss
def test_one_long_recording_does_not_hide_the_others(tmp_path: Path) -> None:
    """It owns the hundreds of nearest windows, so that more have to be asked for."""
    rng = np.random.default_rng(1)
    query = unit(rng.standard_normal(16))
    long = unit(query + 0.01 * rng.standard_normal((400, 16)))
    others = unit(rng.standard_normal((4000, 16)))
    vectors = np.concatenate([long, others])
    offsets = np.array([0, 400, *range(410, 4401, 10)])
    nearest.build(vectors, tmp_path / "g.faiss")
    opened = nearest.Nearest(tmp_path / "g.faiss", vectors)
    exact = match(vectors, offsets, query, wanted=4)
    assert exact[0].recording == 0
    assert match(vectors, offsets, query, wanted=4, nearest=opened) == exact


@needs_faiss
def test_a_graph_of_other_vectors_is_refused(tmp_path: Path) -> None:
    rows = unit(np.random.default_rng(2).standard_normal((50, 8)))
    nearest.build(rows, tmp_path / "g.faiss")
    with pytest.raises(ArchiveError, match="about 50 windows of 8 numbers, not 49 of 8"):
        nearest.Nearest(tmp_path / "g.faiss", rows[1:])
    (tmp_path / "g.faiss").write_bytes(b"nothing")
    with pytest.raises(ArchiveError, match="missing or damaged"):
        nearest.Nearest(tmp_path / "g.faiss", rows)


def test_without_faiss_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nearest, "available", lambda: False)
    with pytest.raises(ArchiveError, match=r"pip install 'amrctl\[index\]'"):
        nearest.build(unit(np.ones((2, 3))), tmp_path / "g.faiss")


def test_the_factor_by_hand() -> None:
    assert factor(0.3, 0.3, 10.0) == 1.0
    assert factor(0.2, 0.3, 10.0) == pytest.approx(np.exp(-1))
    assert factor(-1.0, 1.0, 0.0) == 1.0

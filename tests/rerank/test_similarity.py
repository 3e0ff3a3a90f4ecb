"""The similarity verifier against numpy's correlation, a direct ridge solution, and made-up sounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.features import FeatureFile
from amrctl.data.manifest import Manifest, Query
from amrctl.errors import FeatureError, ManifestError
from amrctl.rerank.base import Candidate
from amrctl.rerank.similarity import STEPS, SimilarityVerifier, correlation
from tests.rerank.features import write_features

Floats = npt.NDArray[np.float64]
D, E = 16, 24  # numbers a token, numbers a frame


def candidate(vid: str, qid: str, start: float, end: float) -> Candidate:
    return Candidate(qid, f"sentence {qid}", vid, 100.0, start, end)


@settings(max_examples=80, deadline=None)
@given(
    frames=st.integers(2, 30),
    seed=st.integers(0, 9999),
    edges=st.tuples(st.integers(0, 299), st.integers(1, 300)),
)
def test_correlation_is_the_usual_one_on_a_fine_grid(frames: int, seed: int, edges: tuple[int, int]) -> None:
    curve = np.random.default_rng(seed).standard_normal(frames)
    start = min(edges[0], frames * 10 - 1)
    end = min(start + edges[1], frames * 10)
    fine = np.repeat(curve, 10)  # ten steps a frame, so windows may cut frames
    inside = np.zeros(len(fine))
    inside[start:end] = 1
    found = correlation(curve, np.array([[start / 10, end / 10]]))[0]
    wanted = np.corrcoef(inside, fine)[0, 1] if inside.std() > 0 else 0.0
    assert found == pytest.approx(wanted, abs=1e-9)


def test_no_evidence_is_zero() -> None:
    windows = np.array([[0.0, 4.0], [-3, 9], [5, 6], [1, 2]])
    assert correlation(np.array([1.0, 2, 3, 4]), windows)[:3].tolist() == [0, 0, 0]
    assert correlation(np.full(4, 0.7), windows).tolist() == [0, 0, 0, 0]
    assert correlation(np.array([3.0]), windows).tolist() == [0, 0, 0, 0]


def same_space(tmp_path: Path) -> tuple[Path, Floats, Floats]:
    g = np.random.default_rng(5)
    tokens = g.standard_normal((3, E))
    frames = 0.5 * g.standard_normal((40, E)) + 2.0
    frames[10:20] += 1.5 * tokens.mean(axis=0)
    path = write_features(tmp_path / "f.h5", {"v1": frames}, {"q1": tokens}, space=("clap", "clap"), hop=0.5)
    return path, frames, tokens


def test_cosine_in_one_space(tmp_path: Path) -> None:
    path, frames, tokens = same_space(tmp_path)
    with FeatureFile(path) as file:
        judge = SimilarityVerifier(file, ["v1"], ["q1"])
    assert judge.kind == "cosine"
    q = tokens.mean(axis=0)
    curve = frames @ q / (np.linalg.norm(frames, axis=1) * np.linalg.norm(q))
    inside = np.zeros(40)
    inside[12:30] = 1  # hop 0.5 s: seconds 6 to 15
    wanted = (1 + np.corrcoef(inside, curve)[0, 1]) / 2
    windows = [(6.0, 15.0), (5.0, 10.0), (4.0, 10.0), (5.0, 11.0), (2.0, 14.0), (12.0, 19.0), (0.0, 20.0)]
    scores = judge.score([candidate("v1", "q1", s, e) for s, e in windows])
    assert scores[0] == pytest.approx(wanted)
    assert int(np.argmax(scores)) == 1  # the true window, not a longer, shorter or shifted one
    assert scores[5] < 0.5 == scores[6]
    # one at a time: the same answers
    assert [judge.score([candidate("v1", "q1", s, e)])[0] for s, e in windows] == scores


def test_the_pooled_sentence_is_used_where_only_it_fits(tmp_path: Path) -> None:
    _, frames, tokens = same_space(tmp_path)
    path = write_features(
        tmp_path / "p.h5", {"v1": frames}, {"q1": np.ones((4, D))}, space=("clap", "clap"), hop=0.5,
        pooled=tokens.mean(axis=0, keepdims=True),
    )  # fmt: skip
    with FeatureFile(path) as file, FeatureFile(tmp_path / "f.h5") as plain:
        a = SimilarityVerifier(file, ["v1"], ["q1"])
        b = SimilarityVerifier(plain, ["v1"], ["q1"])
    question = [candidate("v1", "q1", 3, 9)]
    assert a.score(question) == pytest.approx(b.score(question))
    path = write_features(tmp_path / "n.h5", {"v1": frames}, {"q1": np.ones((4, D))}, space=("clap", "clap"))
    with FeatureFile(path) as file, pytest.raises(FeatureError, match=r"24 numbers a frame.*16 a token"):
        SimilarityVerifier(file, ["v1"], ["q1"])


def world(tmp_path: Path, recordings: int = 40, **options: object) -> tuple[Path, Manifest]:
    """Recordings of 30 frames, two events each; sounds and sentences of an event share no space."""
    g = np.random.default_rng(11)
    sounds, words = 2 * g.standard_normal((6, E)), g.standard_normal((6, D))
    audio: dict[str, npt.NDArray[np.float16]] = {}
    text: dict[str, npt.NDArray[np.float16]] = {}
    queries = []
    for r in range(recordings):
        frames = g.standard_normal((30, E)) + 3 * g.standard_normal(E)
        for k, event in enumerate(g.permutation(6)[:2].tolist()):
            start = int(g.integers(0, 10)) + 15 * k
            end = start + int(g.integers(3, 6))
            frames[start:end] += sounds[event]
            qid = f"q{r}-{k}"
            text[qid] = (words[event] + 0.1 * g.standard_normal((4, D))).astype(np.float16)
            queries.append(Query(qid, f"event {event}", f"v{r}", 30.0, ((float(start), float(end)),)))
        audio[f"v{r}"] = frames.astype(np.float16)
    path = write_features(tmp_path / "w.h5", audio, text, **options)  # type: ignore[arg-type]
    return path, Manifest(None, tuple(queries))


def test_the_map_finds_unseen_windows(tmp_path: Path) -> None:
    path, manifest = world(tmp_path)
    train = Manifest(None, manifest.queries[:60])
    test = manifest.queries[60:]
    with FeatureFile(path) as file:
        judge = SimilarityVerifier(file, {q.vid for q in test}, [q.qid for q in test], train=train)
    assert judge.kind == "ridge"
    first = 0
    for query in test:
        assert query.windows
        ((start, end),) = query.windows
        wrong = [(start - 4, start - 1), (end + 1, end + 5), (max(start - 9, 0), end + 6), (start, start + 1)]
        scores = judge.score([candidate(query.vid, query.qid, s, e) for s, e in [(start, end), *wrong]])
        first += int(np.argmax(scores)) == 0
    assert first >= 18  # of 20; by chance 4


def test_the_map_is_the_ridge_solution_with_the_best_left_out_error(tmp_path: Path) -> None:
    path, manifest = world(tmp_path, recordings=9)
    with FeatureFile(path) as file:
        judge = SimilarityVerifier(file, ["v0"], ["q0-0"], train=manifest)
        audio, text = file.load("audio", "a"), file.load("text", "t")
    fitted = judge.map
    assert fitted is not None
    x = np.array([text.get(q.qid).astype(float).mean(axis=0) for q in manifest])
    y = []
    for q in manifest:
        ((start, end),) = q.windows or ()
        frames = audio.get(q.vid).astype(float)
        inside = np.zeros(30, dtype=bool)
        inside[int(start) : int(end)] = True
        y.append(frames[inside].mean(axis=0) - frames[~inside].mean(axis=0))
    whole = [audio.get(f"v{r}").astype(float) for r in range(9)]
    frames = np.concatenate([recording - recording.mean(axis=0) for recording in whole])
    spread = np.sqrt((frames**2).mean(axis=0))
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    target = np.array(y) / spread
    offset = target.mean(axis=0)
    base = np.mean(np.linalg.svd(z, compute_uv=False) ** 2)

    def solve(rows: npt.NDArray[np.bool_], strength: float) -> Floats:
        a = z[rows]
        return np.linalg.solve(a.T @ a + strength * np.eye(D), a.T @ (target - offset)[rows])

    vids = np.array([q.vid for q in manifest])
    errors = []
    for step in STEPS:
        left_out = 0.0
        for vid in dict.fromkeys(vids.tolist()):
            out = vids == vid
            left_out += ((z[out] @ solve(~out, step * base) - (target - offset)[out]) ** 2).sum()
        errors.append(left_out)
    strength = STEPS[int(np.argmin(errors))] * base
    assert fitted.strength == pytest.approx(strength)
    np.testing.assert_allclose(fitted.weights * spread, solve(np.ones(len(z), bool), strength), atol=1e-8)
    np.testing.assert_allclose(fitted(x[3]), (z[3] @ fitted.weights * spread + offset) / spread, atol=1e-8)


def test_fingerprint_and_evidence_follow_the_data(tmp_path: Path) -> None:
    path, manifest = world(tmp_path, recordings=8)
    with FeatureFile(path) as file:
        one = SimilarityVerifier(file, ["v0", "v1"], ["q0-0", "q0-1"], train=manifest)
        two = SimilarityVerifier(file, ["v0"], ["q0-0"], train=Manifest(None, manifest.queries[:10]))
        three = SimilarityVerifier(file, ["v0"], ["q0-0"], train=manifest)
    assert one.fingerprint() == three.fingerprint() != two.fingerprint()
    a, b, c = candidate("v0", "q0-0", 0, 1), candidate("v0", "q0-1", 0, 1), candidate("v1", "q0-0", 0, 1)
    assert len({one.evidence(a), one.evidence(b), one.evidence(c)}) == 3
    assert one.evidence(a) == three.evidence(a)


def test_mistakes(tmp_path: Path) -> None:
    path, manifest = world(tmp_path, recordings=3, space=("clap", None))
    with FeatureFile(path) as file:
        with pytest.raises(FeatureError, match=r"share no space.*--train MANIFEST"):
            SimilarityVerifier(file, ["v0"], ["q0-0"])
        with pytest.raises(FeatureError, match="nothere"):
            SimilarityVerifier(file, ["nothere"], ["q0-0"], train=manifest)
        with pytest.raises(FeatureError, match="nothere"):
            SimilarityVerifier(file, ["v0"], ["nothere"], train=manifest)
        with pytest.raises(ManifestError, match="at least 2 recordings, here are 1"):
            SimilarityVerifier(file, ["v0"], ["q0-0"], train=Manifest(None, manifest.queries[:2]))
        blind = Manifest(None, tuple(Query(q.qid, q.query, q.vid, 30.0, None) for q in manifest))
        with pytest.raises(ManifestError, match="here are 0"):
            SimilarityVerifier(file, ["v0"], ["q0-0"], train=blind)
    path, manifest = world(tmp_path, recordings=3, more_audio="b")
    with FeatureFile(path) as file:
        with pytest.raises(FeatureError, match="--audio-stream"):
            SimilarityVerifier(file, ["v0"], ["q0-0"], train=manifest)
        assert SimilarityVerifier(file, ["v0"], ["q0-0"], audio="b", train=manifest).audio.name == "b"

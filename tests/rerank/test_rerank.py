"""The blend, the cache and the repeats, with judges made for the purpose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.predictions import Prediction
from amrctl.errors import AmrctlError, OutputError, PredictionError
from amrctl.rerank.base import Candidate, VerifierError
from amrctl.rerank.cache import FILE, Cache, key_of
from amrctl.rerank.rerank import ask, rerank


class Judge:
    """Answers by a fixed rule; remembers what it was asked; may fail on purpose."""

    name, version = "judge", "1"

    def __init__(self, faults: int = 0, settings: str = "", bad: float | None = None) -> None:
        self.asked: list[list[Candidate]] = []
        self._faults, self._settings, self._bad = faults, settings, bad

    def fingerprint(self) -> str:
        return self._settings

    def evidence(self, candidate: Candidate) -> str:
        return f"sound of {candidate.vid}"

    def score(self, requests: Sequence[Candidate]) -> list[float]:
        self.asked.append(list(requests))
        if len(self.asked) <= self._faults:
            raise VerifierError("the line is busy")
        if self._bad is not None and len(requests) > 1:
            return [self._bad] * len(requests)
        return [opinion(r.start, r.end) for r in requests]


def opinion(start: float, end: float) -> float:
    return (start * 7.3 + end * 3.1) % 1.0


def item(windows: list[tuple[float, float, float]], qid: str = "q1") -> Prediction:
    rows = np.array(windows, dtype=np.float64).reshape(-1, 3)
    return Prediction(qid, "a bell rings", f"v-{qid}", 100.0, rows, np.ones(3, np.float32), True)


def no_wait(seconds: float) -> None:
    pytest.fail(f"waited {seconds} s")


rows = st.lists(
    st.tuples(st.floats(0, 90), st.floats(0.5, 9), st.floats(0, 1)).map(lambda t: (t[0], t[0] + t[1], t[2])),
    max_size=8,
).map(lambda r: sorted(r, key=lambda w: -w[2]))


@settings(max_examples=150, deadline=None)
@given(windows=rows, beta=st.floats(0, 1), top_k=st.integers(1, 9))
def test_blend_against_the_definition(
    windows: list[tuple[float, float, float]], beta: float, top_k: int
) -> None:
    [found] = rerank([item(windows)], Judge(), beta=beta, top_k=top_k).items
    top = [(s, e, (1 - beta) * p + beta * opinion(s, e)) for s, e, p in windows[:top_k]]
    wanted = sorted(top, key=lambda w: -w[2]) if beta else top
    lowest = wanted[-1][2] if wanted else 1.0
    wanted += [(s, e, min(p, lowest) if beta else p) for s, e, p in windows[top_k:]]
    np.testing.assert_allclose(found.windows, np.array(wanted).reshape(-1, 3), rtol=0, atol=1e-15)
    # never a new boundary, always sorted, always a score
    assert sorted(map(tuple, found.windows[:, :2].tolist())) == sorted((s, e) for s, e, _ in windows)
    assert (np.diff(found.windows[:, 2]) <= 0).all()
    assert ((found.windows[:, 2] >= 0) & (found.windows[:, 2] <= 1)).all()
    assert found.saliency is not None
    assert found.int_qid


def test_beta_zero_asks_nothing_and_returns_what_came_in() -> None:
    judge = Judge()
    items = [item([(1, 2, 0.3), (4, 5, 0.9)])]
    done = rerank(items, judge, beta=0)
    assert done.items[0] is items[0]
    assert (judge.asked, done.asked) == ([], 0)


def test_batches_and_equal_questions() -> None:
    judge = Judge()
    items = [item([(i, i + 1, 0.5) for i in range(5)]), item([(0, 1, 0.5)]), item([(0, 1, 0.5)], "q2")]
    done = rerank(items, judge, beta=1, batch=4)
    assert [len(part) for part in judge.asked] == [4, 2]
    assert (done.asked, done.remembered) == (6, 0)


def test_a_second_run_is_free_and_survives_a_kill(tmp_path: Path) -> None:
    items = [item([(i, i + 1, 0.5) for i in range(6)], f"q{q}") for q in range(3)]
    first = rerank(items, Judge(), beta=0.4, batch=4, cache=Cache(tmp_path))
    judge = Judge()
    again = rerank(items, judge, beta=0.4, cache=Cache(tmp_path))
    assert judge.asked == []
    assert (again.asked, again.remembered) == (0, 18)
    for a, b in zip(first.items, again.items, strict=True):
        np.testing.assert_array_equal(a.windows, b.windows)
    # a kill left half of the last line
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    memory = Cache(tmp_path)
    assert (len(memory), memory.dropped) == (17, 1)
    third = rerank(items, judge, beta=0.4, cache=memory)
    assert (third.asked, third.remembered) == (1, 17)
    # the broken line was closed, so what was added after it can be read
    assert (len(Cache(tmp_path)), Cache(tmp_path).dropped) == (18, 1)


def test_what_changes_an_answer_changes_the_key() -> None:
    base = Candidate("q1", "a bell rings", "v1", 100.0, 1.0, 2.0)
    others = [
        Candidate("q1", "a bell rang", "v1", 100.0, 1.0, 2.0),
        Candidate("q1", "a bell rings", "v2", 100.0, 1.0, 2.0),
        Candidate("q1", "a bell rings", "v1", 100.0, 1.5, 2.0),
        Candidate("q1", "a bell rings", "v1", 100.0, 1.0, 2.5),
    ]
    keys = {key_of("f", "e", c) for c in [base, *others]} | {key_of("g", "e", base), key_of("f", "d", base)}
    assert len(keys) == 7
    assert key_of("f", "e", Candidate("q9", "a bell rings", "v1", 99.0, 1.0, 2.0)) == key_of("f", "e", base)


def test_other_settings_of_the_verifier_are_asked_anew(tmp_path: Path) -> None:
    items = [item([(1, 2, 0.5)])]
    rerank(items, Judge(settings="prompt A"), beta=0.5, cache=Cache(tmp_path))
    assert rerank(items, Judge(settings="prompt B"), beta=0.5, cache=Cache(tmp_path)).asked == 1


def test_broken_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    good = json.dumps({"key": "a", "score": 0.25})
    bad = [
        "{",
        "[]",
        "1",
        '{"key": "b"}',
        '{"key": "c", "score": NaN}',
        '{"key": "d", "score": 2}',
        '{"key": 1,"score": 0}',
    ]
    bad += ['{"key": "e", "score": true}', "\udcff"]
    (tmp_path / FILE).write_bytes("\n".join([*bad, good]).encode("utf-8", "surrogateescape"))
    memory = Cache(tmp_path)
    assert (memory.get("a"), len(memory), memory.dropped) == (0.25, 1, len(bad))


def test_a_failed_batch_is_asked_one_by_one_then_again() -> None:
    questions = [Candidate("q1", "x", "v", 9.0, float(i), i + 1.0) for i in range(3)]
    judge = Judge(faults=1)
    assert ask(judge, questions, wait=no_wait).scores == [opinion(i, i + 1) for i in range(3)]
    assert [len(part) for part in judge.asked] == [3, 1, 1, 1]
    # an answer outside 0..1 in a batch is not believed either
    for bad in (float("nan"), 1.5, -0.1):
        judge = Judge(bad=bad)
        assert ask(judge, questions, wait=no_wait).scores == [opinion(i, i + 1) for i in range(3)]
    waits: list[float] = []
    assert len(ask(Judge(faults=3), questions[:1], retries=3, wait=waits.append).scores) == 1
    assert waits == [1.0, 2.0, 4.0]


def test_no_answer_is_an_error_that_keeps_what_was_answered(tmp_path: Path) -> None:
    class Half(Judge):
        def score(self, requests: Sequence[Candidate]) -> list[float]:
            if requests[-1].start >= 4:
                raise VerifierError("the line is cut")
            return super().score(requests)

    questions = [Candidate("q1", "x", "v", 9.0, float(i), i + 1.0) for i in range(6)]
    waits: list[float] = []
    with pytest.raises(AmrctlError, match=r"qid q1, window \[4, 5\] of v: the line is cut"):
        ask(Half(), questions, cache=Cache(tmp_path), batch=5, wait=waits.append)
    assert waits == [1.0, 2.0]
    assert len(Cache(tmp_path)) == 4
    assert ask(Half(), [*questions[:4], questions[3]], cache=Cache(tmp_path), wait=no_wait).asked == 0
    assert ask(Judge(), questions, cache=Cache(tmp_path)).asked == 2


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match=r"beta 1\.5"):
        rerank([item([])], Judge(), beta=1.5)
    with pytest.raises(PredictionError, match="beta nan"):
        rerank([item([])], Judge(), beta=float("nan"))
    with pytest.raises(PredictionError, match="top-k 0"):
        rerank([item([])], Judge(), beta=0.5, top_k=0)
    (tmp_path / "file").write_text("")
    memory = Cache(tmp_path / "folder")
    memory.path = tmp_path / "file" / "answers.jsonl"
    with pytest.raises(OutputError, match="cannot write the cache"):
        memory.add([("k", 0.5, {})])
    (tmp_path / "odd" / FILE).mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot read the cache"):
        Cache(tmp_path / "odd")

"""The blend, the cache and the repeats, with judges made for the purpose."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.predictions import Prediction
from amrctl.errors import AmrctlError, OutputError, PredictionError
from amrctl.rerank.asking import Manner, ask
from amrctl.rerank.base import Candidate, VerifierError
from amrctl.rerank.cache import FILE, Cache, key_of
from amrctl.rerank.rerank import rerank


class Judge:
    """Answers by a fixed rule; remembers what it was asked; may fail on purpose."""

    name, version, told, parameters = "judge", "1", "made up", 0

    def __init__(self, faults: int = 0, settings: str = "", bad: float | None = None) -> None:
        self.asked: list[list[Candidate]] = []
        self._faults, self._settings, self._bad = faults, settings, bad

    def facts(self) -> Mapping[str, Any]:
        return {}

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


NO_WAIT = Manner(wait=no_wait)


def patient(waits: list[float], retries: int = 2) -> Manner:
    return Manner(retries=retries, wait=waits.append, jitter=lambda: 0.0)


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
    done = rerank(items, judge, beta=1, manner=Manner(batch=4))
    assert [len(part) for part in judge.asked] == [4, 2]
    assert (done.asked, done.remembered) == (6, 0)


def test_a_second_run_is_free_and_survives_a_kill(tmp_path: Path) -> None:
    items = [item([(i, i + 1, 0.5) for i in range(6)], f"q{q}") for q in range(3)]
    first = rerank(items, Judge(), beta=0.4, manner=Manner(batch=4), cache=Cache(tmp_path))
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
    assert ask(judge, questions, manner=NO_WAIT).scores == [opinion(i, i + 1) for i in range(3)]
    assert [len(part) for part in judge.asked] == [3, 1, 1, 1]
    # an answer outside 0..1 in a batch is not believed either
    for bad in (float("nan"), 1.5, -0.1):
        judge = Judge(bad=bad)
        assert ask(judge, questions, manner=NO_WAIT).scores == [opinion(i, i + 1) for i in range(3)]
    waits: list[float] = []
    assert len(ask(Judge(faults=3), questions[:1], manner=patient(waits, 3)).scores) == 1
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
        ask(Half(), questions, cache=Cache(tmp_path), manner=replace(patient(waits), batch=5))
    assert waits == [1.0, 2.0]
    assert len(Cache(tmp_path)) == 4
    assert ask(Half(), [*questions[:4], questions[3]], cache=Cache(tmp_path), manner=NO_WAIT).asked == 0
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


def test_questions_about_one_recording_come_together() -> None:
    asked = [Candidate(f"q{i}", "x", f"v{i % 3}", 9.0, 1.0, 2.0 + i) for i in range(9)]
    judge = Judge()
    found = ask(judge, asked, manner=Manner(batch=1)).scores
    assert [part[0].vid for part in judge.asked] == [f"v{i // 3}" for i in range(9)]
    assert found == [opinion(c.start, c.end) for c in asked]


class Busy(Judge):
    """Takes a moment, counts how many are asked at once, and has no answer for some windows."""

    def __init__(self, bad: tuple[float, ...] = (), again: bool = True, after: float = 0.0) -> None:
        super().__init__()
        self.lock, self.now, self.most = threading.Lock(), 0, 0
        self.without, self.again, self.after = bad, again, after

    def score(self, requests: Sequence[Candidate]) -> list[float]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.asked.append(list(requests))
        try:
            if any(request.start in self.without for request in requests):
                raise VerifierError("no idea", again=self.again, after=self.after)
            time.sleep(0.02)
            return [opinion(r.start, r.end) for r in requests]
        finally:
            with self.lock:
                self.now -= 1


def windows(count: int) -> list[Candidate]:
    return [Candidate("q1", "x", "v", 99.0, float(i), i + 1.0) for i in range(count)]


def test_several_at_once_give_the_same_answers_in_order(tmp_path: Path) -> None:
    judge = Busy()
    found = ask(judge, windows(20), cache=Cache(tmp_path), manner=Manner(batch=1, concurrency=4))
    assert found.scores == [opinion(i, i + 1) for i in range(20)]
    assert 2 <= judge.most <= 4
    assert len(Cache(tmp_path)) == 20


def test_what_is_in_flight_when_one_fails_is_kept(tmp_path: Path) -> None:
    judge = Busy(bad=(3.0,), again=False)
    with pytest.raises(AmrctlError, match=r"window \[3, 4\] of v: no idea"):
        ask(judge, windows(40), cache=Cache(tmp_path), manner=Manner(batch=1, concurrency=4))
    # every answer that was given is on the disk, and no question was put after the fault was seen
    assert len(Cache(tmp_path)) == len(judge.asked) - 1
    assert len(judge.asked) < 12


def test_windows_without_an_answer_are_tolerated_up_to_a_number(tmp_path: Path) -> None:
    waits: list[float] = []
    judge = Busy(bad=(1.0, 3.0), after=30.0)
    manner = replace(patient(waits, 1), batch=2, tolerate=2)
    found = ask(judge, windows(5), cache=Cache(tmp_path), manner=manner)
    assert [score is None for score in found.scores] == [False, True, False, True, False]
    assert (found.asked, found.unanswered, len(Cache(tmp_path))) == (5, 2, 3)
    assert waits == [30.0, 30.0]  # as long as was asked for
    with pytest.raises(AmrctlError, match=r"window \[3, 4\] .* \(the 1 that are tolerated are used up\)"):
        ask(judge, windows(5), manner=replace(manner, tolerate=1))
    # the score of a window without an opinion stays
    rows = [(float(i), i + 1.0, 0.9 - i / 10) for i in range(5)]
    [done] = rerank([item(rows)], judge, beta=0.5, manner=manner).items
    scores = {start: score for start, _, score in done.windows.tolist()}
    assert (scores[1.0], scores[3.0]) == (rows[1][2], rows[3][2])
    assert scores[2.0] == pytest.approx(0.35 + opinion(2, 3) / 2)


def test_jitter_only_lengthens(tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.raises(AmrctlError):
        ask(Judge(faults=99), windows(1), manner=Manner(retries=9, wait=waits.append, jitter=lambda: 1.0))
    assert waits == [1.5, 3.0, 6.0, 12.0, 24.0, 48.0, 90.0, 90.0, 90.0]

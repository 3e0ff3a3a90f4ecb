"""Putting questions to a verifier: the cache first, then batches or several at once, and repeats.

Whatever happens (a kill, an error, Ctrl-C), an answer that arrived is on the disk before the next
one is waited for, and what is in flight when the work stops is still kept.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass

from amrctl.errors import AmrctlError
from amrctl.progress import SILENT, Bar, Reporter
from amrctl.rerank.base import Candidate, Verifier, VerifierError
from amrctl.rerank.cache import Cache, key_of

LONGEST_PAUSE = 60.0  # seconds; a server that names a longer one is heard up to LONGEST_ASKED
LONGEST_ASKED = 600.0
Outcome = float | VerifierError


@dataclass(frozen=True)
class Manner:
    """How to ask. `batch`: questions a call; `concurrency`: calls at once, in threads; `retries`: more
    tries of a question that failed, with pauses of 1, 2, 4, ... seconds, each up to half longer by
    `jitter` (0..1); `tolerate`: windows that may stay without an answer. `wait` None: sleep, but wake
    up when the work stops."""

    batch: int = 32
    concurrency: int = 1
    retries: int = 2
    tolerate: int = 0
    wait: Callable[[float], object] | None = None
    jitter: Callable[[], float] = random.random


@dataclass(frozen=True)
class Answers:
    """`scores` (in 0..1, one a request; None: no answer, within what is tolerated), how many different
    questions had to be asked, were remembered, and got no answer."""

    scores: list[float | None]
    asked: int
    remembered: int
    unanswered: int = 0


def ask(
    verifier: Verifier,
    requests: Sequence[Candidate],
    *,
    cache: Cache | None = None,
    manner: Manner | None = None,
    report: Reporter = SILENT,
) -> Answers:
    """The verifier's answers; equal questions are asked once, remembered ones not at all.

    Questions about one recording are asked one after the other. A batch that fails is asked again one
    by one. Raises `AmrctlError` when more windows than tolerated have no answer, or when the verifier
    raises it; the answers so far are in the cache then.
    """
    manner = manner or Manner()
    fingerprint = f"{verifier.name} {verifier.version} {verifier.fingerprint()}"
    keys = [key_of(fingerprint, verifier.evidence(request), request) for request in requests]
    known: dict[str, float] = {}
    fresh: dict[str, Candidate] = {}
    for key, request in zip(keys, requests, strict=True):
        found = None if cache is None else cache.get(key)
        if found is None:
            fresh.setdefault(key, request)
        else:
            known[key] = found
    if cache is not None and cache.dropped:
        report.note(f"{cache.path}: {cache.dropped} lines could not be read and are asked again")
    todo = _by_recording(fresh)
    parts = [todo[begin : begin + manner.batch] for begin in range(0, len(todo), manner.batch)]
    lost: list[str] = []
    with report.bar(verifier.name, len(todo), unit="window") if todo else nullcontext(Bar()) as bar:

        def keep(part: Sequence[tuple[str, Candidate]], outcomes: Sequence[Outcome]) -> None:
            answered = [(k, r, s) for (k, r), s in zip(part, outcomes, strict=True) if isinstance(s, float)]
            if cache is not None:
                cache.add(
                    (k, s, {"verifier": verifier.name, "vid": r.vid, "window": [r.start, r.end]})
                    for k, r, s in answered
                )
            known.update((k, s) for k, _, s in answered)
            for (key, request), outcome in zip(part, outcomes, strict=True):
                if isinstance(outcome, VerifierError):
                    lost.append(key)
                    _tell(verifier, request, outcome, len(lost), manner.tolerate, report)
            bar.advance(len(part), f"{len(lost)} without answer" if lost else "")

        stop = threading.Event()
        if manner.concurrency > 1:
            _side_by_side(verifier, parts, keep, manner, stop)
        else:
            for part in parts:
                _one_after_the_other(verifier, part, keep, manner, stop)
    return Answers(
        [known.get(key) for key in keys], len(fresh), len(set(keys)) - len(fresh), unanswered=len(lost)
    )


Part = list[tuple[str, Candidate]]
Keep = Callable[[Sequence[tuple[str, Candidate]], Sequence[Outcome]], None]


def _by_recording(fresh: dict[str, Candidate]) -> Part:
    """The questions in their order, but those about one recording together: it is read once."""
    places: dict[str, int] = {}
    for request in fresh.values():
        places.setdefault(request.vid, len(places))
    return sorted(fresh.items(), key=lambda pair: places[pair[1].vid])


def _tell(
    verifier: Verifier, request: Candidate, fault: VerifierError, count: int, tolerate: int, report: Reporter
) -> None:
    which = f"qid {request.qid}, window [{request.start:g}, {request.end:g}] of {request.vid}: {fault}"
    if count <= tolerate:
        report.note(f"{verifier.name} gave no answer for {which}; its score stays ({count} of {tolerate})")
        return
    before = f" (the {tolerate} that are tolerated are used up)" if tolerate else ""
    raise AmrctlError(
        f"{verifier.name} gave no answer for {which}{before}; "
        "run the same command again, answers so far are kept"
    )


def _one_after_the_other(
    verifier: Verifier, part: Part, keep: Keep, manner: Manner, stop: threading.Event
) -> None:
    begin = 0
    for outcomes in _try(verifier, [request for _, request in part], manner, stop):
        keep(part[begin : begin + len(outcomes)], outcomes)
        begin += len(outcomes)


def _side_by_side(
    verifier: Verifier, parts: Sequence[Part], keep: Keep, manner: Manner, stop: threading.Event
) -> None:
    """No more parts are handed out than can be asked at once, so that a stop wastes nothing."""

    def run(part: Part) -> tuple[Part, list[Outcome]]:
        requests = [request for _, request in part]
        return part, [o for outcomes in _try(verifier, requests, manner, stop) for o in outcomes]

    left = iter(parts)
    flying: set[Future[tuple[Part, list[Outcome]]]] = set()
    with ThreadPoolExecutor(manner.concurrency) as pool:
        try:
            while True:
                while len(flying) < manner.concurrency and (part := next(left, None)) is not None:
                    flying.add(pool.submit(run, part))
                if not flying:
                    return
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    flying.remove(future)
                    keep(*future.result())
        except BaseException:
            stop.set()
            for future in flying:
                with contextlib.suppress(AmrctlError):  # the first reason is the one that is told
                    keep(*future.result())
            raise


def _try(
    verifier: Verifier, requests: list[Candidate], manner: Manner, stop: threading.Event
) -> Iterator[list[Outcome]]:
    """The outcomes in order: all at once, or one by one where the batch failed."""
    try:
        yield _checked(verifier, requests)
        return
    except VerifierError as fault:
        reason = fault
    if len(requests) > 1:
        for request in requests:
            yield from _try(verifier, [request], manner, stop)
        return
    for attempt in range(manner.retries):
        if not reason.again or stop.is_set():
            break
        (manner.wait or stop.wait)(_pause(attempt, reason.after, manner.jitter()))
        if stop.is_set():
            break
        try:
            yield _checked(verifier, requests)
            return
        except VerifierError as fault:
            reason = fault
    yield [reason]


def _pause(attempt: int, asked_for: float, jitter: float) -> float:
    """Seconds before the next try; jitter keeps questions that failed together apart."""
    ours = min(2.0**attempt, LONGEST_PAUSE) * (1 + jitter / 2)
    return max(ours, min(asked_for, LONGEST_ASKED) + jitter / 2) if asked_for > 0 else ours


def _checked(verifier: Verifier, requests: list[Candidate]) -> list[Outcome]:
    scores = [float(score) for score in verifier.score(requests)]
    if len(scores) != len(requests):
        raise VerifierError(f"{len(scores)} answers to {len(requests)} questions")
    for score in scores:
        if not 0 <= score <= 1:  # also true of NaN
            raise VerifierError(f"the answer {score:g} is outside 0..1")
    return [*scores]

"""Re-order predicted windows by a verifier's opinion; no boundary ever moves.

Source: Chung-Ang University, DCASE 2026 Task 6, eq. 3: `(1 - beta) * detector + beta * verifier`
over the best K windows of a query.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from amrctl.data.predictions import Prediction
from amrctl.errors import AmrctlError, PredictionError
from amrctl.progress import SILENT, Bar, Reporter
from amrctl.rerank.base import Candidate, Verifier, VerifierError
from amrctl.rerank.cache import Cache, key_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """`scores` (in 0..1, one a request), how many had to be asked and how many were remembered."""

    scores: list[float]
    asked: int
    remembered: int


@dataclass(frozen=True)
class Reranked:
    """The new predictions, with the counts of `Answers`."""

    items: list[Prediction]
    asked: int
    remembered: int


def rerank(
    items: Sequence[Prediction],
    verifier: Verifier,
    *,
    beta: float,
    top_k: int = 10,
    cache: Cache | None = None,
    batch: int = 32,
    retries: int = 2,
    wait: Callable[[float], None] = time.sleep,
    report: Reporter = SILENT,
) -> Reranked:
    """Blend the scores of each query's best `top_k` windows with the verifier's, and sort them again.

    The rest stays below in its order; a score there is lowered to the lowest blended one where it
    would pass it, so that the list stays sorted. Equal scores keep their order. `beta` 0 returns
    what came in and asks nothing. Saliency is kept. Raises `PredictionError` for `beta` outside
    0..1 or `top_k` below 1, `AmrctlError` when the verifier gives no answer; the answers so far
    are in the cache then.
    """
    if not 0 <= beta <= 1:
        raise PredictionError(f"beta {beta:g} is not in 0..1")
    if top_k < 1:
        raise PredictionError(f"top-k {top_k}: at least one window a query must be judged")
    if beta == 0:
        return Reranked(list(items), 0, 0)
    ordered = [item.windows[np.argsort(-item.windows[:, 2], kind="stable")] for item in items]
    requests = [
        Candidate(item.qid, item.query, item.vid, item.duration, start, end)
        for item, windows in zip(items, ordered, strict=True)
        for start, end, _ in windows[:top_k].tolist()
    ]
    answers = ask(verifier, requests, cache=cache, batch=batch, retries=retries, wait=wait, report=report)
    opinions = np.asarray(answers.scores, dtype=np.float64)
    done, begin = [], 0
    for item, windows in zip(items, ordered, strict=True):
        count = min(top_k, len(windows))
        done.append(replace(item, windows=blend(windows, opinions[begin : begin + count], beta)))
        begin += count
    return Reranked(done, answers.asked, answers.remembered)


def blend(windows: Floats, opinions: Floats, beta: float) -> Floats:
    """Windows `(n, 3)`, best first, with `(k,)` opinions on the first k → the new list `(n, 3)`."""
    count = len(opinions)
    if not count:
        return windows
    top, tail = windows[:count].copy(), windows[count:].copy()
    top[:, 2] = (1 - beta) * top[:, 2] + beta * opinions
    top = top[np.argsort(-top[:, 2], kind="stable")]
    tail[:, 2] = np.minimum(tail[:, 2], top[-1, 2])
    return np.concatenate([top, tail])


def ask(
    verifier: Verifier,
    requests: Sequence[Candidate],
    *,
    cache: Cache | None = None,
    batch: int = 32,
    retries: int = 2,
    wait: Callable[[float], None] = time.sleep,
    report: Reporter = SILENT,
) -> Answers:
    """The verifier's answers; equal questions are asked once, remembered ones not at all.

    Every answer is in the cache before the next question. A batch that fails is asked again one by
    one, each up to `retries` times more, with pauses of 1, 2, 4, ... seconds.
    """
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
    todo = list(fresh.items())
    with report.bar(verifier.name, len(todo), unit="window") if todo else nullcontext(Bar()) as bar:
        for begin in range(0, len(todo), batch):
            part = todo[begin : begin + batch]
            for scores in _try(verifier, [request for _, request in part], retries, wait):
                now, part = part[: len(scores)], part[len(scores) :]
                if cache is not None:
                    cache.add(
                        (key, score, {"verifier": verifier.name, "vid": r.vid, "window": [r.start, r.end]})
                        for (key, r), score in zip(now, scores, strict=True)
                    )
                known.update((key, score) for (key, _), score in zip(now, scores, strict=True))
                bar.advance(len(now))
    return Answers([known[key] for key in keys], len(fresh), len(set(keys)) - len(fresh))


def _try(
    verifier: Verifier, requests: list[Candidate], retries: int, wait: Callable[[float], None]
) -> Iterator[list[float]]:
    """The answers in order: all at once, or one by one where the batch failed."""
    try:
        yield _checked(verifier, requests)
        return
    except VerifierError as fault:
        reason = fault
    if len(requests) > 1:
        for request in requests:
            yield from _try(verifier, [request], retries, wait)
        return
    for attempt in range(retries):
        wait(2.0**attempt)
        try:
            yield _checked(verifier, requests)
            return
        except VerifierError as fault:
            reason = fault
    request = requests[0]
    raise AmrctlError(
        f"{verifier.name} gave no answer for qid {request.qid}, window [{request.start:g}, {request.end:g}] "
        f"of {request.vid}: {reason}; run the same command again, answers so far are kept"
    )


def _checked(verifier: Verifier, requests: list[Candidate]) -> list[float]:
    scores = [float(score) for score in verifier.score(requests)]
    if len(scores) != len(requests):
        raise VerifierError(f"{len(scores)} answers to {len(requests)} questions")
    for score in scores:
        if not 0 <= score <= 1:  # also true of NaN
            raise VerifierError(f"the answer {score:g} is outside 0..1")
    return scores

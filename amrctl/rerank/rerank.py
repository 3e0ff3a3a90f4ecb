"""Re-order predicted windows by a verifier's opinion; no boundary ever moves.

Source: Chung-Ang University, DCASE 2026 Task 6, eq. 3: `(1 - beta) * detector + beta * verifier`
over the best K windows of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from amrctl.data.predictions import Prediction
from amrctl.errors import PredictionError
from amrctl.progress import SILENT, Reporter
from amrctl.rerank.asking import Manner, ask
from amrctl.rerank.base import Candidate, Verifier
from amrctl.rerank.cache import Cache

Floats = npt.NDArray[np.float64]
Opinions = Sequence[float | None]


@dataclass(frozen=True)
class Reranked:
    """The new predictions, with the counts of `Answers`."""

    items: list[Prediction]
    asked: int
    remembered: int
    unanswered: int = 0


def rerank(
    items: Sequence[Prediction],
    verifier: Verifier,
    *,
    beta: float,
    top_k: int = 10,
    cache: Cache | None = None,
    manner: Manner | None = None,
    report: Reporter = SILENT,
) -> Reranked:
    """Blend the scores of each query's best `top_k` windows with the verifier's, and sort them again.

    See `blended` for the result. `beta` 0 asks nothing. Raises `PredictionError` for `beta` outside
    0..1 or `top_k` below 1, `AmrctlError` when the verifier gives no answer; the answers so far
    are in the cache then.
    """
    if not 0 <= beta <= 1:
        raise PredictionError(f"beta {beta:g} is not in 0..1")
    requests = questions(items, top_k)
    if beta == 0:
        return Reranked(list(items), 0, 0)
    answers = ask(verifier, requests, cache=cache, manner=manner, report=report)
    done = blended(items, answers.scores, beta=beta, top_k=top_k)
    return Reranked(done, answers.asked, answers.remembered, answers.unanswered)


def questions(items: Sequence[Prediction], top_k: int) -> list[Candidate]:
    """What to ask: each query's best `top_k` windows, best first. Raises `PredictionError`: none."""
    if top_k < 1:
        raise PredictionError(f"top-k {top_k}: at least one window a query must be judged")
    return [
        Candidate(item.qid, item.query, item.vid, item.duration, start, end)
        for item in items
        for start, end, _ in _best_first(item)[:top_k].tolist()
    ]


def blended(items: Sequence[Prediction], opinions: Opinions, *, beta: float, top_k: int) -> list[Prediction]:
    """The predictions with the opinions on `questions(items, top_k)` blended in.

    The rest stays below in its order; a score there is lowered to the lowest blended one where it
    would pass it, so that the list stays sorted. Equal scores keep their order. A window without an
    opinion (None) keeps its score. Saliency is kept. `beta` 0 returns what came in.
    """
    if beta == 0:
        return list(items)
    told = np.array([np.nan if o is None else o for o in opinions], dtype=np.float64)
    done, begin = [], 0
    for item in items:
        windows = _best_first(item)
        count = min(top_k, len(windows))
        done.append(replace(item, windows=blend(windows, told[begin : begin + count], beta)))
        begin += count
    return done


def blend(windows: Floats, opinions: Floats, beta: float) -> Floats:
    """Windows `(n, 3)`, best first, with `(k,)` opinions on the first k → the new list `(n, 3)`.

    NaN is no opinion.
    """
    count = len(opinions)
    if not count:
        return windows
    top, tail = windows[:count].copy(), windows[count:].copy()
    mixed = (1 - beta) * top[:, 2] + beta * opinions
    top[:, 2] = np.where(np.isnan(opinions), top[:, 2], mixed)
    top = top[np.argsort(-top[:, 2], kind="stable")]
    tail[:, 2] = np.minimum(tail[:, 2], top[-1, 2])
    return np.concatenate([top, tail])


def _best_first(item: Prediction) -> Floats:
    return item.windows[np.argsort(-item.windows[:, 2], kind="stable")]

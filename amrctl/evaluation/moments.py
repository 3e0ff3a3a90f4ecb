"""Moment retrieval metrics: recall and mean average precision, digit for digit as the official script.

This docstring is the specification; `docs/evaluate.md` says the same for readers of tables.

**Task.** For each query a system lists windows `(start, end, score)`, best first. The reference
holds one or more moments `(start, end)` per query. All times are seconds, all arithmetic float64
(14 s of 20 s must compare equal to 0.7).

**Which moments count.** Those with `0 < end - start <= 1500` s. A query left without a moment is
dropped, together with its prediction. Labels are never changed (a moment may end after its recording).

**Thresholds.** The ten literals 0.5, 0.55, ..., 0.95; a window passes when `IoU >= threshold`.

**Metrics** (percent, mean over queries):

- `R1@t`: the window that is FIRST IN THE LIST, whatever its score, against the moment it overlaps
  best (the first of equals). The IoU compared is intersection / hull of the two, which equals the
  IoU whenever they overlap.
- `R5@t` (not in the official script): one of the first five listed windows passes, judged as in R1.
- `mIoU` (not in the official script): mean of the IoU that R1 compares.
- `mAP@t`: the first 10 listed windows, sorted by descending score (equal scores keep list order).
  Going down the list, a window takes the free moment that it overlaps best among those with
  `IoU >= t` and is a true positive, else a false positive.
  With p_k = TP_k / k and r_k = TP_k / (all moments of the query), average precision is the sum of
  (r_k - r_(k-1)) * max over j >= k of p_j. A query with more than 10 moments cannot reach 100.
- `mAP`: mean of the ten unrounded `mAP@t`.

Published values are `"%.2f"` of the percent.

**Where the official script gives no answer or an odd one** (ours, by rule):

- A query whose prediction has no windows scores 0 in every metric. The official R1 stops with an
  IndexError, and the official mAP leaves the query out of the mean.
- An IoU whose union is not positive is 0. (Official: 0/0 is not-a-number, sorts first and counts as
  a hit; needs a reversed window, which our reader refuses.)
- Of moments with exactly equal IoU the official mAP takes the one that numpy's unstable sort puts last:
  the later in the file where the query has two or three moments, with more it depends on the processor.
  We ask the same sort. It matters only where moments overlap, or touch and have equal length.

Source: `standalone_eval` of the DCASE 2026 Task 6 baseline, which goes back to Moment-DETR (Lei,
Berg, Bansal, NeurIPS 2021) and to the VOC 2011 average precision. This is an independent,
vectorised implementation; tests hold it against the official numbers and a slow, obvious one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amrctl import spans
from amrctl.data.manifest import Manifest, Query
from amrctl.data.predictions import Prediction, Predictions
from amrctl.errors import ManifestError, PredictionError, RecipeError, near

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
METRICS = ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75", "R5@0.5", "R5@0.7", "mIoU")
LONGEST = 1500.0  # seconds; a longer moment does not count
KEPT = 10  # windows per query that mAP reads


@dataclass(frozen=True, eq=False)
class Scores:
    """What each of Q queries earned, before any averaging; rows in the order of the input.

    `iou1` and `iou5`: (Q,) float64, 0..1, IoU of the first listed window, and the best of the first
    five. `ap`: (Q, 10) float64, 0..1, average precision at each of `THRESHOLDS`.
    """

    iou1: Floats
    iou5: Floats
    ap: Floats

    def values(self, metric: str) -> Floats:
        """Each query's share of `metric`, shape (Q,), 0..1; the mean over queries is the metric.

        Raises `RecipeError` for a name that is not in `METRICS`.
        """
        if metric not in METRICS:
            raise RecipeError(f"unknown metric '{metric}'{near(metric, list(METRICS))}")
        name, _, threshold = metric.partition("@")
        if name == "mIoU":
            return self.iou1
        if name == "mAP":
            return self.ap[:, THRESHOLDS.index(float(threshold))] if threshold else self.ap.mean(axis=1)
        iou = self.iou1 if name == "R1" else self.iou5
        return (iou >= float(threshold)).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Paired:
    """Predictions and queries that belong together, in the order of the prediction file.

    `moments[i]`: the moments of `queries[i]` that count, seconds. `dropped`: qids left out because none
    of their moments counts. `empty`: qids whose prediction has no windows, which score 0.
    """

    queries: tuple[Query, ...]
    predictions: tuple[Prediction, ...]
    moments: tuple[list[tuple[float, float]], ...]
    dropped: tuple[str, ...]
    empty: tuple[str, ...]

    def score(self) -> Scores:
        """Score every query."""
        return score([p.windows for p in self.predictions], self.moments)


def pair(predictions: Predictions | Sequence[Prediction], manifest: Manifest) -> Paired:
    """Bring predictions and labels together by qid.

    Raises `ManifestError` when a query has no labels, `PredictionError` when the two sides do not hold
    the same queries or when nothing is left to score.
    """
    name = _name(predictions, "the predictions")
    items = predictions.items if isinstance(predictions, Predictions) else tuple(predictions)
    queries = manifest.by_qid
    blind = [q.qid for q in manifest if q.windows is None]
    if blind:
        raise ManifestError(
            f"{_name(manifest, 'the manifest')}: {len(blind)} of {len(manifest)} queries have no"
            f" relevant_windows (first: {blind[0]}); scoring needs a labelled manifest"
        )
    have = {p.qid for p in items}
    missing = [qid for qid in queries if qid not in have]
    foreign = [p.qid for p in items if p.qid not in queries]
    if missing or foreign:
        raise PredictionError(_mismatch(name, len(items), manifest, missing, foreign))
    if len(have) < len(items):
        raise PredictionError(
            f"{name}: a query is answered twice ({len(items)} answers, {len(have)} queries)"
        )
    # What counts is the length alone: a moment may end after its recording, as the official script has it.
    counted = {q.qid: [w for w in q.windows or () if 0 < w[1] - w[0] <= LONGEST] for q in manifest}
    kept = [p for p in items if counted[p.qid]]
    if not kept:
        raise PredictionError(
            f"{_name(manifest, 'the manifest')}: none of its {len(manifest)} queries has a moment of"
            f" 0 to {LONGEST:g} s; there is nothing to score"
        )
    return Paired(
        queries=tuple(queries[p.qid] for p in kept),
        predictions=tuple(kept),
        moments=tuple(counted[p.qid] for p in kept),
        dropped=tuple(qid for qid, moments in counted.items() if not moments),
        empty=tuple(p.qid for p in kept if len(p.windows) == 0),
    )


def score(predicted: Sequence[npt.ArrayLike], moments: Sequence[npt.ArrayLike]) -> Scores:
    """Score Q queries from plain arrays.

    `predicted[i]`: shape (n, 3), start and end in seconds, score; n may be 0. `moments[i]`: shape
    (g, 2), g at least 1, every moment of positive length. Raises `ValueError` for anything else.
    """
    listed = [np.asarray(w, dtype=np.float64).reshape(-1, 3)[:KEPT] for w in predicted]
    truth = [np.asarray(m, dtype=np.float64).reshape(-1, 2) for m in moments]
    if len(listed) != len(truth) or not truth or not all(len(m) for m in truth):
        raise ValueError("score needs as many predictions as queries, and a moment for every query")
    windows, gold = np.concatenate(listed), np.concatenate(truth)
    n_windows = np.fromiter(map(len, listed), np.int64, len(listed))
    n_gold = np.fromiter(map(len, truth), np.int64, len(truth))
    query = np.repeat(np.arange(len(truth)), n_windows)  # of each window
    place = np.arange(len(windows)) - _starts(n_windows)[query]  # of each window in its list

    # Every (window, moment) pair of a query, as two flat index arrays, grouped by window.
    per_window = n_gold[query]
    w = np.repeat(np.arange(len(windows)), per_window)
    g = np.arange(len(w)) - (_starts(per_window) - _starts(n_gold)[query])[w]
    iou = _iou(windows[w], gold[g])

    hit = np.zeros((len(truth), KEPT))
    hit[query, place] = _recall_iou(windows, gold, w, g, iou, _starts(per_window))
    rank = np.empty_like(place)
    rank[np.lexsort((-windows[:, 2], query))] = place
    return Scores(iou1=hit[:, 0], iou5=hit[:, :5].max(axis=1), ap=_precision(query, rank, n_gold, w, g, iou))


def headline(
    predictions: Predictions | Sequence[Prediction], manifest: Manifest, metrics: Sequence[str]
) -> dict[str, float]:
    """The named metrics, unrounded, in percent: the quick look after each training epoch.

    Raises `RecipeError` for an unknown name (see `METRICS`) and what `pair` raises.
    """
    scores = pair(predictions, manifest).score()
    return {name: 100.0 * float(scores.values(name).mean()) for name in metrics}


def evaluate(predictions: Predictions | Sequence[Prediction], manifest: Manifest) -> dict[str, Any]:
    """Score a prediction file against a manifest.

    Returns the official blocks `brief` and `full` (same keys, same rounding), and `extra`
    (R5@0.5, R5@0.7, mIoU, rounded alike). Raises what `pair` raises.
    """
    return blocks(pair(predictions, manifest).score())


def blocks(scores: Scores) -> dict[str, Any]:
    """The official `brief` and `full` blocks and our `extra`, percent with two decimals."""
    ap = scores.ap.mean(axis=0)
    r1 = {str(t): two_decimals(float(np.mean(scores.iou1 >= t))) for t in THRESHOLDS}
    m = {str(t): two_decimals(float(v)) for t, v in zip(THRESHOLDS, ap, strict=True)}
    m["average"] = two_decimals(float(np.mean(ap)))
    brief = {
        "MR-full-R1@0.5": r1["0.5"],
        "MR-full-R1@0.7": r1["0.7"],
        "MR-full-mAP": m["average"],
        "MR-full-mAP@0.5": m["0.5"],
        "MR-full-mAP@0.75": m["0.75"],
    }
    extra = {name: two_decimals(float(scores.values(name).mean())) for name in ("R5@0.5", "R5@0.7", "mIoU")}
    return {"brief": brief, "full": {"MR-mAP": m, "MR-R1": r1}, "extra": extra}


def two_decimals(share: float) -> float:
    """A share in 0..1 as a percent, rounded as the official script prints it."""
    return float(f"{100 * share:.2f}")


def _starts(counts: Ints) -> Ints:
    return np.cumsum(counts) - counts


def _iou(a: Floats, b: Floats) -> Floats:
    """Row by row; the order of operations is the official one, so that every bit agrees."""
    return spans.iou(a[:, 0], a[:, 1], b[:, 0], b[:, 1])


def _ratio(part: Floats, whole: Floats) -> Floats:
    out = np.zeros_like(part)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def _recall_iou(windows: Floats, gold: Floats, w: Ints, g: Ints, iou: Floats, starts: Ints) -> Floats:
    """For each window, intersection / hull with the moment of highest IoU (the first of equals)."""
    if not len(windows):
        return np.zeros(0)
    best = np.flatnonzero(iou == np.maximum.reduceat(iou, starts)[w])
    chosen = np.empty(len(windows), dtype=np.int64)
    chosen[w[best[::-1]]] = g[best[::-1]]  # written last, so kept: the first of equals
    a, b = windows, gold[chosen]
    inter = np.maximum(np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]), 0.0)
    hull = np.maximum(a[:, 1], b[:, 1]) - np.minimum(a[:, 0], b[:, 0])
    return _ratio(inter, hull)


def _precision(query: Ints, rank: Ints, n_gold: Ints, w: Ints, g: Ints, iou: Floats) -> Floats:
    """Average precision of each query at each threshold, shape (Q, 10)."""
    close = np.flatnonzero(iou >= THRESHOLDS[0])
    close = close[np.lexsort((-_tie_order(w, iou, close), -iou[close], w[close]))]  # a window's best first
    w, g, iou = w[close], g[close], iou[close]
    nth = np.arange(len(w)) - _starts(np.bincount(w, minlength=len(query)))[w]

    # One step handles the nth moment of the window at one rank, for all queries and thresholds at once:
    # a query has one window per rank, so no moment and no window is touched twice in a step.
    thresholds = np.array(THRESHOLDS)
    taken = np.zeros((int(n_gold.sum()), len(THRESHOLDS)), dtype=bool)
    hit = np.zeros((len(n_gold), KEPT, len(THRESHOLDS)), dtype=bool)
    step = rank[w] * (int(nth.max(initial=0)) + 1) + nth
    by_step = np.argsort(step, kind="stable")
    for part in np.split(by_step, np.flatnonzero(np.diff(step[by_step])) + 1):
        q, k, moment = query[w[part]], rank[w[part]], g[part]
        new = (iou[part, None] >= thresholds) & ~taken[moment] & ~hit[q, k]
        taken[moment] |= new
        hit[q, k] |= new

    found = np.cumsum(hit, axis=1)
    precision = found / np.arange(1, KEPT + 1)[:, None]
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / n_gold[:, None, None]
    terms = np.diff(recall, axis=1, prepend=0.0) * envelope
    ap = terms.sum(axis=1)
    # The official sum has one term per hit, and one of 0 when moments are left over. numpy adds eight
    # or more terms in another order than fewer; do as it does, so that the last bit agrees too.
    for q, t in np.argwhere(found[:, -1] >= 7):
        kept = terms[q, hit[q, :, t], t]
        ap[q, t] = np.sum(np.append(kept, 0.0) if len(kept) < n_gold[q] else kept)
    return np.asarray(ap, dtype=np.float64)


def _tie_order(w: Ints, iou: Floats, close: Ints) -> Ints:
    """A key for each pair in `close` that orders equal IoUs of one window as the official sort does."""
    key = close.copy()  # the later moment has the higher key
    in_order = np.lexsort((iou[close], w[close]))
    a, b = close[in_order[:-1]], close[in_order[1:]]
    for window in np.unique(w[b[(w[a] == w[b]) & (iou[a] == iou[b])]]):
        first, last = np.searchsorted(w, (window, window + 1))
        places = np.empty(last - first, dtype=np.int64)
        places[iou[first:last].argsort()] = np.arange(last - first)
        mine = w[close] == window
        key[mine] = places[close[mine] - first]
    return key


def _name(source: object, otherwise: str) -> str:
    path = getattr(source, "path", None)
    return otherwise if path is None else str(path)


def _mismatch(
    name: str, answers: int, manifest: Manifest, missing: Sequence[str], foreign: Sequence[str]
) -> str:
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(manifest)} queries have no prediction ({first(missing)})")
    if foreign:
        faults.append(f"{len(foreign)} of {answers} predictions are for no query in it ({first(foreign)})")
    return (
        f"{name} does not answer {_name(manifest, 'the manifest')}: {'; '.join(faults)};"
        " predict on this manifest, or score what both have with --partial"
    )


def first(ids: Sequence[str]) -> str:
    """The first three ids, for a message."""
    return f"first: {', '.join(ids[:3])}"

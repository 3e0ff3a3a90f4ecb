"""Retrieval metrics: how well a score matrix ranks the relevant recordings of each query.

Rows are queries, columns recordings, higher scores are better. **Ties**: of equal scores the earlier
column ranks first (the published code leaves it open); columns stand in the order of the score file.

- `mAP@k`: per query, the relevant recordings in the order of their ranks (from 1); the i-th of them adds
  i / rank when its rank is at most k. The sum is divided by the number of ALL relevant recordings, not
  by min(k, number). With one relevant recording: 1 / rank, or 0 past k. Mean over queries.
- `R@k`: the share of the relevant recordings among the first k; with one of them, whether it is there.
  With several, a perfect system stays below 100 at small k.

Everything in percent, float64. Source: the evaluation of the DCASE 2025 task 6 baseline.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amrctl.errors import PredictionError, RecipeError, near

Floats = npt.NDArray[np.float64]
METRICS = ("mAP@10", "mAP@16", "R@1", "R@5", "R@10")
_METRIC = re.compile(r"(mAP|R)@([1-9][0-9]{0,5})")


@dataclass(frozen=True, eq=False)
class Ranks:
    """Of each query the ranks of its relevant recordings, from 1, ascending."""

    ranks: tuple[npt.NDArray[np.int64], ...]

    def values(self, metric: str) -> Floats:
        """`mAP@k` or `R@k` of each query, 0..1. Raises `RecipeError` for another name."""
        kind, k = parse(metric)
        if kind == "R":
            return np.array([(found <= k).mean() for found in self.ranks])
        return np.array(
            [(np.arange(1, len(f) + 1) / f * (f <= k)).sum() / len(f) for f in self.ranks], np.float64
        )

    def metrics(self, names: Sequence[str] = METRICS) -> dict[str, float]:
        """Means over the queries, in percent, unrounded."""
        return {name: 100.0 * float(self.values(name).mean()) for name in names}


def parse(metric: str) -> tuple[str, int]:
    """`mAP@10` → ("mAP", 10). Raises `RecipeError`."""
    found = _METRIC.fullmatch(metric)
    if found is None:
        raise RecipeError(f"no metric is called '{metric}'{near(metric, list(METRICS))}")
    return found[1], int(found[2])


def rank(scores: npt.NDArray[Any], relevant: Sequence[Sequence[int]]) -> Ranks:
    """Ranks of the relevant columns of each row: `scores` (Q, R); `relevant[q]`: columns, one at least.

    Raises `PredictionError` for a score that is not finite.
    """
    if len(scores) != len(relevant):
        raise ValueError(f"{len(scores)} rows of scores for {len(relevant)} queries")
    if not np.isfinite(scores).all():
        raise PredictionError("a score is not a finite number")
    done = []
    for row, columns in zip(scores, relevant, strict=True):
        place = np.empty(len(row), np.int64)
        place[np.argsort(-row, kind="stable")] = np.arange(1, len(row) + 1)
        done.append(np.sort(place[list(columns)]))
    return Ranks(tuple(done))


def guess(recordings: int, relevant: Sequence[Sequence[int]], metric: str) -> float:
    """What random scores earn on average, in percent.

    A relevant recording is at each rank alike. Given that it stands at rank j, of the n - 1 others each
    stands before it with the chance (j - 1) / (R - 1), so that j's expected place among the relevant is
    1 + (n - 1)(j - 1) / (R - 1).
    """
    kind, k = parse(metric)
    k = min(k, recordings)
    if kind == "R":
        return 100.0 * k / recordings
    total = 0.0
    for columns in relevant:
        for j in range(1, k + 1):
            among = 1.0 + (len(columns) - 1) * (j - 1) / max(recordings - 1, 1)
            total += among / j / recordings
    return 100.0 * total / len(relevant)

"""`evaluate` beside the official metric script, and how it grows to 100,000 queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amrctl.data.predictions import Prediction
from amrctl.evaluation.moments import evaluate
from benchmarks import inputs
from benchmarks.cases.training import NO_REFERENCE
from benchmarks.measure import Work, interleaved, peak_mb
from benchmarks.official import Official
from benchmarks.table import Row

TEST = 1347  # queries of CASTELLA's test split


def rows(quick: bool, reference: Official | None = None) -> list[Row]:
    """Seconds of all metrics, ten windows a query, from data in memory."""
    count, most = (60, 200) if quick else (TEST, 100_000)
    small, large = (inputs.queries(n, per_recording=1) for n in (count, most))
    told = inputs.predicted(small)
    items, many = predictions(told), predictions(inputs.predicted(large))
    works: dict[str, Work] = {"ours": lambda: evaluate(items, small)}
    note = NO_REFERENCE
    if reference is not None:
        gold = inputs.gold(small)
        works["official"] = lambda: reference.metric(told, gold)
        ours, theirs = evaluate(items, small)["brief"], reference.metric(told, gold)["brief"]
        apart = [key for key, value in theirs.items() if ours.get(key) != value]
        if apart:
            raise AssertionError(f"the metric differs from the official one in {apart}")
        note = f"all {len(theirs)} headline numbers are equal"
    times = interleaved(works, 1 if quick else 5)
    whole = interleaved({"many": lambda: evaluate(many, large)}, 1, warm=0)["many"]
    return [
        Row(f"evaluate {count:,} queries", times["ours"], times.get("official"), note=note),
        Row(
            f"evaluate {most:,} queries",
            whole,
            limit=times["ours"] * most / count,
            memory_mb=peak_mb(lambda: evaluate(many, large)),
            note=f"limit: linear from {count:,}",
        ),
    ]


def predictions(told: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    """Rows of a file as `evaluate` takes them."""
    return [
        Prediction(
            qid=str(row["qid"]),
            query=str(row["query"]),
            vid=str(row["vid"]),
            duration=math.nan,
            windows=np.asarray(row["pred_relevant_windows"], dtype=np.float64),
        )
        for row in told
    ]

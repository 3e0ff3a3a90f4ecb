"""What can be had without listening, and what without reading.

Two guesses know how long and where the training moments are and hear nothing. A third hears every event
to its true start and end and does not read the sentence: the most that a system can get out of a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from amrctl.data.manifest import Manifest, Query, read_manifest
from amrctl.data.predictions import Prediction
from amrctl.evaluation.moments import METRICS, headline
from benchmarks.accuracy.meanings import read_rows
from benchmarks.accuracy.second import scenes
from benchmarks.accuracy.sets import MANIFESTS, DataSet

WINDOWS = 10  # as many as the systems list


def guesses(data: DataSet) -> dict[str, dict[str, float]]:
    """Name of the guess → metric → percent on the test split."""
    train = read_manifest(data.manifest("train"), clip_windows=True)
    test = read_manifest(data.manifest("test"), clip_windows=True)
    fixed = best_fixed(train)
    rng = np.random.default_rng(0)
    return {
        "best fixed windows": headline([_prediction(q, fixed) for q in test], test, METRICS),
        "random windows": headline(
            [_prediction(q, drawn(rng, train, q.duration)) for q in test], test, METRICS
        ),
        "true events, any": headline(_any_event(test, events(data, test)), test, METRICS),
    }


def events(data: DataSet, test: Manifest) -> dict[str, list[tuple[float, float]]]:
    """Recording → start and end of all that is to be heard in it (seconds): the moments of all its queries;
    in castella the simulated distractors too."""
    if data.name == "castella":
        rows = read_rows([data.manifest(name) for name in MANIFESTS])
        return {scene.vid: [(start, end) for _, _, start, end in scene.events] for scene in scenes(rows)}
    found: dict[str, list[tuple[float, float]]] = {}
    for query in test:
        found.setdefault(query.vid, []).extend(query.windows or ())
    return found


def _any_event(test: Manifest, known: dict[str, list[tuple[float, float]]]) -> list[Prediction]:
    rng = np.random.default_rng(0)
    return [_prediction(q, rng.permutation(np.array(known[q.vid]))[:WINDOWS].tolist()) for q in test]


def best_fixed(train: Manifest, wanted: int = WINDOWS) -> list[tuple[float, float]]:
    """Windows (seconds) that reach IoU 0.7 with most training queries, each chosen for the queries that
    those before it miss; starts and lengths on whole seconds. Ties: the earlier and shorter one."""
    longest = int(max(query.duration for query in train))
    grid = [(s, e) for s in range(longest) for e in range(s + 1, longest + 1)]
    starts, ends = np.array(grid, dtype=np.float64).T
    hits = np.stack([reached(starts, ends, q.windows or ()) for q in train], axis=1)  # (windows, queries)
    open_queries = np.ones(len(train), dtype=bool)
    chosen = []
    for _ in range(wanted):
        best = int(np.argmax(hits[:, open_queries].sum(axis=1)))
        open_queries &= ~hits[best]
        chosen.append((float(starts[best]), float(ends[best])))
    return chosen


def reached(starts: Any, ends: Any, moments: Iterable[tuple[float, float]]) -> Any:
    """Whether each window (seconds, `(n,)` both) has an IoU of at least 0.7 with one of `moments`, `(n,)`."""
    found = np.zeros(len(starts), dtype=bool)
    for s, e in moments:
        inside = np.clip(np.minimum(ends, e) - np.maximum(starts, s), 0, None)
        found |= inside >= 0.7 * (np.maximum(ends, e) - np.minimum(starts, s))
    return found


def drawn(rng: np.random.Generator, train: Manifest, duration: float) -> list[tuple[float, float]]:
    """Windows of lengths drawn from the training moments, at places drawn evenly."""
    lengths = [e - s for query in train for s, e in query.windows or ()]
    windows = []
    for length in rng.choice(lengths, size=WINDOWS):
        length = min(float(length), duration)
        start = float(rng.uniform(0, duration - length))
        windows.append((start, start + length))
    return windows


def _prediction(query: Query, windows: Iterable[tuple[float, float]]) -> Prediction:
    rows: list[tuple[float, float, float]] = []
    for start, end in windows:
        start = min(start, query.duration - 1)
        rows.append((start, min(end, query.duration), 1 - len(rows) / (WINDOWS + 1)))
    return Prediction(query.qid, query.query, query.vid, query.duration, np.array(rows), None, query.int_qid)

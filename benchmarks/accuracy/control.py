"""What a system does with the sentence of another query, and what it would do by chance.

Low scores with wrong sentences show that a system reads only as long as it hears badly: one that hears
every event answers a wrong sentence with some event, and that is now and then the labelled one. So the
control is held against the events of the recording. Where the first window is an event at all, chance makes
it a labelled one as often as events are labelled; a system that knows where the labelled events are without
reading would be above that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amrctl import provenance
from amrctl.data.manifest import Manifest, read_manifest
from amrctl.data.predictions import Prediction, read_predictions
from amrctl.evaluation import statistics
from benchmarks.accuracy.guess import events, reached
from benchmarks.accuracy.run import Places
from benchmarks.accuracy.sets import CONTROL, DataSet

Moments = Sequence[tuple[float, float]]


def against_chance(
    predictions: Sequence[Prediction], queries: Manifest, known: Mapping[str, Moments]
) -> dict[str, float]:
    """Percentages over `queries`, IoU at least 0.7 throughout; `known`: recording to all its events.

    `labelled`: the first window is a moment of the query (R1@0.7); `event`: it is any event; `chance`: how
    often it would be a moment if the event that it is had been drawn from the recording's; `above`:
    `labelled` less `chance`, with its 95% interval over recordings, `low` to `high`.
    """
    answers = {prediction.qid: prediction for prediction in predictions}
    rows = []
    for query in queries:
        first, there = answers[query.qid].windows[:1].T, np.array(known[query.vid]).T
        moments = query.windows or ()
        hit = reached(first[0], first[1], known[query.vid]).any()
        share = reached(there[0], there[1], moments).mean()
        rows.append((reached(first[0], first[1], moments).any(), hit, hit * share))
    labelled, event, chance = 100 * np.array(rows, dtype=np.float64).T
    groups = statistics.groups([query.vid for query in queries])
    low, high = statistics.interval(statistics.resampled_means((labelled - chance)[:, None], groups))[:, 0]
    told = {"labelled": labelled, "event": event, "chance": chance, "above": labelled - chance}
    means = {name: round(float(np.mean(values)), 4) for name, values in told.items()}
    return {**means, "low": round(float(low), 4), "high": round(float(high), 4)}


def add_control(result: dict[str, Any], data: DataSet, places: Places) -> None:
    """Write the control of a stored run beside its numbers, where its predictions are in the work folder."""
    name, seed = result["row"], result["seed"]
    path = places.run(data.name, name, seed) / f"{CONTROL}.jsonl"
    if "control" in result or not path.is_file():
        return
    queries = read_manifest(data.manifest(CONTROL), clip_windows=True)
    told = against_chance(read_predictions(path).items, queries, events(data, queries))
    result["control"] = told
    provenance.write_json(places.result(data.name, name, seed), result, overwrite=True)

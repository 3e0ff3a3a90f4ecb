"""`python -m benchmarks.fusion`: seconds to fuse 25 prediction files of 1,347 queries with 30 windows each.

"alike": the files answer with small changes of one another, as seeds of one recipe do; "unlike": every
window is drawn anew, so that almost none fuse, the most work there can be. Windows are in memory;
reading the files is a case of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from amrctl.data.predictions import Prediction, read_predictions, write_predictions
from amrctl.ensemble.consensus import consensus
from amrctl.ensemble.normalise import normalise
from amrctl.ensemble.pool import pool
from amrctl.ensemble.saliency import proposals
from amrctl.ensemble.wbf import wbf
from benchmarks.measure import interleaved, peak_mb
from benchmarks.table import Row, text_table

FILES, QUERIES, WINDOWS = 25, 1347, 30
FRAMES = 300
Members = list[list[Prediction]]


def members(files: int, queries: int, *, alike: bool) -> Members:
    """Random predictions: windows of 2 to 92 s in 300 s, best first."""
    g = np.random.default_rng(0)
    start = g.uniform(0, 250, (queries, WINDOWS))
    width = g.uniform(2, 92, (queries, WINDOWS))
    done = []
    for _ in range(files):
        if alike:
            begins = np.maximum(start + g.normal(0, 1, start.shape), 0)
            lasts = np.maximum(width + g.normal(0, 1, start.shape), 0.5)
        else:
            begins, lasts = g.uniform(0, 250, start.shape), g.uniform(2, 92, start.shape)
        score = -np.sort(-g.uniform(0, 1, start.shape), axis=1)
        windows = np.stack([begins, begins + lasts, score], axis=2)
        done.append([Prediction(f"q{q}", "rain falls", f"v{q}", 400.0, windows[q]) for q in range(queries)])
    return done


def rows(quick: bool) -> list[Row]:
    """Seconds of each way to fuse, and of reading the files."""
    files, queries, repeat = (3, 40, 1) if quick else (FILES, QUERIES, 3)
    size = f"{files} files x {queries:,} queries x {WINDOWS} windows"
    measured: list[Row] = []

    def add(case: str, work: Callable[[], object], note: str) -> None:
        seconds = interleaved({case: work}, repeat)[case]
        measured.append(Row(case, seconds, memory_mb=peak_mb(work), note=note))

    alike, unlike = members(files, queries, alike=True), members(files, queries, alike=False)
    add("fuse --consensus", lambda: consensus(alike), f"{size}, alike")
    add("fuse --consensus", lambda: consensus(unlike), f"{size}, unlike")
    add("fuse --wbf", lambda: wbf(alike), f"{size}, alike")
    add("fuse --wbf", lambda: wbf(unlike), f"{size}, unlike")
    add("fuse --pool", lambda: pool(alike), size)
    add("fuse --normalise rank", lambda: normalise(alike, "rank"), f"{size}; before the fusion")
    few = members(2, 1, alike=True)
    add("fuse --consensus", lambda: consensus(few), "2 files, 1 query: what a call costs")
    curves = np.random.default_rng(1).normal(0, 2, (queries, FRAMES))
    add(
        "fuse --saliency",
        lambda: [proposals(curve, float(FRAMES)) for curve in curves],
        f"{queries:,} curves of {FRAMES} frames",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.jsonl"
        write_predictions(path, alike[0], {})
        add(
            "read a file",
            lambda: read_predictions(path),
            f"one of them: {queries:,} queries x {WINDOWS} windows",
        )
    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: shows only that it runs")
    print(text_table(rows(parser.parse_args().quick)))


if __name__ == "__main__":
    main()

"""Windows of several prediction files side by side: what every fusion starts from.

Fusions are numpy over many queries at once: the windows of a query, all files after each other,
form one row of a padded array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from amrctl.data.predictions import Prediction, Predictions
from amrctl.errors import PredictionError

Floats = npt.NDArray[np.float64]

_ROWS = 256  # queries at once: small enough for the processor's cache, large enough for numpy


@dataclass(frozen=True)
class Stack:
    """Windows of Q queries, padded to M columns, best first.

    `start`, `end` (seconds) and `score` (weighted) have shape `(Q, M)`; `real` is false where a row
    is padding. Equal scores stay in source order: by file, then by place in the file. `source`
    counts the files that take part from 0, `rank` the windows of one file and query from 1, best first.
    """

    items: list[Prediction]
    start: Floats
    end: Floats
    score: Floats
    real: npt.NDArray[np.bool_]
    source: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]


def checked_weights(weights: Sequence[float] | None, files: int) -> Floats:
    """One weight a file, default 1 each; raises `PredictionError` for a wrong count or value."""
    given = [1.0] * files if weights is None else [float(w) for w in weights]
    if files == 0:
        raise PredictionError("there is no prediction file to fuse; name at least one")
    if len(given) != files:
        raise PredictionError(f"{len(given)} weights for {files} prediction files; give one each")
    for w in given:
        if not math.isfinite(w) or w < 0:
            raise PredictionError(f"weight {w:g} is not a number of 0 or more (0 leaves its file out)")
    if not any(given):
        raise PredictionError("every weight is 0, so that no file is left; give one file a weight above 0")
    return np.asarray(given, dtype=np.float64)


def aligned(files: Sequence[Sequence[Prediction]]) -> list[list[Prediction]]:
    """The predictions of every file in the first file's order of queries.

    Raises `PredictionError` where the files answer different queries, or one twice, or speak of
    different recordings.
    """
    first = list(files[0])
    done = [first]
    wanted = {item.qid for item in first}
    for number, items in enumerate(files, start=1):
        by_qid = {item.qid: item for item in items}
        if len(by_qid) != len(items):
            raise PredictionError(f"prediction file {number} answers a query twice; keep one line for each")
        if by_qid.keys() != wanted:
            odd = min(by_qid.keys() ^ wanted)
            where = number if odd in by_qid else 1
            other = 1 if odd in by_qid else number
            raise PredictionError(
                f"prediction files answer different queries: {len(wanted)} in file 1, {len(by_qid)} in file "
                f"{number}; {odd} is in file {where} and not in file {other}"
            )
        if number == 1:
            continue
        row = [by_qid[item.qid] for item in first]
        for a, b in zip(first, row, strict=True):
            if a.vid != b.vid:
                raise PredictionError(
                    f"query {a.qid} is about {a.vid} in file 1 and {b.vid} in file {number}"
                )
        done.append(row)
    return done


def _check(items: Sequence[Prediction], number: int) -> None:
    """Every window finite, start < end, score in 0..1; else `PredictionError` with the query."""
    if not items:
        return
    w = np.concatenate([item.windows.reshape(-1, 3) for item in items])
    good = (w[:, 0] < w[:, 1]) & (w[:, 2] >= 0) & (w[:, 2] <= 1) & np.isfinite(w).all(axis=1)
    if not good.all():
        bad = int(np.argmin(good))
        ends = np.cumsum([len(item.windows) for item in items])
        qid = items[int(np.searchsorted(ends, bad, "right"))].qid
        start, end, score = w[bad]
        raise PredictionError(
            f"prediction file {number}: qid {qid} has the window [{start:g}, {end:g}] with score "
            f"{score:g}; a window needs start < end and a score in 0..1"
        )


def stacks(files: Sequence[Sequence[Prediction]], weights: Floats) -> Iterator[Stack]:
    """Blocks of queries with the windows of all files whose weight is above 0, best first."""
    rows = aligned(files)
    kept = [(row, float(w)) for row, w in zip(rows, weights, strict=True) if w > 0]
    for number, row in enumerate(rows, start=1):
        if weights[number - 1] > 0:
            _check(row, number)
    for begin in range(0, len(rows[0]), _ROWS):
        block = [(row[begin : begin + _ROWS], w) for row, w in kept]
        lead = rows[0][begin : begin + _ROWS]
        counts = np.array([[len(item.windows) for item in row] for row, _ in block], dtype=np.int64)
        width = int(counts.sum(axis=0).max(initial=0))
        cells = np.zeros((len(lead), width, 3))
        source, rank = np.zeros((2, len(lead), width), dtype=np.int64)
        real = np.arange(width)[None, :] < counts.sum(axis=0)[:, None]
        column = np.zeros(len(lead), dtype=np.int64)
        for number, ((row, w), n) in enumerate(zip(block, counts, strict=True)):
            if n.sum():
                flat = np.concatenate([item.windows.reshape(-1, 3) for item in row]).astype(np.float64)
                which = np.repeat(np.arange(len(lead)), n)
                within = np.arange(len(flat)) - np.repeat(np.cumsum(n) - n, n)
                flat = flat[np.lexsort((-flat[:, 2], which))]
                flat[:, 2] *= w
                place = which, column[which] + within
                cells[place], source[place], rank[place] = flat, number, within + 1
            column += n
        score = np.where(real, cells[:, :, 2], -np.inf)
        order = np.argsort(-score, axis=1, kind="stable")
        start, end, score, source, rank = (
            np.take_along_axis(values, order, axis=1)
            for values in (cells[:, :, 0], cells[:, :, 1], score, source, rank)
        )
        # one file alone keeps its saliency; curves of different models share no scale
        if len(kept) == 1:
            lead = list(block[0][0])
        else:
            lead = [replace(item, saliency=None) for item in lead]
        yield Stack(lead, start, end, np.where(real, score, 0.0), real, source, rank)


def unstack(stack: Stack, chosen: npt.NDArray[np.bool_], keep: int) -> Iterator[Prediction]:
    """One prediction a row: its first `keep` windows of those that `chosen` (Q, M) marks, as ordered."""
    rows = np.stack([stack.start, stack.end, stack.score], axis=2)
    for i, item in enumerate(stack.items):
        yield replace(item, windows=rows[i, np.flatnonzero(chosen[i])[:keep]])


def checked_keep(keep: int) -> int:
    """`keep` when it is at least 1; else `PredictionError`."""
    if keep < 1:
        raise PredictionError(f"keep {keep}: at least one window a query must stay")
    return keep


def checked_iou(name: str, value: float) -> float:
    """`value` when it lies in 0..1; else `PredictionError` naming the setting."""
    if not 0 <= value <= 1:
        raise PredictionError(f"{name} {value:g} is not in 0..1")
    return value


def rounded(file: Predictions) -> bool:
    """Whether every boundary of the file is a whole second (by its provenance, else by looking)."""
    if isinstance(file.meta.get("rounding"), (int, float)):
        return bool(file.meta["rounding"])
    windows = [item.windows[:, :2] for item in file if len(item.windows)]
    return bool(windows) and all(bool((w == np.rint(w)).all()) for w in windows)

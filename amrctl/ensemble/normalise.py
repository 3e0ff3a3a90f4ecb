"""Scores of different models brought to one scale before they are fused.

Sources: rank and min-max normalisation as in the fusion of retrieval runs (Fox and Shaw, TREC-2, 1994);
temperature: Guo et al., "On calibration of modern neural networks", ICML 2017; with an offset: Platt, 1999.
None of them changes the order of windows within a file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from amrctl.data.predictions import Prediction
from amrctl.errors import PredictionError

Floats = npt.NDArray[np.float64]

Normalisation = Literal["none", "rank", "minmax"]
NORMALISATIONS: tuple[Normalisation, ...] = ("none", "rank", "minmax")


def normalise(files: Sequence[Sequence[Prediction]], kind: str) -> list[list[Prediction]]:
    """Every file's scores anew, query by query; windows stay in their order.

    "rank": 1 - i / n for the i-th best (from 0) of its file, n the number of windows of the file that
    has most for this query, so that equal ranks get equal scores in all files; equal scores: the
    earlier place is better. "minmax": (score - least) / (greatest - least) of the file's windows, 1
    where all are equal. "none": as they are. Raises `PredictionError` for another `kind`.
    """
    if kind not in NORMALISATIONS:
        raise PredictionError(f"normalise {kind}: choose {', '.join(NORMALISATIONS)}")
    if kind == "none":
        return [list(items) for items in files]
    most: defaultdict[str, int] = defaultdict(int)
    for items in files:
        for item in items:
            most[item.qid] = max(most[item.qid], len(item.windows))

    def anew(item: Prediction) -> Floats:
        return _by_rank(item.windows[:, 2], most[item.qid]) if kind == "rank" else _spread(item.windows[:, 2])

    return [[_scored(item, anew(item)) for item in items] for items in files]


def calibrate(
    files: Sequence[Sequence[Prediction]],
    *,
    temperatures: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
) -> list[list[Prediction]]:
    """Scores s become sigmoid(logit(s) / temperature + offset), one pair a file; 0 and 1 stay.

    Temperature 1 and offset 0 (the defaults) leave a file untouched; above 1 scores move towards 0.5.
    Raises `PredictionError` for a wrong count, a temperature that is not above 0, not finite numbers.
    """
    divisors = _one_each("temperature", temperatures, 1.0, len(files))
    added = _one_each("offset", offsets, 0.0, len(files))
    for value in divisors:
        if value <= 0:
            raise PredictionError(f"temperature {value:g} is not above 0")
    done = []
    for items, divisor, offset in zip(files, divisors, added, strict=True):
        if (divisor, offset) == (1.0, 0.0):
            done.append(list(items))
            continue
        done.append([_scored(item, _calibrated(item.windows[:, 2], divisor, offset)) for item in items])
    return done


def _calibrated(score: Floats, temperature: float, offset: float) -> Floats:
    with np.errstate(divide="ignore", over="ignore"):
        logit = np.log(score) - np.log1p(-score)
        return np.asarray(1.0 / (1.0 + np.exp(-(logit / temperature + offset))))


def _by_rank(score: Floats, n: int) -> Floats:
    ranked = np.empty(len(score))
    ranked[np.argsort(-score, kind="stable")] = 1 - np.arange(len(score)) / max(n, 1)
    return ranked


def _spread(score: Floats) -> Floats:
    if not len(score) or score.max() == score.min():
        return np.ones(len(score))
    return np.asarray((score - score.min()) / (score.max() - score.min()))


def _scored(item: Prediction, score: Floats) -> Prediction:
    return replace(item, windows=np.column_stack([item.windows[:, :2], score]))


def _one_each(name: str, values: Sequence[float] | None, default: float, files: int) -> list[float]:
    given = [default] * files if values is None else [float(value) for value in values]
    if len(given) != files:
        raise PredictionError(f"{len(given)} {name}s for {files} prediction files; give one each")
    for value in given:
        if not math.isfinite(value):
            raise PredictionError(f"{name} {value:g} is not a finite number")
    return given

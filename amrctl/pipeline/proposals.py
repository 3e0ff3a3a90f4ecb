"""Windows in the form that `predict` gives its own: from saliency curves, and rounded after a fusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from amrctl.data.predictions import Prediction
from amrctl.ensemble.saliency import proposals
from amrctl.errors import PredictionError
from amrctl.inference.decode import fit


def add_proposals(
    items: Sequence[Prediction], *, threshold: float, keep: int, rounding: float, where: str
) -> list[Prediction]:
    """Each prediction with at most `keep` windows of its saliency curve behind its own, unsorted.

    The new windows are rounded to multiples of `rounding` seconds as the decoder's are (0: not), never
    empty, within the recording. `where` names the predictions in messages. Raises `PredictionError`
    when a prediction has no curve or no duration.
    """
    done = []
    for item in items:
        if item.saliency is None:
            raise PredictionError(
                f"{where}: qid {item.qid} has no pred_saliency_scores; make the predictions with "
                "amrctl predict --saliency"
            )
        _require_duration(item, where)
        found = proposals(item.saliency, item.duration, threshold=threshold, keep=keep)
        placed = np.column_stack([fit(found[:, :2], item.duration, rounding), found[:, 2]])
        done.append(replace(item, windows=np.concatenate([item.windows, placed])))
    return done


def round_windows(items: Sequence[Prediction], rounding: float, *, where: str) -> list[Prediction]:
    """Windows at multiples of `rounding` seconds, never empty, within the recording; order and scores stay.

    Raises `PredictionError` when a prediction does not say its recording's duration.
    """
    done = []
    for item in items:
        _require_duration(item, where)
        placed = fit(item.windows[:, :2], item.duration, rounding)
        done.append(replace(item, windows=np.column_stack([placed, item.windows[:, 2]])))
    return done


def _require_duration(item: Prediction, where: str) -> None:
    if math.isnan(item.duration):
        raise PredictionError(
            f"{where}: qid {item.qid} does not say its duration, without which windows cannot be placed; "
            "predictions of amrctl predict do"
        )

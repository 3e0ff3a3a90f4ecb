"""A prediction-level teacher: the best windows of one or more prediction files, per query.

Guangzhou report (DCASE 2026 Task 6), section 3.7: the teacher is the union of several checkpoints'
predictions on the training set; its top K windows are soft targets of the student. The report
leaves open how the union is ordered: here by score, after near copies (IoU above 0.95) of a
better window are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amrctl import spans
from amrctl.data.manifest import Manifest
from amrctl.data.predictions import Prediction, Predictions, read_predictions, require_same_queries
from amrctl.errors import PredictionError

NEAR_COPY = 0.95  # windows that overlap more than this are one window


class TeacherSet:
    """Windows in seconds and scores in 0..1 per query, best first.

    `windows`: qid → float64 `(k, 3)` (start, end, score), k <= `top_k`. `vids`: qid → recording.
    `metas`: the provenance of each file.
    """

    def __init__(
        self,
        windows: Mapping[str, npt.NDArray[np.float64]],
        vids: Mapping[str, str],
        *,
        top_k: int,
        names: Sequence[str] = (),
        metas: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.windows, self.vids, self.top_k = dict(windows), dict(vids), top_k
        self.names, self.metas = tuple(names), tuple(metas)

    @classmethod
    def from_predictions(
        cls, files: Sequence[Predictions], *, top_k: int = 3, rank_normalise: bool = False
    ) -> TeacherSet:
        """Unite prediction files over the same queries.

        `rank_normalise`: the scores of each file are first replaced, per query, by 1 - i/n for the
        i-th best of n, so that files whose scores live on different scales can be compared.
        Raises `PredictionError` when the files answer different queries.
        """
        if not files:
            raise PredictionError("a teacher needs at least one prediction file; give --teacher FILE")
        require_same_queries(files)
        windows = {
            qid: _best([_member(file.by_qid[qid], rank_normalise) for file in files], top_k)
            for qid in files[0].by_qid
        }
        return cls(
            windows,
            {qid: item.vid for qid, item in files[0].by_qid.items()},
            top_k=top_k,
            names=[str(file.path or "predictions in memory") for file in files],
            metas=[file.meta for file in files],
        )

    @classmethod
    def from_files(
        cls, paths: Sequence[Path | str], *, top_k: int = 3, rank_normalise: bool = False
    ) -> TeacherSet:
        """Read prediction files and unite them (see `from_predictions`)."""
        files = [read_predictions(path) for path in paths]
        return cls.from_predictions(files, top_k=top_k, rank_normalise=rank_normalise)

    def require(self, manifest: Manifest) -> None:
        """Raise `PredictionError` unless every query of `manifest` has an answer about its recording."""
        where = ", ".join(self.names) or "the teacher"
        missing = [query.qid for query in manifest if query.qid not in self.windows]
        if missing:
            raise PredictionError(
                f"{where}: {len(missing):,} of {len(manifest):,} training queries are missing, the first is "
                f"qid {missing[0]}; make it with: amrctl predict --test TRAINING_MANIFEST --round 0"
            )
        for query in manifest:
            if self.vids[query.qid] != query.vid:
                raise PredictionError(
                    f"{where}: qid {query.qid} is about recording {self.vids[query.qid]}, in the training "
                    f"manifest about {query.vid}; teacher and manifest are of different data sets"
                )

    def spans_for(self, qid: str, seconds: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Soft targets of one query for a recording of which `seconds` are used.

        Returns float32 spans `(k, 2)`, (centre, width) in 0..1 of `seconds`, and float32 scores
        `(k,)`, best first. Windows are clipped to `seconds`; those that start at or after it are
        left out, so k may be smaller than `top_k`, and 0. Raises `KeyError` for an unknown qid.
        """
        windows = self.windows[qid]
        clipped = np.clip(windows[:, :2], 0.0, seconds)
        real = clipped[:, 1] > clipped[:, 0]
        centre_width = spans.to_centre_width(clipped[real] / seconds)
        return centre_width.astype(np.float32), windows[real, 2].astype(np.float32)


def _member(item: Prediction, rank_normalise: bool) -> npt.NDArray[np.float64]:
    windows = item.windows[np.argsort(-item.windows[:, 2], kind="stable")]
    if rank_normalise and len(windows):
        windows = windows.copy()
        windows[:, 2] = 1 - np.arange(len(windows)) / len(windows)
    return windows


def _best(members: Sequence[npt.NDArray[np.float64]], top_k: int) -> npt.NDArray[np.float64]:
    """The best `top_k` of the union without near copies; ties by the order of the members."""
    union = np.concatenate(members)
    union = union[np.argsort(-union[:, 2], kind="stable")]
    overlap = spans.temporal_iou(union[:, :2], union[:, :2])
    kept: list[int] = []
    for i in range(len(union)):
        if len(kept) == top_k:
            break
        if not (overlap[i, kept] > NEAR_COPY).any():
            kept.append(i)
    return union[kept]

"""Dual encoders + captions + recordings → one score file; and its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amrctl import provenance
from amrctl.data.caption_lists import read_set
from amrctl.data.pairs import PairSet
from amrctl.data.relevance import Labels, original, read_relevant
from amrctl.data.score_matrix import ScoreMatrix, read_scores, write_scores
from amrctl.encoders.dual.load import read_dual
from amrctl.errors import PredictionError
from amrctl.evaluation.retrieval import METRICS, guess, rank
from amrctl.inference.retrieval import score
from amrctl.progress import SILENT, Reporter
from amrctl.run_folder import find_checkpoint
from amrctl.training.precision import pick_device, resolve
from amrctl.training.retrieval import matrix_of, source_of


@dataclass(frozen=True)
class RankRequest:
    """What `predict` is asked for with dual encoders. Several checkpoints: the mean of their cosines."""

    checkpoints: tuple[Path, ...]
    test: tuple[Path, ...]
    audio: tuple[Path, ...]
    out: Path
    sets: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "fp32"
    overwrite: bool = False


def rank_recordings(request: RankRequest, report: Reporter = SILENT) -> ScoreMatrix:
    """Score every caption of `test` against every recording, and write the file.

    Lists without `vid` are asked of all sounds under `audio`. Raises `AmrctlError`.
    """
    provenance.refuse_existing(request.out, request.overwrite)
    device = pick_device(request.device)
    half = torch.bfloat16 if resolve(request.precision, device) == "bf16" else None
    captions = read_set(request.test, request.audio, blind=True)
    for note in captions.notes:
        report.note(note)
    found, sources = [], []
    for path in map(find_checkpoint, request.checkpoints):
        checkpoint = read_dual(path, sets=request.sets)
        network = checkpoint.network(str(path)).to(device)
        pairs = PairSet(captions, network.audio, checkpoint.recipe.train)
        found.append(score(network, pairs, device=device, precision=half, report=report))
        made = source_of(path, checkpoint.recipe, checkpoint.provenance)
        sources.append({**made, "epoch": checkpoint.epoch, "metrics": checkpoint.metrics})
    meta = {
        "operation": "predict",
        "checkpoints": sources,
        "predicted": [{"path": str(p), "sha256": provenance.sha256(p)} for p in request.test],
        "origin": provenance.origin(),
    }
    matrix = matrix_of(np.mean(found, axis=0, dtype=np.float32), captions, meta)
    write_scores(request.out, matrix, overwrite=request.overwrite)
    return matrix


def report_on(
    paths: Sequence[Path], relevant: Sequence[Path], *, metrics: Sequence[str] = METRICS
) -> dict[str, Any]:
    """Metrics of score files in percent, by label set: each caption's own recording (where the lists
    name it), and each file of `relevant`. Several files: means of them.

    Raises `AmrctlError`.
    """
    matrices = [read_scores(path) for path in paths]
    first = matrices[0]
    for matrix in matrices[1:]:
        if (matrix.queries, matrix.vids) != (first.queries, first.vids):
            raise PredictionError(f"{matrix.path} and {first.path} are of other queries or recordings")
    labels: list[Labels] = []
    if any(first.written_for) or not relevant:
        labels.append(original(first))
    labels += [read_relevant(path, first) for path in relevant]
    told = []
    for one in labels:
        rows = list(one.rows)
        each = [rank(matrix.scores[rows], one.relevant).metrics(metrics) for matrix in matrices]
        told.append(
            {
                "labels": one.name,
                "queries": len(rows),
                "recordings": len(first.vids),
                "relevant": float(np.mean([len(columns) for columns in one.relevant])),
                "unasked": one.unasked,
                "metrics": {name: float(np.mean([values[name] for values in each])) for name in metrics},
                "files": each,
                "guessing": {name: guess(len(first.vids), one.relevant, name) for name in metrics},
            }
        )
    return {"files": [str(path) for path in paths], "sets": told, "trained_on_reference": _seen(matrices)}


def _seen(matrices: Sequence[ScoreMatrix]) -> bool:
    """Whether a checkpoint was trained on a list that it is asked here."""
    for matrix in matrices:
        asked = {entry["sha256"] for entry in matrix.meta.get("predicted", [])}
        for source in matrix.meta.get("checkpoints", []):
            if asked & {entry["sha256"] for entry in source.get("trained_on", [])}:
                return True
    return False

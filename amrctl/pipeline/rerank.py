"""A prediction file and a verifier → the re-ordered file, with the weight given or chosen by its scores.

Source of the choice: Chung-Ang University, DCASE 2026 Task 6, 2.3: beta is the one of a few values with the
best R1@0.7 on development data, mAP second. Equal values: the smaller beta, ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amrctl import provenance
from amrctl.data.manifest import Manifest
from amrctl.data.predictions import Prediction, Predictions, merge_meta, write_predictions
from amrctl.errors import PredictionError
from amrctl.evaluation.moments import headline, pair
from amrctl.progress import SILENT, Reporter
from amrctl.rerank.asking import Answers, Manner, ask
from amrctl.rerank.base import Verifier
from amrctl.rerank.cache import Cache
from amrctl.rerank.rerank import blended, questions

METRICS = ("R1@0.7", "mAP")  # in the order in which they decide


@dataclass(frozen=True)
class Tried:
    """One weight and what it gives on the labelled queries: R1@0.7 and mAP in percent."""

    beta: float
    r1: float
    map: float


@dataclass(frozen=True)
class Done:
    """What was made. `new_best`: queries whose first window is another; `tried`: the weights tried, that
    of the detector alone (0) among them, empty without a grid; `how`: as in the provenance."""

    items: list[Prediction]
    beta: float
    new_best: int
    tried: tuple[Tried, ...]
    answers: Answers
    how: dict[str, Any]


def rerank_file(
    file: Predictions,
    verifier: Verifier,
    out: Path,
    *,
    betas: Sequence[float],
    top_k: int,
    val: Manifest | None = None,
    cache: Cache | None = None,
    manner: Manner | None = None,
    overwrite: bool = False,
    report: Reporter = SILENT,
) -> Done:
    """Ask about each query's best windows once, blend, and write the result with its provenance.

    One of `betas` without `val`; with it the best on these labels, which must be for the file's queries.
    Nothing is asked where every beta is 0. Raises `PredictionError` for a beta outside 0..1 or none, and
    what `pair`, `ask` and `write_predictions` raise; nothing is written then.
    """
    provenance.refuse_existing(out, overwrite)
    _check(betas, val)
    if val is not None:
        pair(file, val)  # labels that do not fit are told before anything is asked
    requests = questions(file.items, top_k)
    if any(betas):
        answers = ask(verifier, requests, cache=cache, manner=manner, report=report)
    else:
        answers = Answers([None] * len(requests), 0, 0)

    def at(beta: float) -> list[Prediction]:
        return blended(file.items, answers.scores, beta=beta, top_k=top_k)

    tried: tuple[Tried, ...] = ()
    beta = betas[0]
    if val is not None:
        found = {b: headline(at(b), val, METRICS) for b in sorted({0.0, *betas})}
        tried = tuple(Tried(b, *(score[name] for name in METRICS)) for b, score in found.items())
        beta = choose([one for one in tried if one.beta in betas])
    items = at(beta)
    how = {"verifier": verifier.name, "version": verifier.version, **verifier.facts()}
    how |= {"beta": beta, "top_k": top_k}
    if answers.unanswered:
        how["unanswered"] = answers.unanswered
    if val is not None:
        how["grid"] = [{"beta": t.beta, "R1@0.7": t.r1, "mAP": t.map} for t in tried]
        if val.path is not None:
            how["chosen_on"] = {"path": str(val.path), "sha256": provenance.sha256(val.path)}
    meta = _provenance(file, verifier, how)
    write_predictions(out, items, meta, overwrite=overwrite)
    moved = sum(
        bool(len(a.windows)) and tuple(a.windows[0, :2]) != tuple(b.windows[0, :2])
        for a, b in zip(file, items, strict=True)
    )
    return Done(items, beta, moved, tried, answers, how)


def choose(tried: Sequence[Tried]) -> float:
    """The beta with the best R1@0.7, then the best mAP, then the smallest."""
    return min(tried, key=lambda one: (-one.r1, -one.map, one.beta)).beta


def _check(betas: Sequence[float], val: Manifest | None) -> None:
    for beta in betas:
        if not 0 <= beta <= 1:
            raise PredictionError(f"beta {beta:g} is not in 0..1")
    if not betas or (len(betas) > 1 and val is None):
        raise PredictionError("one beta is needed, or several and labels to choose by")


def _provenance(file: Predictions, verifier: Verifier, how: dict[str, Any]) -> dict[str, Any]:
    """The file's provenance and the verifier's. A network whose size nobody tells leaves the sum of
    frozen parameters open: it is not guessed."""
    told = f"{verifier.name} ({verifier.told}, beta {how['beta']:g}, top {how['top_k']})"
    parents = [] if file.path is None else [file.path]
    meta = merge_meta([file.meta], "rerank", parents, rerank=how)
    meta["verifier"] = f"{file.meta['verifier']} + {told}" if file.meta.get("verifier") else told
    counts = meta.get("parameters")
    if counts is None or verifier.parameters == 0:
        return meta
    if verifier.parameters is None:
        meta["parameters"] = {"trainable": counts["trainable"]}
        meta.pop("parts", None)
        return meta
    part = {
        "checkpoints": [],
        "encoders": [f"{verifier.name} {how.get('weights_sha256', verifier.told)}"],
        "trainable": 0,
        "frozen": verifier.parameters,
    }
    if part not in meta["parts"]:
        meta["parts"] = [*meta["parts"], part]
        meta["parameters"] = {**counts, "frozen": counts["frozen"] + verifier.parameters}
    return meta

"""Several prediction files → one: reading, saliency proposals, one scale, fusion, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from amrctl import provenance
from amrctl.data.predictions import (
    Prediction,
    Predictions,
    merge_meta,
    read_predictions,
    require_same_queries,
    write_predictions,
)
from amrctl.ensemble.consensus import PUBLISHED, Bonuses, consensus, scale
from amrctl.ensemble.normalise import calibrate, normalise
from amrctl.ensemble.pool import pool
from amrctl.ensemble.saliency import checked_threshold
from amrctl.ensemble.stack import checked_weights, rounded
from amrctl.ensemble.wbf import wbf
from amrctl.errors import PredictionError
from amrctl.pipeline.proposals import add_proposals, round_windows
from amrctl.progress import SILENT, Reporter

IOU = {"wbf": 0.55, "consensus": 0.85}  # the published defaults


@dataclass(frozen=True)
class FuseRequest:
    """What `fuse` is asked for. `iou` None: the way's default; `saliency`: the threshold of proposals
    from saliency curves, None for none; `proposals`: how many a query and file; `rounding`: seconds that
    the result's windows are rounded to, None to leave them."""

    files: tuple[Path, ...]
    out: Path
    way: Literal["pool", "wbf", "consensus"]
    weights: tuple[float, ...] | None = None
    keep: int = 10
    iou: float | None = None
    coordinates: str = "average"
    bonuses: Bonuses = PUBLISHED
    copies_iou: float | None = None
    saliency: float | None = None
    proposals: int = 10
    normalise: str = "none"
    temperatures: tuple[float, ...] | None = None
    offsets: tuple[float, ...] | None = None
    rounding: float | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Fused:
    """What was made. `members`: the files as read; `how`: the settings, as stored beside the result."""

    items: list[Prediction]
    members: tuple[Predictions, ...]
    weights: tuple[float, ...]
    how: dict[str, Any]


def fuse(request: FuseRequest, report: Reporter = SILENT) -> Fused:
    """Fuse prediction files over the same queries and write the result with its provenance.

    Order of work: proposals from saliency, calibration or normalisation of each file's scores, fusion.
    Raises `AmrctlError` kinds for whatever does not fit; nothing is written then.
    """
    provenance.refuse_existing(request.out, request.overwrite)
    weights = checked_weights(request.weights, len(request.files)).tolist()
    if request.saliency is not None:
        checked_threshold(request.saliency)
    files = [read_predictions(path) for path in request.files]
    require_same_queries(files)
    for file, weight in zip(files, weights, strict=True):
        if len(files) > 1 and weight > 0 and rounded(file):
            report.note(
                f"{file.path}: all windows are whole seconds; members of a fusion are better made with "
                "predict --round 0"
            )
    how: dict[str, Any] = {"kind": request.way}
    members = _prepared(request, files, weights, how)
    items = _fused(request, members, how)
    how |= {"weights": weights, "keep": request.keep}
    kept = [(f.meta, p) for f, p, w in zip(files, request.files, weights, strict=True) if w > 0]
    meta = merge_meta([m for m, _ in kept], "fuse", [p for _, p in kept], fusion=how)
    if request.rounding:
        items = round_windows(items, request.rounding, where=str(request.out))
        meta["rounding"] = request.rounding
    elif request.way != "pool" and request.coordinates == "average" and not _whole(items):
        meta["rounding"] = 0  # means of windows are not whole seconds
    write_predictions(request.out, items, meta, overwrite=request.overwrite)
    return Fused(items, tuple(files), tuple(weights), how)


def _prepared(
    request: FuseRequest, files: Sequence[Predictions], weights: Sequence[float], how: dict[str, Any]
) -> list[list[Prediction]]:
    """The members with windows from saliency and scores on one scale, as far as that is asked for.

    What is absent by its weight stays as it is: it must not stop a fusion, nor count in it.
    """
    members = [list(file.items) for file in files]
    used = [i for i, weight in enumerate(weights) if weight > 0]
    if request.saliency is not None:
        for i in used:
            members[i] = add_proposals(
                members[i],
                threshold=request.saliency,
                keep=request.proposals,
                rounding=_rounding(files[i]),
                where=str(files[i].path),
            )
        how["saliency"] = {"threshold": request.saliency, "keep": request.proposals}
    if request.temperatures is not None or request.offsets is not None:
        members = calibrate(members, temperatures=request.temperatures, offsets=request.offsets)
        how["calibration"] = {
            "temperatures": list(request.temperatures or [1.0] * len(files)),
            "offsets": list(request.offsets or [0.0] * len(files)),
        }
    if request.normalise != "none":
        for i, items in zip(used, normalise([members[i] for i in used], request.normalise), strict=True):
            members[i] = items
        how["normalise"] = request.normalise
    return members


def _fused(request: FuseRequest, members: list[list[Prediction]], how: dict[str, Any]) -> list[Prediction]:
    weights, keep = request.weights, request.keep
    if request.way == "pool":
        how["drop_copies"] = request.copies_iou
        return pool(members, weights=weights, keep=keep, copies_iou=request.copies_iou)
    iou = how["iou"] = IOU[request.way] if request.iou is None else request.iou
    if request.coordinates != "average":
        how["coordinates"] = request.coordinates
    if request.way == "wbf":
        return wbf(members, weights=weights, iou=iou, coordinates=request.coordinates, keep=keep)
    how["bonuses"] = vars(request.bonuses)
    items = consensus(
        members,
        weights=weights,
        iou=iou,
        bonuses=request.bonuses,
        coordinates=request.coordinates,
        keep=keep,
    )
    how["scale"] = scale(members, weights=weights, bonuses=request.bonuses)
    return items


def _rounding(file: Predictions) -> float:
    """The step in seconds of a file's windows: as its provenance says, else by looking."""
    told = file.meta.get("rounding")
    if isinstance(told, (int, float)):
        if not 0 <= told < float("inf"):
            raise PredictionError(
                f"{file.path}: its provenance has rounding {told}, which is no step in seconds"
            )
        return float(told)
    return 1.0 if rounded(file) else 0.0


def _whole(items: Sequence[Prediction]) -> bool:
    return all(bool((item.windows[:, :2] == np.rint(item.windows[:, :2])).all()) for item in items)

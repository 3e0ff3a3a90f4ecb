"""Predictions: ranked windows per query, in the official JSON lines.

`qid, query, vid, duration, pred_relevant_windows: [[start, end, score], ...]`, best first, seconds
and scores in 0..1; optional `pred_saliency_scores`, one raw value per step of `duration / length`
seconds. Where the windows came from is in `<file>.meta.json` beside the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amrctl import provenance
from amrctl.data import jsonlines
from amrctl.errors import PredictionError

_FORMAT = "a prediction file (JSON lines)"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The answer to one query.

    `windows`: float64 `(n, 3)`, start and end in seconds and score in 0..1, in the file's order
    (best first). `saliency`: float32 `(T,)`, raw, or None. `duration`: seconds; NaN where the file
    does not say it (files of the official code).
    """

    qid: str
    query: str
    vid: str
    duration: float
    windows: npt.NDArray[np.float64]
    saliency: npt.NDArray[np.float32] | None = None
    int_qid: bool = False

    def to_json(self) -> dict[str, Any]:
        """The official JSON object; whole seconds are written without `.0`."""
        record: dict[str, Any] = {
            "qid": int(self.qid) if self.int_qid else self.qid,
            "query": self.query,
            "vid": self.vid,
        }
        if not math.isnan(self.duration):
            record["duration"] = provenance.number(self.duration)
        record["pred_relevant_windows"] = [
            [provenance.number(start), provenance.number(end), score]
            for start, end, score in self.windows.tolist()
        ]
        if self.saliency is not None:
            # the shortest decimal that reads back as the same float32
            record["pred_saliency_scores"] = [float(str(value)) for value in self.saliency]
        return record


@dataclass(frozen=True)
class Predictions:
    """One prediction file. `meta`: its provenance, an empty dict where there is none."""

    path: Path | None
    items: tuple[Prediction, ...]
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.items)

    @cached_property
    def by_qid(self) -> dict[str, Prediction]:
        """qid → prediction."""
        return {item.qid: item for item in self.items}


def meta_path(path: Path | str) -> Path:
    """Where the provenance of a prediction file lies: `P.jsonl` → `P.jsonl.meta.json`."""
    path = Path(path)
    return path.with_name(path.name + ".meta.json")


def read_predictions(path: Path | str, *, scores: bool = True, empty_windows: bool = False) -> Predictions:
    """Read a prediction file and its provenance.

    `scores=False` also takes the challenge's form `[[start, end], ...]` and gives the window at
    position i of n the score `1 - i / n`; scores that are there are then kept, whatever their
    range. A query may have no window. `empty_windows` takes windows of no length, which rounding
    leaves in files of the official code. Raises `PredictionError` with `FILE:LINE` and qid: broken
    JSON, missing keys, not numbers, NaN, start >= end, score outside 0..1, qid twice.
    """
    path = Path(path)
    text = jsonlines.read_text(path, PredictionError, _FORMAT)
    items: list[Prediction] = []
    lines: dict[str, int] = {}
    for line, record in jsonlines.objects(path, text, PredictionError):
        item = _prediction(f"{path}:{line}", record, scores, empty_windows)
        if item.qid in lines:
            raise PredictionError(f"{path}:{line}: qid {item.qid} is on line {lines[item.qid]} already")
        lines[item.qid] = line
        items.append(item)
    if not items:
        raise PredictionError(f"{path} holds no prediction")
    return Predictions(path, tuple(items), _read_meta(meta_path(path)))


def write_predictions(
    path: Path | str, items: Iterable[Prediction], meta: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Write the JSON lines and `<path>.meta.json`; a kill leaves the old pair or no predictions.

    Raises `PredictionError` for windows that the reader would refuse, `OutputError` when `path`
    exists and `overwrite` is false.
    """
    target = provenance.refuse_existing(path, overwrite)
    with provenance.writing(target) as lines, provenance.writing(meta_path(target)) as side:
        with open(lines, "w", encoding="utf-8") as out:
            for item in items:
                _check_arrays(item)
                out.write(json.dumps(item.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
        side.write_text(
            json.dumps(dict(meta), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        # Two renames follow, the provenance first: without this a kill between them would leave
        # the old windows under the new provenance.
        target.unlink(missing_ok=True)


def require_same_queries(files: Sequence[Predictions]) -> None:
    """Raise `PredictionError` unless all files answer the same queries about the same recordings."""
    if not files:
        return
    first = files[0]
    for other in files[1:]:
        names = f"{first.path or 'the first predictions'} and {other.path or 'the others'}"
        differing = [q for q in first.by_qid if q not in other.by_qid]
        lacks = other.path
        if not differing:
            differing = [q for q in other.by_qid if q not in first.by_qid]
            lacks = first.path
        if differing:
            raise PredictionError(
                f"{names} answer different queries ({len(first):,} and {len(other):,}); "
                f"qid {differing[0]} is not in {lacks or 'one of them'}"
            )
        for item in first:
            vid = other.by_qid[item.qid].vid
            if vid != item.vid:
                raise PredictionError(
                    f"{names}: qid {item.qid} is about recording {item.vid} in one and {vid} in the other"
                )


def merge_meta(
    metas: Sequence[Mapping[str, Any]], operation: str, parents: Sequence[Path], **extra: Any
) -> dict[str, Any]:
    """Provenance of something made from several prediction files.

    Lists are united in order without repeats; a file that does not say contributes "unknown".
    Parameters are summed over different checkpoints (trainable) and different sets of encoders
    (frozen), each counted once; they are left out when one file does not tell them. `parents` are
    hashed. `extra` keys are set last.
    """
    merged: dict[str, Any] = {"operation": operation}
    merged["checkpoints"] = _union(c for meta in metas for c in meta.get("checkpoints") or ())
    for key in ("audio_encoders", "text_encoders", "datasets"):
        merged[key] = _union(
            name for meta in metas for name in (meta[key] if isinstance(meta.get(key), list) else [UNKNOWN])
        )
    parts = _union(part for meta in metas for part in _parts(meta))
    if all(_parts(meta) for meta in metas) and parts:
        merged["parameters"] = {
            "trainable": sum({tuple(p["checkpoints"]): p["trainable"] for p in parts}.values()),
            "frozen": sum({tuple(p["encoders"]): p["frozen"] for p in parts}.values()),
        }
        merged["parts"] = parts
    verifiers = _union(meta["verifier"] for meta in metas if meta.get("verifier"))
    if verifiers:
        merged["verifier"] = verifiers[0] if len(verifiers) == 1 else " + ".join(map(str, verifiers))
    if metas and all(isinstance(meta.get("rounding"), (int, float)) for meta in metas):
        merged["rounding"] = max(meta["rounding"] for meta in metas)
    merged["parents"] = [{"path": str(p), "sha256": provenance.sha256(p)} for p in parents]
    merged["origin"] = provenance.origin()
    return {**merged, **extra}


def _parts(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The separately counted systems behind a file: its checkpoints, encoders and parameters."""
    if meta.get("parts"):
        return list(meta["parts"])
    counts = meta.get("parameters")
    if not isinstance(counts, Mapping) or not all(
        type(counts.get(k)) is int for k in ("trainable", "frozen")
    ):
        return []
    return [
        {
            "checkpoints": sorted(str(c.get("sha256", UNKNOWN)) for c in meta.get("checkpoints") or ()),
            "encoders": sorted({*(meta.get("audio_encoders") or ()), *(meta.get("text_encoders") or ())}),
            "trainable": counts["trainable"],
            "frozen": counts["frozen"],
        }
    ]


def _union(values: Iterable[Any]) -> list[Any]:
    seen: dict[str, Any] = {}
    for value in values:
        key = value.get("sha256") if isinstance(value, Mapping) else None
        seen.setdefault(str(key) if key else json.dumps(value, sort_keys=True), value)
    return list(seen.values())


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    text = jsonlines.read_text(path, PredictionError, "the provenance of predictions (JSON)")
    try:
        meta = jsonlines.DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise PredictionError(f"{path}: {jsonlines.explain(error)}; delete it or make it again") from None
    if not isinstance(meta, dict):
        raise PredictionError(f"{path}: an object is expected, this is {jsonlines.kind(meta)}")
    return meta


def _prediction(where: str, record: dict[str, Any], scores: bool, empty: bool) -> Prediction:
    read = jsonlines.read_qid(record)
    if read is None:
        raise PredictionError(f"{where}: qid is missing, or no text or whole number that can be stored")
    qid, int_qid = read
    where = f"{where}: qid {qid}"
    for key in ("query", "vid"):
        if not jsonlines.is_text(record.get(key)):
            raise PredictionError(f"{where}: {key} is missing, blank or not text that can be stored")
    duration = record.get("duration")
    if duration is None:
        duration = math.nan
    elif not jsonlines.is_number(duration) or duration <= 0:
        raise PredictionError(f"{where}: duration is not a positive number of seconds")
    windows = _windows(where, record.get("pred_relevant_windows"), scores, empty)
    saliency = None
    if record.get("pred_saliency_scores") is not None:
        saliency = _saliency(where, record["pred_saliency_scores"])
    return Prediction(qid, record["query"], record["vid"], float(duration), windows, saliency, int_qid)


def _windows(where: str, raw: Any, scores: bool, empty: bool) -> npt.NDArray[np.float64]:
    if not isinstance(raw, list):
        raise PredictionError(f"{where}: pred_relevant_windows is missing or not a list")
    widths = {len(window) if isinstance(window, list) else -1 for window in raw}
    form = "[start, end, score]" if scores else "[start, end] or [start, end, score], all alike"
    if len(widths) > 1 or not widths <= ({3} if scores else {2, 3}):
        short = " (a challenge file has none; it cannot be used here)" if scores and widths == {2} else ""
        raise PredictionError(f"{where}: every window must be {form}{short}")
    for window in raw:
        if not all(map(jsonlines.is_number, window)):
            raise PredictionError(f"{where}: window {json.dumps(window)[:60]} holds something not a number")
        if window[0] > window[1] or (window[0] == window[1] and not empty):
            raise PredictionError(
                f"{where}: window [{window[0]:g}, {window[1]:g}] does not end after it starts"
            )
        if scores and not 0 <= window[2] <= 1:
            raise PredictionError(f"{where}: score {window[2]:g} is outside 0..1")
    if widths == {2}:
        raw = [[start, end, 1 - i / len(raw)] for i, (start, end) in enumerate(raw)]
    return np.array(raw, dtype=np.float64).reshape(-1, 3)


def _saliency(where: str, raw: Any) -> npt.NDArray[np.float32]:
    if not isinstance(raw, list) or not raw or not all(map(jsonlines.is_number, raw)):
        raise PredictionError(f"{where}: pred_saliency_scores is not a list of numbers")
    with np.errstate(over="ignore"):
        values = np.array(raw, dtype=np.float64).astype(np.float32)
    if not np.isfinite(values).all():
        raise PredictionError(f"{where}: a saliency score is too large for float32")
    return values


def _check_arrays(item: Prediction) -> None:
    windows = item.windows
    if windows.ndim != 2 or windows.shape[1] != 3 or not np.isfinite(windows).all():
        raise PredictionError(f"qid {item.qid}: windows must be finite and of shape (n, 3)")
    if (windows[:, 0] >= windows[:, 1]).any():
        raise PredictionError(f"qid {item.qid}: a window does not end after it starts")
    if ((windows[:, 2] < 0) | (windows[:, 2] > 1)).any():
        raise PredictionError(f"qid {item.qid}: a score is outside 0..1")
    if item.saliency is not None and not np.isfinite(item.saliency).all():
        raise PredictionError(f"qid {item.qid}: a saliency score is not finite")

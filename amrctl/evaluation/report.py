"""Everything that `evaluate` tells about one system, or about two on the same recordings.

A system is one or more prediction files (seeds) for the same manifest. Its metric is the mean over files;
for one file the `brief` and `full` blocks are the official script's. Percentages throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from amrctl import provenance
from amrctl.data.manifest import Manifest
from amrctl.data.predictions import Predictions
from amrctl.errors import PredictionError
from amrctl.evaluation import statistics
from amrctl.evaluation.moments import KEPT, LONGEST, METRICS, Paired, Scores, blocks, first, pair
from amrctl.evaluation.strata import strata

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _System:
    """Files of one system. `values`: (files, Q, M) in 0..1, queries in the manifest's order."""

    files: tuple[Predictions, ...]
    paired: tuple[Paired, ...]
    scores: tuple[Scores, ...]
    values: Floats

    @property
    def mean(self) -> Floats:
        """Each query's mean over the files, (Q, M)."""
        return np.asarray(self.values.mean(axis=0))


def report(
    files: Sequence[Predictions],
    manifest: Manifest,
    *,
    against: Sequence[Predictions] = (),
    partial: bool = False,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Score one system, and compare it with another when `against` is given.

    `partial`: score the queries that the manifest and all files have, and note what was set aside;
    otherwise a difference raises `PredictionError`. Raises `ManifestError` for a manifest without labels.

    Returns a JSON-ready dict; `docs/evaluate.md` lists its keys.
    """
    notes = list(manifest.notes)
    reference = provenance.sha256(manifest.path) if manifest.path else None
    everything = [*files, *against]
    scored = _common(everything, manifest, notes) if partial else manifest
    kept = scored.by_qid
    everything = [
        replace(f, items=tuple(p for p in f if p.qid in kept)) if partial else f for f in everything
    ]
    ours = _system(everything[: len(files)], scored)
    theirs = _system(everything[len(files) :], scored) if against else None

    rows = _in_order(ours.paired[0], scored)
    group = statistics.groups([query.vid for query in rows.queries])
    told = [_file(p, s, reference) for p, s in _pairs(ours)]
    other = [_file(p, s, reference) for p, s in _pairs(theirs)] if theirs else []
    for system in (ours, theirs) if theirs else (ours,):
        for predictions, paired in zip(system.files, system.paired, strict=True):
            notes += _notes(predictions, paired)
    notes += _dropped(ours.paired[0])
    notes += _twice([*told, *other])
    trained = [entry["trained_on_reference"] for entry in (*told, *other)]

    result: dict[str, Any] = {
        **_mean_blocks(ours),
        "files": told,
        "metrics": _metrics(ours, group, resamples, seed),
        "strata": _strata(ours, rows, resamples, seed),
        "reference": {
            "path": str(manifest.path) if manifest.path else None,
            "sha256": reference,
            "queries": len(rows.queries),
            "recordings": int(group.max()) + 1,
            "moments": sum(map(len, rows.moments)),
            "of_queries": len(manifest),
        },
        "bootstrap": {"unit": "recordings", "resamples": resamples, "seed": seed, "level": 0.95},
        "trained_on_reference": True if True in trained else None if None in trained else False,
    }
    if theirs:
        result["against"] = {
            **_mean_blocks(theirs),
            "files": other,
            "metrics": _comparison(ours, theirs, group, resamples, seed),
        }
    result["notes"] = notes
    result["origin"] = provenance.origin()
    return result


def _common(files: Sequence[Predictions], manifest: Manifest, notes: list[str]) -> Manifest:
    """The manifest cut down to the queries of all files; says what was set aside."""
    kept = [q for q in manifest if all(q.qid in f.by_qid for f in files)]
    if not kept:
        raise PredictionError(f"no query of {manifest.path or 'the manifest'} is answered by every file")
    for f in files:
        missing = [q.qid for q in manifest if q.qid not in f.by_qid]
        foreign = [p.qid for p in f if p.qid not in manifest.by_qid]
        if missing:
            notes.append(
                f"{_name(f)}: no prediction for {len(missing)} queries ({first(missing)}); --partial"
            )
        if foreign:
            notes.append(
                f"{_name(f)}: {len(foreign)} predictions are for other queries ({first(foreign)}); --partial"
            )
    if len(kept) < len(manifest):
        notes.append(f"scored on {len(kept)} of {len(manifest)} queries; not the official number")
    return replace(manifest, queries=tuple(kept))


def _system(files: Sequence[Predictions], manifest: Manifest) -> _System:
    paired = tuple(pair(f, manifest) for f in files)
    scores = tuple(p.score() for p in paired)
    order = {query.qid: i for i, query in enumerate(manifest)}
    values = []
    for p, s in zip(paired, scores, strict=True):
        by_manifest = np.argsort([order[q.qid] for q in p.queries])
        values.append(np.stack([s.values(name) for name in METRICS], axis=1)[by_manifest])
    return _System(tuple(files), paired, scores, np.stack(values))


def _pairs(system: _System) -> list[tuple[Predictions, Scores]]:
    return list(zip(system.files, system.scores, strict=True))


def _in_order(paired: Paired, manifest: Manifest) -> Paired:
    """The same queries and moments in the manifest's order."""
    moments = {q.qid: m for q, m in zip(paired.queries, paired.moments, strict=True)}
    queries = tuple(q for q in manifest if q.qid in moments)
    return replace(paired, queries=queries, moments=tuple(moments[q.qid] for q in queries))


def _mean_blocks(system: _System) -> dict[str, Any]:
    """The blocks of one file, or the same for the mean over files (unrounded means, rounded once)."""
    return blocks(
        Scores(
            iou1=np.concatenate([s.iou1 for s in system.scores]),
            iou5=np.concatenate([s.iou5 for s in system.scores]),
            ap=np.concatenate([s.ap for s in system.scores]),
        )
    )


def _file(predictions: Predictions, scores: Scores, reference: str | None) -> dict[str, Any]:
    return {
        "path": str(predictions.path) if predictions.path else None,
        "sha256": provenance.sha256(predictions.path) if predictions.path else None,
        **blocks(scores),
        "trained_on_reference": trained_on(predictions.meta, reference),
    }


def trained_on(meta: Mapping[str, Any], reference: str | None) -> bool | None:
    """Whether a checkpoint behind the predictions was trained on the file with this SHA-256.

    None when it is not known: no provenance, or a checkpoint that does not say what it saw.
    """
    checkpoints = meta.get("checkpoints")
    if reference is None or not isinstance(checkpoints, list) or not checkpoints:
        return None
    known = True
    for checkpoint in checkpoints:
        seen = checkpoint.get("trained_on") if isinstance(checkpoint, Mapping) else None
        if not isinstance(seen, list):
            known = False
            continue
        if any(isinstance(data, Mapping) and data.get("sha256") == reference for data in seen):
            return True
    return False if known else None


def _metrics(system: _System, group: statistics.Ints, resamples: int, seed: int) -> dict[str, Any]:
    per_file = 100 * system.values.mean(axis=1)  # (files, M)
    low, high = _interval(system.mean, group, resamples, seed)
    spread = per_file.std(axis=0, ddof=1).tolist() if len(per_file) > 1 else [None] * len(METRICS)
    return {
        name: {
            "mean": float(per_file[:, i].mean()),
            "sd": spread[i],
            "low": low[i],
            "high": high[i],
            "files": per_file[:, i].tolist(),
        }
        for i, name in enumerate(METRICS)
    }


def _interval(
    values: Floats, group: statistics.Ints, resamples: int, seed: int
) -> tuple[list[float | None], list[float | None]]:
    """Percent, per metric; None where there is a single recording and so nothing to draw."""
    if not len(group) or group.max() < 1:
        return [None] * len(METRICS), [None] * len(METRICS)
    means = statistics.resampled_means(values, group, resamples=resamples, seed=seed)
    low, high = 100 * statistics.interval(means)
    return low.tolist(), high.tolist()


def _strata(system: _System, rows: Paired, resamples: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    told: dict[str, list[dict[str, Any]]] = {}
    for kind, name, members in strata(rows):
        vids = [q.vid for q, member in zip(rows.queries, members, strict=True) if member]
        values = system.mean[members]
        low, high = _interval(values, statistics.groups(vids), resamples, seed)
        means = 100 * values.mean(axis=0) if len(values) else None
        told.setdefault(kind.key, []).append(
            {
                "name": name,
                "queries": len(vids),
                "recordings": len(set(vids)),
                "metrics": {
                    metric: {
                        "mean": None if means is None else float(means[i]),
                        "low": low[i],
                        "high": high[i],
                    }
                    for i, metric in enumerate(METRICS)
                },
            }
        )
    return told


def _comparison(
    ours: _System, theirs: _System, group: statistics.Ints, resamples: int, seed: int
) -> dict[str, Any]:
    gap = ours.mean - theirs.mean
    single = group.max() < 1  # one recording: nothing to draw, nothing to conclude
    means = statistics.resampled_means(gap, group, resamples=resamples, seed=seed)
    low, high = 100 * statistics.interval(means)
    p = statistics.p_values(means)
    difference = 100 * gap.mean(axis=0)
    told = {}
    for i, name in enumerate(METRICS):
        told[name] = {
            "mean": float(100 * ours.mean[:, i].mean()),
            "against": float(100 * theirs.mean[:, i].mean()),
            "difference": float(difference[i]),
            "low": None if single else float(low[i]),
            "high": None if single else float(high[i]),
            "p": 1.0 if single else float(p[i]),
            "beats": bool(not single and difference[i] > 0 and p[i] < statistics.SIGNIFICANT),
        }
    return told


def _notes(predictions: Predictions, paired: Paired) -> list[str]:
    name, items, notes = _name(predictions), paired.predictions, []
    if paired.empty:
        notes.append(
            f"{name}: {len(paired.empty)} predictions have no windows ({first(paired.empty)}); they score 0"
            " (the official script stops there)"
        )
    listed = [p for p in items if len(p.windows)]
    flat = [p.qid for p in listed if (p.windows[:, 0] == p.windows[:, 1]).any()]
    if flat:
        count = sum(int((p.windows[:, 0] == p.windows[:, 1]).sum()) for p in listed)
        notes.append(f"{name}: {count} windows have no length ({first(flat)}); they overlap nothing")
    if listed and all(np.array_equal(p.windows[:, 2], _by_position(len(p.windows))) for p in listed):
        notes.append(f"{name}: scores are 1 - i/n by place in the list, as for a file without scores")
    unsorted = [p.qid for p in listed if p.windows[0, 2] < p.windows[:KEPT, 2].max()]
    if unsorted:
        notes.append(
            f"{name}: {len(unsorted)} predictions do not list their best-scored window first"
            f" ({first(unsorted)}); R1 takes the first in the list"
        )
    long = [p.qid for p in listed if len(p.windows) > KEPT]
    if long:
        notes.append(
            f"{name}: {len(long)} predictions list more than {KEPT} windows ({first(long)});"
            f" mAP reads the first {KEPT}"
        )
    elsewhere = [p.qid for p, q in zip(items, paired.queries, strict=True) if p.vid != q.vid]
    if elsewhere:
        notes.append(
            f"{name}: {len(elsewhere)} predictions name another recording than the manifest"
            f" ({first(elsewhere)}); scored by qid"
        )
    return notes


def _by_position(n: int) -> Floats:
    return np.array([1 - i / n for i in range(n)])


def _dropped(paired: Paired) -> list[str]:
    if not paired.dropped:
        return []
    return [
        f"{len(paired.dropped)} queries have no moment of 0 to {LONGEST:g} s and are left out"
        f" ({first(paired.dropped)})"
    ]


def _twice(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same predictions given twice: most likely a slip of the hand."""
    seen: dict[str, str] = {}
    notes = []
    for entry in files:
        if entry["sha256"] is None:
            continue
        if entry["sha256"] in seen:
            notes.append(f"{entry['path']} and {seen[entry['sha256']]} hold the same bytes")
        seen.setdefault(entry["sha256"], entry["path"])
    return notes


def _name(predictions: Predictions) -> str:
    return str(predictions.path) if predictions.path else "the predictions"

"""What `inspect` says: the record, and the facts about manifests and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amrctl import provenance
from amrctl.data import jsonlines
from amrctl.data.manifest import Manifest
from amrctl.data.predictions import Predictions


@dataclass(frozen=True)
class Listing:
    """A small table: column names and rows of text or numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]


@dataclass(frozen=True)
class Explained:
    """What was found: its kind, facts in the order to show them (plain JSON values), tables, notes."""

    path: Path
    kind: str
    facts: dict[str, Any]
    tables: tuple[Listing, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        tables = {t.title: [dict(zip(t.columns, row, strict=True)) for row in t.rows] for t in self.tables}
        return {
            "path": str(self.path),
            "kind": self.kind,
            "facts": self.facts,
            "tables": tables,
            "notes": list(self.notes),
        }


def manifest_facts(manifest: Manifest) -> dict[str, Any]:
    """Counts and ranges of a manifest; all lengths in seconds."""
    lengths = list(manifest.recordings.values())
    facts: dict[str, Any] = {
        "queries": len(manifest),
        "recordings": len(manifest.recordings),
        "hours of sound": round(sum(lengths) / 3600, 2),
        "recording length (s)": value_range(lengths),
    }
    labelled = [query.windows for query in manifest if query.windows is not None]
    if labelled:
        moments = [end - start for windows in labelled for start, end in windows]
        facts["moments"] = len(moments)
        facts["moments per query"] = value_range([len(windows) for windows in labelled])
        facts["moment length (s)"] = value_range(moments)
        facts["labels"] = (
            ("all whole seconds" if manifest.whole_seconds else "fractions of seconds")
            if manifest.has_windows
            else f"{len(labelled):,} of {len(manifest):,} queries"
        )
    else:
        facts["labels"] = "none (blind data)"
    words = [len(query.query.split()) for query in manifest]
    facts["words per query"] = value_range(words)
    extra = sorted({key for query in manifest for key in query.extra})
    if extra:
        facts["further keys"] = ", ".join(extra[:8])
    query = manifest.queries[0]
    facts["first query"] = f"{query.qid}: {query.query}"
    return facts


def prediction_facts(read: Predictions, *, scores: bool = True) -> dict[str, Any]:
    """Counts and ranges of predictions; lengths in seconds, scores in 0..1."""
    rows = np.concatenate([item.windows for item in read])
    facts: dict[str, Any] = {
        "queries": len(read),
        "recordings": len({item.vid for item in read}),
        "windows": len(rows),
        "windows per query": value_range([len(item.windows) for item in read]),
    }
    if len(rows):
        facts["window length (s)"] = value_range((rows[:, 1] - rows[:, 0]).tolist())
        if scores:
            facts["score"] = value_range(rows[:, 2].tolist())
    unsorted = sum(bool((np.diff(item.windows[:, 2]) > 0).any()) for item in read)
    if unsorted:
        facts["not best first"] = f"{unsorted:,} queries"
    saliency = [item.saliency for item in read if item.saliency is not None]
    facts["saliency curves"] = f"{len(saliency):,} of {len(read):,} queries" if saliency else "none"
    item = read.items[0]
    best = f": best [{item.windows[0, 0]:g}, {item.windows[0, 1]:g}]" if len(item.windows) else ""
    facts["first query"] = f"{item.qid}: {item.query}{best}"
    return facts


def meta_facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Where predictions come from, as `<file>.meta.json` says."""
    facts: dict[str, Any] = {}
    for key in ("operation", "verifier", "rounding"):
        if meta.get(key) is not None:
            facts[key] = meta[key]
    checkpoints = entries(meta.get("checkpoints"))
    if checkpoints:
        facts["checkpoints"] = "; ".join(
            f"{c.get('recipe', 'unknown')} ({str(c.get('sha256', 'unknown'))[:12]})" for c in checkpoints[:4]
        ) + (f" and {len(checkpoints) - 4} more" if len(checkpoints) > 4 else "")
    for key, name in (
        ("audio_encoders", "audio encoders"),
        ("text_encoders", "text encoders"),
        ("datasets",) * 2,
    ):
        if isinstance(meta.get(key), list) and meta[key]:
            facts[name] = ", ".join(map(str, meta[key]))
    counts = meta.get("parameters")
    if isinstance(counts, Mapping):
        facts["parameters"] = ", ".join(f"{k} {v:,}" for k, v in counts.items() if isinstance(v, int))
    if parents := paths(meta.get("parents")):
        facts["made from"] = parents
    return {**facts, **origin_facts(meta.get("origin"))}


def origin_facts(origin: Any) -> dict[str, Any]:
    """Command, time and versions of `provenance.origin`."""
    if not isinstance(origin, Mapping):
        return {}
    facts = {key: str(origin[key]) for key in ("command", "created") if origin.get(key)}
    versions = origin.get("versions")
    if isinstance(versions, Mapping):
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return facts


def metric_text(metrics: Mapping[str, Any]) -> str:
    """Names and values of metrics, two decimals."""
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if jsonlines.is_number(value))


def entries(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a JSON list; files may hold anything, and `inspect` shows what it can."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def paths(value: Any) -> str:
    """The first paths of a list of `{"path": ..., "sha256": ...}`."""
    found = [str(entry.get("path")) for entry in entries(value)]
    return ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")


def value_range(values: Sequence[float]) -> str:
    """Smallest, median and largest; one number where all are equal."""
    low, middle, high = min(values), float(np.median(values)), max(values)
    if low == high:
        return f"{low:.6g}"
    return f"{low:.6g} to {high:.6g}, median {middle:.6g}"


def file_facts(path: Path, *, hashed: bool = True) -> dict[str, Any]:
    """Size, and the hash that provenance records name the file by (large files are not read for it)."""
    facts: dict[str, Any] = {"bytes": path.stat().st_size}
    if hashed:
        facts["sha256"] = provenance.sha256(path)
    return facts

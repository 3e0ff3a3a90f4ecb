"""Manifests: which sentence is asked of which recording, and where the labelled moments lie.

Two formats are read: the official JSON lines (`qid, query, duration, vid, relevant_windows`; the
windows are absent on blind data) and CASTELLA's own JSON list. Times are seconds. A reader never
changes a label: what is odd is counted in `Manifest.notes`, what is wrong is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from amrctl import provenance
from amrctl.data import jsonlines
from amrctl.errors import ManifestError

# Annotators' clocks and file lengths differ by rounding: up to this many seconds past the end are
# tolerated and counted, more is an error.
TOLERANCE = 2.0
_KEYS = ("qid", "query", "duration", "vid", "relevant_windows")
_FORMAT = "a manifest (JSON lines)"


@dataclass(frozen=True, slots=True)
class Query:
    """One sentence about one recording.

    `duration` and `windows` are in seconds; `windows` is None on blind data and otherwise exactly
    as labelled, in the file's order. `int_qid`: the file spells qid as a number. `extra`: the
    line's other keys.
    """

    qid: str
    query: str
    vid: str
    duration: float
    windows: tuple[tuple[float, float], ...] | None
    line: int = field(default=0, compare=False)
    int_qid: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """The official JSON object; whole numbers are written without `.0`."""
        record: dict[str, Any] = {
            "qid": int(self.qid) if self.int_qid else self.qid,
            "query": self.query,
            "duration": provenance.number(self.duration),
            "vid": self.vid,
        }
        if self.windows is not None:
            record["relevant_windows"] = [
                [provenance.number(s), provenance.number(e)] for s, e in self.windows
            ]
        return {**record, **self.extra}


@dataclass(frozen=True)
class Manifest:
    """All queries of one or more files, in file order. `notes`: counted facts, one line each."""

    path: Path | None
    queries: tuple[Query, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[Query]:
        return iter(self.queries)

    @cached_property
    def by_qid(self) -> dict[str, Query]:
        """qid → query."""
        return {query.qid: query for query in self.queries}

    @cached_property
    def recordings(self) -> dict[str, float]:
        """vid → duration in seconds, in order of first appearance."""
        found: dict[str, float] = {}
        for query in self.queries:
            found.setdefault(query.vid, query.duration)
        return found

    @cached_property
    def has_windows(self) -> bool:
        """Every query has labelled windows."""
        return all(query.windows is not None for query in self.queries)

    @cached_property
    def whole_seconds(self) -> bool:
        """There are windows on every query, and all of them begin and end on whole seconds."""
        return self.has_windows and all(
            float(t).is_integer() for query in self.queries for window in query.windows or () for t in window
        )


class _Counts:
    """What a reader tolerated, told in one line per kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.late = self.at_end = self.far = self.without_moments = self.zero_length = self.dropped = 0
        self.first_late = self.first_far = ""

    def notes(self) -> tuple[str, ...]:
        lines = []
        if self.late:
            at_end = f" ({self.at_end} of them start at its end or later)" if self.at_end else ""
            lines.append(
                f"{self.path}: {_some(self.late, 'window ends', 'windows end')} up to 2 s after the recording"
                f"{at_end}; labels are kept as they are; first: {self.first_late}"
            )
        if self.far:
            lines.append(
                f"{self.path}: {_some(self.far, 'window ends', 'windows end')} more than 2 s after the "
                f"recording, accepted only with --clip-windows; first: {self.first_far}"
            )
        if self.without_moments:
            lines.append(
                f"{self.path}: {_some(self.without_moments, 'recording', 'recordings')} without moments "
                "skipped"
            )
        if self.zero_length:
            dropped = (
                f", {_some(self.dropped, 'query', 'queries')} left without any dropped"
                if self.dropped
                else ""
            )
            lines.append(
                f"{self.path}: {_some(self.zero_length, 'window', 'windows')} of length zero skipped{dropped}"
            )
        return tuple(lines)


def _some(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def read_manifest(path: Path | str, *, clip_windows: bool = False, need_windows: bool = False) -> Manifest:
    """Read a manifest (official JSON lines or CASTELLA's JSON list) and check every line.

    A window that ends up to 2 s after its recording is counted in a note; later is an error,
    unless `clip_windows`, which counts it as well. Labels stay as they are in both cases.
    `need_windows`: a query without labels is an error. Raises `ManifestError` with `FILE:LINE`.
    """
    path = Path(path)
    text = jsonlines.read_text(path, ManifestError, _FORMAT)
    counts = _Counts(path)
    if text.lstrip(" \t\r\n").startswith("["):
        records = _castella(path, text, counts)
    else:
        records = jsonlines.objects(path, text, ManifestError)
    queries: list[Query] = []
    lines: dict[str, int] = {}
    durations: dict[str, tuple[float, int]] = {}
    for line, record in records:
        query = _query(path, line, record, clip_windows, counts)
        where = f"{path}:{line}: qid {query.qid}"
        if query.qid in lines:
            raise ManifestError(f"{where} is on line {lines[query.qid]} already; qids must differ")
        lines[query.qid] = line
        known, first = durations.setdefault(query.vid, (query.duration, line))
        if known != query.duration:
            raise ManifestError(
                f"{where}: recording {query.vid} has duration {query.duration:g} s here and {known:g} s "
                f"on line {first}; correct one of them"
            )
        if need_windows and query.windows is None:
            raise ManifestError(f"{where}: no relevant_windows, but labels are needed here")
        queries.append(query)
    if not queries:
        raise ManifestError(f"{path} holds no query")
    return Manifest(path, tuple(queries), counts.notes())


def read_manifests(
    paths: Sequence[Path | str], *, clip_windows: bool = False, need_windows: bool = False
) -> Manifest:
    """Read several manifests as one, in order; a qid or a recording's length may not contradict.

    Raises `ManifestError` as `read_manifest` does, and for a qid that two files share.
    """
    if not paths:
        raise ManifestError("no manifest was given")
    read = [read_manifest(p, clip_windows=clip_windows, need_windows=need_windows) for p in paths]
    if len(read) == 1:
        return read[0]
    origin: dict[str, tuple[Path | None, Query]] = {}
    durations: dict[str, tuple[Path | None, Query]] = {}
    for manifest in read:
        for query in manifest:
            where = f"{manifest.path}:{query.line}: qid {query.qid}"
            if query.qid in origin:
                other, same = origin[query.qid]
                raise ManifestError(
                    f"{where} is also at {other}:{same.line}; qids must differ over all files, so rename "
                    "one or leave a file out"
                )
            origin[query.qid] = (manifest.path, query)
            other, same = durations.setdefault(query.vid, (manifest.path, query))
            if same.duration != query.duration:
                raise ManifestError(
                    f"{where}: recording {query.vid} has duration {query.duration:g} s here and "
                    f"{same.duration:g} s at {other}:{same.line}; correct one of them"
                )
    return Manifest(None, tuple(q for m in read for q in m), tuple(n for m in read for n in m.notes))


def write_manifest(path: Path | str, queries: Iterable[Query], *, overwrite: bool = False) -> None:
    """Write official JSON lines, whole numbers without `.0`; the file appears whole or not at all."""
    with (
        provenance.writing(path, overwrite=overwrite) as temporary,
        open(temporary, "w", encoding="utf-8") as out,
    ):
        for query in queries:
            out.write(json.dumps(query.to_json(), ensure_ascii=False, allow_nan=False) + "\n")


def _query(path: Path, line: int, record: dict[str, Any], clip: bool, counts: _Counts) -> Query:
    where = f"{path}:{line}"
    read = jsonlines.read_qid(record)
    if read is None:
        raise ManifestError(f"{where}: {_wrong(record, 'qid', 'text or a whole number')}")
    qid, int_qid = read
    where = f"{where}: qid {qid}"
    for key in ("query", "vid"):
        if not jsonlines.is_text(record.get(key)):
            raise ManifestError(f"{where}: {_wrong(record, key, 'text')}")
    duration = record.get("duration")
    if not jsonlines.is_number(duration):
        raise ManifestError(f"{where}: {_wrong(record, 'duration', 'a number of seconds')}")
    duration = float(duration)  # type: ignore[arg-type]
    if duration <= 0:
        raise ManifestError(f"{where}: duration is {duration:g} s; it must be more than 0")
    extra = {key: value for key, value in record.items() if key not in _KEYS}
    if not jsonlines.encodable(extra):
        raise ManifestError(f"{where}: a text holds half a surrogate pair and cannot be written again")
    windows = None
    if record.get("relevant_windows") is not None:
        windows = _windows(where, record["relevant_windows"], duration, clip, counts)
    return Query(qid, record["query"], record["vid"], duration, windows, line, int_qid, extra)


def _wrong(record: dict[str, Any], key: str, wanted: str) -> str:
    if key not in record:
        return f"key '{key}' is missing"
    value = record[key]
    if isinstance(value, str):
        if key in ("duration", "moments", "timestamps"):
            return f"{key} is text; {wanted} is expected"
        return f"{key} {'is blank' if not value.strip() else 'holds a character that cannot be stored'}"
    return f"{key} is {jsonlines.kind(value)}; {wanted} is expected"


def _windows(
    where: str, raw: Any, duration: float, clip: bool, counts: _Counts
) -> tuple[tuple[float, float], ...]:
    if not isinstance(raw, list) or not raw:
        got = "an empty list" if raw == [] else jsonlines.kind(raw)
        raise ManifestError(
            f"{where}: relevant_windows is {got}; [[start, end], ...] is expected "
            "(leave the key out on blind data)"
        )
    done = []
    for window in raw:
        if not (isinstance(window, list) and len(window) == 2 and all(map(jsonlines.is_number, window))):
            raise ManifestError(f"{where}: window {json.dumps(window)[:60]} is not [start, end] in seconds")
        start, end = float(window[0]), float(window[1])
        if start < 0 or start >= end:
            why = "starts before 0 s" if start < 0 else "does not end after it starts"
            raise ManifestError(f"{where}: window [{start:g}, {end:g}] {why}; correct the line")
        if end > duration + TOLERANCE:
            fault = f"window ends at {end:g} s in a {duration:g} s recording"
            if not clip:
                raise ManifestError(f"{where}: {fault}; fix the line or go on with --clip-windows")
            counts.far += 1
            counts.first_far = counts.first_far or f"{_short(where)}, {fault}"
        elif end > duration:
            counts.late += 1
            counts.at_end += start >= duration
            counts.first_late = counts.first_late or _short(where)
        done.append((start, end))
    return tuple(done)


def _short(where: str) -> str:
    """`FILE:LINE: qid X` → `line LINE, qid X`, for a note that names the file already."""
    place, _, qid = where.partition(": qid ")
    return f"line {place.rpartition(':')[2]}, qid {qid}"


def _castella(path: Path, text: str, counts: _Counts) -> Iterator[tuple[int, dict[str, Any]]]:
    """CASTELLA's list of recordings as official records: qid `<yid>_<n>`, n counts moments from 1."""
    for line, entry in _entries(path, text):
        where = f"{path}:{line}"
        yid = entry.get("yid")
        if not isinstance(yid, str) or not jsonlines.is_text(yid):
            raise ManifestError(f"{where}: {_wrong(entry, 'yid', 'text')}")
        moments = entry.get("moments")
        if not isinstance(moments, list) or not all(isinstance(m, dict) for m in moments):
            raise ManifestError(f"{where}: recording {yid}: {_wrong(entry, 'moments', 'a list of objects')}")
        counts.without_moments += not moments
        for n, moment in enumerate(moments, 1):
            stamps = moment.get("timestamps")
            if not isinstance(stamps, list) or not stamps:
                raise ManifestError(
                    f"{where}: qid {yid}_{n}: {_wrong(moment, 'timestamps', 'a list of windows')}"
                )
            kept = [s for s in stamps if not _zero_length(s)]
            counts.zero_length += len(stamps) - len(kept)
            counts.dropped += not kept
            if kept:
                record = {"qid": f"{yid}_{n}", "vid": yid, "relevant_windows": kept}
                for key, source, name in (
                    ("query", moment, "local_caption"),
                    ("duration", entry, "duration"),
                ):
                    if name not in source:
                        raise ManifestError(f"{where}: qid {yid}_{n}: key '{name}' is missing")
                    record[key] = source[name]
                yield line, record


def _zero_length(window: Any) -> bool:
    return (
        isinstance(window, list)
        and len(window) == 2
        and all(map(jsonlines.is_number, window))
        and window[0] == window[1]
    )


def _entries(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(line, object)` of every entry of one JSON list, so that faults can name the entry's line."""
    blank = " \t\r\n"

    def skip(at: int) -> int:
        while at < len(text) and text[at] in blank:
            at += 1
        return at

    def fault(at: int, why: str) -> ManifestError:
        return ManifestError(f"{path}:{text.count(chr(10), 0, at) + 1}: {why}")

    at = skip(skip(0) + 1)
    line, counted = 1, 0
    if text[at : at + 1] == "]":
        at = skip(at + 1)
    else:
        while True:
            try:
                entry, after = jsonlines.DECODER.raw_decode(text, at)
            except json.JSONDecodeError as error:
                raise fault(error.pos, f"not valid JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:
                raise fault(at, jsonlines.explain(error)) from None
            if not isinstance(entry, dict):
                raise fault(at, f"an object per recording is expected, this is {jsonlines.kind(entry)}")
            line, counted = line + text.count("\n", counted, at), at
            yield line, entry
            at = skip(after)
            mark, at = text[at : at + 1], skip(at + 1)
            if mark == "]":
                break
            if mark != ",":
                raise fault(after, "not valid JSON (the list is not closed)")
    if at < len(text):
        raise fault(at, "not valid JSON (text after the list)")

"""Is this package what the challenge takes? Finds all faults, changes nothing, unpacks nothing.

A package is a zip with `<root>/task6/<label>/<label>.output.jsonl`, `<label>.meta.yaml` (and the
CSV), such a tree unpacked, or the flat folder that `submit` writes (with its zip, checked as well).
"""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from amrctl.data.manifest import Manifest, Query
from amrctl.errors import SubmissionError
from amrctl.submission.form import (
    COLUMNS,
    END_TOLERANCE,
    MAX_SYSTEMS,
    MAX_WINDOWS,
    TASK,
    parse_label,
)
from amrctl.submission.metadata import UNKNOWN

LARGEST = 1 << 28  # bytes of one file, unpacked: a real one is a thousand times smaller
ENDINGS = (".output.jsonl", ".output.csv", ".meta.yaml")


@dataclass
class Report:
    """`faults`: what would be refused. `notes`: what a person should look at. Both name file and line."""

    labels: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_package(path: Path, queries: Manifest) -> Report:
    """Check a zip or a folder against the query list; raises `SubmissionError` if it is neither."""
    report = Report()
    if path.is_dir():
        files = dict(_folder_files(path, report))
        zips = {name: files.pop(name) for name in list(files) if name.lower().endswith(".zip")}
        if files or not zips:
            _check_files(files, "", queries, report, flat=True)
        for name, data in zips.items():
            inner = Report()
            packed = dict(_zip_files(io.BytesIO(data), name, inner))
            _check_files(packed, f"{name}: ", queries, inner, flat=False, done=files)
            for where, content in packed.items():
                if files.get(PurePosixPath(where).name, content) != content:
                    inner.faults.append(f"{name}: {where} differs from the file beside the zip")
            if report.labels and inner.labels != report.labels:
                inner.faults.append(
                    f"{name} holds {', '.join(inner.labels) or 'no system'}, beside it lie "
                    f"{', '.join(report.labels)}"
                )
            report.faults += inner.faults
            report.notes += inner.notes
            report.labels = report.labels or inner.labels
    elif path.is_file():
        _check_files(dict(_zip_files(path, path.name, report)), "", queries, report, flat=False)
    else:
        raise SubmissionError(f"{path} does not exist; give a zip or a folder")
    return report


def _folder_files(folder: Path, report: Report) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            report.faults.append(f"{name} is a link, not a file")
        elif path.is_file():
            if path.stat().st_size > LARGEST:
                report.faults.append(f"{name} has more than {LARGEST >> 20} MiB")
            else:
                yield name, path.read_bytes()


def _zip_files(source: Path | io.BytesIO, name: str, report: Report) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(source) as package:
            seen = set()
            for info in package.infolist():
                where = info.filename
                if info.is_dir():
                    continue
                if where in seen:
                    report.faults.append(f"{name}: {where} is in the zip twice")
                elif where.startswith("/") or "\\" in where or ".." in PurePosixPath(where).parts:
                    report.faults.append(f"{name}: the path {where} leaves the package")
                elif info.file_size > LARGEST:
                    report.faults.append(f"{name}: {where} has more than {LARGEST >> 20} MiB")
                else:
                    seen.add(where)
                    yield where, package.read(info)
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        RuntimeError,
        NotImplementedError,
        EOFError,
        OSError,
    ) as error:
        report.faults.append(f"{name} cannot be read as a zip ({error})")


def _check_files(
    files: Mapping[str, bytes],
    prefix: str,
    queries: Manifest,
    report: Report,
    *,
    flat: bool,
    done: Mapping[str, bytes] | None = None,
) -> None:
    """Sort files by label, then check every label. `prefix` opens each message; `flat`: files may lie
    outside any folder; what has the name and the bytes of a file in `done` was read before."""
    done = done or {}

    def fault(text: str) -> None:
        report.faults.append(prefix + text)

    systems: dict[str, dict[str, tuple[str, bytes]]] = {}
    roots = set()
    for name, data in files.items():
        path = PurePosixPath(name)
        if path.suffix.lower() == ".pdf":
            continue
        ending = next((e for e in ENDINGS if path.name.endswith(e)), None)
        if ending is None:
            fault(f"{name} does not belong here (wanted: <label>{', <label>'.join(ENDINGS)})")
            continue
        stem = path.name.removesuffix(ending)
        if len(path.parts) > 1 or not flat:
            roots.add(path.parts[0])
            if len(path.parts) != 4 or path.parts[1:3] != (TASK, stem):
                fault(f"{name} should lie at <root>/{TASK}/{stem}/{path.name}")
        if ending in (known := systems.setdefault(stem, {})):
            fault(f"{name} is there twice, also as {known[ending][0]}")
        known[ending] = (name, data)
    if len(roots) > 1:
        fault(f"there are {len(roots)} root folders ({', '.join(sorted(roots))}); one is wanted")
    if not systems:
        fault("there is no <label>.output.jsonl")
    if len(systems) > MAX_SYSTEMS:
        fault(f"there are {len(systems)} systems; at most {MAX_SYSTEMS} can be submitted")
    bases = set()
    for label in sorted(systems):
        report.labels.append(label)
        try:
            bases.add(parse_label(label).base)
        except SubmissionError as error:
            fault(str(error))
        parts = systems[label]
        for ending in (ENDINGS[0], ENDINGS[2]):
            if ending not in parts:
                fault(f"{label}{ending} is missing")
        if all(done.get(f"{label}{ending}") == data for ending, (_, data) in parts.items()):
            continue
        answers = None
        if ".output.jsonl" in parts:
            answers = _check_jsonl(*parts[".output.jsonl"], queries, prefix, report)
        if ".output.csv" in parts:
            _check_csv(*parts[".output.csv"], answers, prefix, report)
        if ".meta.yaml" in parts:
            _check_yaml(*parts[".meta.yaml"], label, prefix, report)
    if len(bases) > 1:
        fault(f"the labels differ in more than their number: {', '.join(sorted(bases))}")


Answers = dict[str, list[tuple[float, float]]]


def _check_jsonl(name: str, data: bytes, queries: Manifest, prefix: str, report: Report) -> Answers:
    faults: list[str] = []
    answers: Answers = {}
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        report.faults.append(f"{prefix}{name} is not UTF-8 text")
        return answers
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            record = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            faults.append(f"{where}: not JSON ({error})")
            continue
        qid = record.get("qid") if isinstance(record, dict) else None
        if type(qid) not in (str, int):
            faults.append(f"{where}: an object with a qid is wanted")
            continue
        where = f"{where}: qid {qid}"
        query = queries.by_qid.get(str(qid))
        if str(qid) in answers:
            faults.append(f"{where} is answered twice")
        elif query is None:
            faults.append(f"{where} is not in the query list")
        elif isinstance(qid, int) != query.int_qid:
            faults.append(f"{where}: the query list spells it as {'a number' if query.int_qid else 'text'}")
        answers[str(qid)] = _check_windows(where, record.get("pred_relevant_windows"), query, faults)
        for key in ("query", "vid"):
            if key not in record:
                faults.append(f"{where}: {key} is missing")
            elif query is not None and record[key] != getattr(query, key):
                faults.append(f"{where}: {key} differs from the query list's")
    missing = [query.qid for query in queries if query.qid not in answers]
    faults += [f"{name}: qid {qid} is not answered" for qid in missing]
    wanted = [query.qid for query in queries if query.qid in answers]
    if not faults and list(answers) != wanted:
        report.notes.append(f"{prefix}{name}: the queries are not in the query list's order")
    report.faults += [prefix + fault for fault in faults]
    return answers


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _check_windows(
    where: str, windows: Any, query: Query | None, faults: list[str]
) -> list[tuple[float, float]]:
    good: list[tuple[float, float]] = []
    if not isinstance(windows, list) or not windows:
        faults.append(f"{where}: pred_relevant_windows is missing, empty or not a list")
        return good
    if len(windows) > MAX_WINDOWS:
        faults.append(f"{where}: {len(windows)} windows; at most {MAX_WINDOWS}")
    for window in windows:
        if not isinstance(window, list) or len(window) != 2:
            three = isinstance(window, list) and len(window) == 3
            faults.append(f"{where}: a window is [start, end]" + (", without a score" if three else ""))
            continue
        start, end = window
        if not all(map(_is_number, window)):
            faults.append(f"{where}: window {window} holds something not a number")
            continue
        good.append((float(start), float(end)))
        if start >= end:
            faults.append(f"{where}: window [{start:g}, {end:g}] does not end after it starts")
        elif start < 0 or (query is not None and end > query.duration + END_TOLERANCE):
            length = "" if query is None else f" of {query.duration:g} s"
            faults.append(f"{where}: window [{start:g}, {end:g}] leaves the recording{length}")
    return good


def _check_csv(name: str, data: bytes, answers: Answers | None, prefix: str, report: Report) -> None:
    """The CSV must tell the same windows in the same order as the JSON lines."""
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        report.faults.append(f"{prefix}{name} is not CSV in UTF-8 ({error})")
        return
    if not rows or tuple(rows[0]) != COLUMNS:
        report.faults.append(f"{prefix}{name}: the first row should be {','.join(COLUMNS)}")
        return
    told: Answers = {}
    for number, row in enumerate(rows[1:], start=2):
        try:
            qid, _, _, rank, start, end, score = row
            window, place = (float(start), float(end)), int(rank)
            good = math.isfinite(float(score))
        except ValueError:
            good = False
        if not good or place != len(told.get(qid, ())) + 1:
            report.faults.append(f"{prefix}{name}: row {number} is broken or not in the order of its rank")
            return
        told.setdefault(qid, []).append(window)
    if answers is not None and told != answers:
        odd = next(qid for qid in [*answers, *told] if told.get(qid) != answers.get(qid))
        report.faults.append(f"{prefix}{name}: qid {odd} has other windows than in the JSON lines")


def _check_yaml(name: str, data: bytes, label: str, prefix: str, report: Report) -> None:
    """What the challenge family asks of the metadata; blocks that a template leaves out are not asked."""

    def fault(text: str) -> None:
        report.faults.append(f"{prefix}{name}: {text}")

    try:
        text = data.decode("utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            fault("aliases (*name) are not understood here; write the value twice")
            return
        meta = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        fault(f"not YAML in UTF-8 ({' '.join(str(error).split())})")
        return
    if not isinstance(meta, dict):
        fault("a YAML mapping is expected")
        return
    block = meta.get("submission", {})
    if not isinstance(block, dict):
        fault("'submission' is not a block of keys")
        return
    if not block:  # the challenge's own template decides the layout
        report.notes.append(
            f"{prefix}{name}: there is no 'submission' block; label and authors are not checked"
        )
    elif block.get("label") != label:
        fault(f"submission.label is {block.get('label')!r}, the file is {label}")
    abbreviation = block.get("abbreviation", "")
    if not isinstance(abbreviation, str) or len(abbreviation) > 10:
        fault(f"submission.abbreviation {abbreviation!r} is not text of at most 10 characters")
    authors = block.get("authors", UNKNOWN)
    if authors != UNKNOWN:
        if not isinstance(authors, list) or not authors or not all(isinstance(a, dict) for a in authors):
            fault("submission.authors is not a list of authors")
        elif sum(a.get("corresponding") is True for a in authors) != 1:
            fault("submission.authors: exactly one needs 'corresponding: true'")
    system = meta.get("system")
    complexity = system.get("complexity") if isinstance(system, dict) else None
    if isinstance(complexity, dict) and "total_parameters" in complexity:
        total = complexity["total_parameters"]
        if total != UNKNOWN and (type(total) is not int or total < 0):
            fault(f"system.complexity.total_parameters {total!r} is not a whole number")
    for path, value in _leaves(meta, ""):
        if isinstance(value, str) and "${" in value:
            fault(f"{path} is not filled in: {value}")
        elif path.startswith("results.") and value != UNKNOWN and not _is_number(value):
            fault(f"{path} {value!r} is not a number")
    unknown = [path for path, value in _leaves(meta, "") if value == UNKNOWN]
    if unknown:
        report.notes.append(f"{prefix}{name}: still unknown: {', '.join(unknown)}")


def _is_number(value: Any) -> bool:
    """A finite number of a sane size (JSON and YAML know whole numbers that no float can hold)."""
    return type(value) in (int, float) and -1e15 < value < 1e15


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{i}]")
    else:
        yield path, value

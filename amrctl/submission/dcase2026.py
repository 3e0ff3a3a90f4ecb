"""DCASE 2026 Task 6: output files, metadata and package for one to four systems.

Sources: the format note of the official baseline for the JSON lines (`qid, query, vid,
pred_relevant_windows` without scores); the organisers' validator of 2020 for labels, paths and
metadata. The CSV is a convenience of ours.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amrctl import provenance
from amrctl.data.manifest import Manifest
from amrctl.data.predictions import Prediction, Predictions
from amrctl.errors import SubmissionError
from amrctl.progress import SILENT, Reporter
from amrctl.submission import metadata
from amrctl.submission.check import check_package
from amrctl.submission.form import COLUMNS, END_TOLERANCE, MAX_WINDOWS, TASK, labels_for, parse_label

_OURS = (".output.csv", ".output.jsonl", ".meta.yaml", ".technical_report.pdf", f"_{TASK}.zip")


def arrange(
    file: Predictions, queries: Manifest, *, clip: bool = False, report: Reporter = SILENT
) -> list[Prediction]:
    """The file's predictions in the query list's order, best first, at most 10 windows each.

    Texts, recordings, durations and the spelling of qids are the list's. Raises `SubmissionError`
    that counts and names missing and extra queries, another recording or text, windows outside the
    recording (`clip` shortens them instead, drops what lies outside and counts both), empty
    or reversed windows, and queries without a window.
    """
    name = str(file.path or "the predictions")
    faults: list[str] = []
    extra = [item.qid for item in file if item.qid not in queries.by_qid]
    missing = [query.qid for query in queries if query.qid not in file.by_qid]
    if len(file.by_qid) != len(file):
        faults.append(f"{len(file) - len(file.by_qid)} queries answered twice")
    for qids, text in ((missing, "missing"), (extra, "not in the query list")):
        if qids:
            what = "query" if len(qids) == 1 else "queries"
            faults.append(f"{len(qids):,} {what} {text} (first: {qids[0]})")
    done: list[Prediction] = []
    clipped = dropped = 0
    for query in queries:
        item = file.by_qid.get(query.qid)
        if item is None:
            continue
        where = f"qid {query.qid}"
        if item.vid != query.vid:
            faults.append(f"{where} is about {item.vid}, in the query list about {query.vid}")
        if item.query != query.query:
            faults.append(f"{where} has another text than the query list")
        windows = item.windows[np.argsort(-item.windows[:, 2], kind="stable")]
        end = np.minimum(windows[:, 1], query.duration)
        start = np.maximum(windows[:, 0], 0.0)
        outside = (windows[:, 0] < 0) | (windows[:, 1] > query.duration + END_TOLERANCE)
        if not (windows[:, 0] < windows[:, 1]).all():
            faults.append(f"{where} has a window that does not end after it starts")
        elif outside.any() and not clip:
            first = windows[int(np.argmax(outside))]
            faults.append(
                f"{where}: window [{first[0]:g}, {first[1]:g}] leaves the recording of {query.duration:g} s "
                "(--clip shortens it)"
            )
        inside = start < end
        clipped += int((outside & inside).sum())
        dropped += int((~inside).sum())
        windows = np.stack([start, end, windows[:, 2]], axis=1)[inside][:MAX_WINDOWS]
        if not len(windows):
            faults.append(f"{where} has no window")
        done.append(
            Prediction(query.qid, query.query, query.vid, query.duration, windows, None, query.int_qid)
        )
    if faults:
        more = f"; and {len(faults) - 3:,} more" if len(faults) > 3 else ""
        raise SubmissionError(f"{name} cannot be submitted: {'; '.join(faults[:3])}{more}")
    if clipped or dropped:
        report.note(f"{name}: {clipped} windows shortened to their recording, {dropped} outside it dropped")
    return done


def jsonl_text(items: Sequence[Prediction]) -> str:
    """The official JSON lines: no scores, seconds, best first."""
    lines = []
    for item in items:
        windows = [[provenance.number(s), provenance.number(e)] for s, e in item.windows[:, :2].tolist()]
        record = {
            "qid": int(item.qid) if item.int_qid else item.qid,
            "query": item.query,
            "vid": item.vid,
            "pred_relevant_windows": windows,
        }
        lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines)


def csv_text(items: Sequence[Prediction]) -> str:
    """One row a window, `rank` from 1."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in items:
        for rank, (start, end, score) in enumerate(item.windows.tolist(), start=1):
            row = (
                item.qid,
                item.vid,
                item.query,
                rank,
                provenance.number(start),
                provenance.number(end),
                score,
            )
            writer.writerow(row)
    return out.getvalue()


def write_zip(path: Path, entries: Mapping[str, bytes]) -> None:
    """A zip whose bytes depend on names and contents only."""
    with zipfile.ZipFile(path, "w") as package:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            package.writestr(info, entries[name])


@dataclass(frozen=True)
class Written:
    """What `write_submission` made: a folder, its labels and the package's file name, and for each
    label the facts that stayed unknown."""

    folder: Path
    labels: list[str]
    package: str
    unknown: dict[str, list[str]]


def write_submission(
    out: Path,
    files: Sequence[Predictions],
    queries: Manifest,
    label: str,
    *,
    told: metadata.Told | None = None,
    template: Path | None = None,
    scores: Sequence[Path] = (),
    technical_report: Path | None = None,
    clip: bool = False,
    overwrite: bool = False,
    report: Reporter = SILENT,
) -> Written:
    """Check everything, then write `out/`: per file `<label>.output.csv`, `<label>.output.jsonl` and
    `<label>.meta.yaml`, and `<label without number>.zip` with all of them.

    Several files are numbered from `label` on. `scores`: metrics files of `evaluate`, one a
    prediction file, or none. The folder appears whole or not at all. Raises `SubmissionError`, or
    `OutputError` when `out` exists and `overwrite` is false.
    """
    provenance.refuse_existing(out, overwrite)
    _only_ours(out)
    if not files:
        raise SubmissionError("there is nothing to submit; name a prediction file")
    names = labels_for(parse_label(label), len(files))
    if scores and len(scores) != len(files):
        raise SubmissionError(
            f"{len(scores)} files of development scores for {len(files)} prediction files; give one each"
        )
    numbers: list[dict[str, float] | None] = [metadata.read_scores(path) for path in scores]
    numbers = numbers or [None] * len(files)
    text, text_name = metadata.template(template)
    contents: dict[str, bytes] = {}
    unknown: dict[str, list[str]] = {}
    for name, file, score in zip(names, files, numbers, strict=True):
        items = arrange(file, queries, clip=clip, report=report)
        values = metadata.facts(str(name), file.meta, told or metadata.Told(), score)
        unknown[str(name)] = sorted(key for key, value in values.items() if _unknown(value))
        contents[f"{name}.output.csv"] = csv_text(items).encode()
        contents[f"{name}.output.jsonl"] = jsonl_text(items).encode()
        contents[f"{name}.meta.yaml"] = metadata.fill(text, text_name, values).encode()
    if technical_report is not None:
        contents[f"{names[0]}.technical_report.pdf"] = _read_pdf(technical_report)
    root = names[0].base
    entries = {f"{root}/{TASK}/{part.split('.')[0]}/{part}": data for part, data in contents.items()}
    with provenance.writing_folder(out, overwrite=overwrite) as folder:
        for part, data in contents.items():
            (folder / part).write_bytes(data)
        write_zip(folder / f"{root}.zip", entries)
        found = check_package(folder, queries)
        if found.faults:
            more = f"; and {len(found.faults) - 3} more" if len(found.faults) > 3 else ""
            raise SubmissionError(f"the package would be refused: {'; '.join(found.faults[:3])}{more}")
    return Written(out, [str(name) for name in names], f"{root}.zip", unknown)


def _only_ours(out: Path) -> None:
    """Replacing a folder deletes it: refuse one that holds anything else than a submission."""
    if not out.is_dir():
        return
    for path in sorted(out.iterdir()):
        if path.is_dir() or not path.name.endswith(_OURS):
            raise SubmissionError(
                f"{out} holds {path.name}, which is no part of a submission; choose another --out, replacing "
                "this folder would delete it"
            )


def _unknown(value: Any) -> bool:
    return value == metadata.UNKNOWN or (isinstance(value, list) and metadata.UNKNOWN in value)


def _read_pdf(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SubmissionError(f"cannot read the technical report {path}: {error.strerror}") from None
    if not data.startswith(b"%PDF-"):
        raise SubmissionError(f"the technical report {path} is not a PDF")
    return data

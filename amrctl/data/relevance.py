"""Which recordings answer a query, beyond the one that its caption was written for.

Two forms: CSV with the columns `query` and `audio_filenames`, the latter a list written as in Python
(the extra labels of DCASE 2025 task 6), and JSON lines with `query` and `relevant`, a list of names. A
name is a file name or a vid. Sentences are compared with single spaces and without letter case.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amrctl.data import jsonlines
from amrctl.data.caption_lists import stem_of
from amrctl.data.captions import same_sentence
from amrctl.data.score_matrix import ScoreMatrix
from amrctl.errors import ManifestError


@dataclass(frozen=True)
class Labels:
    """One set of labels laid on a score file. `name`: what reports call it. `rows`: of its matrix, one for
    each labelled query; `relevant`: its columns. `unasked`: labelled queries that the matrix lacks."""

    name: str
    rows: tuple[int, ...]
    relevant: tuple[tuple[int, ...], ...]
    unasked: int = 0


def original(matrix: ScoreMatrix) -> Labels:
    """Each caption's own recording. Raises `ManifestError` where a query has none."""
    column = {vid: i for i, vid in enumerate(matrix.vids)}
    for query, vid in zip(matrix.queries, matrix.written_for, strict=True):
        if vid not in column:
            raise ManifestError(
                f"{matrix.path}: '{query}' was written for no recording that is known; give --relevant FILE"
            )
    relevant = tuple((column[vid],) for vid in matrix.written_for)
    return Labels("original captions", tuple(range(len(relevant))), relevant)


def read_relevant(path: Path | str, matrix: ScoreMatrix) -> Labels:
    """Labels from a file. Raises `ManifestError`: faults of the file, a recording that the matrix lacks,
    no labelled query in it."""
    path = Path(path)
    rows: dict[str, int] = {}
    for i, query in enumerate(matrix.queries):
        rows.setdefault(same_sentence(query), i)  # of equal captions the first row; their scores are equal
    columns = {vid: i for i, vid in enumerate(matrix.vids)} | {n: i for i, n in enumerate(matrix.files)}
    found: dict[int, tuple[int, ...]] = {}
    unasked = 0
    for where, query, names in _entries(path):
        if not names:
            raise ManifestError(f"{where}: no relevant recording")
        row = rows.get(same_sentence(query))
        if row is None:
            unasked += 1
            continue
        if row in found:
            raise ManifestError(f"{where}: '{query}' is labelled twice")
        lacking = [name for name in names if name not in columns and stem_of(name) not in columns]
        if lacking:
            raise ManifestError(f"{where}: {matrix.path or 'the matrix'} has no recording '{lacking[0]}'")
        found[row] = tuple(dict.fromkeys(columns.get(n, columns.get(stem_of(n), -1)) for n in names))
    if not found:
        raise ManifestError(f"{path}: none of its queries is in {matrix.path or 'the matrix'}")
    return Labels(path.stem, tuple(found), tuple(found.values()), unasked)


def _entries(path: Path) -> Iterator[tuple[str, str, Sequence[str]]]:
    """`FILE:LINE`, query, names of each entry."""
    if path.suffix.lower() == ".csv":
        yield from _csv(path)
        return
    text = jsonlines.read_text(path, ManifestError, "relevance labels (JSON lines)")
    for line, record in jsonlines.objects(path, text, ManifestError):
        where = f"{path}:{line}"
        query, names = record.get("query", record.get("caption")), record.get("relevant")
        if not isinstance(query, str) or not _texts(names):
            raise ManifestError(f'{where}: {{"query": text, "relevant": [names]}} is expected')
        yield where, query, names or ()


def _csv(path: Path) -> Iterator[tuple[str, str, Sequence[str]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if not {"query", "audio_filenames"} <= set(reader.fieldnames or ()):
                raise ManifestError(f"{path}:1: the columns query and audio_filenames are expected")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                try:
                    names = ast.literal_eval((row["audio_filenames"] or "").strip())
                except (ValueError, SyntaxError, MemoryError, RecursionError):
                    names = None
                if not isinstance(names, list) or not _texts(names):
                    raise ManifestError(
                        f"{where}: audio_filenames is no list of names, as ['a.wav', 'b.wav']"
                    )
                yield where, row["query"] or "", names
    except csv.Error as error:
        raise ManifestError(f"{path}: broken CSV ({error})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read ({error})") from None


def _texts(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)

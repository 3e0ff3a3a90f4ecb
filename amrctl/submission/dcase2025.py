"""Files of the language-based audio retrieval tasks of DCASE: the score matrix, or the older list of names.

2025: a CSV with one row a query; its first column is headed `index` and holds the caption, the others are
headed by file names and hold similarities. Before: `caption,file_name_1,...,file_name_k`, best first; the
headers `fname_<n>` were used too. Source: the baselines' predictions of both forms. Names of Clotho hold
commas, spaces, parentheses and quotes, which CSV's quoting takes; they are matched exactly, UTF-8.

A reader that keeps rows by caption or columns by name would lose one of two equal ones, so equal captions
are written once (their scores are equal) and equal file names are refused.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from amrctl import provenance
from amrctl.data.score_matrix import ScoreMatrix
from amrctl.errors import SubmissionError
from amrctl.submission.form import labels_for, parse_label


def matrix_csv(matrix: ScoreMatrix) -> str:
    """The form of 2025."""
    rows = _rows(matrix)
    return _csv(
        ["index", *matrix.files],
        ([matrix.queries[q], *(repr(float(s)) for s in matrix.scores[q])] for q in rows),
    )


def list_csv(matrix: ScoreMatrix, top_k: int) -> str:
    """The older form: the `top_k` best file names of each query; of equal scores the earlier file."""
    if not 1 <= top_k <= len(matrix.files):
        raise SubmissionError(f"--top-k {top_k}: {matrix.path} has {len(matrix.files)} recordings")
    best = {q: np.argsort(-matrix.scores[q], kind="stable")[:top_k] for q in _rows(matrix)}
    return _csv(
        ["caption", *(f"file_name_{n}" for n in range(1, top_k + 1))],
        ([matrix.queries[q], *(matrix.files[i] for i in columns)] for q, columns in best.items()),
    )


def _rows(matrix: ScoreMatrix) -> list[int]:
    """The first row of each caption. Raises `SubmissionError`: one file name twice, scores not finite."""
    names = sorted(matrix.files)
    twice = next((a for a, b in pairwise(names) if a == b), None)
    if twice is not None:
        raise SubmissionError(f"{matrix.path}: two recordings are called '{twice}'; a column can hold one")
    if not np.isfinite(matrix.scores).all():
        raise SubmissionError(f"{matrix.path}: a score is not a finite number")
    first: dict[str, int] = {}
    for i, query in enumerate(matrix.queries):
        first.setdefault(query, i)
    return list(first.values())


def _csv(header: Sequence[str], rows: object) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)  # type: ignore[arg-type]
    return stream.getvalue()


def write_retrieval(
    out: Path, matrices: Sequence[ScoreMatrix], label: str, *, top_k: int | None, overwrite: bool
) -> dict[str, Path]:
    """Write `<label>.output.csv` of each file into `out`; several are numbered from `label` on.

    Everything is checked before anything is written. Raises `SubmissionError`, `OutputError`.
    """
    names = [str(one) for one in labels_for(parse_label(label), len(matrices))]
    texts = [matrix_csv(m) if top_k is None else list_csv(m, top_k) for m in matrices]
    paths = {name: out / f"{name}.output.csv" for name in names}
    for path in paths.values():
        provenance.refuse_existing(path, overwrite)
    for path, text in zip(paths.values(), texts, strict=True):
        provenance.write_text(path, text, overwrite=overwrite)
    return paths

"""The score file of retrieval: an HDF5 matrix of queries by recordings, with their names.

Data sets: `scores` (queries, recordings) float32, cosines; `queries`, `written_for` (the vid that a
caption describes, "" on blind lists), `vids`, `files` (names of the sound files), all UTF-8 text. The
attribute `meta` is JSON: where it comes from, as beside prediction files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from amrctl import provenance
from amrctl.errors import PredictionError

FORMAT, VERSION = "amrctl-scores", 1
_TEXTS = ("queries", "written_for", "vids", "files")


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """`scores` (Q, R) float32; `queries` and `written_for` of Q, `vids` and `files` of R names."""

    scores: npt.NDArray[np.float32]
    queries: tuple[str, ...]
    written_for: tuple[str, ...]
    vids: tuple[str, ...]
    files: tuple[str, ...]
    meta: dict[str, Any]
    path: str = ""


def write_scores(path: Path | str, matrix: ScoreMatrix, *, overwrite: bool = False) -> None:
    """Write the file through a temporary one. Raises `OutputError`."""
    text = h5py.string_dtype("utf-8")
    with provenance.writing(path, overwrite=overwrite) as temporary, h5py.File(str(temporary), "w") as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["meta"] = json.dumps(matrix.meta, ensure_ascii=False, sort_keys=True)
        file.create_dataset("scores", data=np.asarray(matrix.scores, np.float32), compression="gzip")
        for name in _TEXTS:
            file.create_dataset(name, data=np.array(getattr(matrix, name), dtype=object), dtype=text)


def is_scores(path: Path | str) -> bool:
    """Whether a file is one of ours, by its HDF5 attribute."""
    try:
        with h5py.File(str(path), "r") as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return False


def read_scores(path: Path | str) -> ScoreMatrix:
    """Read a score file. Raises `PredictionError`: missing, another format, sizes that do not fit."""
    path = Path(path)
    if not path.is_file():
        raise PredictionError(f"{path} does not exist")
    if not is_scores(path):
        raise PredictionError(f"{path} is not a score file; predict with a dual encoder writes them")
    try:
        with h5py.File(str(path), "r") as file:
            if int(file.attrs["version"]) != VERSION:
                raise PredictionError(
                    f"{path} has version {file.attrs['version']}, this program reads {VERSION}"
                )
            scores = file["scores"][()]
            texts = {name: tuple(str(t) for t in file[name].asstr()[()]) for name in _TEXTS}
            meta = json.loads(file.attrs["meta"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise PredictionError(f"{path}: damaged ({' '.join(str(error).split())})") from None
    rows, columns = len(texts["queries"]), len(texts["vids"])
    if scores.shape != (rows, columns) or len(texts["written_for"]) != rows or len(texts["files"]) != columns:
        raise PredictionError(f"{path}: its names do not fit its scores of {scores.shape}")
    return ScoreMatrix(scores, **texts, meta=dict(meta), path=str(path))

"""Answers of verifiers on disk, so that asking again costs nothing.

A folder holds `answers.jsonl`: one answer a line, `{"key": ..., "score": ..., ...}`, only ever
appended to and flushed to the disk with every batch. Losing the last line to a kill costs one
question; a line that cannot be read is skipped and counted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from amrctl.errors import OutputError
from amrctl.rerank.base import Candidate

FILE = "answers.jsonl"


def key_of(fingerprint: str, evidence: str, candidate: Candidate) -> str:
    """Hex SHA-256 of everything that an answer depends on."""
    parts = [fingerprint, evidence, candidate.vid, candidate.start, candidate.end, candidate.query]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/amrctl/rerank`, else `~/.cache/amrctl/rerank`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "amrctl" / "rerank"


class Cache:
    """The answers of one folder; the folder is made with the first answer.

    `dropped` counts lines that could not be read. Raises `OutputError` when the folder cannot be
    read or written.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder) / FILE
        self.dropped = 0
        self._answers: dict[str, float] = {}
        self._ends_clean = True
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot read the cache {self.path}: {error.strerror}") from None
        self._ends_clean = data.endswith(b"\n") or not data
        for line in data.split(b"\n"):
            if line.strip():
                self._take(line)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> float | None:
        """The answer in 0..1, or None."""
        return self._answers.get(key)

    def add(self, answers: Iterable[tuple[str, float, dict[str, Any]]]) -> None:
        """Append `(key, score, facts for a human reader)` lines and flush them to the disk."""
        lines = []
        for key, score, facts in answers:
            self._answers[key] = score
            lines.append(json.dumps({"key": key, "score": score, **facts}, ensure_ascii=False))
        if not lines:
            return
        # after a kill the file may end inside a line: that line is closed, not continued
        text = ("" if self._ends_clean else "\n") + "".join(line + "\n" for line in lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as stream:
                stream.write(text.encode("utf-8", "surrogatepass"))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise OutputError(f"cannot write the cache {self.path}: {error.strerror}") from None
        self._ends_clean = True

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            key, score = record["key"], record["score"]
        except (ValueError, KeyError, TypeError, RecursionError):
            self.dropped += 1
            return
        if isinstance(key, str) and type(score) in (int, float) and math.isfinite(score) and 0 <= score <= 1:
            self._answers[key] = float(score)
        else:
            self.dropped += 1

"""Arrays of recordings as files named after the recording's content: once written, never changed.

A renamed or copied recording finds its rows again, a changed one has none yet, and a kill leaves whole
files only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from amrctl.data.features import Rows
from amrctl.errors import ArchiveError, OutputError


class Shards:
    """A folder of `<sha256>.npy`, each the rows `(length, D)` of one recording."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """Where the rows of a recording lie."""
        return self.folder / f"{sha256}.npy"

    def has(self, sha256: str) -> bool:
        """Whether they are there."""
        return self.path(sha256).is_file()

    def put(self, sha256: str, rows: Rows) -> None:
        """Store rows, from any process. Raises `OutputError`."""
        target = self.path(sha256)
        temporary = self.folder / f".{sha256}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as out:
                np.save(out, np.ascontiguousarray(rows), allow_pickle=False)
            temporary.replace(target)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def get(self, sha256: str) -> Rows:
        """The rows of a recording. Raises `ArchiveError` when they are missing or damaged; damaged ones
        are removed, so that the next indexing makes them again."""
        path = self.path(sha256)
        try:
            with open(path, "rb") as stream:
                rows: Rows = np.load(stream, allow_pickle=False)
            if rows.ndim != 2 or rows.dtype.kind != "f" or not len(rows):
                raise ValueError
        except FileNotFoundError:
            raise ArchiveError(f"{path} is missing; run amrctl index again") from None
        except (OSError, ValueError, EOFError):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise ArchiveError(f"{path} is damaged and was removed; run amrctl index again") from None
        return rows

    def keep(self, wanted: Iterable[str]) -> None:
        """Remove all files but those of the recordings `wanted`."""
        names = {f"{sha256}.npy" for sha256 in wanted}
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name not in names:
                    path.unlink(missing_ok=True)


class Cache:
    """Rows that searches had to make themselves: a folder of `Shards` by stream, of at most `limit` bytes.

    The files that were used longest ago go first. Where nothing can be written, nothing is kept.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def get(self, stream: str, sha256: str) -> Rows | None:
        """Rows that are there, or None."""
        shards = Shards(self.folder / stream)
        if not shards.has(sha256):
            return None
        try:
            rows = shards.get(sha256)
        except ArchiveError:
            return None
        with contextlib.suppress(OSError):
            os.utime(shards.path(sha256))
        return rows

    def put(self, stream: str, sha256: str, rows: Rows) -> bool:
        """Keep rows and make room for them; whether they are kept."""
        if rows.nbytes > self.limit:
            return False
        shards = Shards(self.folder / stream)
        try:
            shards.put(sha256, rows)
        except OutputError:
            return False
        self._shrink(shards.path(sha256))
        return True

    def _shrink(self, newest: Path) -> None:
        found = []
        for path in self.folder.glob("*/*.npy"):
            with contextlib.suppress(OSError):
                told = path.stat()
                found.append((path != newest, told.st_mtime_ns, told.st_size, path))
        size = sum(entry[2] for entry in found)
        for _, _, bytes_, path in sorted(found, key=lambda entry: (not entry[0], entry[1])):
            if size <= self.limit:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            size -= bytes_


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

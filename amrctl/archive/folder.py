"""The sound files of a folder, and how they differ from those that an archive knows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from amrctl.archive.store import Recording, Unreadable
from amrctl.data.audio import SUFFIXES
from amrctl.errors import AudioError


@dataclass(frozen=True)
class SoundFile:
    """A sound file as it was listed; `name`: its path below the folder, with `/` between the parts."""

    name: str
    path: Path
    bytes: int
    mtime_ns: int

    def same(self, recording: Recording | None) -> bool:
        """Whether it is the file that `recording` was, as far as size and time tell."""
        return recording is not None and (recording.bytes, recording.mtime_ns) == (self.bytes, self.mtime_ns)


def listing(folder: Path) -> tuple[list[SoundFile], list[Unreadable]]:
    """Every sound file below `folder` in the order of the names, and those that cannot be taken.

    Suffixes as everywhere, in any case. Links to files outside are not followed. Raises `AudioError`
    when there is no such folder.
    """
    if not folder.is_dir():
        raise AudioError(f"{folder} is not a folder; index takes the folder with the recordings")
    inside = folder.resolve()
    files: list[SoundFile] = []
    faults: list[Unreadable] = []
    for where, _, names in os.walk(folder):
        for entry in names:
            path = Path(where, entry)
            if path.suffix.lower() not in SUFFIXES:
                continue
            name = path.relative_to(folder).as_posix()
            try:
                name.encode()
                told = path.stat()
            except UnicodeEncodeError:
                shown = ascii(name)[1:-1]
                faults.append(Unreadable(path=shown, why=f"{shown}: the name is not UTF-8; rename the file"))
                continue
            except OSError as error:
                faults.append(Unreadable(path=name, why=f"{name}: {error.strerror}"))
                continue
            if not path.resolve().is_relative_to(inside):
                why = f"{name} is a link out of the folder; copy the file into it"
                faults.append(Unreadable(path=name, why=why))
                continue
            files.append(SoundFile(name, path, told.st_size, told.st_mtime_ns))
    return sorted(files, key=lambda file: file.name), faults


@dataclass(frozen=True)
class Changes:
    """How many recordings an archive gained, lost and kept; see `Indexed`."""

    added: int
    changed: int
    moved: int
    removed: int
    kept: int


def compare(before: Iterable[Recording], now: Iterable[Recording]) -> Changes:
    """Count by name and content. What has another name and a content that lost its name was moved."""
    old: Mapping[str, str] = {recording.path: recording.sha256 for recording in before}
    new: Mapping[str, str] = {recording.path: recording.sha256 for recording in now}
    gone = [old[name] for name in old if name not in new]
    moved = 0
    for name in (name for name in new if name not in old):
        if new[name] in gone:
            gone.remove(new[name])
            moved += 1
    there = [name for name in new if name in old]
    changed = sum(new[name] != old[name] for name in there)
    return Changes(len(new) - len(there) - moved, changed, moved, len(gone), len(there) - changed)

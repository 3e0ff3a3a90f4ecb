"""Recordings inside WebDataset tars, read where they lie: nothing is unpacked, no name is a path.

The layout is that of the published Clotho-Moment audio: a sound `<key>.wav` and its `<key>.json` side by
side, in any number of tars. The recording's id is not the key: it is `<folder>_<stem>` of the last two
parts of the json's `bg.path`, as `.tmp/train/bg/Amsterdam/0.0_60.0.wav` → `Amsterdam_0.0_60.0`.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from amrctl.data.audio import SUFFIXES, Member, Sound, find_audio
from amrctl.errors import AudioError

_LARGEST_JSON = 1 << 24  # bytes; a recipe entry has a few hundred
_BLOCK = 512  # bytes; a tar is made of them


def find_recordings(
    where: Path | str, vids: Iterable[str], *, bad: dict[str, str] | None = None
) -> dict[str, Sound]:
    """Find the sound of every recording: in the tar `where`, or in the tars and files under it.

    Raises `AudioError`: no sound for a recording, two of them, a tar that is cut off or damaged, a
    sound in it without its json. With `bad` given, recordings without one sound are left out instead,
    `bad[vid]` says why, and sounds that cannot be told are passed over.
    """
    root = Path(where)
    tars = _tars(root)
    wanted = list(dict.fromkeys(vids))
    if not tars:
        return dict(find_audio(root, wanted, bad=bad))
    faults: dict[str, str] = {}
    found: dict[str, Sound] = {}
    asked = set(wanted)
    for tar in tars:
        for vid, member in _sounds(tar, lenient=bad is not None):
            if vid not in asked:
                continue
            if vid in found:
                faults[vid] = f"recording {vid} is there twice: {found[vid]} and {member}; keep one"
            found.setdefault(vid, member)
    lost: dict[str, str] = {}
    beside = find_audio(root, wanted, bad=lost) if root.is_dir() else {}
    for vid in wanted:
        if vid in found and vid in beside:
            faults[vid] = f"recording {vid} is there twice: {found[vid]} and {beside[vid]}; keep one"
        elif vid not in found and vid in beside:
            found[vid] = beside[vid]
        elif vid not in found:
            many = f"{len(tars):,} tars" if len(tars) > 1 else tars[0].name
            plain = f"no audio for recording {vid} under {root}"
            told = lost.get(vid, plain)
            faults[vid] = f"{plain} (in {many}, nor beside)" if told.startswith(plain) else told
    if faults and bad is None:
        more = f" (and {len(faults) - 1} more recordings with such a fault)" if len(faults) > 1 else ""
        raise AudioError(next(iter(faults.values())) + more)
    if bad is not None:
        bad.update({vid: faults[vid] for vid in wanted if vid in faults})
    return {vid: found[vid] for vid in wanted if vid in found and vid not in faults}


def _tars(root: Path) -> list[Path]:
    """The tar `root`, or all tars under that folder, sorted."""
    if root.is_file():
        return [root]
    found = []
    inside = root.resolve()
    for where, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = Path(where, name)
            if path.suffix.lower() == ".tar":
                if not path.resolve().is_relative_to(inside):
                    raise AudioError(f"{path} is a link out of {root}; copy the file into the folder")
                found.append(path)
    return found


@dataclass
class _Pair:
    """What a tar holds under one key."""

    sound: Member | None = None
    vid: str | None = None
    fault: str | None = None


def _sounds(path: Path, *, lenient: bool) -> Iterator[tuple[str, Member]]:
    """Id and place of every sound of a tar. Raises `AudioError`; with `lenient` not for one sound."""
    pairs: dict[str, _Pair] = {}
    try:
        with open(path, "rb") as stream:
            for name, offset, size in _members(path, stream):
                stem, dot, suffix = name.rpartition(".")
                if not dot:
                    continue
                if f".{suffix.lower()}" in SUFFIXES:
                    pair = pairs.setdefault(stem, _Pair())
                    if pair.sound is not None:
                        pair.fault = "has two sounds"
                    pair.sound = Member(path, name, offset, size)
                elif suffix.lower() == "json":
                    pair = pairs.setdefault(stem, _Pair())
                    stream.seek(offset)
                    text = stream.read(min(size, _LARGEST_JSON))
                    try:
                        pair.vid = _vid(json.loads(text))
                    except (ValueError, RecursionError) as error:
                        what = "is not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
                        pair.fault = f"{_shown(name)} {what}"
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror})") from None
    for key, pair in pairs.items():
        if pair.sound is None:
            continue
        fault = pair.fault
        if fault is None and pair.vid is None:
            fault = f"has no {_shown(key)}.json beside it, which would name its recording"
        if fault is None and pair.vid is not None:
            yield pair.vid, pair.sound
        elif not lenient:
            raise AudioError(f"{pair.sound} {fault}; mend the tar, or --skip-bad")


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _vid(entry: object) -> str:
    """The recording's id in a recipe entry. Raises `ValueError` that says what it lacks."""
    background = entry.get("bg") if isinstance(entry, dict) else None
    path = background.get("path") if isinstance(background, dict) else None
    parts = [part for part in path.split("/") if part] if isinstance(path, str) else []
    if len(parts) < 2:
        raise ValueError("has no bg.path of the form FOLDER/NAME.wav")
    stem, dot, suffix = parts[-1].rpartition(".")
    # Only a known suffix goes: stems hold dots, as 0.0_60.0 does.
    last = stem if dot and f".{suffix.lower()}" in SUFFIXES else parts[-1]
    return f"{parts[-2]}_{last}"


def _members(path: Path, stream: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, place and size of every plain file in a tar; no more of it is kept in memory.

    Raises `AudioError` when the tar is cut off, damaged, compressed, or is none.
    """
    length = os.fstat(stream.fileno()).st_size
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                vars(tar)["members"] = []  # else every header stays in memory
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                if member.isreg() and not member.sparse:
                    yield member.name, member.offset_data, member.size
            stream.seek(tar.offset)
    except tarfile.ReadError as error:
        if "unexpected end" in str(error):
            raise AudioError(f"{path}: the tar is cut off; copy it again") from None
        raise AudioError(f"{path}: not a tar, or a compressed one; unpack .gz with gunzip first") from None
    except (tarfile.TarError, UnicodeError, ValueError) as error:
        raise AudioError(f"{path}: a damaged tar ({error}); copy it again") from None
    # The library takes a broken header for the end.
    after = stream.read(_BLOCK)
    if after.strip(b"\0"):
        what = "cut off" if len(after) < _BLOCK else f"damaged at byte {tar.offset:,}"
        raise AudioError(f"{path}: the tar is {what}; copy it again")

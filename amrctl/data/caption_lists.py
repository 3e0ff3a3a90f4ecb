"""Captions of whole recordings: what a dual encoder is trained on and asked.

The native form is JSON lines with `vid` and `caption` (and `duration`, in seconds, which is not needed);
the annotation files of Clotho, AudioCaps and WavCaps and our `captions.csv` are read as they are. One
line or row may hold several sentences; each is a pair of its own. A recording is known by `vid`, the stem
of its file. On blind lists (sentences to be answered) `vid` is absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amrctl.data import jsonlines
from amrctl.data.audio import SUFFIXES, Sound
from amrctl.data.captions import inside, read_captions
from amrctl.data.tars import find_recordings
from amrctl.errors import AudioError, ManifestError

_WANTED = 'a list of captions (JSON lines: {"vid": ..., "caption": ...})'


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence. `names`: stems that its recording may have, best first; () on a blind list.
    `ids`: what `--exclude` compares with. `where`: `FILE:LINE`."""

    text: str
    names: tuple[str, ...]
    ids: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Pair:
    """A sentence and its recording; `vid` is "" on a blind list."""

    vid: str
    caption: str


@dataclass(frozen=True)
class CaptionSet:
    """Sentences with the recordings to be heard. `sounds`: vid → sound, in order of first appearance;
    of a blind list, all that the folder holds. `notes`: what was left out."""

    pairs: tuple[Pair, ...]
    sounds: Mapping[str, Sound]
    notes: tuple[str, ...] = ()


def read_list(path: Path | str) -> list[Caption]:
    """Read one list of captions, in order. Raises `ManifestError` naming file and line."""
    path = Path(path)
    if path.suffix.lower() in (".csv", ".json"):
        return [
            Caption(text, tuple(stem_of(name) for name in clip.names), clip.ids, clip.where)
            for clip in read_captions(path)
            for text in clip.captions
        ]
    text = jsonlines.read_text(path, ManifestError, _WANTED)
    found = list(_lines(path, text))
    if not found:
        raise ManifestError(f"{path}: no captions in it")
    return found


def _lines(path: Path, text: str) -> Iterator[Caption]:
    for line, record in jsonlines.objects(path, text, ManifestError):
        where = f"{path}:{line}"
        caption = record.get("caption", record.get("query"))
        if not jsonlines.is_text(caption):
            raise ManifestError(f"{where}: caption is {jsonlines.kind(caption)}; a sentence is expected")
        names: tuple[str, ...] = ()
        if "vid" in record:
            if not jsonlines.is_text(record["vid"]):
                raise ManifestError(f"{where}: vid is {jsonlines.kind(record['vid'])}; text is expected")
            names = (inside(record["vid"], where),)
        yield Caption(str(caption), names, names, where)


def stem_of(name: str) -> str:
    """A file name without folders and without a suffix of sounds; other dots belong to the name."""
    base = name.rsplit("/", 1)[-1]
    suffix = Path(base).suffix
    return base[: -len(suffix)] if suffix.lower() in SUFFIXES else base


def read_set(
    paths: Sequence[Path],
    folders: Sequence[Path],
    *,
    excluded: Iterable[str] = (),
    blind: bool = False,
    skip_bad: bool = False,
) -> CaptionSet:
    """Join lists and find their recordings anywhere under `folders` (sound files or tars).

    `excluded`: ids to leave out (vid, file name, Freesound or YouTube id). `blind`: lists without `vid`
    are taken, and every sound under `folders` is a candidate. `skip_bad`: recordings without a file are
    left out and counted. Raises `ManifestError` and `AudioError`.
    """
    banned = set(excluded)
    captions = [caption for path in paths for caption in read_list(path)]
    kept = [c for c in captions if banned.isdisjoint((*c.ids, *c.names))]
    notes = []
    if len(kept) < len(captions):
        notes.append(f"{len(captions) - len(kept):,} of {len(captions):,} captions are excluded by their ids")
    if not kept:
        raise ManifestError(f"{', '.join(map(str, paths))}: no caption is left")
    without = next((c for c in kept if not c.names), None)
    if without is not None:
        if not blind:
            raise ManifestError(
                f"{without.where}: no vid; each caption needs the recording that it describes"
            )
        if any(c.names for c in kept):
            raise ManifestError(
                f"{without.where}: no vid here, and there is one on other lines; fill all or none"
            )
        return CaptionSet(tuple(Pair("", c.text) for c in kept), every_sound(folders), tuple(notes))
    found = _found(folders, list(dict.fromkeys(name for c in kept for name in c.names)))
    pairs, lost = [], []
    for caption in kept:
        vid = next((name for name in caption.names if name in found), None)
        if vid is None:
            lost.append(caption)
        else:
            pairs.append(Pair(vid, caption.text))
    if lost and not (skip_bad and pairs):
        first = lost[0]
        raise AudioError(
            f"{first.where}: no audio for recording {first.names[0]} under {', '.join(map(str, folders))} "
            f"(and {len(lost) - 1:,} more captions); --skip-bad goes on without"
        )
    if lost:
        notes.append(f"{len(lost):,} captions have no audio and are left out; the first: {lost[0].where}")
    pairs = list(dict.fromkeys(pairs))  # the same sentence twice of one recording says nothing new
    return CaptionSet(tuple(pairs), {pair.vid: found[pair.vid] for pair in pairs}, tuple(notes))


def _found(folders: Sequence[Path], names: Sequence[str]) -> dict[str, Sound]:
    """Name → its one sound. Raises `AudioError` where there are two."""
    found: dict[str, Sound] = {}
    for folder in folders:
        bad: dict[str, str] = {}
        for name, sound in find_recordings(folder, names, bad=bad).items():
            if name in found:
                raise AudioError(f"recording {name} has two files: {found[name]} and {sound}; keep one")
            found[name] = sound
        for why in bad.values():
            if not why.startswith("no audio for recording"):
                raise AudioError(why)
    return found


def every_sound(folders: Sequence[Path]) -> dict[str, Sound]:
    """All sound files under `folders` by stem, sorted by it. Raises `AudioError`."""
    names = sorted({p.stem for folder in folders for p in _files(folder)})
    if not names:
        raise AudioError(f"no sound under {', '.join(map(str, folders))} (.wav, .flac, .ogg or .mp3)")
    return _found(folders, names)


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise AudioError(f"{folder} is not a folder; --audio names the folder with the recordings")
    return (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())

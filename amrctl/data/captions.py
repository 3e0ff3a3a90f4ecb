"""Captioned clips in: our `captions.csv`, Clotho's CSV, AudioCaps' CSV and WavCaps' JSON.

Conventions: a clip is one sound file with one or more sentences; an *event* is what the sentences
name. Where a file does not say which event a clip belongs to, clips that share a sentence (letter
case and spaces aside) are one event. All faults are `ManifestError`s that name
file and line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from amrctl.errors import ManifestError, near

FORMATS = ("auto", "csv", "clotho", "audiocaps", "wavcaps")


@dataclass(frozen=True, slots=True)
class CaptionedClip:
    """One clip as its list describes it.

    `names` are the file names it may have inside the folder of clips, best first: with a suffix
    (`dog/1.wav`) or, where the list has only ids, without (any known suffix fits). `ids` are what
    `--exclude` compares with. `event` is the event's name, or "" until `with_events` fills it.
    `split` is None where the list does not fix it. `where` is `FILE:LINE` for messages.
    """

    names: tuple[str, ...]
    captions: tuple[str, ...]
    event: str
    split: str | None
    ids: tuple[str, ...]
    where: str


def same_sentence(caption: str) -> str:
    """The form in which sentences are compared: lower case, single spaces."""
    return " ".join(caption.split()).casefold()


def inside(name: str, where: str) -> str:
    """Return a relative file name with `/` between folders; raise if it could leave its folder."""
    path = PureWindowsPath(name)  # takes both separators, and knows drives
    if path.anchor or ".." in path.parts or "\0" in name or not path.parts:
        raise ManifestError(f"{where}: the file name '{name}' is not a path inside the folder of clips")
    return path.as_posix()


def _table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV with a header, as (line, column → text); spaces around texts are dropped."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if len(set(header)) < len(header):
                raise ManifestError(f"{path}:1: the header has a column twice: {','.join(header)}")
            line = rows.line_num + 1
            for row in rows:
                if row and len(row) != len(header):
                    raise ManifestError(
                        f"{path}:{line}: {len(row)} fields where the header has {len(header)}; "
                        "put quotes around a text with commas"
                    )
                if row:
                    yield line, dict(zip(header, (text.strip() for text in row), strict=True))
                line = rows.line_num + 1
    except csv.Error as error:
        raise ManifestError(f"{path}:{rows.line_num}: broken CSV ({error})") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot read the captions ({error.strerror})") from None


def _header(path: Path) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            return [name.strip() for name in next(csv.reader(stream), [])]
    except (UnicodeDecodeError, csv.Error):
        raise ManifestError(f"{path}: not a CSV in UTF-8") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot read the captions ({error.strerror})") from None


def _need(path: Path, line: int, row: Mapping[str, str], column: str) -> str:
    if not row.get(column):
        raise ManifestError(f"{path}:{line}: no {column}")
    return row[column]


def _columns(path: Path, *needed: str) -> None:
    header = _header(path)
    for column in needed:
        if column not in header:
            raise ManifestError(f"{path}:1: no column '{column}'; the header is: {','.join(header)}")


def _ids(*names: str) -> tuple[str, ...]:
    """A name and its forms: without folders, without suffix."""
    forms: dict[str, None] = {}
    for name in names:
        base = name.rsplit("/", 1)[-1]
        stem, dot, suffix = base.rpartition(".")
        for form in (name, base, stem if dot and suffix.lower() in ("wav", "flac", "ogg", "mp3") else base):
            forms[form] = None
    return tuple(form for form in forms if form)


def _ours(path: Path) -> Iterator[CaptionedClip]:
    _columns(path, "file", "caption")
    for line, row in _table(path):
        where = f"{path}:{line}"
        name = inside(_need(path, line, row, "file"), where)
        caption = _need(path, line, row, "caption")
        known = row.get("sound_id", "")
        yield CaptionedClip(
            (name,), (caption,), row.get("event", ""), row.get("split") or None, _ids(name, known), where
        )


def _clotho(path: Path) -> Iterator[CaptionedClip]:
    """`file_name,caption_1,...,caption_5` (Clotho v1 and v2)."""
    _columns(path, "file_name", "caption_1")
    for line, row in _table(path):
        where = f"{path}:{line}"
        name = inside(_need(path, line, row, "file_name"), where)
        captions = tuple(text for column, text in row.items() if column.startswith("caption_") and text)
        if not captions:
            raise ManifestError(f"{where}: no caption")
        yield CaptionedClip((name,), captions, "", None, _ids(name, row.get("sound_id", "")), where)


def _audiocaps(path: Path) -> Iterator[CaptionedClip]:
    """`audiocap_id,youtube_id,start_time,caption`; copies of the audio are named in several ways."""
    _columns(path, "youtube_id", "caption")
    for line, row in _table(path):
        where = f"{path}:{line}"
        video = inside(_need(path, line, row, "youtube_id"), where)
        number, start = row.get("audiocap_id", ""), row.get("start_time", "")
        names = [f"{video}_{start}", f"Y{video}_{start}"] if start else []
        names += [video, f"Y{video}", *([number] if number else [])]
        caption = _need(path, line, row, "caption")
        yield CaptionedClip(
            tuple(inside(name, where) for name in names), (caption,), "", None, (video, number), where
        )


def _wavcaps(path: Path) -> Iterator[CaptionedClip]:
    """`{"data": [{"id", "caption", ...}]}`, one file per source of WavCaps."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"{path}: cannot read the captions ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{path}: broken JSON ({error})") from None
    entries = whole.get("data") if isinstance(whole, dict) else None
    if not isinstance(entries, list):
        raise ManifestError(f"{path}: no list 'data' as in the JSON files of WavCaps")
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: entry {number}"
        fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
        identity, caption = fields.get("id"), fields.get("caption")
        if not isinstance(identity, str | int) or isinstance(identity, bool) or not isinstance(caption, str):
            raise ManifestError(f"{where}: needs 'id' and 'caption'")
        if not str(identity).strip() or not caption.strip():
            raise ManifestError(f"{where}: 'id' or 'caption' is empty")
        ids = _ids(inside(str(identity).strip(), where))
        # AudioSet ids are written "Y<YouTube id>.wav"
        video = tuple(form[1:] for form in ids[-1:] if form.startswith("Y") and len(form) == 12)
        yield CaptionedClip((ids[-1],), (caption.strip(),), "", None, (*ids, *video), where)


_READ: dict[str, Callable[[Path], Iterator[CaptionedClip]]] = {
    "csv": _ours,
    "clotho": _clotho,
    "audiocaps": _audiocaps,
    "wavcaps": _wavcaps,
}


def guess_format(path: Path) -> str:
    """Tell the format from the suffix and the header; raises `ManifestError` when nothing fits."""
    if path.suffix.lower() == ".json":
        return "wavcaps"
    header = _header(path)
    for name, columns in (
        ("csv", ("file", "caption")),
        ("clotho", ("file_name", "caption_1")),
        ("audiocaps", ("youtube_id", "caption")),
    ):
        if all(column in header for column in columns):
            return name
    raise ManifestError(
        f"{path}:1: needs the columns file,caption (or those of Clotho or AudioCaps); "
        f"the header is: {','.join(header)}"
    )


def read_captions(paths: Path | str | Sequence[Path | str], kind: str = "auto") -> list[CaptionedClip]:
    """Read one or more lists of clips, in the order of first appearance.

    Rows of the same file are one clip with several sentences (equal ones once). Every clip comes
    with its event. Raises `ManifestError` with `FILE:LINE`: missing columns or fields, a name that
    leaves the folder, one file in two events or two splits, a sentence that belongs to two events,
    a `split` column that is filled on some rows only, no clip at all.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if kind not in FORMATS:
        raise ManifestError(f"no list of captions is called '{kind}'{near(kind, list(FORMATS))}")
    clips: dict[str, CaptionedClip] = {}  # AudioCaps has one row (and one number) for each sentence
    for path in files:
        reader = _READ[guess_format(path) if kind == "auto" else kind]
        for row in reader(path):
            known = clips.get(row.names[0])
            clips[row.names[0]] = row if known is None else _joined(known, row)
    if not clips:
        raise ManifestError(f"{', '.join(map(str, files))}: no captions in it")
    found = list(clips.values())
    for what, fills in (
        ("split", [c.split is None for c in found]),
        ("event", [c.event == "" for c in found]),
    ):
        if any(fills) and not all(fills):
            empty = found[fills.index(True)]
            raise ManifestError(
                f"{empty.where}: '{what}' is empty here and filled on other rows; fill all or none"
            )
    return with_events(found)


def _joined(known: CaptionedClip, row: CaptionedClip) -> CaptionedClip:
    for what in ("event", "split"):
        before, now = getattr(known, what), getattr(row, what)
        if before != now:
            raise ManifestError(
                f"{row.where}: {row.names[0]} has the {what} '{now or ''}' here and '{before or ''}' "
                f"at {known.where}"
            )
    fresh = [text for text in row.captions if text not in known.captions]
    return replace(known, captions=(*known.captions, *fresh))


def with_events(clips: Iterable[CaptionedClip]) -> list[CaptionedClip]:
    """Name the event of every clip: the given name, or for clips that share a sentence one name.

    A named event keeps its sentences to itself: the same sentence in two events is an error.
    """
    found = list(clips)
    owner: dict[str, int] = {}  # sentence → first clip that has it
    parent = list(range(len(found)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for index, clip in enumerate(found):
        for caption in clip.captions:
            other = owner.setdefault(same_sentence(caption), index)
            if clip.event and found[other].event != clip.event:
                raise ManifestError(
                    f"{clip.where}: the caption '{caption}' of event '{clip.event}' also belongs to event "
                    f"'{found[other].event}' ({found[other].where})"
                )
            first, second = sorted((root(index), root(other)))
            parent[second] = first
    named = (clip.event or found[root(index)].captions[0] for index, clip in enumerate(found))
    return [replace(clip, event=event) for clip, event in zip(found, named, strict=True)]


def read_ids(path: Path | str) -> set[str]:
    """Ids to leave out: the column `sound_id`, `id`, `youtube_id` or `file`, else the first of each line."""
    source = Path(path)
    try:
        with open(source, encoding="utf-8-sig", newline="") as stream:
            rows = [[field.strip() for field in row] for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{source}: cannot read the ids to exclude ({error})") from None
    column, first = 0, 0
    for name in ("sound_id", "id", "youtube_id", "file"):
        if rows and name in rows[0]:
            column, first = rows[0].index(name), 1
            break
    return {row[column] for row in rows[first:] if len(row) > column and row[column]}


def exclude(clips: Sequence[CaptionedClip], ids: Iterable[str]) -> list[CaptionedClip]:
    """Drop the clips one of whose ids (file name, stem, YouTube or Freesound id) is in `ids`."""
    banned = set(ids)
    return [clip for clip in clips if banned.isdisjoint(clip.ids)]

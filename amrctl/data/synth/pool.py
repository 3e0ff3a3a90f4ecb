"""The material of a synthesis: event clips and backgrounds, found, checked and divided into splits."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amrctl.data.captions import CaptionedClip, exclude, read_captions, read_ids
from amrctl.data.soundbank import KINDS, REVISION, clip_name, render
from amrctl.data.soundbank_captions import CAPTIONS
from amrctl.data.splits import divide, shares
from amrctl.data.synth.settings import BUILTIN, SynthSettings, captions_of
from amrctl.data.synth.trim import fit
from amrctl.errors import AmrctlError, AudioError, ManifestError
from amrctl.progress import SILENT, Reporter

SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")
Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clip:
    """One event clip: its file and name in the folder, or its kind (`event`) and number in the sound bank."""

    path: Path | None
    file: str
    event: str
    captions: tuple[str, ...]
    split: str | None = None
    number: int = 0


@dataclass(frozen=True)
class SplitPool:
    """What the recordings of one split may use; no clip is in two splits.

    `events`: event → indices into `clips`, in order of first appearance. `backgrounds`: groups of
    files (a sub-folder is one group: one place, several channels or takes); () = generated noise.
    """

    clips: tuple[Clip, ...]
    events: dict[str, tuple[int, ...]]
    backgrounds: tuple[tuple[Path, ...], ...]


def _sounds(folder: Path) -> list[Path]:
    return sorted(
        Path(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )


def _located(folder: Path, listed: Sequence[CaptionedClip], skip_bad: bool, report: Reporter) -> list[Clip]:
    """Find the sound file of every listed clip."""
    by_stem: dict[str, Path] | None = None
    found: list[Clip] = []
    missing: list[CaptionedClip] = []
    taken: dict[Path, str] = {}
    for clip in listed:
        path: Path | None = next((folder / n for n in clip.names if (folder / n).is_file()), None)
        if path is None and Path(clip.names[0]).suffix.lower() not in SUFFIXES:
            if by_stem is None:
                by_stem = {}
                for sound in _sounds(folder):
                    by_stem.setdefault(sound.stem, sound)
            path = next((by_stem[name] for name in clip.names if name in by_stem), None)
        if path is None:
            missing.append(clip)
            continue
        if path in taken:
            raise ManifestError(f"{clip.where}: the file {path} is also the clip of {taken[path]}; keep one")
        taken[path] = clip.where
        file = path.relative_to(folder).as_posix()
        found.append(Clip(path, file, clip.event, clip.captions, clip.split))
    if missing and not skip_bad:
        more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
        raise ManifestError(
            f"{missing[0].where}: no sound file '{missing[0].names[0]}' in {folder}{more}; "
            "--skip-bad goes on without"
        )
    if missing:
        report.note(f"{len(missing)} of {len(listed)} listed clips have no sound file and are left out")
    if not found:
        raise ManifestError(f"{folder}: none of the {len(listed)} listed clips is there")
    return found


def _check_headers(paths: Sequence[Path], report: Reporter) -> None:
    from amrctl.data.audio import probe

    with report.bar("look at sounds", len(paths), unit="files") as bar:
        for path in paths:
            if probe(path)[2] < 1:
                raise AudioError(f"{path}: the sound file is empty")
            bar.advance()


def _readable(clips: Sequence[Clip], report: Reporter) -> list[Clip]:
    """The clips whose header can be read; says how many are left out."""
    found = []
    for clip in clips:
        try:
            _check_headers([clip.path] if clip.path else [], SILENT)
            found.append(clip)
        except AudioError as error:
            report.detail(str(error))
    if len(found) < len(clips):
        report.note(
            f"{len(clips) - len(found)} of {len(clips)} clips are unreadable or empty and are left out"
        )
    if not found:
        raise ManifestError(f"none of the {len(clips)} clips can be read")
    return found


def _background_groups(
    folder: Path, splits: Mapping[str, float], seed: int, report: Reporter
) -> dict[str, list[list[Path]]]:
    """Background files by split: the splits' own sub-folders, else groups divided at random."""
    if not folder.is_dir():
        raise AudioError(
            f"{folder} is not a folder; --backgrounds names the folder with background recordings"
        )
    names = list(splits)
    own = {name: folder / name for name in names if name and (folder / name).is_dir()}
    if own and len(own) < len(names):
        lack = next(name for name in names if name not in own)
        raise AudioError(f"{folder} has a folder '{next(iter(own))}' but none for the split '{lack}'")

    def groups(root: Path) -> list[list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in _sounds(root):
            found.setdefault(path.relative_to(root).parts[0], []).append(path)
        if not found:
            raise AudioError(f"{root}: no background recordings ({', '.join(SUFFIXES)})")
        return list(found.values())

    if own:
        return {name: groups(root) for name, root in own.items()}
    every = groups(folder)
    if len(every) < len(names):
        report.note(f"{len(every)} backgrounds are too few for {len(names)} splits: all splits share them")
    if len(every) < len(names) or len(names) == 1:
        return dict.fromkeys(names, every)
    order = np.random.default_rng([seed, 7_002]).permutation(len(every))
    # one each, the others by the splits' fractions
    sizes = shares(len(every) - len(names), splits)
    divided, first = {}, 0
    for name in names:
        last = first + 1 + sizes[name]
        divided[name] = [every[i] for i in sorted(order[first:last])]
        first = last
    return divided


def _listed(settings: SynthSettings, report: Reporter) -> list[CaptionedClip]:
    listed = read_captions(captions_of(settings), settings.captions_format)
    if settings.exclude:
        ids: set[str] = set().union(*(read_ids(path) for path in settings.exclude))
        kept = exclude(listed, ids)
        report.note(f"--exclude: {len(listed) - len(kept)} of {len(listed)} clips left out ({len(ids)} ids)")
        listed = kept
        if not listed:
            raise ManifestError(f"{', '.join(settings.exclude)}: excludes every clip")
    for clip in listed:
        if clip.split is not None and not settings.splits:
            raise ManifestError(
                f"{clip.where}: has the split '{clip.split}'; --splits NAME=FRACTION,... says how many "
                "recordings each split gets"
            )
        if clip.split is not None and clip.split not in settings.splits:
            raise ManifestError(
                f"{clip.where}: the split '{clip.split}' is not in --splits {','.join(settings.splits)}"
            )
    return listed


def load_pools(settings: SynthSettings, report: Reporter = SILENT) -> dict[str, SplitPool]:
    """Read, check and divide clips and backgrounds.

    Clips go to the split that their list fixes, else they are divided by `divide`. Raises
    `ManifestError` (captions; missing files), `AudioError` (unreadable or empty sounds) and
    `AmrctlError` when a split has fewer different events than its recordings may need.
    """
    if settings.events == BUILTIN:
        names = [(kind, number) for kind in KINDS for number in range(settings.clips_per_kind)]
        clips = [Clip(None, clip_name(kind, n), kind, CAPTIONS[kind], None, n) for kind, n in names]
    else:
        events = Path(settings.events)
        if not events.is_dir():
            raise AudioError(
                f"{events} is not a folder; --events names the folder with event clips, or '{BUILTIN}'"
            )
        listed = _listed(settings, report)
        clips = _located(events, listed, settings.skip_bad, report)
        clips = _readable(clips, report) if settings.skip_bad else clips
    splits = dict(settings.splits) or {"": 1.0}
    if clips[0].split is not None:
        split_of = {clip.file: str(clip.split) for clip in clips}
    else:
        split_of = divide([(clip.event, clip.file) for clip in clips], splits, settings.seed)
    grounds: dict[str, list[list[Path]]] = {name: [] for name in splits}
    if settings.backgrounds is not None:
        grounds = _background_groups(Path(settings.backgrounds), splits, settings.seed, report)
    files = [path for groups in grounds.values() for group in groups for path in group]
    _check_headers([*(clip.path for clip in clips if clip.path), *dict.fromkeys(files)], report)
    return {
        name: pool_of(name, [c for c in clips if split_of[c.file] == name], grounds[name], settings)
        for name in splits
    }


def pool_of(
    name: str, clips: Sequence[Clip], backgrounds: Sequence[Sequence[Path]], settings: SynthSettings
) -> SplitPool:
    """The pool of one split; raises `AmrctlError` when it has too few different events."""
    events: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        events.setdefault(clip.event, []).append(index)
    needed = settings.events_per_recording[1] if settings.placement == "random" else 1
    if len(events) < needed:
        there = f"split '{name}' has" if name else "there are"
        raise AmrctlError(
            f"a recording needs up to {needed} different events and {there} {len(events)}; "
            "add clips or lower --events-per-recording"
        )
    return SplitPool(
        tuple(clips),
        {event: tuple(members) for event, members in events.items()},
        tuple(tuple(group) for group in backgrounds),
    )


def fingerprint(settings: SynthSettings, pools: Mapping[str, SplitPool]) -> str:
    """Hex SHA-256 of all choices and all material: names, captions, sizes, first and last 64 KiB."""
    digest = hashlib.sha256(repr((REVISION, sorted(settings.to_json().items()))).encode())

    def stamp(path: Path) -> None:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            head = stream.read(1 << 16)
            stream.seek(max(0, size - (1 << 16)))
            for part in (str(size).encode(), head, stream.read(1 << 16)):
                digest.update(hashlib.sha256(part).digest())

    for name, pool in pools.items():
        digest.update(repr((name, [(c.file, c.event, c.captions) for c in pool.clips])).encode())
        for clip in pool.clips:
            if clip.path is not None:
                stamp(clip.path)
        for group in pool.backgrounds:
            for path in group:
                digest.update(path.name.encode())
                stamp(path)
    return digest.hexdigest()


class Shelf:
    """Event clips ready to mix: trimmed, cut or repeated, the last `bytes_kept` of them kept."""

    def __init__(self, settings: SynthSettings, bytes_kept: int = 256 << 20) -> None:
        self._settings, self._limit, self._held = settings, bytes_kept, 0
        self._sounds: OrderedDict[str, Samples] = OrderedDict()
        self._seconds: dict[str, float] = {}

    def samples(self, clip: Clip) -> Samples:
        """The clip as it is mixed, float32 at the settings' rate. Raises `AudioError` (also for silence)."""
        if clip.file in self._sounds:
            self._sounds.move_to_end(clip.file)
            return self._sounds[clip.file]
        sound = fit(self._read(clip), self._settings)
        if len(sound) == 0:
            raise AudioError(f"{clip.path}: holds only silence; leave the clip out of the captions")
        self._sounds[clip.file] = sound
        self._held += sound.nbytes
        while self._held > self._limit and len(self._sounds) > 1:
            self._held -= self._sounds.popitem(last=False)[1].nbytes
        return sound

    def _read(self, clip: Clip) -> Samples:
        if clip.path is None:
            return render(clip.event, [self._settings.seed, clip.number], rate=self._settings.rate)
        from amrctl.data.audio import load_mono

        return load_mono(clip.path, self._settings.rate)

    def seconds(self, clip: Clip) -> float:
        """Length of the clip as it is mixed; with `skip_bad`, 0 for one that cannot be used."""
        if clip.file not in self._seconds:
            try:
                self._seconds[clip.file] = len(self.samples(clip)) / self._settings.rate
            except AudioError:
                if not self._settings.skip_bad:
                    raise
                self._seconds[clip.file] = 0.0
        return self._seconds[clip.file]

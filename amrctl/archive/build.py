"""A folder of recordings → an archive, or an archive brought up to date.

What is known of a file by its name, size and time is not read again; a file that is new, renamed or
touched is known by its content. Every recording is heard by itself, so its rows depend on nothing else,
and an archive that was brought up to date equals one built anew. What is done is stored at once, under
the recording's content and in a journal, so that the same call after a kill does only what is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from amrctl import provenance
from amrctl.archive import nearest, store
from amrctl.archive.ears import find_text, space_of
from amrctl.archive.folder import SoundFile, compare, listing
from amrctl.archive.listening import Desk, Job, Outcome, Setting, prepare
from amrctl.archive.request import Indexed, IndexRequest, Wanted
from amrctl.archive.shards import Shards, remove
from amrctl.archive.store import Archive, Ear, FeatureStream, Graph, Recording, Unreadable, Vectors
from amrctl.data.extract_jobs import made_from
from amrctl.data.feature_writer import DTYPES
from amrctl.data.workers import spread
from amrctl.errors import ArchiveError, AudioError, CheckpointError, FeatureError, OutputError
from amrctl.progress import SILENT, Reporter

JOURNAL, SETTINGS = "journal.jsonl", "settings.json"


def index(request: IndexRequest, report: Reporter = SILENT) -> Indexed:
    """Make the archive `request.out` of the recordings below `request.folder`, or bring it up to date.

    Files that cannot be heard are listed in the archive and do not stop the rest. Raises `AmrctlError`
    kinds: no readable recording, encoders that cannot be had or share no space with sentences, an
    archive that was made in another way (unless `overwrite`), something else at `out`.
    """
    out = request.out
    before = _there(out, request.overwrite)
    files, faults = listing(request.folder)
    setting = _setting(request, before)
    if before is not None:
        _same_way(out, before, setting)
    try:
        desk = prepare(setting, Shards(out / "part"), out / "features")
    except (CheckpointError, FeatureError) as error:
        told = (request.audio_encoder, request.window, request.hop)
        if before is not None and not any(value is not None for value in told):
            raise ArchiveError(
                f"{out} was made with {setting.spec}: {error}; if its weights lie elsewhere, name it with "
                f"--audio-encoder, as {setting.spec.partition(':')[0]}:WEIGHTS"
            ) from None
        raise
    _refuse_other_streams(out, before, desk.streams)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from None
    held = provenance.claim(out / "lock", f"another indexing is writing {out}; wait for it or stop it")
    try:
        work = _Work(request, setting, before, desk, report)
        return work.run(files, faults)
    finally:
        if held is not None:
            os.close(held)


def _there(out: Path, overwrite: bool) -> Archive | None:
    """The archive at `out`, if there is one that is to be brought up to date."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; --out names the folder of the archive")
    if not (out / store.INDEX).exists():
        if out.is_dir() and not (out / "part").is_dir() and any(out.iterdir()):
            raise OutputError(f"{out} is a folder with other things in it; choose another --out")
        return None
    return None if overwrite else store.read(out)


def _setting(request: IndexRequest, before: Archive | None) -> Setting:
    """What decides the numbers: as asked for, else as before, else the defaults."""
    ear = before.encoder if before else None
    spec = request.audio_encoder or (ear.spec if ear else None)
    if spec is None:
        raise FeatureError("--audio-encoder is missing: what the archive's vectors are made with")
    precision = request.precision or (ear.made_from.get("precision") if ear else None)
    options = {"device": request.device, "precision": precision, "batch": request.batch}
    window = ear.window if request.window is None and ear else request.window
    hop = ear.hop if request.hop is None and ear else request.hop
    dtype = request.dtype or (before.dtype if before else DTYPES[0])
    if dtype not in DTYPES:
        raise FeatureError(f"--dtype {dtype}: write {' or '.join(DTYPES)}")
    kept = before.features if before else ()
    wanted = [Wanted(s.name, s.spec, s.dtype, s.window, s.hop, s.precision, s.key) for s in kept]
    return Setting(
        spec=spec,
        window=window,
        hop=hop,
        dtype=dtype,
        options=options,
        wanted=tuple(dict.fromkeys([*wanted, *request.features])),
    )


def _same_way(out: Path, before: Archive, setting: Setting) -> None:
    """Refuse what shows before anything is loaded; the rest shows when the encoder is there."""
    if before.dtype != setting.dtype:
        raise OutputError(
            f"{out} holds {before.dtype} vectors, not {setting.dtype}; choose another --out or replace it "
            "with --overwrite"
        )


def _refuse_other_streams(out: Path, before: Archive | None, streams: Sequence[FeatureStream]) -> None:
    """A stream that the archive keeps must still be made as it was."""
    keys = {stream.key for stream in streams}
    for stream in before.features if before else ():
        if stream.key not in keys:
            raise OutputError(
                f"{out} keeps features of '{stream.name}' that {stream.spec} does not make any more (other "
                "weights or version); make the archive again with --overwrite"
            )


class _Work:
    """One indexing, from the list of files to the new `index.json`."""

    def __init__(
        self, request: IndexRequest, setting: Setting, before: Archive | None, desk: Desk, report: Reporter
    ) -> None:
        self.request, self.setting, self.before = request, setting, before
        self.desk, self.report = desk, report
        self.out, self.part = request.out, request.out / "part"
        self.ear = self._ear()
        self.made = {"encoder": self.ear.made_from, "dtype": setting.dtype}
        self.old: dict[str, Recording] = {r.path: r for r in before.recordings} if before else {}
        self.known = {r.sha256: r.windows for r in self.old.values()}
        self.journal = self._open_part()

    def _ear(self) -> Ear:
        """The encoder as the index names it; refuses another than that of the archive."""
        encoder, before = self.desk.encoder, self.before
        told = made_from(encoder)
        if before is not None and before.encoder.made_from != told:
            faults = "; ".join(store.differences(before.encoder.made_from, told))
            raise OutputError(
                f"{self.out} was made in another way ({faults}); vectors of two kinds cannot be mixed: "
                "choose another --out, or replace it with --overwrite"
            )
        text = self.request.text_encoder
        if before is None or text is not None:
            text = find_text(encoder, self.setting.spec, text, self.setting.options)
        else:
            text = before.encoder.text
        return Ear(
            spec=self.setting.spec,
            text=text,
            space=str(space_of(encoder)),
            dim=encoder.dim,
            window=encoder.window,
            hop=encoder.hop,
            made_from=told,
        )

    def _open_part(self) -> dict[str, Recording]:
        """What an interrupted indexing has done, by name."""
        told, journal = self.part / SETTINGS, self.part / JOURNAL
        if told.exists():
            try:
                before = json.loads(told.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                before = None
            if before == json.loads(json.dumps(self.made)):
                return _read_journal(journal)
            if not self.request.overwrite:
                raise OutputError(
                    f"{self.part} holds an interrupted indexing with another encoder; repeat that one, or "
                    "start anew with --overwrite"
                )
        remove(self.part)
        try:
            self.part.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"cannot write {self.part}: {error.strerror}") from None
        provenance.write_json(told, self.made)
        return {}

    def run(self, files: Sequence[SoundFile], faults: Sequence[Unreadable]) -> Indexed:
        """Hear what is missing, then make the new archive what the folder holds."""
        entries: dict[str, Recording] = {}
        jobs: list[Job] = []
        for file in files:
            had = (self.old.get(file.name), self.journal.get(file.name))
            entry = next((e for e in had if e is not None and file.same(e)), None)
            if entry is None or self.desk.lacks(entry.sha256, self.known):
                jobs.append(Job(file))
            else:
                entries[file.name] = entry
        unreadable = list(faults)
        heard = 0.0
        title = ", ".join([self.desk.encoder.name, *(stream.name for stream in self.desk.streams)])
        with (
            open(self.part / JOURNAL, "a", encoding="utf-8") as journal,
            self.report.bar(title, len(files), unit="recordings", done=len(entries)) as bar,
        ):
            for answer in self._answers(jobs):
                if isinstance(answer.entry, Unreadable):
                    unreadable.append(answer.entry)
                else:
                    entries[answer.entry.path] = answer.entry
                    heard += answer.heard
                    journal.write(answer.entry.model_dump_json() + "\n")
                    journal.flush()
                bar.advance(note=answer.entry.path)
        if not entries:
            first = min(unreadable, key=lambda fault: fault.path).why if unreadable else "there is none"
            raise AudioError(f"{self.request.folder} holds no sound file that can be read ({first})")
        recordings = tuple(entries[name] for name in sorted(entries))
        archive = self._archive(recordings, sorted(unreadable, key=lambda fault: fault.path))
        fresh = archive != self.before
        if fresh:
            store.write(self.out, archive)
        self._tidy(archive)
        changes = compare(self.old.values(), recordings)
        return Indexed(self.out, archive, **vars(changes), heard=heard, fresh=fresh)

    def _answers(self, jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        """What is found of each recording, as they are done, in this process or in others."""
        workers = min(self.request.workers, len(jobs))
        if workers <= 1:
            for job in jobs:
                yield self.desk.work(job, self.known)
            return
        threads = max(1, _cores() // workers)
        begin = partial(_begin, self.setting, self.desk.windows, self.desk.folder, self.known, threads)
        yield from spread(begin, jobs, workers)

    def _archive(self, recordings: tuple[Recording, ...], unreadable: Sequence[Unreadable]) -> Archive:
        """Write the vectors and the graph that `recordings` need; what the index will say."""
        request, before = self.request, self.before
        least = request.nearest_from
        if least is None:
            least = before.nearest_from if before else nearest.NEAREST_FROM
        name = store.identity([self.made, [[r.sha256, r.windows] for r in recordings]])
        archive = Archive(
            format=store.FORMAT,
            version=store.VERSION,
            folder=store.relative(request.folder, self.out),
            encoder=self.ear,
            dtype="float32" if self.setting.dtype == "float32" else "float16",
            vectors=f"vectors-{name}.npy",
            nearest_from=least,
            nearest=None,
            features=tuple(sorted(self.desk.streams, key=lambda stream: stream.key)),
            recordings=recordings,
            unreadable=tuple(unreadable),
        )
        if request.overwrite or not (self.out / archive.vectors).is_file():
            self._pack(archive)
        return archive.model_copy(update={"nearest": self._graph(archive, name)})

    def _pack(self, archive: Archive) -> None:
        """Write the vectors of all recordings, one at a time."""
        old = self.before
        rows: Vectors | None = store.open_vectors(self.out, old) if old else None
        first = dict(zip((r.path for r in old.recordings), old.offsets(), strict=False)) if old else {}
        places = {r.sha256: int(first[r.path]) for r in self.old.values()}
        header: Any = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(archive.dtype)),
            "fortran_order": False,
            "shape": (archive.windows, archive.encoder.dim),
        }
        try:
            # written as a stream: a map of a file on a full disk would end the process
            with provenance.writing(self.out / archive.vectors) as temporary, open(temporary, "wb") as out:
                np.lib.format.write_array_header_1_0(out, header)
                for recording in archive.recordings:
                    at = places.get(recording.sha256)
                    if at is not None and rows is not None:
                        piece = rows[at : at + recording.windows]
                    else:
                        piece = self.desk.windows.get(recording.sha256)
                    if piece.shape != (recording.windows, archive.encoder.dim):
                        raise ArchiveError(f"{self.part} is damaged; remove it and run the command again")
                    out.write(np.ascontiguousarray(piece, archive.dtype).tobytes())
        except OSError as error:
            raise OutputError(f"cannot write {self.out / archive.vectors}: {error.strerror}") from None

    def _graph(self, archive: Archive, name: str) -> Graph | None:
        """The graph over the vectors, where they are many; built when it is not there."""
        if archive.windows < archive.nearest_from:
            return None
        if not nearest.available():
            self.report.note(
                f"{archive.windows:,} windows and no faiss here: every search will look at all of them "
                "(pip install 'amrctl[index]', then run the same command again)"
            )
            return None
        settings = [name, nearest.LINKS, nearest.BREADTH]
        target = self.out / f"nearest-{store.identity(settings)}.faiss"
        there = Graph(file=target.name, links=nearest.LINKS, breadth=nearest.BREADTH)
        if target.is_file() and not self.request.overwrite:
            return there
        return nearest.build(store.open_vectors(self.out, archive), target, self.report)

    def _tidy(self, archive: Archive) -> None:
        """Remove what the index does not name any more."""
        named = {archive.vectors, *([archive.nearest.file] if archive.nearest else [])}
        for path in self.out.iterdir():
            if path.name.startswith(("vectors-", "nearest-")) and path.name not in named:
                remove(path)
        contents = {recording.sha256 for recording in archive.recordings}
        keys = {stream.key for stream in archive.features}
        folder = self.desk.folder
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.name in keys:
                Shards(path).keep(contents)
            else:
                remove(path)
        remove(self.part)


def _read_journal(path: Path) -> dict[str, Recording]:
    """Entries of a journal by name; what a kill left of its last line is passed over."""
    found: dict[str, Recording] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = Recording.model_validate_json(line)
            except ValueError:
                continue
            found[entry.path] = entry
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(setting: Setting, windows: Shards, folder: Path, known: Mapping[str, int], threads: int) -> Any:
    """In a worker: its own encoders, and its share of the cores."""
    import torch

    torch.set_num_threads(threads)
    desk = prepare(setting, windows, folder)
    return partial(desk.work, known=known)


__all__ = ["IndexRequest", "Indexed", "Wanted", "index"]

"""The whole synthesis: material → plans → FLAC files by several processes → manifests, written last.

A folder that synthesis wrote holds `synth.json` (settings and fingerprint), `audio/<vid>.flac`,
`recordings.jsonl` (what was mixed, and each file's SHA-256) and the manifests. While it runs, the
finished recordings are listed in `.journal.jsonl`; a later run with the same fingerprint keeps them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from amrctl.data.manifest import Query, write_manifest
from amrctl.data.synth.mix import render
from amrctl.data.synth.plan import Planner, RecordingPlan, background_windows, event_counts
from amrctl.data.synth.pool import Shelf, SplitPool, fingerprint, load_pools
from amrctl.data.synth.settings import SynthSettings
from amrctl.data.workers import spread
from amrctl.errors import OutputError
from amrctl.progress import SILENT, Reporter
from amrctl.provenance import sha256, write_json, write_text, writing

_STATE, _JOURNAL, _LOG = "synth.json", ".journal.jsonl", "recordings.jsonl"


@dataclass(frozen=True)
class SynthResult:
    """What a synthesis left in its folder.

    `manifests`: split → file ("" without splits). `recordings`, `queries`: split → number.
    `made`: recordings mixed by this call. `empty`: recordings without an event (no query line).
    """

    folder: Path
    audio: Path
    manifests: dict[str, Path]
    recordings: dict[str, int]
    queries: dict[str, int]
    made: int
    empty: int

    @property
    def finished_before(self) -> bool:
        """True when there was nothing left to do."""
        return self.made == 0


def make_planner(settings: SynthSettings, pools: Mapping[str, SplitPool]) -> Planner:
    """Fix what single recordings cannot decide alone: numbers of events, background windows."""
    seconds: dict[Path, float] = {}
    if settings.backgrounds is not None:
        from amrctl.data.audio import probe

        for pool in pools.values():
            for path in (path for group in pool.backgrounds for path in group):
                if path not in seconds:
                    rate, _, frames = probe(path)
                    seconds[path] = frames / rate
    wanted = settings.query_counts()
    counts = {n: event_counts(settings, n, size, wanted[n]) for n, size in settings.counts().items()}
    windows = {}
    if settings.placement == "exponential" and settings.backgrounds is not None:
        for name, size in settings.counts().items():
            windows[name] = background_windows(pools[name], seconds.__getitem__, settings, name, size)
    return Planner(settings, dict(pools), counts, windows, seconds)


def _entry(plan: RecordingPlan, settings: SynthSettings, scale: float) -> dict[str, Any]:
    """One line of `recordings.jsonl`."""
    name = "snr_dB" if settings.levels == "snr" else "fg_dB"
    ground: dict[str, Any] = {"noise": plan.colour}
    if plan.background is not None and settings.backgrounds is not None:
        file = plan.background.relative_to(settings.backgrounds).as_posix()
        ground = {"file": file, "start": round(plan.background_start, 3)}
    if plan.background_level is not None:
        ground["level_dB" if settings.levels == "snr" else "bg_dB"] = round(plan.background_level, 4)
    return {
        "vid": plan.vid,
        "split": plan.split,
        "index": plan.index,
        "duration": plan.duration,
        "background": ground,
        "scale": round(scale, 6),
        "events": [
            {
                "file": p.clip.file,
                "event": p.clip.event,
                "start": p.start,
                "end": p.end,
                name: round(p.level, 4),
            }
            for p in plan.events
        ],
        "queries": [
            {"event": q.event, "query": q.sentence, "windows": [list(window) for window in q.windows]}
            for q in plan.queries
        ],
    }


class _Maker:
    """Makes recordings; one in every process."""

    def __init__(self, planner: Planner, audio: Path) -> None:
        self.planner, self.audio = planner, audio
        self.shelf = Shelf(planner.settings)

    def __call__(self, job: tuple[str, int]) -> dict[str, Any]:
        """Make recording `index` of `split`, write its file, return its line of `recordings.jsonl`."""
        import soundfile

        split, index = job
        plan = self.planner.plan(split, index, self.shelf.seconds)
        mixed = render(plan, self.planner, self.shelf)
        target = self.audio / f"{plan.vid}.flac"
        with writing(target) as temporary:
            soundfile.write(temporary, mixed.mix, self.planner.settings.rate, format="FLAC", subtype="PCM_16")
        entry = _entry(plan, self.planner.settings, mixed.scale)
        return {**entry, "bytes": target.stat().st_size, "sha256": sha256(target)}


def _run(
    planner: Planner, audio: Path, jobs: list[tuple[str, int]], workers: int
) -> Generator[dict[str, Any], None, None]:
    """Make all `jobs`; entries come in the order in which they are done."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        maker = _Maker(planner, audio)
        return (maker(job) for job in jobs)
    return spread(partial(_Maker, planner, audio), jobs, workers)


def _versions() -> dict[str, str]:
    """Versions of what decides the samples (not the time or the command: equal inputs, equal bytes)."""
    return {name: metadata.version(name) for name in ("amrctl", "numpy", "scipy", "soundfile", "soxr")}


def _state(folder: Path) -> dict[str, Any] | None:
    """What `synth.json` says, or None for a folder that is not there or empty."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file; --out names a folder")
    path = folder / _STATE
    if not path.is_file():
        if any(not child.name.startswith(".") for child in folder.iterdir()):
            raise OutputError(f"{folder} exists and holds no synthesis; choose another --out")
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        state = None
    if not isinstance(state, dict) or "fingerprint" not in state:
        raise OutputError(f"{path} is not readable as written by synth; choose another --out")
    return state


def _clear(folder: Path, state: Mapping[str, Any]) -> None:
    """Remove what the synthesis described by `state` wrote, manifests first; nothing else."""
    settings = state.get("settings")
    splits = settings.get("splits") if isinstance(settings, dict) else None
    for name in splits if isinstance(splits, dict) and splits else {"manifest": 1.0}:
        (folder / f"{Path(name).name}.jsonl").unlink(missing_ok=True)
    for name in (_LOG, _JOURNAL, _STATE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "audio", ignore_errors=True)


def _entries(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(split, index) → entry of every finished recording whose file is there in full length.

    A last line that a kill cut short is no entry.
    """
    source = folder / _JOURNAL
    if not source.exists():
        source = folder / _LOG
    found: dict[tuple[str, int], dict[str, Any]] = {}
    if not source.exists():
        return found
    for line in source.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            path = folder / "audio" / f"{Path(entry['vid']).name}.flac"
            if path.stat().st_size == entry["bytes"]:
                found[entry["split"], entry["index"]] = entry
        except (json.JSONDecodeError, KeyError, TypeError, OSError):
            continue
    return found


def _lines(entries: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _queries(entry: Mapping[str, Any]) -> list[Query]:
    """The manifest lines of one recording: qid `<vid>_<n>`, n from 1."""
    gains = {event["event"]: {"fg_dB": event["fg_dB"]} for event in entry["events"] if "fg_dB" in event}
    return [
        Query(
            qid=f"{entry['vid']}_{number}",
            query=asked["query"],
            vid=entry["vid"],
            duration=entry["duration"],
            windows=tuple((float(start), float(end)) for start, end in asked["windows"]),
            extra=gains.get(asked["event"], {}),
        )
        for number, asked in enumerate(entry["queries"], start=1)
    ]


def manifest_paths(settings: SynthSettings, folder: Path | str) -> dict[str, Path]:
    """Split → manifest file; without splits "" → `manifest.jsonl`."""
    return {name: Path(folder) / f"{name or 'manifest'}.jsonl" for name in settings.counts()}


def synthesise(
    settings: SynthSettings,
    out: Path | str,
    *,
    workers: int = 1,
    overwrite: bool = False,
    report: Reporter = SILENT,
) -> SynthResult:
    """Make the recordings and manifests of `settings` in the folder `out`.

    Same settings and material: an unfinished folder is continued, a finished one is left alone;
    the bytes do not depend on `workers` or on interruptions. Raises `OutputError` when `out` holds
    something else (with `overwrite`, an older synthesis is replaced, any other folder never), and
    other `AmrctlError`s for settings, captions and sounds that cannot be used.

    With more than one worker, a script must call this below `if __name__ == "__main__":`.
    """
    settings.check()
    folder = Path(out)
    state = _state(folder)
    pools = load_pools(settings, report)
    mark = fingerprint(settings, pools)
    other = state is not None and state["fingerprint"] != mark
    if other and not overwrite and _entries(folder):
        raise OutputError(
            f"{folder} holds a synthesis with other settings or sounds; "
            "choose another --out or add --overwrite"
        )
    planner = make_planner(settings, pools)
    if state is not None and (overwrite or other):  # other settings that made nothing yet may be replaced
        _clear(folder, state)
    if state is None or overwrite or other:
        write_json(
            folder / _STATE, {"fingerprint": mark, "settings": settings.to_json(), "versions": _versions()}
        )
    entries = _entries(folder)
    jobs = [(name, index) for name, size in settings.counts().items() for index in range(size)]
    todo = [job for job in jobs if job not in entries]
    manifests = manifest_paths(settings, folder)
    if todo or not all(path.is_file() for path in manifests.values()):
        if entries:
            report.note(f"{folder}: {len(entries)} of {len(jobs)} recordings are there; going on")
        _make_all(planner, folder, todo, entries, len(jobs), workers, report)
        ordered = [entries[job] for job in jobs]
        write_text(folder / _LOG, _lines(ordered))
        for name, path in manifests.items():
            write_manifest(
                path, [q for e in ordered if e["split"] == name for q in _queries(e)], overwrite=True
            )
    (folder / _JOURNAL).unlink(missing_ok=True)  # also one left by a kill after the last manifest
    asked = dict.fromkeys(manifests, 0)
    for entry in entries.values():
        asked[entry["split"]] += len(entry["queries"])
    empty = sum(not entry["events"] for entry in entries.values())
    return SynthResult(folder, folder / "audio", manifests, settings.counts(), asked, len(todo), empty)


def _make_all(
    planner: Planner,
    folder: Path,
    todo: list[tuple[str, int]],
    entries: dict[tuple[str, int], dict[str, Any]],
    total: int,
    workers: int,
    report: Reporter,
) -> None:
    """Make the recordings `todo`, noting each in the journal; fills `entries`."""
    audio = folder / "audio"
    try:
        audio.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {audio}: {error.strerror}") from None
    for left in audio.glob(".*.tmp"):  # of workers that were killed
        left.unlink(missing_ok=True)
    write_text(folder / _JOURNAL, _lines(list(entries.values())))
    with (
        open(folder / _JOURNAL, "a", encoding="utf-8") as journal,
        report.bar("synthesise", total, unit="recordings", done=total - len(todo)) as bar,
        # closed at once on a fault, so that no worker goes on with what nobody waits for
        contextlib.closing(_run(planner, audio, todo, workers)) as made,
    ):
        for entry in made:
            entries[entry["split"], entry["index"]] = entry
            journal.write(_lines([entry]))
            journal.flush()
            bar.advance()

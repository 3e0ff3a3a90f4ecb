"""One training: what was asked for, its inputs in memory, and the folder it writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amrctl import provenance
from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.data.manifest import read_manifest, read_manifests
from amrctl.data.predictions import read_predictions
from amrctl.data.teacher import TeacherSet
from amrctl.errors import CheckpointError, OutputError, RecipeError, near
from amrctl.evaluation.moments import METRICS
from amrctl.model import checkpoint
from amrctl.model.checkpoint import Checkpoint
from amrctl.model.detector import Detector, build
from amrctl.model.types import MomentStatistics
from amrctl.progress import SILENT, Reporter
from amrctl.recipe import Recipe
from amrctl.run_folder import RunFolder, find_checkpoint
from amrctl.training import precision, state


@dataclass(frozen=True)
class TeacherChoice:
    """Prediction files on the training set and how they become soft targets (see `data.teacher`)."""

    files: tuple[Path, ...]
    top_k: int = 3
    rank_normalise: bool = False


@dataclass(frozen=True)
class Request:
    """What the user asked for. Several `train` manifests are joined; several `val` are validated
    one by one, and the first decides which epoch is best."""

    recipe: Recipe
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    features: Path
    init: Path | None = None
    teacher: TeacherChoice | None = None
    device: str = "auto"
    precision: str = "auto"
    clip_windows: bool = False


@dataclass(frozen=True)
class Job:
    """A request with everything read, shared by all its seeds. `rounding`: seconds that windows are
    rounded to (0: not at all). `provenance`: goes into every checkpoint, with the seed added. `verb`:
    what this training is called."""

    recipe: Recipe
    train: Moments
    val: tuple[tuple[str, Moments], ...]
    init: Checkpoint | None
    init_path: Path | None
    init_sha256: str | None
    device: torch.device
    precision: precision.Resolved
    rounding: int
    provenance: Mapping[str, Any]
    verb: str


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a second process out while this one trains here; a kill lets go.

    Raises `OutputError` when another process holds it or the folder cannot be made. Left-overs
    of a killed writer are removed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    handle = os.open(path, os.O_RDONLY)
    try:
        _lock(handle, path)
        for left in path.iterdir():
            if _left_over(left.name):
                left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def _left_over(name: str) -> bool:
    """Whether a file is what a killed writer leaves (see `provenance.writing`)."""
    return name.startswith(".") and name.endswith(".tmp")


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system: two processes in one folder are then the user's care
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another process is training in {path}; choose another --out") from None


def find_state(folder: RunFolder, fingerprint: Mapping[str, Any], overwrite: bool) -> state.State | None:
    """Where the run to go on from stands (without its tensors), None to start. Changes nothing.

    Raises `OutputError` when the folder holds another run, or something else, and `overwrite` is
    false. With `overwrite`, an unfinished run of the same making still goes on (its end is the
    same to the bit) and a finished one starts again.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise OutputError(f"{folder.path} is a file; --out needs a folder")
    if not folder.state.is_file():
        known = {path.name for path in folder.files()}
        others = [p.name for p in folder.path.glob("*") if p.name not in known and not _left_over(p.name)]
        if others and not overwrite:
            raise OutputError(
                f"{folder.path} exists and is not a run folder (it holds {others[0]}); choose another --out"
            )
        return None
    if overwrite:
        try:
            found = state.read(folder.state, tensors=False)
        except CheckpointError:
            return None
        same = not state.differences(found.fingerprint, dict(fingerprint))
        return found if same and not found.finished else None
    found = state.read(folder.state, tensors=False)
    differing = state.differences(found.fingerprint, dict(fingerprint))
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise OutputError(
            f"{folder.path} holds a different run ({'; '.join(differing[:3])}{more}); "
            "choose another --out or add --overwrite"
        )
    return found


def fingerprint(request: Request, report: Reporter = SILENT) -> dict[str, Any]:
    """What decides the bits of a run, except its seed: the resolved recipe, hashes of all inputs,
    the number format. Raises the error of the first input that is missing."""
    device = precision.pick_device(request.device)
    for metric in request.recipe.train.metrics:
        if metric not in METRICS:
            raise RecipeError(f"train.metrics: no metric is called '{metric}'{near(metric, list(METRICS))}")
    with FeatureFile(request.features):
        pass  # its own message when it is missing or something else
    for path in (*request.train, *request.val):
        read_manifest(path, clip_windows=request.clip_windows, need_windows=True)
    teacher = request.teacher
    for path in teacher.files if teacher else ():
        read_predictions(path)
    report.detail(f"hashing {request.features}")
    return {
        "recipe": request.recipe.to_dict(),
        "train": [provenance.sha256(path) for path in request.train],
        "val": [provenance.sha256(path) for path in request.val],
        "features": provenance.sha256(request.features),
        "init": provenance.sha256(find_checkpoint(request.init)) if request.init else None,
        "teacher": {
            "files": [provenance.sha256(path) for path in teacher.files],
            "top_k": teacher.top_k,
            "rank_normalise": teacher.rank_normalise,
        }
        if teacher
        else None,
        "precision": precision.resolve(request.precision, device),
    }


def load(request: Request, made_of: Mapping[str, Any], report: Reporter = SILENT) -> Job:
    """Read manifests, features, teacher and initial checkpoint, and check that they fit together.

    `made_of` is the request's `fingerprint`. Counted facts go to `report`. Raises `AmrctlError`.
    """
    recipe = request.recipe
    device = precision.pick_device(request.device)
    options: dict[str, Any] = {"clip_windows": request.clip_windows, "need_windows": True}
    manifest = read_manifests(request.train, **options)
    teacher = None
    if request.teacher:
        choice = request.teacher
        teacher = TeacherSet.from_files(
            choice.files, top_k=choice.top_k, rank_normalise=choice.rank_normalise
        )
        for name, meta in zip(teacher.names, teacher.metas, strict=True):
            if meta.get("rounding"):
                report.note(f"{name}: windows are rounded; a teacher is better made with predict --round 0")
    with FeatureFile(request.features) as features:
        train = Moments(manifest, features, recipe, training=True, teacher=teacher)
        val = tuple(
            (name, Moments(read_manifest(path, **options), features, recipe, training=False))
            for name, path in zip(_stems(request.val), request.val, strict=True)
        )
    for note in dict.fromkeys(
        (*manifest.notes, *train.notes, *(n for _, part in val for n in (*part.manifest.notes, *part.notes)))
    ):
        report.note(note)
    for path, content in zip(request.val, made_of["val"], strict=True):
        if content in made_of["train"]:
            report.note(f"{path} is a training manifest too: validation will look better than it is")
    init = None
    if request.init:
        path = find_checkpoint(request.init)
        init = checkpoint.read(path)
        checkpoint.require_dims(
            init, train.audio_dims, train.text_dims, where=str(path), features=str(request.features)
        )
        _tell_other_encoders(init, train, path, report)
        _tell_other_parts(init, recipe, train, path, report)
    return Job(
        recipe=recipe,
        train=train,
        val=val,
        init=init,
        init_path=find_checkpoint(request.init) if request.init else None,
        init_sha256=made_of["init"],
        device=device,
        precision=made_of["precision"],
        rounding=1 if manifest.whole_seconds else 0,
        provenance=_provenance(request, made_of, train, init, teacher),
        verb="distill" if teacher else recipe.stage,
    )


def assemble(job: Job, seed: int) -> Detector:
    """The detector before its first step: fresh weights drawn from `seed`, then those of `init`.

    Components that the checkpoint's recipe has not keep their fresh weights; those that start from the
    training moments (`start_from`) do so whether or not there is a checkpoint. A component with
    `freezes_rest` leaves itself as the only one that trains. Raises `CheckpointError` when the
    checkpoint does not fit the recipe, `RecipeError` when fresh weights would be frozen.
    """
    torch.manual_seed(seed)
    detector = build(job.recipe, job.train.audio_dims, job.train.text_dims, training=True)
    if job.init is not None:
        where = str(job.init_path)
        changes = checkpoint.part_changes(job.init, job.recipe, where=where)
        skip = [f"{part}." for part in (*changes.added, *changes.dropped)]
        checkpoint.load_into(detector, job.init, where=where, skip=[*skip, *_restarts(detector)])
    statistics = MomentStatistics(job.train.widths)
    for part in detector.components():
        start = getattr(part, "start_from", None)
        if start is not None:
            start(statistics)
    _freeze(detector, trained=job.init is not None)
    return detector.to(job.device)


def _restarts(detector: Detector) -> list[str]:
    """Full names of the parameters that start from the training moments."""
    return [
        f"{path}.{name}" for path, part in detector.named_modules() for name in getattr(part, "restarts", ())
    ]


def _freeze(detector: Detector, *, trained: bool) -> None:
    alone = {n: p for n, p in detector.named_modules() if getattr(p, "freezes_rest", False)}
    if alone and not trained:
        raise RecipeError(f"model.{next(iter(alone))}.freeze: the rest would stay untrained; give --init")
    if alone:
        detector.requires_grad_(False)
    for part in alone.values():
        part.requires_grad_(True)


def _tell_other_encoders(init: Checkpoint, train: Moments, path: Path, report: Reporter) -> None:
    """Equal widths hide a change of encoder, which is rarely wanted: say it."""
    for side in ("audio", "text"):
        for old, new in zip(init.features[side], train.streams[side], strict=True):
            before, now = old.get("encoder"), new.get("encoder")
            if before and now and before != now:
                report.note(f"{path} was trained on {side} features of '{before}', these are of '{now}'")


def _tell_other_parts(init: Checkpoint, recipe: Recipe, train: Moments, path: Path, report: Reporter) -> None:
    """Say which parts start fresh or anew and which are left behind. Raises `CheckpointError`."""
    changes = checkpoint.part_changes(init, recipe, where=str(path))
    ours = build(recipe, train.audio_dims, train.text_dims, training=True)
    again = [name for name in _restarts(ours) if name in init.tensors]
    if again:
        report.note(f"{', '.join(again)}: re-initialised from the training moments, not taken from {path}")
    if changes.added:
        keys = ours.state_dict()
        fresh = [part for part in changes.added if any(key.startswith(f"{part}.") for key in keys)]
        if fresh:
            report.note(f"{path} has no {', '.join(fresh)}: fresh weights there, the rest is loaded")
    if changes.dropped:
        report.note(
            f"{path} has {', '.join(changes.dropped)}, for training only, which recipe {recipe.name} "
            "lacks: left out"
        )


def _stems(paths: Sequence[Path]) -> list[str]:
    """File names without suffix; a number is added where two are alike."""
    names: list[str] = []
    for path in paths:
        name, count = path.stem, 1
        while name in names:
            count += 1
            name = f"{path.stem}-{count}"
        names.append(name)
    return names


def _provenance(
    request: Request,
    made_of: Mapping[str, Any],
    train: Moments,
    init: Checkpoint | None,
    teacher: TeacherSet | None,
) -> dict[str, Any]:
    """Where a checkpoint of this request comes from: inputs with hashes, everything it was trained on
    (its ancestors' manifests included), parents, encoders."""

    def listed(paths: Sequence[Path], hashes: Sequence[str]) -> list[dict[str, str]]:
        return [{"path": str(p), "sha256": h} for p, h in zip(paths, hashes, strict=True)]

    trained_on = listed(request.train, made_of["train"])
    inputs = {
        "train": trained_on,
        "val": listed(request.val, made_of["val"]),
        "features": listed([request.features], [made_of["features"]]),
    }
    parents: list[dict[str, str]] = []
    earlier: list[dict[str, str]] = []
    if request.init and init is not None:
        parents += listed([find_checkpoint(request.init)], [made_of["init"]])
        earlier += init.provenance.get("trained_on") or []
    if request.teacher and teacher is not None:
        inputs["teacher"] = listed(request.teacher.files, made_of["teacher"]["files"])
        parents += inputs["teacher"]
        # what a teacher has seen, its student has seen
        for meta in teacher.metas:
            for source in meta.get("checkpoints") or []:
                earlier += source.get("trained_on") or []
    seen = {entry["sha256"]: entry for entry in (*trained_on, *earlier)}
    return {
        **provenance.origin(),
        "inputs": inputs,
        "trained_on": list(seen.values()),
        "parents": parents,
        "encoders": {
            side: [stream["encoder"] for stream in train.streams[side]] for side in ("audio", "text")
        },
    }

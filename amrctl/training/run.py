"""One training: what was asked for, its inputs in memory, and the folder it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amrctl import provenance, registry
from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.data.manifest import read_manifest, read_manifests
from amrctl.data.predictions import read_predictions
from amrctl.data.teacher import TeacherSet
from amrctl.errors import RecipeError, near
from amrctl.evaluation.moments import METRICS
from amrctl.losses.total import Criterion, Loss
from amrctl.model import checkpoint
from amrctl.model.checkpoint import Checkpoint
from amrctl.model.detector import Detector, build
from amrctl.model.types import MomentStatistics
from amrctl.progress import SILENT, Reporter
from amrctl.recipe import Recipe
from amrctl.run_folder import find_checkpoint
from amrctl.training import moments, precision
from amrctl.training.task import Asked, Trainable, Validated, stems


@dataclass(frozen=True)
class TeacherChoice:
    """Prediction files on the training set and how they become soft targets (see `data.teacher`)."""

    files: tuple[Path, ...]
    top_k: int = 3
    rank_normalise: bool = False


@dataclass(frozen=True)
class Request(Asked):
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

    def fingerprint(self, report: Reporter = SILENT) -> dict[str, Any]:
        """See `fingerprint`."""
        return fingerprint(self, report)

    def load(self, made_of: Mapping[str, Any], report: Reporter = SILENT) -> Job:
        """See `load`."""
        return load(self, made_of, report)


@dataclass(frozen=True)
class Job(Trainable[Detector]):
    """A detector's training. `rounding`: seconds that windows are rounded to (0: not at all)."""

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

    @property
    def ancestry(self) -> tuple[str, ...]:
        """The initial checkpoint and its own ancestors."""
        if self.init is None or self.init_sha256 is None:
            return ()
        return (self.init_sha256, *(self.init.provenance.get("ancestry") or []))

    def build(self, seed: int) -> Detector:
        """See `assemble`."""
        return assemble(self, seed)

    def rehearse(self, seed: int) -> None:
        """Also answer one batch: a part that misses another says so when it runs."""
        network = self.build(seed).train()
        batch = next(self.train.epoch(seed, 1)).to(self.device)
        with torch.no_grad():
            output = network(batch)
            self.criterion(network)(output, batch)
            score = self.recipe.inference.score
            registry.find("score", score.kind).build(score)(output, batch)

    def criterion(self, network: Detector) -> Callable[[Any, Any], Loss]:
        """The recipe's terms and those of its components."""
        return Criterion(self.recipe, network)

    def place(self) -> bool:
        """Bring the features to the device, where they fit."""
        return self.train.place(self.device)

    def steps(self) -> int:
        """Batches of an epoch."""
        return self.train.steps()

    def epoch(self, seed: int, number: int) -> Iterator[Any]:
        """The batches of one epoch."""
        return self.train.epoch(seed, number)

    def validate(self, network: Detector) -> Validated:
        """Windows for every validation set, scored."""
        return moments.validate(self, network)

    def compared(self, value: float) -> float:
        """With `compat: official`, as the released code, what it prints."""
        return float(f"{value:.2f}") if self.recipe.compat == "official" else value

    def save(
        self, network: Detector, path: Path, epoch: int, metrics: Mapping[str, float], made: dict[str, Any]
    ) -> None:
        """Write the detector's checkpoint."""
        tensors = {key: value.detach().cpu() for key, value in network.state_dict().items()}
        checkpoint.write(
            path,
            Checkpoint(
                tensors=tensors,
                recipe=self.recipe,
                features=self.train.streams,
                epoch=epoch,
                metrics=dict(metrics),
                provenance=made,
                rounding=self.rounding,
            ),
        )


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
            for name, path in zip(stems(request.val), request.val, strict=True)
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
    training moments (`start_from`) do so whether or not there is a checkpoint, except beside a component
    with `freezes_rest`, which leaves itself as the only one that starts or trains. Raises `CheckpointError`
    when the checkpoint does not fit the recipe, `RecipeError` when fresh weights would be frozen.
    """
    torch.manual_seed(seed)
    detector = build(job.recipe, job.train.audio_dims, job.train.text_dims, training=True)
    if job.init is not None:
        where = str(job.init_path)
        changes = checkpoint.part_changes(job.init, job.recipe, where=where)
        skip = [f"{part}." for part in (*changes.added, *changes.dropped)]
        checkpoint.load_into(detector, job.init, where=where, skip=[*skip, *_restarts(detector)])
    statistics = MomentStatistics(job.train.widths)
    frozen = _alone(detector)
    for part in detector.components():
        start = getattr(part, "start_from", None)
        if start is not None and not frozen:
            start(statistics)
    _freeze(detector, trained=job.init is not None)
    return detector.to(job.device)


def _restarts(detector: Detector) -> list[str]:
    """Full names of the parameters that start from the training moments: none that will be frozen."""
    if _alone(detector):
        return []
    return [
        f"{path}.{name}" for path, part in detector.named_modules() for name in getattr(part, "restarts", ())
    ]


def _alone(detector: Detector) -> dict[str, torch.nn.Module]:
    """The components that freeze all others, by their full names."""
    return {name: part for name, part in detector.named_modules() if getattr(part, "freezes_rest", False)}


def _freeze(detector: Detector, *, trained: bool) -> None:
    alone = _alone(detector)
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

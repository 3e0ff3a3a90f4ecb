"""Greedy soups: checkpoints join one by one, as long as the validation does not fall.

Source: Wortsman et al. (ICML 2022), recipe 1; named in the Yokohama report (DCASE 2026 Task 6), section 3.5.
Every checkpoint is validated alone and they are tried best first (of equals the first named); one is kept
if the plain mean with it is at least as good as without it. All are validated on the given queries, as in
training, in float32: what a checkpoint says of its own validation does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amrctl import provenance
from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.data.manifest import read_manifests
from amrctl.ensemble.ingredients import Source, open_source, require_alike
from amrctl.ensemble.mix import Mix
from amrctl.ensemble.soup import Soup, several, write_soup
from amrctl.errors import RecipeError, near
from amrctl.evaluation.moments import METRICS, headline
from amrctl.inference.predict import predict
from amrctl.model.checkpoint import Checkpoint, read, require_dims, restore
from amrctl.pipeline.predict import pinned
from amrctl.progress import SILENT, Reporter
from amrctl.training.precision import pick_device


@dataclass(frozen=True)
class GreedyRequest:
    """`inputs` as for `make_soup`; `val`: labelled manifests, joined; `metric`: None for the first one of
    the first checkpoint's recipe."""

    inputs: tuple[Path, ...]
    out: Path
    val: tuple[Path, ...]
    features: Path
    metric: str | None = None
    device: str = "auto"
    clip_windows: bool = False
    allow_incomplete: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Tried:
    """One step. `alone`: the checkpoint's own value, percent; `soup`: that of the mean with it."""

    path: str
    sha256: str
    alone: float
    soup: float
    kept: bool


def greedy_soup(request: GreedyRequest, report: Reporter = SILENT) -> Soup:
    """Choose the checkpoints, write their mean; the steps are in the result's `method`.

    Raises `CheckpointError` when checkpoints are unlike, `RecipeError` for an unknown metric, and
    `AmrctlError` kinds for the other inputs.
    """
    out = provenance.refuse_existing(request.out, request.overwrite)
    if request.metric is not None and request.metric not in METRICS:
        raise RecipeError(
            f"--metric: no metric is called '{request.metric}'{near(request.metric, [*METRICS])}"
        )
    sources = [open_source(p) for p in several(request.inputs, allow_incomplete=request.allow_incomplete)]
    require_alike(sources)
    judge = _Judge(request, sources, report)
    steps = 2 * len(sources) - 1
    with report.bar("greedy soup", steps, unit="validations") as bar:
        alone = []
        for source in sources:
            alone.append(judge.value(read(source.path), source.path))
            bar.advance(note=f"{judge.metric} {alone[-1]:.2f}")
        order = sorted(range(len(sources)), key=lambda i: -alone[i])
        kept, value = [order[0]], alone[order[0]]
        tried = [_tried(sources[order[0]], alone[order[0]], value, kept=True)]
        best = read(sources[order[0]].path)
        for i in order[1:]:
            mean = _mean([sources[k] for k in (*kept, i)])
            found = judge.value(replace(best, tensors=mean.tensors()), sources[i].path)
            good = found >= value
            tried.append(_tried(sources[i], alone[i], found, kept=good))
            if good:
                kept, value = [*kept, i], found
            bar.advance(note=f"{judge.metric} {value:.2f}, {len(kept)} kept")
    method: dict[str, Any] = {
        "greedy": {"metric": judge.metric, "val": judge.inputs, "tried": [vars(step) for step in tried]}
    }
    return write_soup(
        _mean([sources[k] for k in kept]),
        out,
        overwrite=request.overwrite,
        metrics={judge.metric: value},
        method=method,
        report=report,
    )


class _Judge:
    """The validation that decides."""

    def __init__(self, request: GreedyRequest, sources: Sequence[Source], report: Reporter) -> None:
        self.device = pick_device(request.device)
        self.features = request.features
        first = read(sources[0].path)
        self.metric = request.metric or first.recipe.train.metrics[0]
        manifest = read_manifests(request.val, clip_windows=request.clip_windows, need_windows=True)
        self.inputs = [{"path": str(p), "sha256": provenance.sha256(p)} for p in request.val]
        with FeatureFile(request.features) as features:
            recipe = pinned(first, features, str(sources[0].path), report)
            self.data = Moments(manifest, features, recipe, training=False)
        for note in (*manifest.notes, *self.data.notes):
            report.note(note)
        content = {entry["sha256"]: entry["path"] for entry in self.inputs}
        seen = {e["sha256"] for s in sources for e in s.metadata["provenance"].get("trained_on") or []}
        for name in (content[found] for found in content if found in seen):
            report.note(f"{name} is a training manifest of these checkpoints: what it chooses is overfitted")

    def value(self, checkpoint: Checkpoint, path: Path) -> float:
        """The metric of a checkpoint, percent."""
        data = self.data
        require_dims(
            checkpoint, data.audio_dims, data.text_dims, where=str(path), features=str(self.features)
        )
        predictions = predict(
            restore(checkpoint, where=str(path)).to(self.device),
            data,
            checkpoint.recipe,
            device=self.device,
            rounding=float(checkpoint.rounding),
        )
        return headline(predictions, data.manifest, [self.metric])[self.metric]


def _mean(sources: Sequence[Source]) -> Mix:
    return Mix(sources, [1 / len(sources)] * len(sources))


def _tried(source: Source, alone: float, soup: float, *, kept: bool) -> Tried:
    return Tried(str(source.path), source.sha256, alone, soup, kept)

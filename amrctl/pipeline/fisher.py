"""Fisher soups: the diagonal Fisher information of each checkpoint decides its share, weight by weight.

Source: Yokohama report (DCASE 2026 Task 6), section 3.5 ("Fisher-weighted averaging soups, Fisher information
computed from non-training data"), after Matena and Raffel (NeurIPS 2022). Neither says what it is for a
detector, whose output is no distribution over labels. Here it is the empirical one: the mean over queries of
the squared gradient of the whole training loss of that one query. Matching, training-only parts and
loss weights are those of each checkpoint's recipe; dropout, of whole branches too, is off, and nothing is
shifted; terms that compare queries of a batch have nothing to compare. Random numbers of the loss depend on
the query's place alone. All in float32, one backward pass a query, sums in float64.

What is done is kept in `OUT.part/` until the soup is written: after a kill the same command goes on with the
next checkpoint. Memory holds one checkpoint and its sums, however many there are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from amrctl import __version__, provenance
from amrctl.data.batch import Batch
from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.data.manifest import read_manifests
from amrctl.ensemble.importance import Importance
from amrctl.ensemble.ingredients import Source, open_source, require_alike
from amrctl.ensemble.mix import Mix
from amrctl.ensemble.soup import Soup, several, write_soup
from amrctl.errors import CheckpointError
from amrctl.losses.total import Criterion
from amrctl.model.checkpoint import load_into, read, require_dims
from amrctl.model.detector import build
from amrctl.pipeline.predict import pinned
from amrctl.progress import SILENT, Bar, Reporter
from amrctl.recipe import Recipe, from_dict
from amrctl.training.precision import pick_device
from amrctl.training.state import mix

_RATES = ("dropout", "drop_path")  # options of parts that make training random


@dataclass(frozen=True)
class FisherRequest:
    """`inputs` as for `make_soup`; `data`: labelled manifests, joined, that no input was trained on."""

    inputs: tuple[Path, ...]
    out: Path
    data: tuple[Path, ...]
    features: Path
    device: str = "auto"
    clip_windows: bool = False
    allow_incomplete: bool = False
    overwrite: bool = False


def fisher_soup(request: FisherRequest, report: Reporter = SILENT) -> Soup:
    """Average checkpoints by their Fisher information and write the soup.

    Raises `CheckpointError` when a checkpoint was trained on one of the manifests, when checkpoints are
    unlike, and for gradients that are no numbers; `AmrctlError` kinds for the other inputs.
    """
    out = provenance.refuse_existing(request.out, request.overwrite)
    device = pick_device(request.device)
    sources = [open_source(p) for p in several(request.inputs, allow_incomplete=request.allow_incomplete)]
    require_alike(sources)
    hashes = {path: provenance.sha256(path) for path in request.data if path.is_file()}
    options: dict[str, Any] = {"clip_windows": request.clip_windows, "need_windows": True}
    manifest = read_manifests(request.data, **options)
    _require_unseen(sources, hashes, report)
    lead = read(sources[0].path)
    with FeatureFile(request.features) as features:
        recipe = _quiet(pinned(lead, features, str(sources[0].path), report))
        data = Moments(manifest, features, recipe, training=True)
    for note in (*manifest.notes, *data.notes):
        report.note(note)
    data.place(device)
    # what decides how the data are read
    how = [json.dumps(recipe.to_dict(), sort_keys=True), str(request.clip_windows)]
    done_with = [provenance.sha256(request.features), *hashes.values(), *how]
    files = [_part(out, source.sha256, done_with) for source in sources]
    todo = [pair for pair in zip(sources, files, strict=True) if not pair[1].is_file()]
    title = f"Fisher information of {len(sources)} checkpoints"
    finished = (len(sources) - len(todo)) * len(data)
    with report.bar(title, len(sources) * len(data), unit="queries", done=finished) as bar:
        for source, file in todo:
            if not file.is_file():  # else an input is there twice
                found = _of_checkpoint(source.path, data, str(request.features), device, bar)
                with provenance.writing(file) as temporary:
                    safetensors.torch.save_file(found, str(temporary))
    importance = Importance(files)
    method = {
        "fisher": {
            "data": [{"path": str(path), "sha256": found} for path, found in hashes.items()],
            "queries": len(data),
            "floor": importance.floor,
        }
    }
    mixed = Mix(sources, importance.mean_shares, importance=importance)
    soup = write_soup(mixed, out, overwrite=request.overwrite, method=method, report=report)
    shutil.rmtree(files[0].parent)
    return soup


def diagonal(
    detector: nn.Module, criterion: Criterion, data: Moments, device: torch.device, bar: Bar | None = None
) -> dict[str, Tensor]:
    """The mean over queries of the squared gradient of the loss: parameter → float32, on the host.

    The detector's own mode decides what runs. `data` gives batches of one query. The random state of
    the caller is left alone. Raises `CheckpointError` for a gradient that is no number.
    """
    parameters = dict(detector.named_parameters())
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for place, batch in enumerate(data.epoch(0, 1)):
            torch.manual_seed(mix(0, place))
            detector.zero_grad(set_to_none=True)
            there = _alone(batch.to(device))
            torch.autograd.backward(criterion(detector(there), there).total)
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    sums[name] += parameter.grad.double().square()
            if bar is not None:
                bar.advance()
    odd = next((name for name, total in sums.items() if not torch.isfinite(total).all()), None)
    if odd is not None:
        raise CheckpointError(f"the gradient of '{odd}' is not a number on this data")
    return {name: (total / len(data)).float().cpu() for name, total in sums.items()}


def _alone(batch: Batch) -> Batch:
    """One query without a mismatched sentence: with `compat: official` the next row would be its own."""
    if batch.targets is None:
        return batch
    none = torch.full_like(batch.targets.negative_row, -1)
    return replace(batch, targets=replace(batch.targets, negative_row=none))


def _of_checkpoint(
    path: Path, data: Moments, features: str, device: torch.device, bar: Bar
) -> dict[str, Tensor]:
    checkpoint = read(path)
    require_dims(checkpoint, data.audio_dims, data.text_dims, where=str(path), features=features)
    recipe = _quiet(checkpoint.recipe)
    detector = build(recipe, *checkpoint.dims, training=True)
    load_into(detector, checkpoint, where=str(path))
    detector.to(device).train()
    try:
        return diagonal(detector, Criterion(recipe, detector), data, device, bar)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _quiet(recipe: Recipe) -> Recipe:
    """The recipe without dropout and shift, one query a batch: training mode is then a plain function."""

    def still(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: 0.0 if item and key in _RATES else still(item) for key, item in value.items()}
        return [still(item) for item in value] if isinstance(value, list) else value

    raw = recipe.to_dict()
    raw["model"] = still(raw["model"])
    raw["train"] |= {"batch": 1, "shift": False}
    return from_dict(raw, where=recipe.name)


def _require_unseen(sources: Sequence[Source], hashes: Mapping[Path, str], report: Reporter) -> None:
    for source in sources:
        listed = source.metadata["provenance"].get("trained_on")
        if not listed:
            report.note(f"{source.path} does not say what it was trained on; take care that it was not this")
        seen = {entry["sha256"] for entry in listed or ()}
        for path, content in hashes.items():
            if content in seen:
                raise CheckpointError(
                    f"{source.path} was trained on {path}; Fisher information needs queries that no "
                    "ingredient was trained on, give others with --fisher-data"
                )


def _part(out: Path, checkpoint: str, made_of: Sequence[str]) -> Path:
    """Where the information of one checkpoint waits for the others."""
    name = hashlib.sha256(json.dumps([__version__, checkpoint, *made_of]).encode()).hexdigest()[:16]
    return out.with_name(f"{out.name}.part") / f"fisher-{name}.safetensors"

"""One or several checkpoints + features + queries → one prediction file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from amrctl import provenance
from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile, StreamInfo
from amrctl.data.manifest import Manifest, read_manifests
from amrctl.data.predictions import Prediction, merge_meta, write_predictions
from amrctl.data.streams import FeatureSource
from amrctl.ensemble.pool import pool
from amrctl.ensemble.saliency import checked_threshold
from amrctl.inference import predict as inference
from amrctl.model.checkpoint import Checkpoint, read, require_dims, restore
from amrctl.pipeline.proposals import add_proposals
from amrctl.progress import SILENT, Reporter
from amrctl.recipe import Recipe, from_dict
from amrctl.run_folder import find_checkpoint
from amrctl.training.precision import pick_device, resolve

SIDES: tuple[Literal["audio", "text"], ...] = ("audio", "text")
# Attributes of a stream that change its numbers: what is known of both must be equal.
_FINGERPRINT = (
    "encoder", "encoder_version", "checkpoint_sha256", "sample_rate", "window", "hop", "normalisation"
)  # fmt: skip


@dataclass(frozen=True)
class PredictRequest:
    """What `predict` is asked for."""

    checkpoints: tuple[Path, ...]
    features: Path
    test: tuple[Path, ...]
    out: Path
    rounding: float | None = None  # seconds; None: what the checkpoint was trained for
    saliency: bool = False
    sets: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "fp32"
    clip_windows: bool = False
    overwrite: bool = False
    keep: int | None = None
    saliency_proposals: float | None = None  # threshold, 0..1; None: as each checkpoint's recipe says


def pinned(checkpoint: Checkpoint, features: FeatureSource, where: str, report: Reporter = SILENT) -> Recipe:
    """The checkpoint's recipe with `auto` replaced by the stream it was trained on, where that exists.

    Tells when the stream of that name was made by another encoder than in training.
    """
    raw = checkpoint.recipe.to_dict()
    for side in SIDES:
        known = features.streams(side)
        for stream, trained in zip(raw["features"][side], checkpoint.features[side], strict=False):
            if stream["name"] == "auto" and trained["name"] in known:
                stream["name"] = trained["name"]
            info = known.get(stream["name"])
            if info is None:
                continue
            differing = _differing(trained, info)
            if differing:
                report.note(
                    f"{where}: {side} stream '{info.name}' was not made as in training "
                    f"({', '.join(differing)}); expect wrong moments"
                )
    return from_dict(raw, where=where)


def _differing(trained: dict[str, Any], info: StreamInfo) -> list[str]:
    """`key now, trained with before` for each part of the fingerprint that differs."""
    unknown = (None, "", "unknown")
    found = []
    for key in _FINGERPRINT:
        before = trained.get(key, trained.get("attrs", {}).get(key))
        now = getattr(info, key, info.attrs.get(key))
        if before not in unknown and now not in unknown and before != now:
            found.append(f"{key} {now}, trained with {before}")
    return found


def meta_of(checkpoint: Checkpoint, path: Path, datasets: Sequence[Path], rounding: float) -> dict[str, Any]:
    """Provenance of predictions that one checkpoint made; what is not known is left out or "unknown"."""
    made = checkpoint.provenance
    attrs = [stream.get("attrs", {}) for side in ("audio", "text") for stream in checkpoint.features[side]]
    frozen = [a.get("parameters") for a in attrs]
    trainable = sum(t.numel() for name, t in checkpoint.tensors.items() if not name.startswith("auxiliary."))
    meta: dict[str, Any] = {
        "operation": "predict",
        "checkpoints": [
            {
                "path": str(path),
                "sha256": provenance.sha256(path),
                "recipe": checkpoint.recipe.name,
                "epoch": checkpoint.epoch,
                "metrics": checkpoint.metrics,
                "trained_on": made.get("trained_on", []),
            }
        ],
        "audio_encoders": [s["encoder"] for s in checkpoint.features["audio"]],
        "text_encoders": [s["encoder"] for s in checkpoint.features["text"]],
        "datasets": [provenance.short(entry["path"]) for entry in made.get("trained_on", [])] or ["unknown"],
        "predicted": [{"path": str(p), "sha256": provenance.sha256(p)} for p in datasets],
        "rounding": rounding,
        "origin": provenance.origin(),
    }
    meta["parameters"] = {"trainable": trainable}
    if all(isinstance(n, (int, float)) for n in frozen):
        meta["parameters"]["frozen"] = int(sum(frozen))
    return meta


def predict(request: PredictRequest, report: Reporter = SILENT) -> list[Prediction]:
    """Predict with every checkpoint, pool several (the function behind `fuse --pool`), write the file.

    Windows from saliency curves, where they are asked for, take part as in `fuse --saliency`. Raises
    `AmrctlError` kinds for whatever does not fit; nothing is written then.
    """
    provenance.refuse_existing(request.out, request.overwrite)
    device = pick_device(request.device)
    precision = resolve(request.precision, device)
    manifest = read_manifests(request.test, clip_windows=request.clip_windows)
    for note in manifest.notes:
        report.note(note)
    sets = [*request.sets, *([f"inference.keep={request.keep}"] if request.keep is not None else [])]
    if request.saliency_proposals is not None:
        checked_threshold(request.saliency_proposals)
        sets.append(f"inference.saliency_proposals.threshold={request.saliency_proposals!r}")
    members: list[list[Prediction]] = []
    metas: list[dict[str, Any]] = []
    keep = 10
    for path in map(find_checkpoint, request.checkpoints):
        checkpoint = read(path, sets=sets)
        keep = checkpoint.recipe.inference.keep
        items, meta = _answers(checkpoint, path, request, manifest, device, precision, report)
        members.append(items)
        metas.append(meta)
    if len(members) > 1 and request.saliency:
        report.note("--saliency: curves of several checkpoints cannot be pooled; none is written")
    extra = [meta["saliency_proposals"] for meta in metas if "saliency_proposals" in meta]
    items, meta = members[0], metas[0]
    if len(members) > 1 or extra:
        items = pool(members, keep=keep)
    if len(members) > 1:
        meta = merge_meta(metas, "predict", [], **({"saliency_proposals": extra} if extra else {}))
    if not request.saliency:
        items = [replace(item, saliency=None) for item in items]
    write_predictions(request.out, items, meta, overwrite=request.overwrite)
    return items


def _answers(
    checkpoint: Checkpoint,
    path: Path,
    request: PredictRequest,
    manifest: Manifest,
    device: torch.device,
    precision: str,
    report: Reporter,
) -> tuple[list[Prediction], dict[str, Any]]:
    """One checkpoint's predictions and their provenance; its features are let go before the next one's."""
    with FeatureFile(request.features) as features:
        recipe = pinned(checkpoint, features, str(path), report)
        dataset = Moments(manifest, features, recipe, training=False)
    require_dims(
        checkpoint,
        dataset.audio_dims,
        dataset.text_dims,
        where=str(path),
        features=str(request.features),
    )
    for note in dataset.notes:
        report.note(note)
    rounding = float(checkpoint.rounding) if request.rounding is None else request.rounding
    items = inference.predict(
        restore(checkpoint, where=str(path)).to(device),
        dataset,
        recipe,
        device=device,
        precision=torch.bfloat16 if precision == "bf16" else None,
        rounding=rounding,
        saliency=request.saliency or recipe.inference.saliency_proposals is not None,
        report=report,
    )
    meta = meta_of(checkpoint, path, request.test, rounding)
    extra = recipe.inference.saliency_proposals
    if extra is not None:
        meta["saliency_proposals"] = extra.model_dump()
        items = add_proposals(
            items, threshold=extra.threshold, keep=extra.keep, rounding=rounding, where=str(path)
        )
    return items, meta

"""Checkpoints: safetensors whose metadata says everything that is needed to use them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch

from amrctl import checkpoint_file
from amrctl.checkpoint_file import KEY
from amrctl.errors import CheckpointError
from amrctl.model import official
from amrctl.model.detector import Detector, build, names
from amrctl.model.record import FORMAT, Checkpoint
from amrctl.recipe import Recipe, from_dict

__all__ = [
    "FORMAT",
    "KEY",
    "Checkpoint",
    "PartChanges",
    "load_into",
    "part_changes",
    "read",
    "read_metadata",
    "require_dims",
    "restore",
    "write",
]

_METADATA = ("recipe", "features", "epoch", "metrics", "provenance", "rounding")
TRAINING_ONLY = "auxiliary."  # prefix of parts that are not built for inference


def write(path: Path | str, checkpoint: Checkpoint, *, overwrite: bool = True) -> None:
    """Write a checkpoint through a temporary file. Raises `OutputError`."""
    checkpoint_file.write_file(path, checkpoint.tensors, checkpoint.metadata(), overwrite=overwrite)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata of one of our checkpoints, without its tensors. Raises `CheckpointError`."""
    found = checkpoint_file.read_metadata(path)
    task = found["recipe"].get("task") if isinstance(found["recipe"], dict) else None
    if task == "retrieval":
        raise CheckpointError(f"{path} is a dual encoder (task retrieval); a detector is needed here")
    return checkpoint_file.read_metadata(path, _METADATA)


def read(path: Path | str, *, sets: Iterable[str] = ()) -> Checkpoint:
    """Read our safetensors, or an official `.ckpt` / `.pth` / `.pt` (converted on the fly).

    `sets` changes keys of the stored recipe (`inference.keep=5`). Raises `CheckpointError`.
    """
    path = Path(path)
    if path.suffix in (".ckpt", ".pth", ".pt"):
        return official.read(path, sets=sets)
    meta = read_metadata(path)
    tensors = safetensors.torch.load_file(str(path))
    return Checkpoint(
        tensors=tensors,
        recipe=from_dict(meta["recipe"], where=str(path), sets=sets),
        features=meta["features"],
        epoch=meta["epoch"],
        metrics=meta["metrics"],
        provenance=meta["provenance"],
        rounding=meta["rounding"],
    )


def load_into(
    detector: Detector, checkpoint: Checkpoint, *, where: str = "checkpoint", skip: Iterable[str] = ()
) -> None:
    """Copy weights into a detector after comparing every key and shape.

    `skip`: prefixes of keys that are left out on both sides, so that the detector keeps its values.
    Training-only weights that the detector was not built with are passed over. Raises
    `CheckpointError` that names the keys.
    """
    skip = tuple(skip)
    own = {k: v for k, v in detector.state_dict().items() if not k.startswith(skip)}
    given = {k: v for k, v in checkpoint.tensors.items() if not k.startswith(skip)}
    if not any(key.startswith(TRAINING_ONLY) for key in own):
        given = {k: v for k, v in given.items() if not k.startswith(TRAINING_ONLY)}
    faults = []
    missing = [k for k in own if k not in given]
    extra = [k for k in given if k not in own]
    if missing:
        faults.append(f"{len(missing)} weights are missing, the first is '{missing[0]}'")
    if extra:
        faults.append(f"{len(extra)} weights have no place in the recipe, the first is '{extra[0]}'")
    for key in own:
        if key in given and own[key].shape != given[key].shape:
            faults.append(f"'{key}' is {tuple(given[key].shape)}, the recipe wants {tuple(own[key].shape)}")
            break
    if faults:
        raise CheckpointError(f"{where} does not fit recipe {checkpoint.recipe.name}: " + "; ".join(faults))
    detector.load_state_dict({**detector.state_dict(), **given}, strict=True)


class PartChanges(NamedTuple):
    """How a recipe's components differ from those that a checkpoint was trained with, as prefixes of
    their weights' names (`heads.quality`)."""

    added: tuple[str, ...]  # not in the checkpoint's recipe: they start fresh
    dropped: tuple[str, ...]  # training-only parts that the recipe has no more


def part_changes(checkpoint: Checkpoint, recipe: Recipe, *, where: str = "checkpoint") -> PartChanges:
    """Compare the components of `recipe` with those of the checkpoint's own recipe, by slot and name.

    Raises `CheckpointError` when the checkpoint has weights of a part that `recipe` lacks: without
    them it is another detector. Parts that exist for training only may go.
    """
    ours, theirs = _parts(recipe), _parts(checkpoint.recipe)
    gone = [
        part
        for part in theirs
        if part not in ours and any(key.startswith(f"{part}.") for key in checkpoint.tensors)
    ]
    lost = [part for part in gone if not part.startswith(TRAINING_ONLY)]
    if lost:
        raise CheckpointError(
            f"{where} has trained parts that recipe {recipe.name} lacks: {', '.join(lost)}; use a recipe "
            "that has them, or start from a checkpoint without them"
        )
    return PartChanges(tuple(part for part in ours if part not in theirs), tuple(gone))


def _parts(recipe: Recipe) -> list[str]:
    """Prefixes of the weights of every component of a recipe."""
    model = recipe.model
    slots = {
        "fusion": model.fusion,
        "encoder": model.encoder,
        "decoder.hooks": model.hooks,
        "heads": model.heads,
        "refine": model.refine,
        "auxiliary": model.auxiliary,
    }
    return [
        "tokens",
        "decoder",
        *(f"{slot}.{name}" for slot, entries in slots.items() for name in names(entries)),
    ]


def require_dims(
    checkpoint: Checkpoint, audio: tuple[int, ...], text: tuple[int, ...], *, where: str, features: str
) -> None:
    """Raise `CheckpointError` when feature widths differ, naming the stream and both widths."""
    for side, wanted, given in zip(("audio", "text"), checkpoint.dims, (audio, text), strict=True):
        if wanted != given:
            names = ", ".join(f"{s['name']} ({s['dim']})" for s in checkpoint.features[side])
            raise CheckpointError(
                f"{where} was trained on {side} features {names}; {features} has width "
                f"{', '.join(map(str, given))}; use the features it was trained on"
            )


def restore(checkpoint: Checkpoint, *, where: str = "checkpoint") -> Detector:
    """The checkpoint's detector, built for inference and filled."""
    detector = build(checkpoint.recipe, *checkpoint.dims, training=False)
    load_into(detector, checkpoint, where=where)
    return detector.eval()

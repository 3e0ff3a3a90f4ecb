"""Weights in the layouts of released networks, in and out: the DCASE 2026 Task 6 baseline, and CG-DETR.

The released file is a dict with `model`, `optimizer`, `lr_scheduler`, `epoch` and `opt`, the last
an EasyDict; it is read with `weights_only=True` by standing an OrderedDict in for that class.
Lighthouse's port of QD-DETR names the audio projection `input_vid_proj` and puts the TEF columns first, as
CG-DETR does; the columns are turned round. What a released network holds and never uses is not kept.
Export writes zeros (and ones for norms) instead. `official_layouts.py` has the names.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amrctl import provenance
from amrctl.errors import CheckpointError
from amrctl.model.detector import build
from amrctl.model.official_layouts import CG_DETR, QD_DETR, Layout, of_model, of_weights
from amrctl.model.record import Checkpoint
from amrctl.recipe import Recipe, load

_HEADS = 8  # of attention, where a file does not say it
_TOP = 2  # prompts that a recording uses, where a file does not say it: lighthouse's number
_SETTABLE = (  # of a block, in the official code or without effect on its weights
    "layers",
    "queries",
    "widths",
    "heads",
    "inner",
    "dropout",
    "drop_path",
    "count",
    "prompts",
    "top",
    "margin",
    "weight",
    "apart",
)


def ours(key: str, layout: Layout = QD_DETR) -> str:
    """Our name of an official tensor. Raises `CheckpointError`."""
    return layout.ours(key)


def theirs(key: str, layout: Layout = QD_DETR) -> str:
    """The official name of one of our tensors. Raises `CheckpointError`."""
    return layout.theirs(key)


def _raw(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a file, and its options (`opt`), empty where it has none."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    easydict: Any = (OrderedDict, "easydict.EasyDict")
    try:
        with torch.serialization.safe_globals([easydict]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "weights_only" in reason:  # torch advises to load the file unsafely
            reason = "it is something else, or holds more than weights and plain values"
        raise CheckpointError(f"{path} cannot be read safely as a torch checkpoint: {reason}") from None
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no model weights (expected a dict of tensors under 'model')")
    told = loaded.get("opt") if "model" in loaded else None
    return state, told if isinstance(told, dict) else {}


def _number(told: dict[str, Any], key: str, default: int) -> int:
    """A positive whole number of the options, which leaves no trace in the weights."""
    found = told.get(key)
    return found if type(found) is int and found > 0 else default


def _count(state: dict[str, Tensor], prefix: str) -> int:
    found = {int(m[1]) for k in state if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", k))}
    return max(found, default=-1) + 1


def read(path: Path | str, *, sets: Iterable[str] = ()) -> Checkpoint:
    """An official checkpoint as one of ours: recipe `qd-detr` (lighthouse's port too) or `cg-detr`.

    The recipe gets `compat: official`, so that predictions are the released code's. Raises
    `CheckpointError` that names what is missing, too much or misshapen.
    """
    path = Path(path)
    state, told = _raw(path)
    layout = of_weights(state)
    tef_first = layout.tef_first
    if layout is QD_DETR and "input_vid_proj.0.net.1.weight" in state:  # lighthouse's
        tef_first = True
        state = {k.replace("input_vid_proj.", "input_aud_proj."): v for k, v in state.items()}
    state = {k: v.float() for k, v in state.items() if k not in layout.unused}
    for key in (*layout.sizes, *layout.rows.values()):
        if key not in state or state[key].dim() != 2:
            raise CheckpointError(f"{path} lacks '{key}'; it is not a checkpoint of {layout.title}")
    if tef_first:
        for key in layout.tef_columns:
            if key in state:
                state[key] = torch.roll(state[key], -2, dims=-1)
    settings = _settings(layout, state, told, path)
    if tef_first:
        settings["features.text"] = "[{name: auto, l2: true, max_tokens: 32}]"
    listed = [f"{k}={v}" for k, v in settings.items()]
    audio, text = (state[key].shape[1] for key in layout.sizes[:2])
    recipe = load(layout.recipe, "finetune", listed)
    _require_fit(state, layout, recipe, (audio - 2, text), path)
    return Checkpoint(
        tensors={
            (name := layout.ours(key)): value[0] if _lone_row(name, layout) else value
            for key, value in state.items()
        },
        recipe=load(layout.recipe, "finetune", [*listed, *sets]) if (sets := [*sets]) else recipe,
        features={
            side: [{"name": "auto", "dim": dim, "encoder": "unknown", "hop": 1.0, "attrs": {}}]
            for side, dim in (("audio", audio - 2), ("text", text))
        },
        provenance={"converted_from": {"path": path.name, "sha256": provenance.sha256(path)}},
        rounding=1,
    )


def _settings(layout: Layout, state: dict[str, Tensor], told: dict[str, Any], path: Path) -> dict[str, Any]:
    """The recipe's keys that make it the network of the file."""
    heads, inner = _number(told, "nheads", _HEADS), state[layout.sizes[3]].shape[0]
    settings = {
        "compat": "official",
        "model.hidden_dim": state[layout.sizes[0]].shape[0],
        **{f"model.{key}": _count(state, stack) for key, stack in layout.counts.items()},
        **{f"model.{key}": len(state[name]) for key, name in layout.rows.items()},
        **{f"model.{block}.inner": inner for block in layout.blocks},
        **{f"model.{block}.heads": heads for block in layout.blocks},
    }
    for key, stack in layout.counts.items():
        if not settings[f"model.{key}"]:
            raise CheckpointError(f"{path} lacks '{stack}.0'; it is not a checkpoint of {layout.title}")
    if layout is CG_DETR:
        settings["model.fusion.adaptive-cross-attention.top"] = _number(told, "num_prompts", _TOP)
        if heads != _HEADS:
            raise CheckpointError(
                f"{path} has {heads} attention heads; {layout.title} has {_HEADS} in two of its encoders "
                f"whatever is set, and only {_HEADS} throughout can be read"
            )
    return settings


def _require_fit(
    state: dict[str, Tensor], layout: Layout, recipe: Recipe, dims: tuple[int, int], path: Path
) -> None:
    """Compare names and shapes with the network of the recipe. Raises `CheckpointError`."""
    with torch.device("meta"):
        made = build(recipe, (dims[0],), (dims[1],), training=True).state_dict()
    wanted = {key: _shape(key, layout, value) for key, value in made.items()}
    wanted = {layout.theirs(key): shape for key, shape in wanted.items()}
    for key in state:
        if key not in wanted:
            raise CheckpointError(f"{path}: '{key}' is not a weight of {layout.title}")
    for key, shape in wanted.items():
        if key not in state:
            raise CheckpointError(f"{path} lacks '{key}' of {layout.title}")
        if tuple(state[key].shape) != shape:
            raise CheckpointError(
                f"{path}: '{key}' is {tuple(state[key].shape)}, {layout.title} of this size wants {shape}"
            )


def _shape(key: str, layout: Layout, value: Tensor) -> tuple[int, ...]:
    """The shape that one of our tensors has in the layout."""
    return (1, *value.shape) if _lone_row(key, layout) else tuple(value.shape)


def _lone_row(key: str, layout: Layout) -> bool:
    """Whether one of our vectors is a matrix of one row there."""
    return layout is CG_DETR and key == layout.whole["global_rep_pos"]


def export(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights in the official layout, for `model` of an official checkpoint file.

    Raises `CheckpointError` for recipes with parts that the official network does not have, and for
    weights without the training-only parts that it has.
    """
    model = checkpoint.recipe.to_dict()["model"]
    layout = of_model(model)
    state = {
        layout.theirs(key): value.detach().clone().reshape(_shape(key, layout, value))
        for key, value in checkpoint.tensors.items()
    }
    # parts without weights, as another place for the TEF columns, show in the recipe only
    other = _unlike(load(layout.recipe, "finetune").to_dict()["model"], model, "model")
    if other:
        raise CheckpointError(
            f"recipe {checkpoint.recipe.name} has no place in the official layout: {other}; only recipes "
            "qd-detr and cg-detr export to it, in any size"
        )
    for key in layout.trained:
        if key not in checkpoint.tensors:
            raise CheckpointError(
                f"the checkpoint lacks '{key}', which {layout.title} has; the recipe must keep that part"
            )
    if layout.tef_first:
        for key in layout.tef_columns:
            state[key] = torch.roll(state[key], 2, dims=-1)
    return state | layout.fillers(checkpoint.recipe.model.hidden_dim, checkpoint.dims[1][0])


def _unlike(official: Any, ours: Any, where: str) -> str:
    """The first difference that is no size, told as `key is X, officially Y`; empty if there is none."""
    if isinstance(official, dict) and isinstance(ours, dict):
        # of the model itself "heads" are the parts that predict, of a block their number
        settable = ("hidden_dim", "auxiliary") if where == "model" else _SETTABLE
        keys = [k for k in {**official, **ours} if k not in settable]
        found = (_unlike(official.get(k), ours.get(k), f"{where}.{k}") for k in keys)
        return next(filter(None, found), "")
    if isinstance(official, list) and isinstance(ours, list) and len(official) == len(ours):
        found = (_unlike(a, b, where) for a, b in zip(official, ours, strict=True))
        return next(filter(None, found), "")
    return "" if official == ours else f"{where} is {ours}, officially {official}"


def write(path: Path | str, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Write `{"model", "epoch", "opt": {"nheads"}}` in the official layout.

    Raises `CheckpointError` for a network that the official code does not have.
    """
    state = export(checkpoint)
    model = checkpoint.recipe.to_dict()["model"]
    layout = of_model(model)
    parts = (*model["fusion"], *model["encoder"], model["decoder"], *model["auxiliary"])
    heads = {block["heads"] for block in parts if "heads" in block}
    if len(heads) > 1:
        raise CheckpointError(
            f"recipe {checkpoint.recipe.name} has {' and '.join(map(str, sorted(heads)))} attention heads in "
            "different blocks; the official network has one number for all"
        )
    options = {"nheads": heads.pop()}
    if layout is CG_DETR:
        if options["nheads"] != _HEADS:
            raise CheckpointError(
                f"recipe {checkpoint.recipe.name} has {options['nheads']} attention heads; {layout.title} "
                f"has {_HEADS} in two of its encoders"
            )
        options["num_prompts"] = next(part["top"] for part in model["fusion"] if "top" in part)
    content = {"model": state, "epoch": checkpoint.epoch, "opt": options}
    # an open file: from a path torch takes the name of the archive inside
    with provenance.writing(path, overwrite=overwrite) as temporary, open(temporary, "wb") as stream:
        torch.save(content, stream)

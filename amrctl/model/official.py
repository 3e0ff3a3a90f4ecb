"""Weights in the layout of the official DCASE 2026 Task 6 baseline (QD-DETR), in and out.

The released file is a dict with `model`, `optimizer`, `lr_scheduler`, `epoch` and `opt`, the last
an EasyDict; it is read with `weights_only=True` by standing an OrderedDict in for that class.
Lighthouse's port names the audio projection `input_vid_proj` and puts the TEF columns first; such
files are recognised and their columns turned round. Of the official file only the text position
table is not kept: the network never uses it. Export writes zeros (and ones for its norm) instead.
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
from amrctl.model.record import Checkpoint
from amrctl.recipe import load

_FEEDFORWARD = r"(linear\d\.\w+|activation\.weight)"
_STACKS = (
    ("transformer.t2v_encoder.layers", "fusion.text-to-audio.layers"),
    ("transformer.encoder.layers", "encoder.transformer.layers"),
    ("transformer.decoder.layers", "decoder.layers"),
)
_PREFIXES = (
    ("input_aud_proj", "tokens.audio"),
    ("input_txt_proj", "tokens.text"),
    ("span_embed.layers", "heads.span.mlp.layers"),
    ("class_embed", "heads.foreground.linear"),
    ("saliency_proj1", "heads.saliency.frame"),
    ("saliency_proj2", "heads.saliency.whole"),
    ("query_embed", "decoder.query_embed"),
    ("transformer.decoder", "decoder"),
)
_WHOLE = {"global_rep_token": "tokens.summary", "global_rep_pos": "tokens.summary_position"}
_UNUSED = "txt_position_embed."
_TEXT_POSITIONS = 32
_HEADS = 8  # of attention, where a file does not say it
_SETTABLE = ("layers", "queries", "heads", "inner", "dropout")  # of a block, in the official code too
_BLOCKS = ("fusion.text-to-audio", "encoder.transformer", "decoder")
_SIZES = (  # the matrices that tell a network's widths
    "input_aud_proj.0.net.1.weight",
    "input_txt_proj.0.net.1.weight",
    "query_embed.weight",
    "transformer.encoder.layers.0.linear1.weight",
)


def ours(key: str) -> str:
    """Our name of an official tensor."""
    if key in _WHOLE:
        return _WHOLE[key]
    for theirs, here in _STACKS:
        if key.startswith(theirs + "."):
            rest = re.sub(rf"^(\d+)\.{_FEEDFORWARD}$", r"\1.feedforward.\2", key[len(theirs) + 1 :])
            return f"{here}.{rest}"
    for theirs, here in _PREFIXES:
        if key.startswith(theirs + "."):
            rest = key[len(theirs) + 1 :]
            if theirs.startswith("input_"):
                rest = rest.replace(".LayerNorm.", ".norm.").replace(".net.1.", ".linear.")
            return f"{here}.{rest}"
    raise CheckpointError(f"'{key}' is not a weight of the official QD-DETR baseline")


def theirs(key: str) -> str:
    """The official name of one of our tensors."""
    for whole, here in _WHOLE.items():
        if key == here:
            return whole
    for name, here in _STACKS:
        if key.startswith(here + "."):
            return f"{name}.{key[len(here) + 1 :].replace('.feedforward.', '.')}"
    for name, here in _PREFIXES:
        if key.startswith(here + "."):
            rest = key[len(here) + 1 :]
            if name.startswith("input_"):
                rest = rest.replace(".norm.", ".LayerNorm.").replace(".linear.", ".net.1.")
            return f"{name}.{rest}"
    raise CheckpointError(f"'{key}' has no place in the official layout; only recipe qd-detr exports to it")


def _raw(path: Path) -> tuple[dict[str, Tensor], int]:
    """The weights of a file, and its number of attention heads, which leaves no trace in them."""
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
    heads = told.get("nheads") if isinstance(told, dict) else None
    return state, heads if type(heads) is int and heads > 0 else _HEADS


def _count(state: dict[str, Tensor], prefix: str) -> int:
    found = {int(m[1]) for k in state if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", k))}
    return max(found, default=-1) + 1


def read(path: Path | str, *, sets: Iterable[str] = ()) -> Checkpoint:
    """An official (or lighthouse QD-DETR) checkpoint as one of ours, recipe `qd-detr`.

    The recipe gets `compat: official`, so that predictions are the released code's. Raises
    `CheckpointError`.
    """
    path = Path(path)
    state, heads = _raw(path)
    lighthouse = "input_vid_proj.0.net.1.weight" in state
    state = {k.replace("input_vid_proj.", "input_aud_proj."): v.float() for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.startswith(_UNUSED)}
    for key in _SIZES:
        if key not in state or state[key].dim() != 2:
            raise CheckpointError(f"{path} lacks '{key}'; it is not an official QD-DETR checkpoint")
    try:
        named = {key: ours(key) for key in state}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if lighthouse:
        for key in ("LayerNorm.weight", "LayerNorm.bias", "net.1.weight"):
            name = f"input_aud_proj.0.{key}"
            state[name] = torch.roll(state[name], -2, dims=-1)
    hidden, audio = state["input_aud_proj.0.net.1.weight"].shape
    text = state["input_txt_proj.0.net.1.weight"].shape[1]
    inner = state["transformer.encoder.layers.0.linear1.weight"].shape[0]
    settings = {
        "compat": "official",
        "model.hidden_dim": hidden,
        "model.tokens.layers": _count(state, "input_aud_proj"),
        "model.fusion.text-to-audio.layers": _count(state, "transformer.t2v_encoder.layers"),
        "model.encoder.transformer.layers": _count(state, "transformer.encoder.layers"),
        "model.decoder.layers": _count(state, "transformer.decoder.layers"),
        "model.decoder.queries": state["query_embed.weight"].shape[0],
        "model.fusion.text-to-audio.inner": inner,
        "model.encoder.transformer.inner": inner,
        "model.decoder.inner": inner,
        **{f"model.{block}.heads": heads for block in _BLOCKS},
    }
    if lighthouse:
        settings["features.text"] = "[{name: auto, l2: true, max_tokens: 32}]"
    recipe = load("qd-detr", "finetune", [*(f"{k}={v}" for k, v in settings.items()), *sets])
    streams = {"audio": audio - 2, "text": text}
    return Checkpoint(
        tensors={named[key]: value for key, value in state.items()},
        recipe=recipe,
        features={
            side: [{"name": "auto", "dim": dim, "encoder": "unknown", "hop": 1.0, "attrs": {}}]
            for side, dim in streams.items()
        },
        provenance={"converted_from": {"path": path.name, "sha256": provenance.sha256(path)}},
        rounding=1,
    )


def export(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights in the official layout, for `model` of an official checkpoint file.

    Raises `CheckpointError` for recipes with parts that the official network does not have.
    """
    state = {theirs(key): value.detach().clone() for key, value in checkpoint.tensors.items()}
    # parts without weights, as another place for the TEF columns, show in the recipe only
    known = load("qd-detr", "finetune").to_dict()["model"]
    other = _unlike(known, checkpoint.recipe.to_dict()["model"], "model")
    if other:
        raise CheckpointError(
            f"recipe {checkpoint.recipe.name} has no place in the official layout: {other}; only recipe "
            "qd-detr exports to it, in any size"
        )
    hidden = checkpoint.recipe.model.hidden_dim
    state[f"{_UNUSED}position_embeddings.weight"] = torch.zeros(_TEXT_POSITIONS, hidden)
    state[f"{_UNUSED}LayerNorm.weight"] = torch.ones(hidden)
    state[f"{_UNUSED}LayerNorm.bias"] = torch.zeros(hidden)
    return state


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
    heads = {block["heads"] for block in (*model["fusion"], *model["encoder"], model["decoder"])}
    if len(heads) > 1:
        raise CheckpointError(
            f"recipe {checkpoint.recipe.name} has {' and '.join(map(str, sorted(heads)))} attention heads in "
            "different blocks; the official network has one number for all"
        )
    content = {"model": state, "epoch": checkpoint.epoch, "opt": {"nheads": heads.pop()}}
    # an open file: from a path torch takes the name of the archive inside
    with provenance.writing(path, overwrite=overwrite) as temporary, open(temporary, "wb") as stream:
        torch.save(content, stream)

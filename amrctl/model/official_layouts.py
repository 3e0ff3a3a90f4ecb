"""Names of weights in the layouts of released networks, and what they are called here.

Two layouts: the DCASE 2026 Task 6 baseline (QD-DETR), and CG-DETR as its authors and lighthouse save it.
Weights that a released network holds and never uses are not kept; `fillers` makes them for export.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amrctl.errors import CheckpointError

_FEEDFORWARD = r"(linear\d\.\w+|activation\.weight)"
_TEXT_POSITIONS = 32
_HEADS = (
    ("span_embed.layers", "heads.span.mlp.layers"),
    ("class_embed", "heads.foreground.linear"),
    ("saliency_proj1", "heads.saliency.frame"),
    ("saliency_proj2", "heads.saliency.whole"),
    ("query_embed", "decoder.query_embed"),
    ("transformer.decoder", "decoder"),
)
_MAIN = (
    ("transformer.encoder.layers", "encoder.transformer.layers"),
    ("transformer.decoder.layers", "decoder.layers"),
)
_POSITIONS = tuple(
    f"txt_position_embed.{key}"
    for key in ("position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias")
)


@dataclass(frozen=True)
class Layout:
    """One released network."""

    recipe: str  # ours of the same network
    title: str
    audio: str  # the audio projection
    tef_first: bool  # whether the TEF columns precede the features
    stacks: tuple[tuple[str, str], ...]  # layers: theirs, ours
    prefixes: tuple[tuple[str, str], ...]
    whole: dict[str, str]  # single tensors
    unused: tuple[str, ...]
    counts: dict[str, str]  # recipe key of a number of layers → stack, as theirs
    rows: dict[str, str]  # recipe key of a number → tensor that has so many rows
    blocks: tuple[str, ...]  # of the recipe's model, with attention heads and a feed-forward width
    trained: tuple[str, ...] = ()  # weights of training-only parts (ours) that the layout holds

    @property
    def sizes(self) -> tuple[str, ...]:
        """The matrices that tell a network's widths."""
        return (
            f"{self.audio}.0.net.1.weight",
            "input_txt_proj.0.net.1.weight",
            "query_embed.weight",
            "transformer.encoder.layers.0.linear1.weight",
        )

    @property
    def tef_columns(self) -> tuple[str, ...]:
        """The tensors whose last axis is [features, TEF]."""
        return tuple(
            f"{self.audio}.0.{key}" for key in ("LayerNorm.weight", "LayerNorm.bias", "net.1.weight")
        )

    def ours(self, key: str) -> str:
        """Our name of an official tensor. Raises `CheckpointError`."""
        if key in self.whole:
            return self.whole[key]
        for theirs, here in self.stacks:
            if key.startswith(theirs + "."):
                rest = re.sub(rf"^(\d+)\.{_FEEDFORWARD}$", r"\1.feedforward.\2", key[len(theirs) + 1 :])
                return f"{here}.{rest}"
        for theirs, here in self.prefixes:
            if key.startswith(theirs + "."):
                rest = key[len(theirs) + 1 :]
                if theirs.startswith("input_"):
                    rest = rest.replace(".LayerNorm.", ".norm.").replace(".net.1.", ".linear.")
                return f"{here}.{rest}"
        raise CheckpointError(f"'{key}' is not a weight of {self.title}")

    def theirs(self, key: str) -> str:
        """The official name of one of our tensors. Raises `CheckpointError`."""
        for whole, here in self.whole.items():
            if key == here:
                return whole
        for name, here in self.stacks:
            if key.startswith(here + "."):
                return f"{name}.{key[len(here) + 1 :].replace('.feedforward.', '.')}"
        for name, here in self.prefixes:
            if key.startswith(here + "."):
                rest = key[len(here) + 1 :]
                if name.startswith("input_"):
                    rest = rest.replace(".norm.", ".LayerNorm.").replace(".linear.", ".net.1.")
                return f"{name}.{rest}"
        raise CheckpointError(
            f"'{key}' has no place in the official layout; only recipes qd-detr and cg-detr export to it"
        )

    def fillers(self, hidden: int, text: int) -> dict[str, Tensor]:
        """What the released network holds and never uses: norms of ones, the rest zeros."""
        shapes = {
            "position_embeddings.weight": (_TEXT_POSITIONS, hidden),
            "net.1.weight": (hidden, text),
            "net.1.bias": (hidden,),
        }
        made = {}
        for key in self.unused:
            part, _, name = key.partition(".")
            if name.startswith("LayerNorm"):
                width = hidden if part == "txt_position_embed" else text
                made[key] = torch.ones(width) if name.endswith("weight") else torch.zeros(width)
            else:
                made[key] = torch.zeros(shapes[name])
        return made


QD_DETR = Layout(
    recipe="qd-detr",
    title="the official QD-DETR baseline",
    audio="input_aud_proj",
    tef_first=False,
    stacks=(("transformer.t2v_encoder.layers", "fusion.text-to-audio.layers"), *_MAIN),
    prefixes=(("input_aud_proj", "tokens.audio"), ("input_txt_proj", "tokens.text"), *_HEADS),
    whole={"global_rep_token": "tokens.summary", "global_rep_pos": "tokens.summary_position"},
    unused=_POSITIONS,
    counts={
        "tokens.layers": "input_aud_proj",
        "fusion.text-to-audio.layers": "transformer.t2v_encoder.layers",
        "encoder.transformer.layers": "transformer.encoder.layers",
        "decoder.layers": "transformer.decoder.layers",
    },
    rows={"decoder.queries": "query_embed.weight"},
    blocks=("fusion.text-to-audio", "encoder.transformer", "decoder"),
)

_ADAPTIVE = "fusion.adaptive-cross-attention"
_WORDS = "auxiliary.clip-words"

CG_DETR = Layout(
    recipe="cg-detr",
    title="the released CG-DETR",
    audio="input_vid_proj",
    tef_first=True,
    stacks=(
        ("transformer.t2v_encoder.layers", f"{_ADAPTIVE}.layers"),
        ("txtproj_encoder.layers", "fusion.dummy-tokens.layers"),
        ("transformer.mcls_encoder.layers", f"{_WORDS}.moment.layers"),
        ("scls_encoder.layers", f"{_WORDS}.sentence.layers"),
        *_MAIN,
    ),
    prefixes=(("input_vid_proj", "tokens.audio"), ("input_txt_proj", "tokens.text"), *_HEADS),
    whole={
        "global_rep_token": f"{_ADAPTIVE}.saliency_token.prompts",
        "global_rep_pos": f"{_ADAPTIVE}.saliency_token.position",
        "token_type_embeddings.weight": "tokens.types",
        "dummy_rep_token": "fusion.dummy-tokens.tokens",
        "dummy_rep_pos": "fusion.dummy-tokens.position",
        "moment_rep_token": f"{_WORDS}.moment.token",
        "moment_rep_pos": f"{_WORDS}.moment.position",
        "sent_rep_token": f"{_WORDS}.sentence.token",
        "sent_rep_pos": f"{_WORDS}.sentence.position",
    },
    unused=(
        *_POSITIONS,
        *(f"txt_proj_linear.{part}.{key}" for part in ("LayerNorm", "net.1") for key in ("weight", "bias")),
    ),
    counts={
        "tokens.layers": "input_vid_proj",
        f"{_ADAPTIVE}.layers": "transformer.t2v_encoder.layers",
        "fusion.dummy-tokens.layers": "txtproj_encoder.layers",
        f"{_WORDS}.moment_layers": "transformer.mcls_encoder.layers",
        f"{_WORDS}.sentence_layers": "scls_encoder.layers",
        "encoder.transformer.layers": "transformer.encoder.layers",
        "decoder.layers": "transformer.decoder.layers",
    },
    rows={
        "decoder.queries": "query_embed.weight",
        "fusion.dummy-tokens.count": "dummy_rep_token",
        f"{_ADAPTIVE}.prompts": "global_rep_token",
    },
    blocks=(_ADAPTIVE, "fusion.dummy-tokens", "encoder.transformer", "decoder", _WORDS),
    trained=(f"{_WORDS}.moment.token", f"{_WORDS}.sentence.token"),
)


def of_weights(state: dict[str, Any]) -> Layout:
    """The layout that a released file seems to have."""
    return CG_DETR if "dummy_rep_token" in state or "dummy_rep_pos" in state else QD_DETR


def of_model(model: dict[str, Any]) -> Layout:
    """The layout that a recipe's model exports to."""
    kinds = [part["kind"] for part in model["fusion"]]
    return CG_DETR if "adaptive-cross-attention" in kinds else QD_DETR

"""The detector: tokens → fusion → encoder → decoder → heads → refinement, as the recipe names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from amrctl import registry
from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.model.heads.saliency import Saliency
from amrctl.model.layers.activation import swish_
from amrctl.model.types import Dims, Memory, Output, Tokens
from amrctl.recipe import Recipe
from amrctl.registry import ComponentConfig


class Detector(nn.Module):
    """One detector for all recipes; it knows slots, not papers."""

    def __init__(
        self,
        tokens: nn.Module,
        fusion: dict[str, nn.Module],
        encoder: dict[str, nn.Module],
        decoder: nn.Module,
        heads: dict[str, nn.Module],
        refine: dict[str, nn.Module],
        auxiliary: dict[str, nn.Module],
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.fusion = nn.ModuleDict(fusion)
        self.encoder = nn.ModuleDict(encoder)
        self.decoder = decoder
        self.heads = nn.ModuleDict(heads)
        self.refine = nn.ModuleDict(refine)
        self.auxiliary = nn.ModuleDict(auxiliary)

    def forward(self, batch: Batch) -> Output:
        """Run the slots in order; the training-only parts run last and only in training mode."""
        tokens: Tokens = self.tokens(batch)
        memory = self.encode(tokens)
        output = self.answer(memory, batch)
        if self.training:
            for part in self.auxiliary.values():
                part(self, batch, tokens, memory, output)
        return output

    def encode(self, tokens: Tokens) -> Memory:
        """Fusion and encoder, for the pair at hand or for one that a training-only part makes up."""
        tokens = replace(tokens, extras=dict(tokens.extras))  # a second pass must not write into the first
        for part in self.fusion.values():
            tokens = part(tokens)
        memory = Memory(**vars(tokens))
        for part in self.encoder.values():
            memory = part(memory)
        return memory

    def answer(self, memory: Memory, batch: Batch, *, refine: bool = True) -> Output:
        """Decoder, heads and refinement, for the memory at hand or for one that a training-only part made."""
        decoded = self.decoder(memory, batch)
        output = Output(extras=dict(memory.extras))  # loss terms see the output alone
        for head in self.heads.values():
            head(memory, decoded, output)
        if decoded.extra is not None:
            output.extra = Output()
            for head in self.heads.values():
                head(memory, decoded.extra, output.extra)
        if refine:
            for part in self.refine.values():
                part(memory, decoded, output)
        return output

    @property
    def saliency_head(self) -> Saliency:
        """The saliency head; `RecipeError` if the recipe has none."""
        head = dict(self.heads.items()).get("saliency")
        if not isinstance(head, Saliency):
            raise RecipeError("model.heads: this recipe needs the head 'saliency'")
        return head

    def components(self) -> list[nn.Module]:
        """Every component, for their own loss terms."""
        hooks: nn.ModuleDict = getattr(self.decoder, "hooks", nn.ModuleDict())
        groups = (hooks, self.fusion, self.encoder, self.heads, self.refine, self.auxiliary)
        return [self.tokens, self.decoder, *(part for group in groups for part in group.values())]


def names(entries: Sequence[ComponentConfig]) -> list[str]:
    """Names of a slot's components; the second of a kind is `kind-2`, and so on."""
    found: list[str] = []
    for config in entries:
        name, count = config.kind, 1
        while name in found:
            count += 1
            name = f"{config.kind}-{count}"
        found.append(name)
    return found


def _slot(slot: str, entries: Sequence[ComponentConfig], dims: Dims) -> dict[str, nn.Module]:
    """Build a slot's components by name. Raises `RecipeError` for one beside what it `replaces`."""
    made = {name: _make(slot, config, dims) for name, config in zip(names(entries), entries, strict=True)}
    for name, part in made.items():
        for other in getattr(part, "replaces", ()):
            if other in made:
                raise RecipeError(f"model.{slot}: '{name}' takes the place of '{other}'; remove that one")
    return made


def _make(slot: str, config: ComponentConfig, *args: Any) -> Any:
    return registry.find(slot, config.kind).build(config, *args)


def build(recipe: Recipe, audio_dims: Sequence[int], text_dims: Sequence[int], *, training: bool) -> Detector:
    """Build the recipe's detector with fresh weights from the global generator.

    `audio_dims` and `text_dims` are the feature widths of the recipe's streams, main first. With
    `training` false the parts that exist only for training are left out.
    """
    model = recipe.model
    dims = Dims(model.hidden_dim, tuple(audio_dims), tuple(text_dims), recipe.compat == "official")
    detector = Detector(
        tokens=_make("tokens", model.tokens, dims),
        fusion=_slot("fusion", model.fusion, dims),
        encoder=_slot("encoder", model.encoder, dims),
        decoder=_make("decoder", model.decoder, dims, _slot("hooks", model.hooks, dims)),
        heads=_slot("heads", model.heads, dims),
        refine=_slot("refine", model.refine, dims),
        auxiliary=_slot("auxiliary", model.auxiliary, dims) if training else {},
    )
    if model.activation == "swish":
        swish_(detector)
    return detector

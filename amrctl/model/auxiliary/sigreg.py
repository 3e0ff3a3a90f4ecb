"""SIGReg: intermediate features are drawn towards an isotropic Gaussian, so that no direction collapses.

Source: Yokohama, DCASE 2026 Task 6, section 3.1, after Balestriero and LeCun (2025); the statistic is in
`layers.sketch`. The report regularises five sets of features, each found in `extras` (or in the memory):

    first-difference    audio after the first temporal-difference fusion [B, T, H]
    encoder-output      audio before the second one; without it, what the last part of the encoder leaves
                        (with `summary-to-frames`, the summary is in it) [B, T, H]
    second-difference   audio after the second one [B, T, H]
    text-summary        that of `sentence-token` [B, H]
    dummies             CG-DETR's dummy tokens after their encoder [B, D, H]

Left open there, ours: 1,024 directions and 17 knots, weight 0.05 for each set, no padding, values not
multiplied by the sample count. The directions are drawn at every step from the generator that draws
dropout: they follow from the run's seed, and a run that goes on after a kill draws the same ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.model.fusion.dummy_tokens import NAME as DUMMIES
from amrctl.model.fusion.sentence_token import NAME as SUMMARY
from amrctl.model.layers.sketch import directions, distance_from_gaussian
from amrctl.model.types import Dims, LossTerm, Matches, Memory, Output, Tokens
from amrctl.registry import ComponentConfig, component

if TYPE_CHECKING:
    from amrctl.model.detector import Detector

NAME = "sigreg"
Set = Literal["first-difference", "encoder-output", "second-difference", "text-summary", "dummies"]
SETS: tuple[Set, ...] = get_args(Set)
_KEYS = {"text-summary": SUMMARY, "dummies": DUMMIES}  # where they are not kept by the name of the set
_FRAMES = ("first-difference", "encoder-output", "second-difference")  # sets of audio frames, with padding
_MAKERS: dict[str, str] = {
    "first-difference": "'temporal-difference' in model.fusion",
    "second-difference": "'temporal-difference' in model.encoder",
    "text-summary": "'sentence-token' in model.fusion",
    "dummies": "'dummy-tokens' in model.fusion",
}


class SigregConfig(ComponentConfig):
    kind: Literal["sigreg"] = "sigreg"
    sets: tuple[Set, ...] | None = Field(
        None, min_length=1, description="which features; null: all that the model has"
    )
    slices: int = Field(1024, ge=1, description="random directions a step")
    knots: int = Field(17, ge=3, description="of the integral, an odd number")
    weight: float = Field(0.05, ge=0, description="of each set")

    @field_validator("knots")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("the number of knots must be odd")
        return value


class _Sum:
    """The sum over the sets that the component has written."""

    name, all_layers = NAME, False

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        return output.extras[NAME]


@component("auxiliary", NAME, SigregConfig)
class Sigreg(nn.Module):
    """Writes `output.extras["sigreg"]`: the sum over the sets, a scalar."""

    def __init__(self, config: SigregConfig, dims: Dims) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, detector: Detector, batch: Batch, tokens: Tokens, memory: Memory, output: Output
    ) -> None:
        sets = {name: found for name in SETS if (found := _rows(name, memory)) is not None}
        for name in self.config.sets or ():
            if name not in sets:
                raise RecipeError(
                    f"model.auxiliary.{NAME}.sets: this model has no '{name}'; it comes from {_MAKERS[name]}"
                )
        with torch.autocast(memory.audio.device.type, enabled=False):
            drawn = directions(memory.audio.shape[-1], self.config.slices, memory.audio.device)
            total = drawn.new_zeros(())
            for name in self.config.sets or sets:
                rows, real = sets[name]
                total = total + distance_from_gaussian(rows.float(), real, drawn, self.config.knots)
        output.extras[NAME] = total

    def loss_terms(self) -> list[LossTerm]:
        return [_Sum(self.config.weight)]


def _rows(name: Set, memory: Memory) -> tuple[Tensor, Tensor] | None:
    """The rows of a set [..., H], and which are real [...]; None if the model has no such features."""
    rows = memory.extras.get(_KEYS.get(name, name))
    if rows is None and name == "encoder-output":
        rows = memory.audio
    if rows is None:
        return None
    real = memory.audio_mask if name in _FRAMES else torch.ones_like(rows[..., 0], dtype=torch.bool)
    return rows, real

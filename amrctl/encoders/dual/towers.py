"""What the two sides of a dual encoder have in common with one another and with training.

An audio tower hears segments of equal length, a text tower reads tokens. Each is a module whose
weights lie in the dual encoder's checkpoint; `memory()` is what else is needed to build it again
without the files that it began with (a network's settings, a tokenizer).

N segments or sentences, T x F what a front end makes of a segment, L tokens, W a tower's width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from amrctl.encoders.networks.means import masked_mean
from amrctl.registry import ComponentConfig

Memory = Mapping[str, Any]  # JSON values


class AudioConfig(ComponentConfig):
    """Options of every audio tower: how a recording is cut. The defaults are JKU's (section 4)."""

    segment: float = Field(10.0, gt=0, allow_inf_nan=False, description="seconds that are heard at a time")
    hop: float = Field(5.0, gt=0, allow_inf_nan=False, description="seconds from segment to segment")


class Tokens(NamedTuple):
    """Sentences as numbers of tokens."""

    ids: Tensor  # [N, L] int64; 0 or the tokenizer's own number on padding
    mask: Tensor  # [N, L] bool, true on tokens

    def to(self, device: Any) -> Tokens:
        """The same on another device."""
        return Tokens(self.ids.to(device), self.mask.to(device))


class AudioTower(nn.Module, ABC):
    """Base of audio towers. Class or instance attributes: `sample_rate` (Hz), `width` (W).

    `config` holds `segment` and `hop`. `front`: the front end, [N, S] float32 samples to [N, T, F]
    float32, apart from the network because reading processes run it; nothing in it is learnt or saved,
    and rows do not mix. `least`: the shortest sound in seconds that it takes; what is shorter is filled
    with silence by the caller.
    """

    sample_rate: int
    width: int
    least: float = 0.1
    config: AudioConfig
    front: nn.Module

    @abstractmethod
    def forward(self, spectra: Tensor) -> Tensor:
        """What `front` gave to [N, W]; random changes (masks, patch-out) in training mode only."""

    def memory(self) -> Memory:
        """JSON values that build this tower again beside its weights."""
        return {}


class TextTower(nn.Module, ABC):
    """Base of text towers. `width`: W."""

    width: int

    @abstractmethod
    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Numbers of the tokens; at least one token a sentence."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """Rows of the tokens, [N, L, W]; what stands on padding is not read."""

    def pool(self, rows: Tensor, mask: Tensor) -> Tensor:
        """[N, L, W] and [N, L] to one row a sentence, [N, W]: the mean over real tokens (section 4)."""
        return masked_mean(rows, mask)

    def memory(self) -> Memory:
        """JSON values that build this tower again beside its weights."""
        return {}

"""What travels between the slots of the detector: small records of tensors, never loose dicts.

Letters: B pairs, T frames, L text tokens, H hidden width, N decoder queries, S decoder layers.
Masks are True where something real stands. Spans are (centre, width) in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.spans import Floats


@dataclass(frozen=True)
class Dims:
    """Sizes and switches that every component is built from."""

    hidden: int
    audio: tuple[int, ...]  # feature width per audio stream, main first
    text: tuple[int, ...]
    official: bool = False  # `compat: official`: the released code's behaviour where it differs


@dataclass(frozen=True)
class MomentStatistics:
    """What a training stage tells of its moments before the first step, to a component that has a method
    `start_from(statistics)`. The parameters that this sets are named in the component's `restarts`: they
    are not taken over from an initial checkpoint."""

    widths: Floats  # [M] of every training moment, as a share of its recording


@dataclass
class Tokens:
    """Projected features, before and between fusions."""

    audio: Tensor  # [B, T, H]
    audio_mask: Tensor  # [B, T] bool
    audio_position: Tensor  # [B, T, H]: position code that attention adds to queries and keys
    text: Tensor  # [B, L, H]
    text_mask: Tensor  # [B, L] bool
    summary: Tensor  # [B, H]: the token that stands for the whole (saliency is measured against it)
    summary_position: Tensor  # [B, H]
    extras: dict[str, Tensor] = field(default_factory=dict)  # kept for a component's own loss, by its name


@dataclass
class Memory:
    """What the encoder leaves for the decoder and the heads."""

    audio: Tensor  # [B, T, H]
    audio_mask: Tensor  # [B, T] bool
    audio_position: Tensor  # [B, T, H]
    text: Tensor  # [B, L, H]
    text_mask: Tensor  # [B, L] bool
    summary: Tensor  # [B, H]
    summary_position: Tensor  # [B, H]
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Decoded:
    """The decoder's queries after every layer."""

    states: Tensor  # [S, B, N, H], layer-normalised
    references: Tensor  # [S, B, N, 2]: the span each layer started from, in 0..1
    extra: Decoded | None = None  # queries that a hook added for its own loss; no window comes from them


@dataclass
class Output:
    """What the heads say; a field stays None where the recipe has no such head."""

    logits: Tensor | None = None  # [S, B, N, C]; C = 2 (foreground, background)
    spans: Tensor | None = None  # [S, B, N, 2]
    saliency: Tensor | None = None  # [B, T] raw; meaningless on padding
    quality: Tensor | None = None  # [S, B, N] logits of a localisation-quality head
    boundary: Tensor | None = None  # [B, T, 2] start and end logits
    refined: Tensor | None = None  # [B, N, 2] spans after refinement; replaces spans[-1] at inference
    extra: Output | None = None  # what the heads say of `Decoded.extra`
    branches: dict[str, Branch] = field(default_factory=dict)  # by the name of the part that made it
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Branch:
    """A second answer to the same queries, made for training only (from a coarser grid, say).

    It is matched on its own; the terms that describe windows (`LossTerm.branches`) count on its last
    layer too, `weight` times their own weight.
    """

    output: Output
    weight: float


@dataclass
class Matches:
    """Which query answers which moment, one decoder layer."""

    row: Tensor  # [P] int64: row of the batch
    query: Tensor  # [P] int64
    moment: Tensor  # [P] int64: column of `targets.spans`

    def found(self, like: Tensor) -> Tensor:
        """Which queries answer a moment, bool of the shape [B, N] of `like`."""
        none = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
        return none.index_put((self.row, self.query), none.new_ones(()))

    def number(self) -> int | Tensor:
        """How many pairs count, 1 at least."""
        return max(len(self.row), 1)

    def counted(self, values: Tensor) -> Tensor:
        """`values` [P], 0 where a pair does not count (see `losses.dense`; here every pair does)."""
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` [P, ...] over the pairs that count and over all other dimensions."""
        return values.mean()


class LossTerm(Protocol):
    """One named term of the loss. `total.py` weights it and repeats it over decoder layers.

    A term may also have `branches = True` (it counts on every `Branch`), and `classifies = True`: then
    its `cost`, or else its weight, is the class cost of matching. A component's term that repeats a
    general one may have `unit = "span"`, `"giou"` or `"label"`: its weight then counts in units of that
    cost, so that it follows the recipe's balance. A general term with an attribute `official` is told there
    whether the recipe asks for `compat: official`.
    """

    name: str
    weight: float
    all_layers: bool  # also on the auxiliary decoder layers

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        """The raw value (scalar) for one decoder layer; `layer` counts from 0, -1 is the last."""
        ...

"""Denoising queries: the decoder is given noised moments and has to restore them.

Source: KAIST, DCASE 2026 Task 6, section 3.4, eq. 5, after DN-DETR (Li et al., CVPR 2022). Each moment
(c, w) gives `copies` queries whose references are c and w plus independent N(0, sigma^2), clipped, in
units of the recording. A query answers the moment it was made from, without matching: L1, gIoU and
foreground, at the recipe's weights, on the last decoder layer as in the released code (`all_layers`
for the others, as in DN-DETR). Here the learned queries and every copy of the set of moments see only
themselves, and slots that hold no moment are neither seen nor counted. In the released code all copies
see each other (`isolate: learned`), and empty slots take part as background (`empty: background`).
Nothing of this exists outside training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.model.decoder.conditional import DecoderHook, Queries
from amrctl.model.layers.spans import giou, to_start_end
from amrctl.model.types import Dims, LossTerm, Matches, Memory, Output
from amrctl.registry import ComponentConfig, component

NAME = "denoising"
_EDGE = 1e-3  # references stay this far from 0 and 1, where the inverse sigmoid ends
_EMPTY = (0.5, 0.1)  # the reference of a slot without a moment
_BACKGROUND = 0.1  # weight of an empty slot's class, where it has one (the baseline's)


class DenoisingConfig(ComponentConfig):
    kind: Literal["denoising"] = "denoising"
    copies: int = Field(5, ge=1, description="noised queries per moment")
    sigma: float = Field(0.05, ge=0, description="of the noise, in recordings")
    weight: float = Field(1.0, ge=0, description="of the task, in units of the recipe's span, giou and label")
    isolate: Literal["copies", "learned"] = Field(
        "copies", description="whose sight ends: every copy's and the learned queries', or only the latter's"
    )
    empty: Literal["masked", "background"] = Field(
        "masked", description="slots without a moment: out of the task, or background"
    )
    all_layers: bool = Field(False, description="also on the earlier decoder layers")


def noised(spans: Tensor, mask: Tensor, copies: int, sigma: float) -> Tensor:
    """Draw references from the global generator: [B, M, 2] and [B, M] → [B, copies, M, 2] in 0..1."""
    noise = torch.randn(len(spans), copies, *spans.shape[1:], device=spans.device) * sigma
    shaken = (spans[:, None] + noise).clamp(_EDGE, 1 - _EDGE)
    empty = torch.tensor(_EMPTY, device=spans.device)
    return torch.where(mask[:, None, :, None], shaken, empty)


def sight(
    learned: int, mask: Tensor, copies: int, *, isolate: Literal["copies", "learned"], see_empty: bool
) -> Tensor:
    """Who may see whom among `learned` queries and the `copies` x M added ones.

    `mask` [B, M] bool → [B, 1, N, N] bool with N = learned + copies * M; everyone sees itself.
    """
    size, moments = mask.shape
    device = mask.device
    own = torch.zeros(learned, dtype=torch.int64, device=device)
    copy = torch.arange(copies, device=device).repeat_interleave(moments) + 1
    if isolate == "learned":
        copy = torch.ones_like(copy)
    group = torch.cat((own, copy))
    real = torch.ones(size, learned + len(copy), dtype=torch.bool, device=device)
    if not see_empty:
        real = torch.cat((real[:, :learned], mask.repeat(1, copies)), dim=1)
    alike = group[:, None] == group[None]
    itself = torch.eye(len(group), dtype=torch.bool, device=device)
    return ((alike[None] & real[:, None]) | itself[None])[:, None]


class _Restored:
    """One of the three terms: a noised query's answer against the moment it was made from."""

    def __init__(self, unit: Literal["span", "giou", "label"], config: DenoisingConfig) -> None:
        self.name, self.unit = f"{NAME}.{unit}", unit
        self.weight, self.all_layers = config.weight, config.all_layers
        self.copies, self.empty = config.copies, config.empty

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        """Mean over the noised queries of the batch; 0 without moments."""
        extra, targets = output.extra, batch.targets
        if extra is None or extra.logits is None or extra.spans is None or targets is None:
            raise RuntimeError("denoising needs a pass in training mode over labelled queries")
        real = targets.mask.repeat(1, self.copies)
        if self.unit == "label":
            return self._label(extra.logits[layer].float(), real)
        spans = extra.spans[layer].float()
        wanted = targets.spans.repeat(1, self.copies, 1)
        if self.unit == "span":
            value = (spans - wanted).abs().mean(-1)
        else:
            value = 1.0 - giou(to_start_end(spans), to_start_end(wanted))
        return torch.where(real, value, 0.0).sum() / real.sum().clamp(min=1)

    def _label(self, logits: Tensor, real: Tensor) -> Tensor:
        """Cross-entropy of two logits (foreground first), or of one."""
        if logits.shape[-1] == 1:
            loss = functional.binary_cross_entropy_with_logits(
                logits[..., 0], real.to(logits.dtype), reduction="none"
            )
        else:
            loss = functional.cross_entropy(logits.transpose(1, 2), (~real).long(), reduction="none")
        weight = real.to(loss.dtype)
        if self.empty == "background":  # the weighted mean is over the weights, as released
            weight = torch.where(real, 1.0, _BACKGROUND)
        return (loss * weight).sum() / weight.sum().clamp(min=_BACKGROUND)


@component("hooks", NAME, DenoisingConfig)
class Denoising(DecoderHook):
    """Adds `copies` x M queries after the learned ones, copy by copy, in training only."""

    def __init__(self, config: DenoisingConfig, dims: Dims) -> None:
        super().__init__()
        self.config = config
        if config.empty == "background":
            self.alone = "empty: background counts slots that are there because other queries fill theirs"

    def start(self, queries: Queries, memory: Memory, batch: Batch) -> Queries:
        if not self.training or batch.targets is None:
            return queries
        config, mask = self.config, batch.targets.mask
        reference = noised(batch.targets.spans, mask, config.copies, config.sigma).flatten(1, 2)
        size, added = reference.shape[:2]
        learned = queries.reference.shape[1]
        seen = sight(
            learned, mask, config.copies, isolate=config.isolate, see_empty=config.empty == "background"
        )
        if queries.self_mask is not None:
            seen[..., :learned, :learned] &= queries.self_mask
        content = queries.content.new_zeros(size, added, queries.content.shape[-1])
        return replace(
            queries,
            content=torch.cat((queries.content, content), dim=1),
            reference=torch.cat((queries.reference, reference.to(queries.reference.dtype)), dim=1),
            self_mask=seen,
            extra=queries.extra + added,
        )

    def loss_terms(self) -> list[LossTerm]:
        return [_Restored(unit, self.config) for unit in ("span", "giou", "label")]

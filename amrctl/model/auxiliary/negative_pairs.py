"""Negative pairs: the same recording with a sentence that does not belong to it.

Source: QD-DETR (Moon et al., CVPR 2023), section 3.3. Only the saliency of the mismatched pair is
needed, so that the decoder does not run for it; what fusion and encoder put into extras is kept for the
terms of their components. Sentences of the same recording are not taken as mismatched, except with
`compat: official`, which takes the next row whatever it is. CG-DETR's released code (`real`) leaves such
rows out, of the second pass too.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amrctl.data.batch import Batch
from amrctl.model.types import Dims, Memory, Output, Tokens
from amrctl.registry import ComponentConfig, component

if TYPE_CHECKING:
    from amrctl.model.detector import Detector

NAME = "negative-pairs"
ROWS = f"{NAME}.rows"


class NegativePairsConfig(ComponentConfig):
    kind: Literal["negative-pairs"] = "negative-pairs"
    real: bool = Field(
        False,
        description="with compat official: leave out pairs whose next pair is about the same recording; "
        "without it such sentences are never taken",
    )


def taken(tokens: Tokens, rows: Tensor) -> Tokens:
    """Some rows of the tokens, extras included."""
    picked = {f.name: getattr(tokens, f.name)[rows] for f in fields(tokens) if f.name != "extras"}
    return Tokens(**picked, extras={name: extra[rows] for name, extra in tokens.extras.items()})


@component("auxiliary", NAME, NegativePairsConfig)
class NegativePairs(nn.Module):
    """Writes `output.extras["negative-pairs"]` [B, T], the saliency of the mismatched pair; `.rows` [B],
    1 where there is one, else 0; `.NAME` for every extra NAME of the mismatched pair's memory."""

    def __init__(self, config: NegativePairsConfig, dims: Dims) -> None:
        super().__init__()
        self.leave_out = config.real and dims.official

    def forward(
        self, detector: Detector, batch: Batch, tokens: Tokens, memory: Memory, output: Output
    ) -> None:
        if batch.targets is None:
            return
        next_row = batch.targets.negative_row
        row = next_row.clamp(min=0)
        there = next_row >= 0
        if self.leave_out:
            other = [batch.vids[i] != batch.vids[j] for i, j in enumerate(row.tolist())]
            there = there & torch.tensor(other, device=there.device)
        output.extras[ROWS] = there.float()
        mismatched = replace(tokens, text=tokens.text[row], text_mask=tokens.text_mask[row])
        kept = there.nonzero()[:, 0] if self.leave_out else None
        if kept is not None:
            if not len(kept):
                output.extras[NAME] = tokens.audio.new_zeros(tokens.audio.shape[:2])
                return
            mismatched = taken(mismatched, kept)
        found = detector.encode(mismatched)
        made = {NAME: detector.saliency_head.curve(found)}
        made |= {f"{NAME}.{name}": extra for name, extra in found.extras.items()}
        for name, value in made.items():
            output.extras[name] = value if kept is None else _spread(value, kept, len(there))


def _spread(value: Tensor, rows: Tensor, size: int) -> Tensor:
    """`value` [n, ...] as rows `rows` of [size, ...], 0 elsewhere."""
    return value.new_zeros(size, *value.shape[1:]).index_copy(0, rows, value)

"""Bidirectional Mamba over the summary token and the audio frames, in two forms.

`merge: sum`. Source: Choi and Park (KAIST), DCASE 2026 Task 6 report, section 2.2: the scan forwards and the
scan of the reversed sequence are added and layer-normalised; one layer, state 16, convolution 4, expansion 2.
Their released code also adds the input: `residual: true`. `merge: concat`. Source: QAM-DETR (Chung-Ang
University), DCASE 2026 Task 6 report, section 2.2: both scans are concatenated and projected by a linear
layer, then residual and layer norm; two layers there.

The sequence is [summary | frames], as in the released code: the forward scan meets the summary first, the
backward scan last. What differs from that code: a recording's backward scan starts at its own last frame, not
in the padding of its batch (`compat: official` does, and zeroes padded frames at the end), and the blocks
keep the initialisation of Mamba. There is no position code and no dropout.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amrctl.model.layers.feedforward import xavier_
from amrctl.model.layers.mamba import Mamba
from amrctl.model.layers.stacking import folded, stacked
from amrctl.model.types import Dims, Memory
from amrctl.registry import ComponentConfig, component


class BiMambaConfig(ComponentConfig):
    kind: Literal["bimamba"] = "bimamba"
    layers: int = Field(1, ge=1)
    merge: Literal["sum", "concat"] = Field("sum", description="add both scans, or concatenate and project")
    state: int = Field(16, ge=1, description="states per channel")
    conv: int = Field(4, ge=1, description="taps of the short convolution, in frames")
    expand: int = Field(2, ge=1, description="inner width as a multiple of the hidden width")
    residual: bool | None = Field(
        None, description="add the input before the norm; default: with merge concat, and in compat official"
    )


class _Reorder(torch.autograd.Function):
    """Rows of [B, T, H] in another order, given as its own inverse: the gradient is reordered alike."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, order = inputs
        ctx.save_for_backward(order)
        return x.reshape(-1, x.shape[2]).index_select(0, order).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return _Reorder.apply(grads[0], order), None  # type: ignore[no-untyped-call]


def reversal(lengths: Tensor, size: int) -> Tensor:
    """Which rows of a flattened [B, `size`] reverse each sequence and leave its padding, [B * size] int64."""
    t = torch.arange(size, device=lengths.device)
    last = lengths[:, None] - 1
    mirrored = torch.where(t <= last, last - t, t)
    return _numbered(mirrored)


def _numbered(place: Tensor) -> Tensor:
    """Places within each of B sequences, [B, T] → rows of the flattened tensor, [B * T]."""
    size, frames = place.shape
    return (place + torch.arange(size, device=place.device)[:, None] * frames).flatten()


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """`x` [B, T, H] with its rows in the order of `reversal`."""
    if stacked(x):  # the numbers of rows begin anew in every detector
        place = order.view(x.shape[:2]) % x.shape[1]
        return folded(lambda rows, p: reorder(rows, _numbered(p)), x, place)
    turned: Tensor = _Reorder.apply(x, order)  # type: ignore[no-untyped-call]
    return turned


class BiMambaLayer(nn.Module):
    """norm(merged scans, plus the input if `residual`)."""

    def __init__(self, width: int, state: int, conv: int, expand: int, concat: bool, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.fwd = Mamba(width, state, conv, expand)
        self.bwd = Mamba(width, state, conv, expand)
        self.merge = nn.Linear(2 * width, width) if concat else None
        self.norm = nn.LayerNorm(width)
        if self.merge is not None:
            xavier_(self.merge)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """`x` [B, T, H], `order` from `reversal`; returns [B, T, H]."""
        ahead = self.fwd(x)
        back = reorder(self.bwd(reorder(x, order)), order)
        y = ahead + back if self.merge is None else self.merge(torch.cat((ahead, back), dim=-1))
        out: Tensor = self.norm(x + y if self.residual else y)
        return out


@component("encoder", "bimamba", BiMambaConfig)
class BiMamba(nn.Module):
    """Mamba blocks in both directions over [summary | audio]; the text passes through."""

    unread = ("tokens.summary_position",)  # a scan has no use for positions

    def __init__(self, config: BiMambaConfig, dims: Dims) -> None:
        super().__init__()
        self.official = dims.official
        concat = config.merge == "concat"
        residual = concat or dims.official if config.residual is None else config.residual
        self.layers = nn.ModuleList(
            BiMambaLayer(dims.hidden, config.state, config.conv, config.expand, concat, residual)
            for _ in range(config.layers)
        )

    def forward(self, memory: Memory) -> Memory:
        x = torch.cat((memory.summary[:, None], memory.audio), dim=1)
        lengths = memory.audio_mask.sum(1) + 1
        order = reversal(torch.full_like(lengths, x.shape[1]) if self.official else lengths, x.shape[1])
        for layer in self.layers:
            x = layer(x, order)
        audio = x[:, 1:]
        if self.official:
            audio = audio.masked_fill(~memory.audio_mask[..., None], 0.0)
        return replace(memory, summary=x[:, 0], audio=audio)

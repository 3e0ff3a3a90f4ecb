"""The mean over the segments of a recording: the public baseline of DCASE 2025 task 6."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from amrctl.encoders.networks.means import masked_mean
from amrctl.registry import ComponentConfig, component


class Config(ComponentConfig):
    """Nothing to choose."""

    kind: Literal["mean"] = "mean"


@component("retrieval-pooling", "mean", Config)
class Mean(nn.Module):
    """All segments count alike."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """[B, S, W] and [B, S] bool (true on segments, one at least) to [B, W] float32."""
        return masked_mean(rows, mask)

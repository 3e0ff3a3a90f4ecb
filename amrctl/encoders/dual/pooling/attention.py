"""Attention over the segments of a recording.

JKU, "Enhancing Language-Based Audio Retrieval with Partial Fine-Tuning and Attention Pooling", DCASE 2025,
section 4, eq. 3: weights softmax(W2 tanh(W1 z)). W1 has a bias and the hidden width is that of
the rows, which the paper leaves open. Padding gets the weight 0 exactly.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amrctl.registry import ComponentConfig, component


class Config(ComponentConfig):
    """Size of the scoring network."""

    kind: Literal["attention"] = "attention"
    hidden: int | None = Field(None, ge=1, description="inner width; none: that of the rows")


@component("retrieval-pooling", "attention", Config)
class Attention(nn.Module):
    """Learned weights over segments; a single segment keeps its row."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        hidden = config.hidden or width
        self.inner = nn.Linear(width, hidden)
        # a bias of the score would move all weights alike, which softmax takes out
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """[B, S, W] and [B, S] bool (true on segments, one at least) to [B, W] float32."""
        rows = rows.float()
        scores = self.score(torch.tanh(self.inner(rows))).squeeze(-1).float()
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=1)
        pooled: Tensor = (weights[..., None] * rows.masked_fill(~mask[..., None], 0.0)).sum(1)
        return pooled

"""What the text-to-audio layers share beside their attention."""

from __future__ import annotations

from torch import Tensor, nn

from amrctl.model.layers.dropout import branch_dropout
from amrctl.model.layers.dropped_branch import add_dropped
from amrctl.model.layers.feedforward import Feedforward


class CrossLayer(nn.Module):
    """x = audio + attention; out = norm2(x + feedforward(norm1(x))) (QD-DETR)."""

    def __init__(
        self, attention: nn.Module, width: int, inner: int, dropout: float, drop_path: float | None
    ) -> None:
        super().__init__()
        self.self_attn = attention
        self.feedforward = Feedforward(width, inner, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = branch_dropout(dropout, drop_path)

    def update(self, audio: Tensor, seen: Tensor) -> Tensor:
        """`audio` [B, T, H] and what attention gave for it, alike; [B, T, H]."""
        x = add_dropped(audio, seen, self.dropout)
        out: Tensor = self.norm2(add_dropped(x, self.feedforward(self.norm1(x)), self.dropout))
        return out

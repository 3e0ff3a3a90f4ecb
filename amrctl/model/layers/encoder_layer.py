"""The post-norm transformer encoder layer (self-attention, feed-forward) of DETR."""

from __future__ import annotations

from torch import Tensor, nn

from amrctl.model.layers.attention import MultiheadAttention
from amrctl.model.layers.dropout import Dropout
from amrctl.model.layers.feedforward import Feedforward


class EncoderLayer(nn.Module):
    """x = norm1(x + attention(x + pos)); x = norm2(x + feedforward(x))."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.feedforward = Feedforward(width, inner, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """`x`, `position` [B, T, H]; `mask` broadcastable to [B, heads, T, T]; returns [B, T, H]."""
        placed = x + position
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x, mask)))
        out: Tensor = self.norm2(x + self.dropout(self.feedforward(x)))
        return out

"""The post-norm transformer encoder layer (self-attention, feed-forward) of DETR, and stacks of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amrctl.model.layers.attention import MultiheadAttention, key_mask
from amrctl.model.layers.dropout import branch_dropout
from amrctl.model.layers.dropped_branch import add_dropped
from amrctl.model.layers.feedforward import Feedforward
from amrctl.model.layers.options import LayerConfig


class EncoderLayer(nn.Module):
    """x = norm1(x + attention(x + pos)); x = norm2(x + feedforward(x))."""

    def __init__(
        self, width: int, heads: int, inner: int, dropout: float, drop_path: float | None = None
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.feedforward = Feedforward(width, inner, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = branch_dropout(dropout, drop_path)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """`x`, `position` [B, T, H]; `mask` broadcastable to [B, heads, T, T]; returns [B, T, H]."""
        placed = x + position
        x = self.norm1(add_dropped(x, self.self_attn(placed, placed, x, mask), self.dropout))
        out: Tensor = self.norm2(add_dropped(x, self.feedforward(x), self.dropout))
        return out


def encoder_layers(config: LayerConfig, width: int, count: int) -> nn.ModuleList:
    """`count` encoder layers with the options of `config`."""
    inner = config.inner_width(width)
    return nn.ModuleList(
        EncoderLayer(width, config.heads, inner, config.dropout, config.drop_path) for _ in range(count)
    )


class Registers(nn.Module):
    """Learned tokens behind a sequence, which take up attention that has nowhere to go.

    Source: Darcet et al. (ICLR 2024) as in the Yokohama report (DCASE 2026 Task 6), section 2.3; who adds
    them drops them after the last layer. Ours: N(0, 0.02) at the start, no position code.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.02 * torch.randn(count, width))

    def forward(self, x: Tensor, position: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x` and `position` [B, T, H], `real` [B, T] → the same with `count` tokens more."""
        count = len(self.tokens)
        x = torch.cat((x, self.tokens.to(x.dtype).expand(len(x), -1, -1)), dim=1)
        place = nn.functional.pad(position, (0, 0, 0, count))
        return x, place, nn.functional.pad(real, (0, count), value=True)


class TokenEncoder(nn.Module):
    """A learned token reads rows: encoder layers over [token | rows], and `registers` behind them.

    The arithmetic of CG-DETR's moment and sentence tokens (Moon et al., 2023). Its layers start as
    `torch.nn` layers do.
    """

    def __init__(self, config: LayerConfig, width: int, count: int, registers: int = 0) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(width))
        self.position = nn.Parameter(torch.randn(width))
        self.layers = encoder_layers(config, width, count)
        self.registers = Registers(width, registers) if registers else None

    def forward(self, rows: Tensor, position: Tensor | None, seen: Tensor) -> tuple[Tensor, Tensor]:
        """`rows` and `position` [B, T, H] (None: 0), `seen` [B, T] bool: rows that may be read.

        Returns the token [B, H] and the rows [B, T, H] after the layers; a row that may not be read
        still reads the others.
        """
        size = len(rows)
        place = torch.zeros_like(rows) if position is None else position
        x = torch.cat((self.token.expand(size, 1, -1), rows), dim=1)
        place = torch.cat((self.position.expand(size, 1, -1), place), dim=1)
        real = nn.functional.pad(seen, (1, 0), value=True)
        if self.registers is not None:
            x, place, real = self.registers(x, place, real)
        mask = key_mask(real)
        for layer in self.layers:
            x = layer(x, place, mask)
        return x[:, 0], x[:, 1 : rows.shape[1] + 1]

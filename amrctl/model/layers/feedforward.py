"""Small networks: the feed-forward half of a layer, the multi-layer perceptron, the input block."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn

from amrctl.model.layers.activation import PReLU
from amrctl.model.layers.dropout import Dropout
from amrctl.model.layers.dropped_branch import prelu_dropped


class Feedforward(nn.Module):
    """linear2(dropout(PReLU(linear1(x)))), `[..., H]` → `[..., H]`."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, inner)
        self.activation: nn.Module = PReLU()
        self.dropout = Dropout(dropout)
        self.linear2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.linear1(x)
        if isinstance(self.activation, PReLU):  # another may have been put in its place
            inner = prelu_dropped(inner, self.activation, self.dropout)
        else:
            inner = self.dropout(self.activation(inner))
        out: Tensor = self.linear2(inner)
        return out


class MLP(nn.Module):
    """`depth` linear layers with ReLU between them, `[..., width]` → `[..., out]`."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        sizes = [width] + [hidden] * (depth - 1) + [out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.between = nn.ModuleList(nn.ReLU() for _ in range(depth - 1))

    @property
    def last(self) -> nn.Linear:
        """The output layer."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        for layer, activation in zip(self.layers, self.between, strict=False):
            x = activation(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class InputBlock(nn.Module):
    """Layer norm, dropout, linear, and ReLU unless it is the last block of its stack."""

    def __init__(self, width: int, out: int, dropout: float, relu: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(width, out)
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.linear(self.dropout(self.norm(x))))
        return out


def input_blocks(width: int, hidden: int, depth: int, dropout: float) -> nn.Sequential:
    """`depth` input blocks, `[..., width]` → `[..., hidden]`."""
    return nn.Sequential(
        *(InputBlock(width if i == 0 else hidden, hidden, dropout, i < depth - 1) for i in range(depth))
    )


def matrices(module: nn.Module) -> Iterator[Tensor]:
    """All parameters of at least two dimensions."""
    return (p for p in module.parameters() if p.dim() > 1)


def xavier_(module: nn.Module) -> None:
    """Xavier-uniform for every matrix, as the official transformer does after construction."""
    for matrix in matrices(module):
        nn.init.xavier_uniform_(matrix)

"""Matrix products of a frozen network on a CPU: weights as they are read fastest, loops beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amrctl.encoders.networks import kernels


class Product:
    """A linear map without its bias, for the loop that reads the outputs to add.

    The weights are stored input by output, which is read faster than the other way round; products with a
    bias are slower by more than what adding it beside other work costs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """`weight` (N, K), `bias` (N,)."""
        self.weight = weight.t().contiguous()
        self.bias = np.zeros(len(weight), np.float32) if bias is None else array(bias.float())

    def __call__(self, rows: Tensor) -> Tensor:
        """`(rows, K)` of the weights' type to `(rows, N)`."""
        return rows @ self.weight


def joined(parts: Sequence[Any], more: tuple[Tensor, Tensor] | None = None) -> Product:
    """Several `nn.Linear` of one input as one product; `more`: weight and bias of further outputs.

    The modules keep their weights as views of the product's, so that a network stands in memory once and
    still runs by itself.
    """
    weights = [part.weight.data for part in parts]
    biases = [part.bias.data.float() for part in parts if part.bias is not None]
    if more is not None:
        weights.append(more[0].to(weights[0].dtype))
        biases.append(more[1])
    product = Product(torch.cat(weights), torch.cat(biases) if biases else None)
    end = 0
    for part in parts:
        start, end = end, end + part.out_features
        part.weight.data = product.weight[:, start:end].t()
    return product


class Norm:
    """Weight, bias and epsilon of a norm with one number a channel, as the kernels take them."""

    def __init__(self, module: Any) -> None:
        self.weight = array(module.weight.data.float())
        self.bias = array(module.bias.data.float())
        self.eps = float(module.eps)

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The normed rows of `x` (rows, C) as `dtype`."""
        out = torch.empty(x.shape, dtype=dtype)
        order = np.arange(len(x), dtype=np.int32)
        kernels.norm(array(x), order, self.weight, self.bias, self.eps, array(out))
        return out


def array(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor without a copy, bfloat16 as bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def gelu(rows: Tensor, bias: np.ndarray) -> Tensor:
    """GELU of `rows` + `bias`, (rows, C) and (C,), in place."""
    if rows.dtype == torch.float32:
        changed: Tensor = torch.ops.aten.gelu_(rows.add_(torch.from_numpy(bias)))
        return changed
    kernels.gelu(array(rows), bias)
    return rows


class Heads:
    """Queries, keys and values of attention with several heads as one product, and what follows it.

    A key's bias moves all scores of a query alike, which softmax does not see; a value's passes through the
    weights, which add up to 1, into the bias of `out`.
    """

    def __init__(
        self,
        query: Any,
        key: Any,
        value: Any,
        out: Any,
        heads: int,
        more: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """`nn.Linear` of queries, keys, values and of what was seen; `more`: as `joined` takes it."""
        self.heads, self.depth = heads, query.out_features // heads
        self.joint, self.out = joined([query, key, value], more), joined([out])
        if query.bias is not None:
            self.bias = array(query.bias.data.float())
            passed = out.weight.data.float() @ value.bias.data.float()
            self.out.bias = self.out.bias + array(passed)
        else:
            self.bias = np.zeros(0, np.float32)

    def parts(self, both: Tensor, length: int) -> Tensor:
        """What `joint` gave, (windows x length, C), to `(3, windows x heads, length, depth)`."""
        kernels.shift(array(both), self.bias)
        used = both[:, : 3 * self.heads * self.depth].unflatten(0, (-1, length))
        parts: Tensor = used.unflatten(2, (3, self.heads, self.depth)).permute(2, 0, 3, 1, 4)
        return parts.flatten(1, 2).contiguous()

    def merged(self, weights: Tensor, values: Tensor) -> Tensor:
        """Weights `(windows x heads, length, length)` and values to `out` of them, without its bias."""
        seen = torch.bmm(weights, values).unflatten(0, (-1, self.heads)).transpose(1, 2)
        return self.out(seen.flatten(2).flatten(0, 1))

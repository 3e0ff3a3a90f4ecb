"""Multi-head attention: the arithmetic, and the two modules of it that the detectors use."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from amrctl.errors import RecipeError
from amrctl.model.layers.dropout import drop
from amrctl.model.layers.dropped_attention import attend_dropped, softmax_dropped
from amrctl.model.layers.stacking import folded, stacked


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, training: bool
) -> Tensor:
    """Scaled dot-product attention.

    `query` [B, heads, Tq, d], `key` [B, heads, Tk, d], `value` [B, heads, Tk, e]; `mask` is bool
    (True = may be seen) or a float bias, broadcastable to [B, heads, Tq, Tk]. Returns
    [B, heads, Tq, e]. Without dropout this is the library's fused kernel.
    """
    if stacked(query):

        def whole(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None = None) -> Tensor:
            return attend(q, k, v, m, dropout, training)

        rows = () if mask is None else (mask.expand(query.shape[0], *mask.shape[1:]),)
        return folded(whole, query, key, value, *rows)
    if not training or dropout == 0.0 or query.device.type != "cpu":
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout if training else 0.0
        )
    traced = torch.compiler.is_compiling()  # the compiler cannot look into loops of ours
    by_key = mask is None or (mask.dtype == torch.bool and mask.shape[1:3] == (1, 1))
    if by_key and not traced:
        if torch.is_autocast_enabled("cpu"):
            wanted = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(wanted), key.to(wanted), value.to(wanted)
        return attend_dropped(query, key, value, None if mask is None else mask[:, 0, 0], dropout)
    scores = torch.matmul(query * (1.0 / math.sqrt(query.shape[-1])), key.transpose(-1, -2))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = drop(scores.softmax(-1), dropout, True) if traced else softmax_dropped(scores, dropout)
    return torch.matmul(weights, value)


def require_heads(width: int, heads: int) -> None:
    """Raise `RecipeError` when `heads` do not share `width` evenly."""
    if width % heads:
        raise RecipeError(f"model: heads: width {width} is not a multiple of {heads} heads")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, H] → [B, heads, T, H / heads]."""
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, heads, T, d] → [B, T, heads * d]."""
    return x.transpose(1, 2).flatten(2)


def key_mask(real: Tensor) -> Tensor:
    """[B, Tk] bool → [B, 1, 1, Tk], for `attend`."""
    return real[:, None, None, :]


def padding_mask(real: Tensor) -> Tensor | None:
    """`key_mask`, or None where everything is real, if that can be known: asking a GPU would wait for it,
    and in a stack nobody can look."""
    unpadded = real.device.type == "cpu" and not stacked(real) and bool(real.all())
    return None if unpadded else key_mask(real)


class MultiheadAttention(nn.Module):
    """Attention with one stacked input projection, parameters named as in `torch.nn`.

    Queries and keys carry a position code, values do not (DETR, Carion et al. 2020).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        require_heads(width, heads)
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """`query` [B, Tq, H], `key` and `value` [B, Tk, H], `mask` as in `attend`; [B, Tq, H]."""
        width = query.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:  # self-attention: one product for both
            q, k = functional.linear(query, weight[: 2 * width], bias[: 2 * width]).chunk(2, -1)
        else:
            q = functional.linear(query, weight[:width], bias[:width])
            k = functional.linear(key, weight[width : 2 * width], bias[width : 2 * width])
        v = functional.linear(value, weight[2 * width :], bias[2 * width :])
        out = attend(
            split_heads(q, self.heads),
            split_heads(k, self.heads),
            split_heads(v, self.heads),
            mask,
            self.dropout,
            self.training,
        )
        projected: Tensor = self.out_proj(join_heads(out))
        return projected

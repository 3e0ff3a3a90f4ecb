"""Attention with dropout on a CPU: products and the compiled loops of `attention_kernels` between them.

The library's fused attention has no dropout there. Heads are taken some at a time, so that their scores
stay in the processor's cache: of an array of queries x keys only the weights are ever written to memory,
once, for the backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amrctl.model.layers.dropout import Draws, flat
from amrctl.model.layers.threads import spread_elements, spread_products

_PIECE = 1 << 19  # scores at a time


def attend_dropped(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, p: float) -> Tensor:
    """Attention of `attention.attend` with dropout at rate `p`.

    `query` [B, heads, Tq, d], `key` [B, heads, Tk, d], `value` [B, heads, Tk, e] of one type; `seen`
    [B or 1, Tk] bool, the keys that may be seen. Returns [B, heads, Tq, e].
    """
    out: Tensor = _Attention.apply(query, key, value, seen, p)  # type: ignore[no-untyped-call]
    return out


def softmax_dropped(scores: Tensor, p: float) -> Tensor:
    """Softmax over the last dimension of `scores` [..., Tq, Tk], then dropout at rate `p`."""
    weights: Tensor = _Weights.apply(scores, p)  # type: ignore[no-untyped-call]
    return weights


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, p: float) -> Tensor:
        from amrctl.model.layers import attention_kernels as kernels

        batch, heads, queries, width = query.shape
        keys = key.shape[2]
        ctx.scale, ctx.draws = 1.0 / math.sqrt(width), Draws.new(p)
        q, k, v = (_by_head(x.detach()) for x in (query, key, value))
        q = q * ctx.scale
        if seen is None:
            visible = np.ones((1, keys), np.bool_)
        else:
            visible = seen.expand(batch, keys).repeat_interleave(heads, 0).numpy()
        weights = q.new_empty(len(q), queries, keys)
        out = q.new_empty(len(q), queries, v.shape[2])

        def some(number: int) -> None:
            part, draws, (scores, dropped) = _piece(weights, ctx.draws, number)
            torch.bmm(q[part], k[part].transpose(1, 2), out=scores)
            rows = visible if seen is None else visible[part]
            _by_rows(kernels.softmax_dropout, draws, scores, rows, weights[part], dropped)
            torch.bmm(dropped, v[part], out=out[part])

        spread_products(_count(weights), some)
        ctx.save_for_backward(q, k, v, weights)
        result: Tensor = out.unflatten(0, (batch, heads))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        from amrctl.model.layers import attention_kernels as kernels

        q, k, v, weights = ctx.saved_tensors
        grad = _by_head(grads[0])
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

        def some(number: int) -> None:
            part, draws, (of_scores, dropped) = _piece(weights, ctx.draws, number)
            torch.bmm(grad[part], v[part].transpose(1, 2), out=of_scores)
            # in its place, the gradient in the scores
            _by_rows(kernels.softmax_dropout_backward, draws, weights[part], of_scores, of_scores, dropped)
            torch.bmm(dropped.transpose(1, 2), grad[part], out=d_v[part])
            torch.bmm(of_scores, k[part], out=d_q[part])
            torch.bmm(of_scores.transpose(1, 2), q[part], out=d_k[part])

        spread_products(_count(weights), some)
        shape = grads[0].shape[:2]
        d_q *= ctx.scale
        return d_q.unflatten(0, shape), d_k.unflatten(0, shape), d_v.unflatten(0, shape), None, None


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, p: float) -> Tensor:
        from amrctl.model.layers import attention_kernels as kernels

        scores = scores.detach().contiguous()
        weights, out = torch.empty_like(scores), torch.empty_like(scores)
        ctx.draws = Draws.new(p)
        ctx.save_for_backward(weights)
        every = np.ones((1, scores.shape[-1]), np.bool_)
        _by_rows(kernels.softmax_dropout, ctx.draws, scores, every, weights, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        from amrctl.model.layers import attention_kernels as kernels

        (weights,) = ctx.saved_tensors
        out = torch.empty_like(weights)
        grad = grads[0].contiguous()
        _by_rows(kernels.softmax_dropout_backward, ctx.draws, weights, grad, out, torch.empty_like(weights))
        return out, None


def _by_head(x: Tensor) -> Tensor:
    """[B, heads, T, d] → [B * heads, T, d], contiguous."""
    return x.flatten(0, 1).contiguous()


def _step(weights: Tensor) -> int:
    """How many heads of `weights` [N, Tq, Tk] are a piece."""
    return max(1, _PIECE // max(1, weights.shape[1] * weights.shape[2]))


def _count(weights: Tensor) -> int:
    return -(-len(weights) // _step(weights))


def _piece(weights: Tensor, draws: Draws, number: int) -> tuple[slice, Draws, Tensor]:
    """One piece of the heads, its draws, and room for its scores twice."""
    step = _step(weights)
    part = slice(number * step, min((number + 1) * step, len(weights)))
    room = weights.new_empty(2, part.stop - part.start, *weights.shape[1:])
    return part, draws.part(number), room


def _by_rows(run: Any, draws: Draws, first: Tensor, *others: Tensor | npt.NDArray[np.bool_]) -> None:
    """Call a kernel of `attention_kernels` on tensors as [rows, keys], spread over threads."""
    from amrctl.model.layers.kernels import BLOCK

    keys = first.shape[-1]
    unit = BLOCK // math.gcd(BLOCK, keys)  # rows that are whole blocks of draws
    units = -(-first.numel() // (unit * keys))
    given = [flat(x).reshape(-1, keys) if isinstance(x, Tensor) else x for x in (first, *others)]
    how = (draws.key, draws.cut, draws.scale, unit)
    if torch.get_num_threads() == 1:
        run(*given, *how, 0, units)
    else:
        spread_elements(first.numel(), unit * keys, lambda start, stop: run(*given, *how, start, stop))

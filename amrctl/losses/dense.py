"""Matches whose number does not depend on the data, for several detectors in one program.

Under `torch.vmap` all detectors have to have as many pairs. So every place for a moment gives a pair, and
those that hold none repeat another and do not count. The assignment is that of
`losses.matching`: one call, and on the host one transfer, for all detectors and decoder layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amrctl.losses.matching import MOST, assign, try_all
from amrctl.model.types import Matches


@dataclass
class Dense(Matches):
    """Matches of which some do not count."""

    real: Tensor  # [P] bool

    def number(self) -> Tensor:
        return self.real.sum().clamp(min=1)

    def counted(self, values: Tensor) -> Tensor:
        return values * self.real

    def mean(self, values: Tensor) -> Tensor:
        per_pair = values.flatten(1).mean(1) if values.dim() > 1 else values
        return self.counted(per_pair).sum() / self.number()


def dense(cost: Tensor, mask: Tensor) -> list[Matches]:
    """Match every decoder layer of `cost` [S, B, N, M], `mask` [B, M] bool with the real moments first.

    Each layer has B x M pairs; one at least has to be real.
    """
    layers, rows, _, moments = cost.shape
    cost = torch.nan_to_num(cost.detach(), nan=1e6, posinf=1e6, neginf=-1e6).flatten(0, 1)
    found: Tensor = _Assignment.apply(cost, mask.repeat(layers, 1))  # type: ignore[no-untyped-call]
    return [_matches(query) for query in found.view(layers, rows, moments)]


def _matches(query: Tensor) -> Dense:
    rows, moments = query.shape
    row = torch.arange(rows, device=query.device).repeat_interleave(moments)
    moment = torch.arange(moments, device=query.device).repeat(rows)
    query = query.flatten()
    real = query >= 0
    # the others stand for the first that is real: writing it again changes nothing
    place = torch.where(real, torch.arange(len(query), device=query.device), real.long().argmax())
    return Dense(row=row[place], query=query[place], moment=moment[place], real=real)


class _Assignment(torch.autograd.Function):
    """Costs [R, N, M], real [R, M] → the query of every moment, -1 where it has none, [R, M] int64."""

    @staticmethod
    def forward(cost: Tensor, real: Tensor) -> Tensor:
        if cost.device.type == "cuda" and cost.shape[2] <= min(MOST, cost.shape[1]):
            return torch.where(real, try_all(cost, real), -1)
        row, query, moment = assign(cost.cpu().numpy(), real.sum(1).cpu().numpy())
        found = torch.full(real.shape, -1)
        found[row, moment] = torch.tensor(query, dtype=torch.int64)
        return found.to(cost.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, cost: Tensor, real: Tensor) -> tuple[Tensor, int]:
        size = info.batch_size
        costs, reals = (
            x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((cost, real), in_dims, strict=True)
        )
        found = _Assignment.apply(costs.flatten(0, 1), reals.flatten(0, 1))  # type: ignore[no-untyped-call]
        return found.unflatten(0, (size, -1)), 0

"""Hungarian matching of decoder queries to moments (DETR; costs of QD-DETR).

On the host every row is solved by itself. On a CUDA device few moments are solved where they are, by
trying all: in some cheapest assignment every moment has one of its M cheapest queries (else one of
those is free, and taking it costs no more), so that M ** M choices are enough, without a transfer.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from amrctl.data.batch import Targets
from amrctl.model.layers.spans import giou, to_start_end
from amrctl.model.types import Matches

MOST = 5  # moments of which all assignments are tried


def costs(
    foreground: Tensor, spans: Tensor, targets: Targets, *, span: float, giou_weight: float, label: float
) -> Tensor:
    """`span * L1 - giou_weight * gIoU - label * p`, [S, B, N, M] float32, without gradient.

    `foreground` [S, B, N] in 0..1, `spans` [S, B, N, 2].
    """
    with torch.no_grad():
        spans = spans.float()[..., None, :]
        wanted = targets.spans[None, :, None]
        l1 = (spans - wanted).abs().sum(-1)
        overlap = giou(to_start_end(spans), to_start_end(wanted))
        return span * l1 - giou_weight * overlap - label * foreground.float()[..., None]


def assign(
    cost: npt.NDArray[np.floating], counts: npt.NDArray[np.int64]
) -> tuple[list[int], list[int], list[int]]:
    """Least-cost one-to-one assignment per row.

    `cost` [B, N, M], of which the first `counts[b]` columns are real. Returns rows, queries and
    moments of all pairs; min(N, counts[b]) pairs per row.
    """
    rows: list[int] = []
    queries: list[int] = []
    moments: list[int] = []
    for b, count in enumerate(counts.tolist()):
        if count:
            q, m = linear_sum_assignment(cost[b, :, :count])
            rows += [b] * len(q)
            queries += q.tolist()
            moments += m.tolist()
    return rows, queries, moments


def match(cost: Tensor, targets: Targets) -> list[Matches]:
    """Match every decoder layer of `cost` [S, B, N, M]: at once on the device where that is possible,
    else with one transfer to the host and back."""
    cost = torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)
    if cost.device.type == "cuda" and cost.shape[3] <= min(MOST, cost.shape[2]):
        return match_by_trying(cost, targets)
    host = cost.cpu().numpy()
    counts = targets.mask.sum(1).cpu().numpy()
    found = [assign(layer, counts) for layer in host]
    flat = torch.tensor([part for layer in found for part in zip(*layer, strict=True)], dtype=torch.int64)
    flat = flat.view(-1, 3).to(cost.device)
    pieces = flat.split([len(layer[0]) for layer in found])
    return [Matches(row=p[:, 0], query=p[:, 1], moment=p[:, 2]) for p in pieces]


def match_by_trying(cost: Tensor, targets: Targets) -> list[Matches]:
    """`match` for M <= N and M <= `MOST`, without leaving the device; finite costs only."""
    pairs = targets.mask.nonzero() if targets.pairs is None else targets.pairs
    query = try_all(cost.flatten(0, 1), targets.mask.repeat(len(cost), 1)).view(*cost.shape[:2], -1)
    row, moment = pairs[:, 0], pairs[:, 1]
    return [Matches(row=row, query=layer[row, moment], moment=moment) for layer in query]


def try_all(cost: Tensor, real: Tensor) -> Tensor:
    """The query of every moment in a cheapest assignment, [R, M] int64, meaningless where not `real`.

    `cost` [R, N, M] with M <= N, finite; `real` [R, M] bool.
    """
    moments = cost.shape[2]
    near = cost.double().topk(moments, dim=1, largest=False)
    choices, places, first, second = _choices(moments, cost.device)
    price = (near.values * real[:, None])[:, choices, places].sum(-1)  # [R, choices]
    query = near.indices[:, choices, places]  # [R, choices, M]
    twice = (query[..., first] == query[..., second]) & (real[:, first] & real[:, second])[:, None]
    best = price.masked_fill(twice.any(-1), torch.inf).argmin(1)
    return query.take_along_dim(best[:, None, None], dim=1)[:, 0]


@functools.lru_cache(maxsize=32)
def _choices(moments: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All [M ** M, M] picks of one of M queries for each moment, 0..M-1, and all pairs of moments."""
    every = torch.arange(moments, device=device)
    first, second = torch.triu_indices(moments, moments, 1, device=device)
    return torch.cartesian_prod(*[every] * moments).view(-1, moments), every, first, second

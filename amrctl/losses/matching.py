"""Hungarian matching of decoder queries to moments (DETR; costs of QD-DETR)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from amrctl.data.batch import Targets
from amrctl.model.layers.spans import giou, to_start_end
from amrctl.model.types import Matches


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
    """Match every decoder layer of `cost` [S, B, N, M] in one transfer to the host and back."""
    host = torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
    counts = targets.mask.sum(1).cpu().numpy()
    found = [assign(layer, counts) for layer in host]
    flat = torch.tensor([part for layer in found for part in zip(*layer, strict=True)], dtype=torch.int64)
    flat = flat.view(-1, 3).to(cost.device)
    pieces = flat.split([len(layer[0]) for layer in found])
    return [Matches(row=p[:, 0], query=p[:, 1], moment=p[:, 2]) for p in pieces]

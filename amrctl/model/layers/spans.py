"""Arithmetic of spans on tensors, with gradients; `amrctl.spans` is its twin for numpy arrays."""

from __future__ import annotations

import torch
from torch import Tensor


def to_start_end(spans: Tensor) -> Tensor:
    """(centre, width) → (start, end), [..., 2]."""
    centre, half = spans[..., 0], spans[..., 1] / 2
    return torch.stack((centre - half, centre + half), dim=-1)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inter = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    return inter, union, hull


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of (start, end) windows that broadcast against each other; 0 where the union is 0."""
    inter, union, _ = _overlap(a, b)
    return inter / union.clamp(min=1e-9)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of (start, end) windows that broadcast, in -1..1 (Rezatofighi et al. 2019)."""
    inter, union, hull = _overlap(a, b)
    return inter / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def logit(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Inverse sigmoid with the argument and its complement kept above `eps` (DAB-DETR's clamp)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))

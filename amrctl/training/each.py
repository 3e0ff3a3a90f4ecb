"""Arithmetic on stacks: tensors whose first dimension counts networks that know nothing of each other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def norms_each(stack: Iterable[Tensor]) -> Tensor:
    """The norm over all tensors [S, ...], for each of the S networks; [S]."""
    norms = [torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1) for x in stack]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return total


def for_each(numbers: Tensor, like: Tensor) -> Tensor:
    """One number per network, [S], in the form in which it multiplies `like` [S, ...]."""
    return numbers.view(-1, *[1] * (like.dim() - 1))

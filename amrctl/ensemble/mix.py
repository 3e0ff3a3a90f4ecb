"""The weighted mean of checkpoints, one tensor after the other, in float64."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amrctl.ensemble.importance import Importance
from amrctl.ensemble.ingredients import BYTES, FLOATING, Source, load
from amrctl.errors import CheckpointError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mixed:
    """One tensor of a soup of n sources, in the first's dtype, and what the float64 numbers say.

    `distances` (n,): squared distance of each source from the mean; `products` (n, n): inner products of
    the sources' differences from the first one; `square`: squared norm of the mean.
    """

    tensor: Tensor
    distances: Floats
    products: Floats
    square: float


class Mix:
    """Sources that are alike, and the share of each: a number, or with `importance` one for every weight.

    `lead`: the source whose dtypes and shapes the mean has, which lacks nothing; `zero`: tensors that count
    as zeros where a source lacks them. Others that it lacks count as the mean of those that have them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        shares: Sequence[float],
        *,
        lead: int = 0,
        zero: Collection[str] = (),
        importance: Importance | None = None,
    ) -> None:
        self.sources, self.shares, self.lead = sources, shares, lead
        self._zero, self._importance = zero, importance
        shapes = sources[lead].shapes
        # by falling width of the numbers, as the format's own writer, so that all tensors lie aligned
        self.keys = sorted(shapes, key=lambda key: (-BYTES[shapes[key][0]], key))

    def tensors(self) -> dict[str, Tensor]:
        """The whole mean in memory, as `soup.make_soup` would write it."""
        return {key: self.mean(key).tensor for key in self.keys}

    def mean(self, key: str) -> Mixed:
        """The mean of one tensor. Raises `CheckpointError` for whole numbers that differ, or a number that
        is not finite."""
        sources, size = self.sources, len(self.sources)
        first = load(sources[self.lead].path, key)
        products = np.zeros((size, size))
        having = [i for i, source in enumerate(sources) if key in source.shapes]
        if sources[self.lead].shapes[key][0] not in FLOATING:
            for i in having:
                if not torch.equal(first, load(sources[i].path, key)):
                    raise CheckpointError(
                        f"'{key}' holds whole numbers that differ between {sources[self.lead].path} and "
                        f"{sources[i].path}"
                    )
            return Mixed(first, np.zeros(size), products, 0.0)
        tensors = self._loaded(key, having)
        shares: Sequence[float | Tensor] = self.shares
        if self._importance is not None:
            shares = self._importance.shares(key, first.shape)
        mixed = _mean(tensors, shares)
        apart = np.array([float((tensor - mixed).square().sum()) for tensor in tensors])
        base = tensors[0].clone()
        for tensor in tensors:
            tensor -= base
        for i, left in enumerate(tensors):
            for j in range(i + 1):
                products[i, j] = products[j, i] = float(left @ tensors[j])
        return Mixed(mixed.to(first.dtype).reshape(first.shape), apart, products, float(mixed @ mixed))

    def _loaded(self, key: str, having: Sequence[int]) -> list[Tensor]:
        """The tensor of every source, float64 and flat; those that lack it get what they count as."""
        tensors = {i: load(self.sources[i].path, key).double().reshape(-1) for i in having}
        for i, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{self.sources[i].path}: '{key}' holds a number that is not finite")
        if len(having) < len(self.sources):
            part = math.fsum(self.shares[i] for i in having)
            absent = torch.zeros_like(tensors[having[0]])
            if key not in self._zero:
                absent = _mean([tensors[i] for i in having], [self.shares[i] / part for i in having])
            tensors |= {i: absent.clone() for i in range(len(self.sources)) if i not in tensors}
        return [tensors[i] for i in range(len(self.sources))]


def _mean(tensors: Sequence[Tensor], shares: Sequence[float | Tensor]) -> Tensor:
    """x0 + sum of w (x - x0): the mean of equal tensors is that tensor to the last bit."""
    mixed = tensors[0].clone()
    for tensor, share in zip(tensors, shares, strict=True):
        mixed += (tensor - tensors[0]) * share
    return mixed

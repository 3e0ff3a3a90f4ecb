"""The weighted mean of checkpoints, a few tensors after the others, in float64."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amrctl.ensemble.importance import Importance
from amrctl.ensemble.ingredients import BYTES, DTYPES, FLOATING, Source, load
from amrctl.errors import CheckpointError

Floats = npt.NDArray[np.float64]
_AT_ONCE = 2**18  # numbers of each source: small tensors share the opening of its file
_BLOCK = 2**14  # of these are compared at once: float64 numbers of 25 sources stay in a core's cache


@dataclass(frozen=True)
class Mixed:
    """Some tensors of a soup of n sources, in the first's dtypes, and what the float64 numbers say.

    `distances` (n,): squared distance of each source from the mean; `products` (n, n): inner products of
    the sources' differences from the first one; `square`: squared norm of the mean.
    """

    tensors: Mapping[str, Tensor]
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
        return {key: tensor for mixed in self.parts() for key, tensor in mixed.tensors.items()}

    def parts(self) -> Iterator[Mixed]:
        """The mean, in the order of `keys`. Raises `CheckpointError` for whole numbers that differ, or a
        number that is not finite."""
        waiting: list[str] = []
        numbers = 0
        for key in self.keys:
            dtype, shape = self.sources[self.lead].shapes[key]
            whole = dtype not in FLOATING
            if waiting and (whole or numbers + math.prod(shape) > _AT_ONCE):
                yield self._mean(waiting)
                waiting, numbers = [], 0
            if whole:
                yield self._whole(key)
            else:
                waiting.append(key)
                numbers += math.prod(shape)
        if waiting:
            yield self._mean(waiting)

    def _whole(self, key: str) -> Mixed:
        sources, size = self.sources, len(self.sources)
        first = load(sources[self.lead].path, [key])[key]
        for source in sources:
            if key in source.shapes and not torch.equal(first, load(source.path, [key])[key]):
                raise CheckpointError(
                    f"'{key}' holds whole numbers that differ between {sources[self.lead].path} and "
                    f"{source.path}"
                )
        return Mixed({key: first}, np.zeros(size), np.zeros((size, size)), 0.0)

    def _mean(self, keys: Sequence[str]) -> Mixed:
        """x0 + sum of w (x - x0): the mean of equal tensors is that tensor to the last bit."""
        shapes = {key: self.sources[self.lead].shapes[key][1] for key in keys}
        rows, size = self._loaded(keys), len(self.sources)
        shares: list[Tensor] | None = None
        if self._importance is not None:
            by_key = [self._importance.shares(key, shape) for key, shape in shapes.items()]
            shares = [torch.cat(own) for own in zip(*by_key, strict=True)]
        even = torch.tensor(self.shares, dtype=torch.float64)
        products, distances, square = np.zeros((size, size)), np.zeros(size), 0.0
        means = []
        for start in range(0, len(rows[0]), _BLOCK):
            at = slice(start, start + _BLOCK)
            found = torch.stack([row[at].double() for row in rows])
            base = found[0].clone()
            found -= base
            products += (found @ found.T).numpy()
            if shares is None:
                moved = even @ found
            else:
                moved = torch.stack([share[at] for share in shares]).mul_(found).sum(0)
            distances += found.sub_(moved).square_().sum(1).numpy()
            means.append(base.add_(moved))
            square += float(base @ base)
        if not np.isfinite(products.diagonal()).all():  # where one is not finite, or all are too large
            self._require_finite(keys)
        mean, tensors, start = torch.cat(means), {}, 0
        for key, shape in shapes.items():
            end = start + math.prod(shape)
            tensors[key] = mean[start:end].to(self._dtype(key)).reshape(shape)
            start = end
        return Mixed(tensors, distances, products, square)

    def _dtype(self, key: str) -> torch.dtype:
        return DTYPES[self.sources[self.lead].shapes[key][0]]

    def _loaded(self, keys: Sequence[str]) -> list[Tensor]:
        """The tensors of every source, one after the other, flat; what it lacks as what that counts as."""
        parts = [load(source.path, [key for key in keys if key in source.shapes]) for source in self.sources]
        for key in keys:
            having = [i for i, part in enumerate(parts) if key in part]
            if len(having) == len(parts):
                continue
            absent = torch.zeros_like(parts[having[0]][key], dtype=torch.float64)
            if key not in self._zero:
                whole = math.fsum(self.shares[i] for i in having)
                first = parts[having[0]][key].double()
                for i in having:
                    absent += (parts[i][key] - first) * (self.shares[i] / whole)
                absent += first
            for i in set(range(len(parts))) - set(having):
                parts[i][key] = absent
        return [torch.cat([part.pop(key).reshape(-1) for key in keys]) for part in parts]

    def _require_finite(self, keys: Sequence[str]) -> None:
        for source in self.sources:
            for key, tensor in load(source.path, [key for key in keys if key in source.shapes]).items():
                if not torch.isfinite(tensor).all():
                    raise CheckpointError(f"{source.path}: '{key}' holds a number that is not finite")

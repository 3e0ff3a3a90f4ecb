"""How much each weight of each checkpoint counts in a soup: its share, one for every single number.

Source: Fisher-weighted averaging (Matena and Raffel, NeurIPS 2022), as in the Yokohama report (DCASE 2026
Task 6), section 3.5: the soup of weights w_i with diagonal Fisher information F_i is

    sum of F_i w_i / sum of F_i,   number by number.

Where no checkpoint is sensitive to a weight, the quotient of two numbers near zero says nothing: F_i is
taken as at least `FLOOR` times the mean of all F, so that such weights get the plain mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from amrctl.ensemble.ingredients import load

FLOOR = 1e-6  # of the mean over all weights of all checkpoints


class Importance:
    """Importances of n checkpoints, each a safetensors file: key → numbers of 0 or more, shaped as the
    weights. A key that is in no file stands for importance 0 everywhere.

    `floor`: what each counts as at least; `mean_shares`: the share of each checkpoint, mean over all weights
    that are in the files.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        with safetensors.safe_open(str(files[0]), framework="pt") as opened:
            self._sizes = {key: _size(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
        count = max(sum(self._sizes.values()), 1)
        total = sum(float(load(path, [key])[key].double().sum()) for path in files for key in self._sizes)
        self.floor = FLOOR * total / (count * len(files))
        sums = [0.0] * len(files)
        for key, size in self._sizes.items():
            for i, share in enumerate(self.shares(key, (size,))):
                sums[i] += float(share.sum())
        self.mean_shares = tuple(value / count for value in sums)

    def shares(self, key: str, shape: Sequence[int]) -> list[Tensor]:
        """The share of each checkpoint in every number of a tensor of `shape`: float64, flat, sum 1."""
        if key not in self._sizes:
            even = torch.full((_size(shape),), 1 / len(self._files), dtype=torch.float64)
            return [even] * len(self._files)
        found = (load(path, [key])[key].double().reshape(-1) for path in self._files)
        raised = [value.clamp(min=self.floor) for value in found]
        total = torch.stack(raised).sum(0)
        even = torch.full_like(total, 1 / len(raised))
        return [torch.where(total > 0, value / total, even) for value in raised]


def _size(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())

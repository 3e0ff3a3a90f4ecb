"""Exponential moving average of a detector's weights.

Evaluated, saved and souped are the averaged weights; training goes on with the raw ones.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """A second copy of the module that follows the first.

    The decay of step n (from 0) is `min(decay, (1 + n) / (10 + n))`, so that short runs are not
    stuck at their initial weights. Integer buffers are copied.
    """

    def __init__(self, module: M, decay: float) -> None:
        self.module: M = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay = decay
        ours, theirs = self.module.state_dict(), module.state_dict()
        floating = [key for key, value in ours.items() if value.is_floating_point()]
        self._ours = [ours[key] for key in floating]
        self._theirs = [theirs[key] for key in floating]
        self._copies = [(ours[key], theirs[key]) for key in ours if not ours[key].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        theirs: list[Tensor] = [value.detach() for value in self._theirs]
        torch._foreach_lerp_(self._ours, theirs, 1 - decay)
        for mine, new in self._copies:
            mine.copy_(new)

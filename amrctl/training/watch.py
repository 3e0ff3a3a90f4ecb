"""Whether the loss is still a number, asked without holding a device up.

On the CPU a step is judged at once. On a device its numbers come to the host by themselves and are
judged when they are there, a few steps later; nothing is saved before all steps of an epoch are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amrctl.losses.total import Loss

_BEHIND = 64  # passes that may be on their way before the oldest is waited for


@dataclass
class _Seen:
    """A pass whose numbers are on their way. `numbers`: the loss, and the gradient's norm; `counts`: it is
    its step's first, which is logged."""

    where: str
    loss: Loss
    numbers: Tensor
    counts: bool
    arrived: torch.cuda.Event | None

    def here(self, wait: bool) -> bool:
        if self.arrived is None:
            return True
        if wait:
            self.arrived.synchronize()
        return bool(self.arrived.query())


class Watch:
    """Judges the steps of an epoch in their order; `diverged(where, what)` makes the error to raise.

    `deferred`: judge later even where nothing has to be waited for.
    """

    def __init__(self, diverged: Callable[[str, str], Exception], *, deferred: bool) -> None:
        self._diverged, self._deferred = diverged, deferred
        self._waiting: deque[_Seen] = deque()
        self.total, self.steps = 0.0, 0

    def loss(self, loss: Loss, where: str) -> None:
        """Before the backward pass: raise where the loss is no number, if that can be known."""
        if not self._deferred:
            self._judge_loss(loss, loss.total.item(), where)

    def norm(self, loss: Loss, norm: Tensor, where: str, *, counts: bool) -> None:
        """After the backward pass. `counts`: this is the step's first pass, which is logged."""
        if self._deferred:
            self._send(loss, norm, where, counts)
            return
        self._judge_norm(norm.item(), where)
        if counts:
            self._count(loss.total.item())

    def poll(self, *, wait: bool = False) -> None:
        """Judge the steps whose numbers are here; with `wait`, all."""
        while self._waiting and self._waiting[0].here(wait or len(self._waiting) > _BEHIND):
            seen = self._waiting.popleft()
            value, norm = seen.numbers.tolist()
            self._judge_loss(seen.loss, value, seen.where)
            self._judge_norm(norm, seen.where)
            if seen.counts:
                self._count(value)

    @property
    def mean(self) -> float:
        """The mean loss of the steps that were judged; NaN before the first."""
        return self.total / self.steps if self.steps else math.nan

    def _send(self, loss: Loss, norm: Tensor, where: str, counts: bool) -> None:
        numbers = torch.stack((loss.total.detach().float(), norm.detach().float()))
        arrived = None
        if numbers.device.type == "cuda":
            host = torch.empty(2, pin_memory=True)
            numbers = host.copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        kept = Loss(loss.total.detach(), loss.raw, loss.weighted)  # the graph is let go
        self._waiting.append(_Seen(where, kept, numbers, counts, arrived))

    def _count(self, value: float) -> None:
        self.total, self.steps = self.total + value, self.steps + 1

    def _judge_loss(self, loss: Loss, value: float, where: str) -> None:
        if not math.isfinite(value):
            raise self._diverged(where, f"{_culprit(loss)} (total {value})")

    def _judge_norm(self, norm: float, where: str) -> None:
        if not math.isfinite(norm):
            raise self._diverged(where, f"the gradient's norm is {norm}")


def _culprit(loss: Loss) -> str:
    for terms in (loss.raw, loss.weighted):  # an earlier decoder layer's shows only in the second
        for name, value in terms.items():
            if not math.isfinite(float(value)):
                return f"the loss term '{name}' is {float(value)}"
    return "the sum of the loss terms overflows"

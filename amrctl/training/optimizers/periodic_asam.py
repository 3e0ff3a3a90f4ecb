"""Periodic ASAM: AdamW that every few steps takes its gradient at a worse point nearby.

Source: Yokohama report (DCASE 2026 Task 6), section 3.3, after adaptive sharpness-aware minimisation (Kwon et
al., ICML 2021). With g the gradient of the batch at the weights w, and T = diag(|w| + eta),

    e = rho T^2 g / ||T g||   (one norm over all weights),

AdamW steps from w with the gradient at w + e. The report applies this every several steps, without a
number; every 5th is ours. As in Kwon et al.'s own code, biases have T = 1. Here that is every tensor of
fewer than two dimensions: biases, the gains of layer norms, scalar gates.

The loop clips both gradients; the length of g does not matter for e. Both passes draw the same random
numbers (dropout masks, noise), so that they look at one function, and the generators stand afterwards where
one pass leaves them. The log shows the loss of the first pass. Running averages follow w, never w + e.
The count of steps is in `state_dict()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from amrctl.registry import component
from amrctl.training.each import for_each, norms_each
from amrctl.training.optimizers.adamw import Rates

_LEAST = 1e-16  # added to ||T g||, as Kwon et al.'s code does


class Config(Rates):
    """AdamW's options, and how often and how far ASAM looks."""

    kind: Literal["periodic-asam"] = "periodic-asam"
    every: int = Field(5, ge=1, description="of so many steps the last is an ASAM step")
    rho: float = Field(0.5, gt=0, description="how far it looks, in units of |w| + eta")
    eta: float = Field(0.01, gt=0, description="so that weights of 0 move too")


class PeriodicAsam(torch.optim.AdamW):
    """`step(closure)` runs the closure once, in ASAM steps twice, and updates as AdamW."""

    def __init__(self, parameters: Iterable[Parameter], config: Config) -> None:
        super().__init__(
            parameters,
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
        self._every, self._rho, self._eta = config.every, config.rho, config.eta
        self._parameters = [p for group in self.param_groups for p in group["params"]]
        self._devices = sorted({p.get_device() for p in self._parameters if p.is_cuda})
        self.param_groups[0]["taken"] = 0  # in a group, so that it is saved and loaded with the state
        self._stacked = False

    def of_stack(self) -> None:
        """From now on the first dimension of every tensor counts networks, each with a norm of its own."""
        self._stacked = True

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; the closure computes the gradient and returns the loss, which is returned."""
        if closure is None:
            raise TypeError("periodic ASAM needs a closure that computes the gradient again")
        group = self.param_groups[0]
        group["taken"] += 1
        if group["taken"] % self._every:
            return super().step(closure)
        return super().step(lambda: self._twice(closure))

    def _twice(self, closure: Callable[[], Any]) -> Any:
        """Leave the gradient at w + e, and w as it was."""
        with torch.random.fork_rng(self._devices):
            loss = closure()
        moved: list[Tensor] = [p for p in self._parameters if p.grad is not None]
        kept = [p.detach().clone() for p in moved]
        self._climb(moved)
        try:
            closure()
        finally:
            with torch.no_grad():
                torch._foreach_copy_(moved, kept)
        return loss

    @torch.no_grad()
    def _climb(self, weights: list[Tensor]) -> None:
        matrix = 3 if self._stacked else 2  # dimensions
        scale = [w.abs() + self._eta if w.dim() >= matrix else torch.ones_like(w) for w in weights]
        step: list[Tensor] = [w.grad * t for w, t in zip(weights, scale, strict=True) if w.grad is not None]
        norm = norms_each(step) if self._stacked else torch.stack(torch._foreach_norm(step)).norm()
        torch._foreach_mul_(step, scale)
        reach = self._rho / (norm + _LEAST)
        if self._stacked:
            torch._foreach_mul_(step, [for_each(reach, s) for s in step])
        else:
            torch._foreach_mul_(step, reach)
        torch._foreach_add_(weights, step)


@component("optimizer", "periodic-asam", Config)
def periodic_asam(config: Config, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """The optimiser over `parameters`."""
    return PeriodicAsam(parameters, config)

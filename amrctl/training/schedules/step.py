"""Falling by a factor every so many epochs, as `torch.optim.lr_scheduler.StepLR` stepped per epoch.

The official baseline uses it with 400 epochs, which is constant over its 200 epochs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from amrctl.registry import component
from amrctl.training.schedules import WarmupConfig, rise, warmup_steps


class Config(WarmupConfig):
    """When and how far the rate falls."""

    kind: Literal["step"] = "step"
    every: int = Field(400, ge=1, description="epochs between falls")
    factor: float = Field(0.1, gt=0, le=1, description="what each fall multiplies by")


@component("schedule", "step", Config)
class Step:
    """Factor `factor ** (epoch // every)`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Factor of the base learning rate at `step` (from 0)."""
        config = self._config
        falls = (step // steps_per_epoch) // config.every
        return config.factor**falls * rise(step, warmup_steps(config.warmup, steps_per_epoch, epochs))

"""The base learning rate all the way, after an optional warm-up."""

from __future__ import annotations

from typing import Literal

from amrctl.registry import component
from amrctl.training.schedules import WarmupConfig, rise, warmup_steps


class Config(WarmupConfig):
    """No options of its own."""

    kind: Literal["constant"] = "constant"


@component("schedule", "constant", Config)
class Constant:
    """Factor 1."""

    def __init__(self, config: Config) -> None:
        self._warmup = config.warmup

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Factor of the base learning rate at `step` (from 0)."""
        return rise(step, warmup_steps(self._warmup, steps_per_epoch, epochs))

"""Half a cosine from the base rate down to a floor (Loshchilov & Hutter, ICLR 2017, no restarts)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from amrctl.registry import component
from amrctl.training.schedules import WarmupConfig, rise, warmup_steps


class Config(WarmupConfig):
    """Where the cosine ends."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(0.0, ge=0, le=1, description="factor that the last step would be followed by")


@component("schedule", "cosine", Config)
class Cosine:
    """Factor floor + (1 - floor) (1 + cos(pi p)) / 2; p runs from 0 after the warm-up to 1 at the end."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Factor of the base learning rate at `step` (from 0)."""
        warm = warmup_steps(self._config.warmup, steps_per_epoch, epochs)
        if step < warm:
            return rise(step, warm)
        done = (step - warm) / (steps_per_epoch * epochs - warm)
        floor = self._config.floor
        return floor + (1 - floor) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

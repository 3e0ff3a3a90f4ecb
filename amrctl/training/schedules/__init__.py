"""Schedules: the factor of the base learning rate, a pure function of where training stands.

A component is a class built from its config, with `factor(step, steps_per_epoch, epochs)`; `step`
counts from 0 over the whole run. Nothing is remembered between steps, so a resumed run needs no
state of its schedule.
"""

from __future__ import annotations

from pydantic import Field

from amrctl.registry import ComponentConfig


class WarmupConfig(ComponentConfig):
    """Options that every schedule has."""

    warmup: float = Field(0.0, ge=0, lt=1, description="fraction of all steps with a rising rate")


def warmup_steps(warmup: float, steps_per_epoch: int, epochs: int) -> int:
    """How many of the run's steps rise; always leaves at least one after them."""
    total = steps_per_epoch * epochs
    return min(round(warmup * total), total - 1)


def rise(step: int, warm: int) -> float:
    """Linear warm-up: 1/warm at step 0, 1 at step `warm - 1` and later."""
    return min((step + 1) / warm, 1.0) if warm > 0 else 1.0

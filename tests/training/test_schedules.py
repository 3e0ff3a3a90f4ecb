"""Schedules against torch's own and against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amrctl import registry


def build(kind: str, **options: Any) -> Any:
    entry = registry.find("schedule", kind)
    return entry.build(entry.config.model_validate({"kind": kind, **options}))


def rates_of_torch(make: Any, epochs: int, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs):
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        scheduler.step()
    return rates


def test_step_falls_when_torch_does() -> None:
    ours = build("step", every=3, factor=0.5)
    theirs = rates_of_torch(lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5), epochs=10, steps=4)
    assert [ours.factor(i, 4, 10) for i in range(40)] == pytest.approx(theirs)
    baseline = build("step")
    assert {baseline.factor(i, 7, 200) for i in range(0, 1400, 13)} == {1.0}


def test_cosine_is_torchs_cosine() -> None:
    ours = build("cosine", floor=0.1)
    theirs = rates_of_torch(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12, eta_min=0.1), epochs=12, steps=1
    )
    assert [ours.factor(i, 1, 12) for i in range(12)] == pytest.approx(theirs)
    assert build("cosine").factor(5, 1, 10) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


def test_a_twentieth_of_warm_up_then_a_cosine_to_nothing() -> None:
    """200 epochs of 40 steps: 400 rising steps, half the rate midway through the rest, nothing at the end."""
    schedule = build("cosine", warmup=0.05)
    factors = [schedule.factor(i, 40, 200) for i in range(8000)]
    assert factors[:400] == pytest.approx([(i + 1) / 400 for i in range(400)])
    assert factors[400 + 3800] == pytest.approx(0.5)
    assert factors[400:] == sorted(factors[400:], reverse=True)
    assert 0 < factors[-1] < 1e-6


@given(
    st.sampled_from(["constant", "step", "cosine"]),
    st.floats(0, 0.99),
    st.integers(1, 50),
    st.integers(1, 30),
)
def test_warm_up_rises_by_equal_steps_to_the_full_rate(
    kind: str, warmup: float, steps: int, epochs: int
) -> None:
    schedule, plain = build(kind, warmup=warmup), build(kind)
    total = steps * epochs
    warm = min(round(warmup * total), total - 1)
    factors = [schedule.factor(i, steps, epochs) for i in range(total)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[:warm] == pytest.approx([(i + 1) / warm for i in range(warm)])
    if warm == 0:
        assert factors == [plain.factor(i, steps, epochs) for i in range(total)]
    assert factors[warm] == pytest.approx(1.0)

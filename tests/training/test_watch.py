"""Judging steps later finds the same first bad step, with the same words, as judging them at once."""

from __future__ import annotations

import math

import pytest
import torch

from amrctl.losses.total import Loss
from amrctl.training import watch
from amrctl.training.watch import Watch


class StoppedError(Exception):
    """What the tests' watch raises."""


def loss(value: float, **terms: float) -> Loss:
    raw = {name: torch.tensor(term) for name, term in terms.items()}
    return Loss(torch.tensor(float(value), requires_grad=True), raw, dict(raw))


def run(deferred: bool, values: list[tuple[float, float]], poll: int = 3) -> Watch:
    """Steps of (loss, norm of the gradient), polled every few steps."""
    made = Watch(lambda where, what: StoppedError(f"{where}: {what}"), deferred=deferred)
    for i, (value, norm) in enumerate(values, 1):
        found = loss(value, span=0.5, giou=value)
        made.loss(found, f"step {i}")
        made.norm(found, torch.tensor(float(norm)), f"step {i}", counts=True)
        if i % poll == 0:
            made.poll()
    made.poll(wait=True)
    return made


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([(1, 1), (math.nan, 1), (math.inf, 1)], r"step 2: the loss term 'giou' is nan \(total nan\)"),
        ([(1, 1), (2, math.inf), (math.nan, 1), (1, 1)], "step 2: the gradient's norm is inf"),
    ],
)
def test_the_first_bad_step_is_named(deferred: bool, values: list[tuple[float, float]], told: str) -> None:
    with pytest.raises(StoppedError, match=told):
        run(deferred, values)


def test_the_mean_is_the_same_either_way() -> None:
    values = [(i / 7, 1.0) for i in range(1, 12)]
    now, later = run(False, values), run(True, values)
    assert now.mean == later.mean == pytest.approx(sum(v for v, _ in values) / 11)
    assert now.steps == later.steps == 11
    assert math.isnan(Watch(lambda where, what: StoppedError(), deferred=True).mean)


def test_no_more_steps_are_kept_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that never says it is done is waited for, oldest step first."""
    waited = []

    def here(self: watch._Seen, wait: bool) -> bool:
        if wait:
            waited.append(self.where)
        return wait

    monkeypatch.setattr(watch._Seen, "here", here)
    made = Watch(lambda where, what: StoppedError(), deferred=True)
    for i in range(watch._BEHIND + 5):
        made.norm(loss(1.0), torch.tensor(1.0), f"step {i}", counts=True)
        made.poll()
    assert waited == [f"step {i}" for i in range(5)]
    made.poll(wait=True)
    assert made.steps == watch._BEHIND + 5


@pytest.mark.parametrize("deferred", [False, True])
def test_a_second_pass_is_judged_but_not_counted(deferred: bool) -> None:
    """Also where it is the last of an epoch, after which nothing else would show what it did."""
    made = Watch(lambda where, what: StoppedError(f"{where}: {what}"), deferred=deferred)
    made.norm(loss(1.0), torch.tensor(1.0), "step 1", counts=True)
    made.norm(loss(5.0), torch.tensor(1.0), "step 1", counts=False)
    made.poll(wait=True)
    assert (made.mean, made.steps) == (1.0, 1)

    def spoilt() -> None:
        made.norm(loss(5.0), torch.tensor(math.nan), "step 2", counts=False)
        made.poll(wait=True)

    with pytest.raises(StoppedError, match="step 2: the gradient's norm is nan"):
        spoilt()

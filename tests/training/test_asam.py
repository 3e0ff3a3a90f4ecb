"""Periodic ASAM: one step by hand, and AdamW to the bit where it does nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from amrctl import recipe as recipes
from amrctl import registry
from amrctl.losses.total import Criterion
from amrctl.run_folder import RunFolder
from amrctl.training import run, state
from amrctl.training.loop import DivergedError, Outcome, train
from amrctl.training.optimizers.periodic_asam import PeriodicAsam
from amrctl.training.run import Request
from tests.training.tiny import Tiny

ASAM = "train.optimizer={kind: periodic-asam, lr: 1.0e-3, every: 2}"


def build(parameters: Iterable[nn.Parameter], **options: Any) -> PeriodicAsam:
    entry = registry.find("optimizer", "periodic-asam")
    made = entry.build(entry.config.model_validate({"kind": "periodic-asam", **options}), list(parameters))
    assert isinstance(made, PeriodicAsam)
    return made


def tried(tiny: Tiny, out: Path, *sets: str, precision: str = "fp32", epochs: int = 2) -> Outcome:
    request = Request(
        recipe=recipes.load(str(tiny.recipe), "finetune", (f"train.epochs={epochs}", *sets)),
        train=(tiny.train,),
        val=(tiny.val,),
        features=tiny.features,
        device="cpu",
        precision=precision,
    )
    made_of = run.fingerprint(request)
    return train(run.load(request, made_of), RunFolder(out), 0, {**made_of, "seed": 0}, resume=False)


def equal(left: Outcome, right: Outcome) -> bool:
    a, b = load_file(left.folder.last), load_file(right.folder.last)
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


def test_one_step_by_hand() -> None:
    """Loss x0^2 + 3 x0 x1 + y^2 over a matrix of two weights and a bias, in the algebra of the paper."""
    matrix = nn.Parameter(torch.tensor([[0.5, -2.0]], dtype=torch.float64))
    bias = nn.Parameter(torch.tensor([0.25], dtype=torch.float64))
    points: list[tuple[float, float, float]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        (x0, x1), y = matrix[0], bias[0]
        points.append((x0.item(), x1.item(), y.item()))
        loss: Tensor = x0**2 + 3 * x0 * x1 + y**2
        loss.backward()
        return loss

    lr, decay, rho, eta = 0.1, 0.01, 0.5, 0.01
    optimizer = build([matrix, bias], lr=lr, weight_decay=decay, every=1, rho=rho, eta=eta)
    value = optimizer.step(closure)
    assert value.item() == 0.25 - 3 + 0.0625  # of the first pass

    x0, x1, y = 0.5, -2.0, 0.25
    g = (2 * x0 + 3 * x1, 3 * x0, 2 * y)
    t = (abs(x0) + eta, abs(x1) + eta, 1.0)  # the bias is not scaled
    norm = math.sqrt(sum((a * b) ** 2 for a, b in zip(g, t, strict=True)))
    e = [rho * b * b * a / norm for a, b in zip(g, t, strict=True)]
    assert points[0] == (x0, x1, y)
    assert points[1] == pytest.approx((x0 + e[0], x1 + e[1], y + e[2]), rel=1e-12)
    assert math.hypot(*(a / b for a, b in zip(e, t, strict=True))) == pytest.approx(rho)
    a0, a1, b = points[1]
    there = (2 * a0 + 3 * a1, 3 * a0, 2 * b)
    # AdamW's first step: decay, then the sign of the gradient
    expected = [
        w * (1 - lr * decay) - lr * d / (abs(d) + 1e-8) for w, d in zip((x0, x1, y), there, strict=True)
    ]
    got = [*matrix.detach()[0].tolist(), *bias.detach().tolist()]
    assert got == pytest.approx(expected, rel=1e-9)
    averages = [float(optimizer.state[p]["exp_avg"].flatten()[0]) for p in (matrix, bias)]
    assert averages == pytest.approx([0.1 * there[0], 0.1 * there[2]])


def test_the_count_of_steps_is_in_the_state() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    passes: list[int] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        passes.append(1)
        loss = weight.square().sum()
        loss.backward()
        return loss

    optimizer = build([weight], every=3)
    counts = []
    for step in range(8):
        if step == 4:  # between two ASAM steps
            saved = optimizer.state_dict()
            optimizer = build([weight], every=3)
            optimizer.load_state_dict(saved)
        before = len(passes)
        optimizer.step(closure)
        counts.append(len(passes) - before)
    assert counts == [1, 1, 2, 1, 1, 2, 1, 1]


def test_both_passes_draw_the_same_numbers() -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    drawn: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        drawn.append(torch.rand(3))
        loss = (weight * drawn[-1]).square().sum()
        loss.backward()
        return loss

    optimizer = build([weight], every=2)
    torch.manual_seed(5)
    for _ in range(4):
        optimizer.step(closure)
    torch.manual_seed(5)
    first, second, third, fourth = (torch.rand(3) for _ in range(4))
    for got, expected in zip(drawn, (first, second, second, third, fourth, fourth), strict=True):
        assert torch.equal(got, expected)


def test_without_asam_steps_it_is_adamw_to_the_bit(tiny: Tiny, tmp_path: Path) -> None:
    """Through the real loop: dropout, clipping, EMA, a warm-up and six steps."""
    never = "train.optimizer={kind: periodic-asam, lr: 1.0e-3, every: 1000000}"
    plain = tried(tiny, tmp_path / "adamw")
    assert equal(plain, tried(tiny, tmp_path / "never", never))
    assert not equal(plain, tried(tiny, tmp_path / "asam", ASAM))


def test_the_first_asam_step_is_the_kth(tiny: Tiny, tmp_path: Path) -> None:
    """An epoch has three steps."""
    plain = tried(tiny, tmp_path / "adamw", epochs=1)
    for every, same in ((4, True), (3, False)):
        which = f"train.optimizer={{kind: periodic-asam, lr: 1.0e-3, every: {every}}}"
        assert equal(plain, tried(tiny, tmp_path / f"{every}", which, epochs=1)) == same


def test_a_tiny_perturbation_is_nearly_adamw(tiny: Tiny, tmp_path: Path) -> None:
    """The gradient at w + e tends to that at w: same dropout masks, nothing left of e in the weights."""
    sets = ("train.ema=null",)
    small = "train.optimizer={kind: periodic-asam, lr: 1.0e-3, every: 1, rho: 1.0e-7}"
    plain = load_file(tried(tiny, tmp_path / "adamw", *sets, epochs=1).folder.last)
    near = load_file(tried(tiny, tmp_path / "near", *sets, small, epochs=1).folder.last)
    far = load_file(
        tried(tiny, tmp_path / "far", *sets, small.replace("1.0e-7", "0.5"), epochs=1).folder.last
    )

    def distance(other: dict[str, Tensor]) -> float:
        return math.sqrt(sum(float((other[k] - v).double().square().sum()) for k, v in plain.items()))

    assert distance(near) < 0.05 * distance(far)


def test_it_trains_in_bfloat16(tiny: Tiny, tmp_path: Path) -> None:
    outcome = tried(tiny, tmp_path / "run", ASAM, precision="bf16")
    assert all(torch.isfinite(t).all() for t in load_file(outcome.folder.last).values())


def test_a_loss_that_is_no_number_at_the_perturbed_point_stops_the_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = Criterion.__call__

    def poisoned(self: Any, *args: Any) -> Any:
        loss = original(self, *args)
        calls.append(1)
        if len(calls) == 3:  # the second pass of the second step
            loss.total = loss.total * float("nan")
            loss.raw["giou"] = loss.raw["giou"] * float("nan")
        return loss

    monkeypatch.setattr(Criterion, "__call__", poisoned)
    with pytest.raises(DivergedError, match="epoch 1, step 2: the loss term 'giou' is nan"):
        tried(tiny, tmp_path / "run", ASAM)
    assert state.read(RunFolder(tmp_path / "run").state).epoch == 0

"""SIGReg: the statistic against its integral in float64, what it answers to, and which features it sees."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from amrctl.errors import RecipeError
from amrctl.model.auxiliary.sigreg import SETS, Sigreg
from amrctl.model.detector import Detector, build
from amrctl.model.layers import sketch
from amrctl.model.layers.sketch import REACH, directions, distance_from_gaussian
from amrctl.model.types import Output
from tests.small import AUDIO_DIM, TEXT_DIM, batch, padded, recipe
from tests.test_contract import without_dropout


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


def drawn(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def value(rows: Tensor, *, slices: int = 256, knots: int = 17) -> float:
    torch.manual_seed(5)
    real = torch.ones(len(rows), dtype=torch.bool)
    return distance_from_gaussian(rows, real, directions(rows.shape[1], slices, rows.device), knots).item()


def gap(z: np.ndarray, t: float) -> float:
    """The integrand at t for one direction, from complex numbers."""
    normal = math.exp(-t * t / 2)
    return float(abs(np.exp(1j * t * z).mean() - normal) ** 2 * normal)


@pytest.mark.parametrize("knots", [5, 17])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_it_is_the_trapezoid_rule_for_the_integral(
    knots: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every knot of both halves, one direction and one row at a time, chunked or not."""
    rows, slices = drawn(37, 6) + shift, directions(6, 4, torch.device("cpu"))
    real = torch.arange(37) < 30
    garbage = rows.masked_fill(~real[:, None], math.nan)
    z = rows[:30].double().numpy() @ slices.double().numpy()
    at = np.linspace(-REACH, REACH, knots)
    wanted = np.mean([np.trapezoid([gap(column, t) for t in at], at) for column in z.T])
    assert distance_from_gaussian(garbage, real, slices, knots).item() == pytest.approx(wanted, rel=1e-4)
    monkeypatch.setattr(sketch, "_rows", lambda z: 7)
    assert distance_from_gaussian(garbage, real, slices, knots).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("scale", "near"), [(0.0, 1e-3), (0.5, 1e-3), (1.0, 1e-3), (2.0, 0.1)])
def test_seventeen_knots_are_enough(scale: float, near: float) -> None:
    """Against adaptive quadrature over the whole line, and the closed form of Epps and Pulley."""
    rows, slices = drawn(200, 5) * scale, directions(5, 3, torch.device("cpu"))
    z = rows.double().numpy() @ slices.double().numpy()
    whole = np.mean([quad(lambda t, c=c: gap(c, t), -np.inf, np.inf, limit=200)[0] for c in z.T])
    apart = z[:, None] - z[None]
    closed = math.sqrt(2 * math.pi) * np.exp(-(apart**2) / 2).mean((0, 1))
    closed = closed - 2 * math.sqrt(math.pi) * np.exp(-(z**2) / 4).mean(0) + math.sqrt(2 * math.pi / 3)
    assert whole == pytest.approx(closed.mean(), rel=1e-6)
    real = torch.ones(200, dtype=torch.bool)
    got = distance_from_gaussian(rows, real, slices, 17).item()
    assert got == pytest.approx(whole, rel=near, abs=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
def test_its_gradient_is_that_of_finite_differences(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the loops for a CPU and of what other devices do."""
    monkeypatch.setattr(sketch, "_compiled", lambda angle: compiled)
    rows, slices = drawn(11, 4).double().requires_grad_(), directions(4, 6, torch.device("cpu")).double()
    real = torch.arange(11) != 3
    assert torch.autograd.gradcheck(lambda x: distance_from_gaussian(x, real, slices, 9), (rows,))
    (grad,) = torch.autograd.grad(distance_from_gaussian(rows, real, slices, 9), rows)
    assert not grad[3].any()


def test_the_loops_for_a_cpu_are_what_other_devices_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """More columns than a block, and more rows than a chunk."""
    slices, real = directions(8, 300, torch.device("cpu")), torch.ones(700, dtype=torch.bool)
    found = []
    for compiled in (True, False):
        monkeypatch.setattr(sketch, "_compiled", lambda angle, compiled=compiled: compiled)
        rows = (drawn(700, 8) * 1.3).requires_grad_()
        value = distance_from_gaussian(rows, real, slices, 17)
        found.append((value.detach(), *torch.autograd.grad(value, rows)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-8)


def test_a_gaussian_sample_has_nearly_none_and_less_the_larger_it_is() -> None:
    """Its mean is (integral of (1 - exp(-t^2)) w) / n = (sqrt(2 pi) - sqrt(2 pi / 3)) / n."""
    for n in (500, 4000):
        expected = (math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)) / n
        assert value(drawn(n, 16)) == pytest.approx(expected, rel=0.5)


# kind → what makes a sample of it, and three strengths
WORSE: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "collapse": (lambda x, s: x * s, (0.8, 0.4, 0.0)),
    "one direction for all": (lambda x, s: (1 - s) * x + s * x[:, :1], (0.2, 0.5, 1.0)),
    "unequal axes": (lambda x, s: x * torch.linspace(-s, s, x.shape[1]).exp(), (0.3, 0.8, 1.6)),
    "off centre": (lambda x, s: x + s, (0.1, 0.3, 1.0)),
    "two clusters": (lambda x, s: x + s * x[:, :1].sign(), (0.5, 1.0, 2.0)),
    "heavy tails": (lambda x, s: x * x.norm(dim=1, keepdim=True) ** s / 4**s, (1.0, 2.0, 5.0)),
}


@pytest.mark.parametrize("kind", WORSE)
def test_it_grows_with_the_distance_from_an_isotropic_gaussian(kind: str) -> None:
    rows = drawn(3000, 16)
    change, strengths = WORSE[kind]
    found = [value(rows)] + [value(change(rows, s)) for s in strengths]
    assert found == sorted(found)
    assert found[1] > 2 * found[0]
    assert found[-1] > 20 * found[0]


def test_descending_it_whitens() -> None:
    torch.manual_seed(0)
    x = (drawn(200, 4) * torch.tensor([2.0, 1, 0.1, 1]) + 0.5).requires_grad_()
    real = torch.ones(200, dtype=torch.bool)
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        distance_from_gaussian(x, real, directions(4, 32, x.device), 17).backward()
        optimizer.step()
    axes = torch.linalg.eigvalsh(torch.cov(x.detach().T))  # they were 0.01 to 4
    assert float(axes.min()) > 0.5
    assert float(axes.max()) < 2
    assert float(x.detach().mean(0).abs().max()) < 0.15


# --- in a detector ----------------------------------------------------------------------------

WHOLE = (
    "model.fusion=[temporal-difference, sentence-token, text-to-audio]",
    "model.encoder=[transformer, temporal-difference]",
)
OURS = [name for name in SETS if name != "dummies"]


def detector(sets: str, *more: str) -> Detector:
    torch.manual_seed(0)
    made = build(
        recipe(*more, f"model.auxiliary=[{{kind: sigreg, slices: 32, sets: {sets}}}]"),
        (AUDIO_DIM,),
        (TEXT_DIM,),
        training=True,
    )
    with torch.no_grad():  # past the start, where both differences are still the identity
        for name, parameter in made.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
    without_dropout(made)
    return made.train()


def run(made: Detector, data: object, seed: int = 3) -> Output:
    torch.manual_seed(seed)
    output: Output = made(data)
    return output


def test_each_set_is_the_statistic_of_its_real_rows() -> None:
    values = {}
    data = batch()
    for name in OURS:
        made = detector(f"[{name}]", *WHOLE)
        rows: list[Tensor] = []
        place = {
            "first-difference": "fusion.temporal-difference",
            "encoder-output": "encoder.transformer",
            "second-difference": "encoder.temporal-difference",
        }.get(name)
        if place:
            made.get_submodule(place).register_forward_hook(
                lambda m, i, out, rows=rows: rows.append(out.audio[data.audio_mask])
            )
        output = run(made, data)
        values[name] = output.extras["sigreg"].item()
        seen = rows[0] if place else output.extras["sentence-token"]
        torch.manual_seed(3)
        slices = directions(32, 32, seen.device)
        wanted = distance_from_gaussian(seen, torch.ones(len(seen), dtype=torch.bool), slices, 17)
        assert values[name] == pytest.approx(wanted.item(), rel=1e-4)
    assert len({round(v, 6) for v in values.values()}) == len(OURS)
    all_of_them = run(detector(str(OURS), *WHOLE), data).extras["sigreg"].item()
    assert all_of_them == pytest.approx(sum(values.values()), rel=1e-4)
    assert run(detector("null", *WHOLE), data).extras["sigreg"].item() == all_of_them


def test_padding_is_no_part_of_it_and_the_seed_decides() -> None:
    made = detector(str(OURS), *WHOLE)
    first = run(made, batch()).extras["sigreg"]
    torch.testing.assert_close(run(made, padded(batch(), 5, 3)).extras["sigreg"], first)
    assert torch.equal(run(made, batch()).extras["sigreg"], first)
    assert not torch.equal(run(made, batch(), seed=4).extras["sigreg"], first)


@pytest.mark.parametrize("name", [n for n in SETS if n != "encoder-output"])
def test_a_set_that_the_model_lacks_is_named(name: str) -> None:
    with pytest.raises(RecipeError, match=f"sigreg.sets: this model has no '{name}'; it comes from"):
        run(detector(f"[encoder-output, {name}]"), batch())
    assert run(detector("null"), batch()).extras["sigreg"].isfinite()


def test_dummy_tokens_are_taken_where_a_part_leaves_them() -> None:
    made = detector("[dummies]")
    tokens = torch.randn(3, 17, 32)  # as many as frames: none of them is padding
    made.encoder["transformer"].register_forward_hook(
        lambda m, i, memory: memory.extras.update({"dummy-tokens": tokens})
    )
    got = run(made, batch()).extras["sigreg"].item()
    torch.manual_seed(3)
    slices = directions(32, 32, tokens.device)
    wanted = distance_from_gaussian(tokens, torch.ones(3, 17, dtype=torch.bool), slices, 17)
    assert got == pytest.approx(wanted.item())


def test_in_half_precision_it_is_computed_in_full() -> None:
    made = detector(str(OURS), *WHOLE)
    wide = run(made, batch()).extras["sigreg"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = run(made, batch())
    assert output.extras["sigreg"].dtype == torch.float32
    assert output.extras["sigreg"].item() == pytest.approx(wide, rel=0.02)
    assert isinstance(made.auxiliary["sigreg"], Sigreg)

"""The Mamba block: names, shapes and initialisation of `mamba_ssm`, and its equations in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from amrctl.model.layers.mamba import Mamba

# as `mamba_ssm.Mamba(256, d_state=16, d_conv=4, expand=2)` names them
SHAPES = {
    "A_log": (512, 16),
    "D": (512,),
    "in_proj.weight": (1024, 256),
    "conv1d.weight": (512, 1, 4),
    "conv1d.bias": (512,),
    "x_proj.weight": (48, 512),
    "dt_proj.weight": (512, 16),
    "dt_proj.bias": (512,),
    "out_proj.weight": (256, 512),
}


def by_hand(w: dict[str, Tensor], x: Tensor, rank: int, states: int) -> Tensor:
    """The block of one recording [T, H] from its equations, frame by frame."""
    u, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    taps = w["conv1d.weight"][:, 0]
    padded = functional.pad(u, (0, 0, taps.shape[1] - 1, 0))
    windows = [padded[t : t + taps.shape[1]] for t in range(len(x))]
    u = functional.silu(torch.stack([(p * taps.T).sum(0) for p in windows]) + w["conv1d.bias"])
    step, b, c = (u @ w["x_proj.weight"].T).split([rank, states, states], -1)
    delta = functional.softplus(step @ w["dt_proj.weight"].T + w["dt_proj.bias"])
    h = torch.zeros_like(w["A_log"])
    rows = []
    for t in range(len(x)):
        h = torch.exp(-delta[t, :, None] * w["A_log"].exp()) * h + (delta[t] * u[t])[:, None] * b[t]
        rows.append((h @ c[t] + w["D"] * u[t]) * functional.silu(z[t]))
    return torch.stack(rows) @ w["out_proj.weight"].T


def test_weights_go_by_the_names_and_shapes_of_mamba_ssm() -> None:
    block = Mamba(256)
    assert {k: tuple(v.shape) for k, v in block.state_dict().items()} == SHAPES
    foreign = {k: torch.randn(s) for k, s in SHAPES.items()}
    block.load_state_dict(foreign)
    assert all(torch.equal(v, foreign[k]) for k, v in block.state_dict().items())


def test_it_starts_as_mamba_does() -> None:
    torch.manual_seed(0)
    block = Mamba(256)
    assert torch.equal(block.A_log, torch.arange(1, 17).float().log().expand(512, 16))
    assert torch.equal(block.D, torch.ones(512))
    step = functional.softplus(block.dt_proj.bias.detach()).log()
    low, high = math.log(1e-3), math.log(1e-1)
    assert float(step.min()) > low - 1e-3
    assert float(step.max()) < high + 1e-3
    assert float(step.mean()) == pytest.approx((low + high) / 2, abs=0.3)  # log-uniform
    assert float(block.dt_proj.weight.detach().abs().max()) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(("width", "state", "conv", "expand"), [(32, 16, 4, 2), (20, 3, 2, 1), (7, 1, 1, 3)])
def test_it_is_its_equations(width: int, state: int, conv: int, expand: int) -> None:
    torch.manual_seed(1)
    block = Mamba(width, state, conv, expand)
    x = torch.randn(3, 21, width, requires_grad=True)
    weight = torch.randn(3, 21, width)
    (block(x) * weight).sum().backward()
    wide = {k: v.detach().double().requires_grad_() for k, v in block.named_parameters()}
    exact = x.detach().double().requires_grad_()
    truth = torch.stack([by_hand(wide, row, math.ceil(width / 16), state) for row in exact])
    (truth * weight).sum().backward()
    torch.testing.assert_close(block(x).double(), truth, rtol=1e-4, atol=1e-5)
    for name, parameter in [*block.named_parameters(), ("x", x)]:
        other = exact if name == "x" else wide[name]
        assert parameter.grad is not None
        assert other.grad is not None
        worst = (parameter.grad - other.grad).abs().max() / other.grad.abs().max()
        assert float(worst) < 1e-4, name


def test_bfloat16_is_near() -> None:
    torch.manual_seed(2)
    block = Mamba(32)
    x = torch.randn(2, 30, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = block(x)
    half.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    assert (half.float() - block(x)).abs().max() < 0.03 * block(x).abs().max()

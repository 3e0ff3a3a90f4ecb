"""The selective scan and the short convolution against step-by-step loops in float64."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from amrctl.model.layers import scan as package
from amrctl.model.layers.scan import Engine, causal_conv, cuda, plain, selective_scan

NAMES = ("u", "delta", "a", "b", "c", "d", "z", "delta_bias")
ROUNDINGS = 16 * torch.finfo(torch.float32).eps


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def inputs(batch: int, length: int, width: int, states: int, seed: int = 0) -> dict[str, Tensor]:
    """Random arguments in float64, with step sizes and decays as Mamba has them."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "u": normal(batch, length, width),
        "delta": normal(batch, length, width),
        "a": -torch.exp(normal(width, states)) * torch.arange(1, states + 1),
        "b": normal(batch, length, states),
        "c": normal(batch, length, states),
        "d": normal(width),
        "z": normal(batch, length, width),
        "delta_bias": normal(width) - 3,
    }


def run(engine: Engine, soft: bool, /, **given: Tensor) -> Tensor:
    """`selective_scan` with its arguments by name."""
    u, delta, a, b, c = (given[k] for k in NAMES[:5])
    d, z, bias = (given.get(k) for k in NAMES[5:])
    return selective_scan(u, delta, a, b, c, d, z, bias, soft, engine=engine)


def loop(soft: bool, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, **rest: Tensor) -> Tensor:
    """The equations, one frame after the other."""
    step = delta + rest["delta_bias"] if "delta_bias" in rest else delta
    step = functional.softplus(step, threshold=1e9) if soft else step
    h = torch.zeros(u.shape[0], *a.shape, dtype=u.dtype)
    out = []
    for t in range(u.shape[1]):
        h = torch.exp(step[:, t, :, None] * a) * h + (step[:, t] * u[:, t])[..., None] * b[:, t, None]
        y = (h * c[:, t, None]).sum(-1)
        y = y + rest["d"] * u[:, t] if "d" in rest else y
        out.append(y * functional.silu(rest["z"][:, t]) if "z" in rest else y)
    return torch.stack(out, dim=1)


def results(function: Callable[..., Tensor], given: dict[str, Tensor], kind: torch.dtype) -> list[Tensor]:
    """The output and the gradient in every input, for a fixed weighting of the output."""
    leaves = {k: v.detach().to(kind, copy=True).requires_grad_() for k, v in given.items()}
    out = function(**leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (out * weight.to(out.dtype)).sum().backward()
    grads = [leaf.grad for leaf in leaves.values()]
    assert all(g is not None for g in grads)
    return [out.detach(), *(g for g in grads if g is not None)]


def assert_near(got: list[Tensor], truth: list[Tensor], rtol: float) -> None:
    """No number of a tensor is off by more than `rtol` of that tensor's largest number.

    What 16 roundings of a float32 near 1, the size of all inputs here, amount to comes on top: a tensor
    whose terms cancel cannot be known better.
    """
    for i, (one, other) in enumerate(zip(got, truth, strict=True)):
        assert one.shape == other.shape
        worst = float((one.double() - other).abs().max())
        bound = rtol * float(other.abs().max()) + ROUNDINGS
        assert worst <= bound, f"result {i} differs by {worst}, more than {bound}"


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 15, 16, 17, 33, 50]),
    st.sampled_from([1, 3, 16, 127, 130]),
    st.integers(1, 9),
    st.booleans(),
    st.sets(st.sampled_from(["d", "z", "delta_bias"])),
    st.integers(0, 99),
)
def test_it_is_the_recurrence(
    engine: Any, batch: int, length: int, width: int, states: int, soft: bool, kept: set[str], seed: int
) -> None:
    given = inputs(batch, length, width, states, seed)
    given = {k: v for k, v in given.items() if k not in ("d", "z", "delta_bias") or k in kept}
    if not soft:
        given["delta"] = given["delta"].abs() * 0.1
        given.pop("delta_bias", None)

    truth = results(partial(loop, soft), given, torch.float64)
    assert_near(results(partial(run, engine, soft), given, torch.float32), truth, 1e-4)


def test_a_long_scan_stays_within_its_tolerance() -> None:
    engines: tuple[Engine, ...] = ("cpu", "torch")
    given = inputs(2, 300, 40, 16)
    truth = results(partial(loop, True), given, torch.float64)
    for engine in engines:
        got = results(
            partial(run, engine, True),
            given,
            torch.float32,
        )
        assert_near(got, truth, 1e-4)


@pytest.mark.parametrize("soft", [True, False])
def test_its_gradient_is_the_slope_of_its_values(soft: bool) -> None:
    given = inputs(2, 19, 3, 2)  # one kept state, a block that is not full
    if not soft:
        given["delta"], given["delta_bias"] = given["delta"].abs(), given["delta_bias"].abs()
    leaves = [given[k].requires_grad_() for k in NAMES]
    assert torch.autograd.gradcheck(lambda *x: run("auto", soft, **dict(zip(NAMES, x, strict=True))), leaves)


def test_extreme_steps_neither_overflow_nor_hide_a_nan() -> None:
    given = {k: v.float() for k, v in inputs(1, 40, 5, 3).items()}
    given["delta"] = torch.linspace(-200, 200, 40)[None, :, None].repeat(1, 1, 5)
    given["z"] = given["delta"].flip(1)
    truth = loop(True, **{k: v.double() for k, v in given.items()})
    assert_near([run("auto", True, **given)], [truth], 1e-4)
    for name in ("u", "delta", "a", "z"):
        broken = {k: v.clone() for k, v in given.items()}
        broken[name].view(-1)[0] = torch.nan
        assert run("auto", True, **broken).isnan().any(), name


def test_half_precision_computes_wide() -> None:
    given = inputs(2, 20, 24, 4)
    frames = ("u", "delta", "z", "b", "c")
    rounded = {k: v.bfloat16().double() if k in frames else v for k, v in given.items()}
    half = {k: v.bfloat16() if k in frames else v.float() for k, v in given.items()}
    out = run("auto", True, **half)
    assert out.dtype == torch.bfloat16
    assert_near([out], [loop(True, **rounded)], 2**-8)  # of one rounding, at the end
    leaves = {k: v.detach().clone().requires_grad_() for k, v in half.items()}
    run("auto", True, **leaves).sum().backward()
    assert all(v.grad is not None and v.grad.dtype == v.dtype for v in leaves.values())
    truth = {k: v.detach().clone().requires_grad_() for k, v in rounded.items()}
    loop(True, **truth).sum().backward()
    for name, leaf in leaves.items():
        exact = truth[name].grad
        assert leaf.grad is not None
        assert exact is not None
        assert_near([leaf.grad], [exact], 2**-7)
    small = {k: v.detach().half() for k, v in half.items()}
    assert_near([run("auto", True, **small)], [loop(True, **given)], 2e-2)


def test_threads_do_not_change_a_bit(threads: Callable[[int], None]) -> None:
    given = inputs(5, 37, 140, 6)
    seen = []
    for count in (1, 2, 3):
        threads(count)
        seen.append(results(partial(run, "auto", True), given, torch.float32))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_what_is_kept_for_the_backward_pass_is_not_every_state() -> None:
    batch, length, width, states = 2, 160, 64, 16
    given = {k: v.float().requires_grad_() for k, v in inputs(batch, length, width, states).items()}
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run("auto", True, **given)
    assert max(kept) <= batch * length * width
    assert sum(kept) < 5 * batch * length * width  # u, delta, z, a sixteenth of the states, and small things
    with torch.inference_mode():
        assert not run("auto", True, **given).requires_grad


def test_the_librarys_kernel_gets_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for `mamba_ssm` with its signature: frames [B, D, T], B and C [B, N, T], float32 A."""

    def selective_scan_fn(
        u: Tensor,
        delta: Tensor,
        A: Tensor,  # noqa: N803
        B: Tensor,  # noqa: N803
        C: Tensor,  # noqa: N803
        D: Tensor | None = None,  # noqa: N803
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
    ) -> Tensor:
        assert D is not None
        assert z is not None
        assert delta_bias is not None
        assert {x.dtype for x in (A, D, delta_bias)} == {torch.float32}
        assert all(x.is_contiguous() for x in (u, delta, A, B, C, D, z))
        frames = [x.transpose(1, 2) for x in (u, delta, B, C, z)]
        u, delta, b, c, gate = frames
        out = loop(delta_softplus, u, delta, A, b, c, d=D, z=gate, delta_bias=delta_bias)
        return out.transpose(1, 2)

    module = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = selective_scan_fn  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    cuda.kernel.cache_clear()
    package._engine.cache_clear()
    try:
        assert package._engine("cuda") == "mamba_ssm"
        given = inputs(2, 7, 5, 3)
        truth = results(partial(loop, True), given, torch.float64)
        got = results(partial(run, "mamba_ssm", True), given, torch.float32)
        assert_near(got, truth, 1e-4)
    finally:
        cuda.kernel.cache_clear()
        package._engine.cache_clear()


def test_without_the_library_a_gpu_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    cuda.kernel.cache_clear()
    package._engine.cache_clear()
    try:
        with pytest.warns(UserWarning, match="mamba_ssm cannot be used"):
            assert package._engine("cuda") == "torch"
        assert package._engine("cuda") == "torch"  # silent now: warnings are errors here
        assert package._engine("mps") == "torch"
    finally:
        cuda.kernel.cache_clear()
        package._engine.cache_clear()


# --- the convolution ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 20), st.sampled_from([1, 5, 128, 131]), st.integers(1, 5))
def test_the_convolution_looks_back_only(batch: int, length: int, width: int, taps: int) -> None:
    rng = np.random.default_rng(length)
    x, weight, bias = (
        torch.from_numpy(rng.standard_normal(s)) for s in ((batch, length, width), (width, taps), (width,))
    )

    def direct(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        frames = []
        for t in range(x.shape[1]):
            sums = bias.expand(x.shape[0], -1)
            for k in range(taps):
                if t - k >= 0:
                    sums = sums + weight[:, taps - 1 - k] * x[:, t - k]
            frames.append(sums * torch.sigmoid(sums))
        return torch.stack(frames, dim=1)

    given = {"x": x, "weight": weight, "bias": bias}
    truth = results(direct, given, torch.float64)
    assert_near(results(causal_conv, given, torch.float32), truth, 1e-5)
    assert_near(results(plain.convolve, given, torch.float32), truth, 1e-5)


def test_the_convolution_takes_half_precision() -> None:
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=g) for s in ((2, 6, 3), (3, 4), (3,)))
    half = causal_conv(x.bfloat16(), weight, bias)
    assert half.dtype == torch.bfloat16
    exact = plain.convolve(x.bfloat16().double(), weight.double(), bias.double())
    assert_near([half], [exact], 2**-8)

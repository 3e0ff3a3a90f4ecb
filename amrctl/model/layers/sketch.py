"""How far a sample is from an isotropic Gaussian, seen through random projections.

Source: SIGReg (Balestriero and LeCun 2025, section 4) with the statistic of Epps and Pulley (1983): for
projections z_1..z_n of the sample onto a unit direction,

    integral of |mean_i exp(i t z_i) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt,

the squared distance of their empirical characteristic function from the normal one, in a Gaussian window.
The statistic is n times that; here it is left out, so that values of samples of any size compare. The
integral is the trapezoid rule on -5..5; the integrand is even, so that half the knots are visited, and the
knots are multiples of one step, so that the powers of exp(i step z) are all the trigonometry there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from amrctl.model.layers.stacking import in_turn, stacked

REACH = 5.0  # the integral ends here; the window is 4e-6 there
_CHUNK = {"cpu": 1 << 17}  # projections at a time: what a core's cache holds
_CHUNK_ELSEWHERE = 1 << 24


def directions(width: int, slices: int, device: torch.device) -> Tensor:
    """Unit columns drawn from the global generator, [width, slices] float32."""
    drawn = torch.randn(width, slices, device=device)
    unit: Tensor = drawn / torch.linalg.vector_norm(drawn, dim=0)
    return unit


def distance_from_gaussian(rows: Tensor, real: Tensor, slices: Tensor, knots: int) -> Tensor:
    """The integral for the real rows, averaged over slices; a scalar, 0 or more.

    `rows` [..., width] float32, `real` [...] bool, one true at least; `slices` [width, S] from
    `directions`; `knots` on -5..5, odd.
    """
    z = rows.masked_fill(~real[..., None], 0.0).flatten(0, -2) @ slices
    if stacked(z):
        return in_turn(partial(_distance, knots), z, real.sum())
    return _distance(knots, z, real.sum())


def _distance(knots: int, z: Tensor, count: Tensor) -> Tensor:
    distance: Tensor = _Distance.apply(z, count, knots)  # type: ignore[no-untyped-call]
    return distance


class _Distance(torch.autograd.Function):
    """Mean over columns of the integral for projections z [R, S] of which `count` are real, the others 0.

    Holds only z for the way back. The gradient of a row that is not real is for the caller to drop.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, count: Tensor, knots: int) -> Tensor:
        half = (knots - 1) // 2
        step = REACH / half
        real, imaginary = (z.new_zeros(half, z.shape[1]) for _ in range(2))
        for part in z.split(_rows(z)):
            _add_sums(part * step, real, imaginary)
        t = step * torch.arange(1, half + 1, device=z.device, dtype=z.dtype)[:, None]
        normal = torch.exp(-t.square() / 2)
        # a row of padding is 0 and has added its cosine, 1
        real, imaginary = (real - (len(z) - count)) / count - normal, imaginary / count
        # both halves of the integral; the knot at 0 adds nothing, the last one counts half
        weight = 2 * step * normal
        weight[-1] /= 2
        ctx.step = step
        # d distance / d (sum of cosines, of sines)
        scale = 2 * weight / (count * z.shape[1])
        ctx.save_for_backward(z, real * scale * t, imaginary * scale * t)
        return (weight * (real.square() + imaginary.square())).sum(0).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        z, of_cos, of_sin = ctx.saved_tensors
        found = torch.zeros_like(z)
        size = _rows(z)
        for part, out in zip(z.split(size), found.split(size), strict=True):
            _add_slopes(part * ctx.step, of_cos, of_sin, out)
        return found * grads[0], None, None


def _rows(z: Tensor) -> int:
    return max(_CHUNK.get(z.device.type, _CHUNK_ELSEWHERE) // z.shape[1], 1)


def _add_sums(angle: Tensor, real: Tensor, imaginary: Tensor) -> None:
    """Add the sums over rows of cosine and sine of 1, 2, .. K times an angle [n, S] to [K, S] each."""
    cos, sin = angle.cos(), angle.sin()
    if _compiled(angle):
        from amrctl.model.layers import kernels

        found = torch.zeros_like(real), torch.zeros_like(imaginary)
        kernels.power_sums(cos.numpy(), sin.numpy(), found[0].numpy(), found[1].numpy())
        real += found[0]
        imaginary += found[1]
        return
    for k, (c, s) in enumerate(_powers(cos, sin, len(real))):
        real[k] += c.sum(0)
        imaginary[k] += s.sum(0)


def _add_slopes(angle: Tensor, of_cos: Tensor, of_sin: Tensor, out: Tensor) -> None:
    """Put the sum over k of of_sin[k] cos(k angle) - of_cos[k] sin(k angle) into `out` [n, S]."""
    cos, sin = angle.cos(), angle.sin()
    if _compiled(angle):
        from amrctl.model.layers import kernels

        kernels.power_sums_backward(*(t.numpy() for t in (cos, sin, of_cos, of_sin, out)))
        return
    for k, (c, s) in enumerate(_powers(cos, sin, len(of_cos))):
        out.addcmul_(c, of_sin[k]).addcmul_(s, of_cos[k], value=-1.0)


def _compiled(angle: Tensor) -> bool:
    """Whether a loop of our own runs over it: one pass, where torch makes eight times six."""
    return angle.device.type == "cpu"


def _powers(cos: Tensor, sin: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosine and sine of 1, 2, .. `count` times the angle that has these."""
    c, s = cos, sin
    yield c, s
    for _ in range(count - 1):
        c, s = c * cos - s * sin, s * cos + c * sin
        yield c, s

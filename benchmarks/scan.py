"""`python -m benchmarks.scan`: the selective scan, forward and backward, beside a step-by-step reference.

The reference is the recurrence as public implementations without a kernel run it: all decays and inputs at
once as [B, D, T, N], then one frame after the other, gradients by autograd.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from amrctl.model.layers.scan import selective_scan
from benchmarks.measure import interleaved
from benchmarks.table import Row, text_table

_TOLERANCE = 1e-4  # of a gradient's largest value


@dataclass(frozen=True)
class Size:
    """Of the scan's arguments: recordings, channels, frames, states of a channel."""

    batch: int = 32
    width: int = 512
    length: int = 300
    state: int = 16


QUICK = Size(2, 8, 12, 4)


def reference(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """`selective_scan` with softplus, in plain steps; frames [B, D, T], `b` and `c` [B, N, T]."""
    step = functional.softplus(delta + bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", step, a))
    push = torch.einsum("bdl,bnl,bdl->bdln", step, b, u)
    state = a.new_zeros(u.shape[0], *a.shape)
    rows = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + push[:, :, t]
        rows.append(torch.einsum("bdn,bn->bd", state, c[:, :, t]))
    return (torch.stack(rows, dim=2) + u * d[:, None]) * functional.silu(z)


def ours(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """`selective_scan` as a Mamba block calls it."""
    return selective_scan(u, delta, a, b, c, d, z, bias, True)


def inputs(size: Size) -> list[Tensor]:
    """Arguments of `ours` with the statistics of a fresh Mamba block."""
    g = torch.Generator().manual_seed(0)
    frames = [torch.randn(size.batch, size.length, size.width, generator=g) for _ in range(3)]
    a = -torch.arange(1.0, size.state + 1).repeat(size.width, 1)
    b, c = (torch.randn(size.batch, size.length, size.state, generator=g) for _ in range(2))
    skip, bias = torch.ones(size.width), torch.full((size.width,), -4.0)
    return [frames[0], 0.1 * frames[1], a, b, c, skip, frames[2], bias]


def leaves(tensors: list[Tensor], *, time_last: bool) -> list[Tensor]:
    """Copies that take gradients; with `time_last` frames become [B, D, T]."""
    turned = [x.transpose(1, 2) if time_last and x.dim() == 3 else x for x in tensors]
    return [x.contiguous().clone().requires_grad_() for x in turned]


def both_ways(function: Callable[..., Tensor], args: list[Tensor]) -> tuple[Tensor, ...]:
    """Forward and backward; the gradients in `args`."""
    return torch.autograd.grad(function(*args).sum(), args)


def rows(quick: bool, size: Size | None = None) -> list[Row]:
    """Seconds of a forward and a backward pass. A gradient that differs too much is an `AssertionError`."""
    size = size or (QUICK if quick else Size())
    tensors = inputs(size)
    works = {
        "ours": partial(both_ways, ours, leaves(tensors, time_last=False)),
        "reference": partial(both_ways, reference, leaves(tensors, time_last=True)),
    }
    worst = 0.0
    for one, other in zip(works["ours"](), works["reference"](), strict=True):
        turned = other.transpose(1, 2) if other.dim() == 3 else other
        worst = max(worst, float((one - turned).abs().max() / turned.abs().max()))
    if worst > _TOLERANCE:
        raise AssertionError(f"a gradient differs by {worst:.1e} of its largest value")
    times = interleaved(works, 1 if quick else 3, warm=0)  # both have run already
    case = f"selective scan, forward and backward, {size.batch} x {size.length} x {size.width} channels"
    note = f"{size.state} states a channel; gradients differ by {worst:.0e}"
    return [Row(case, times["ours"], times["reference"], note=note)]


def main() -> None:
    """Print the row for sizes of one's own."""
    parser = argparse.ArgumentParser("python -m benchmarks.scan", description=(__doc__ or "").splitlines()[0])
    for name, value in vars(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    print(text_table(rows(False, Size(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()

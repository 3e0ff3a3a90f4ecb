"""Time and memory of the selective scan beside a step-by-step reference, forward and backward.

    python -m benchmarks.scan                       # batch 32, width 512, length 300, state 16
    python -m benchmarks.scan --length 30 --quick   # a look

The reference is the recurrence as public implementations without a kernel run it: all decays and inputs at
once as [B, D, T, N], then one frame after the other, gradients by autograd.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from amrctl.model.layers.scan import selective_scan


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


def inputs(batch: int, width: int, length: int, state: int) -> list[Tensor]:
    """Arguments of `ours` with the statistics of a fresh Mamba block."""
    g = torch.Generator().manual_seed(0)
    frames = [torch.randn(batch, length, width, generator=g) for _ in range(3)]
    a = -torch.arange(1.0, state + 1).repeat(width, 1)
    b, c = (torch.randn(batch, length, state, generator=g) for _ in range(2))
    return [frames[0], 0.1 * frames[1], a, b, c, torch.ones(width), frames[2], torch.full((width,), -4.0)]


def leaves(tensors: list[Tensor], *, time_last: bool) -> list[Tensor]:
    """Copies that take gradients; with `time_last` frames become [B, D, T]."""
    turned = [x.transpose(1, 2) if time_last and x.dim() == 3 else x for x in tensors]
    return [x.contiguous().clone().requires_grad_() for x in turned]


def measure(function: Callable[..., Tensor], args: list[Tensor]) -> tuple[float, float, list[Tensor]]:
    """Seconds forward, seconds backward, and the gradients."""
    start = time.perf_counter()
    out = function(*args)
    middle = time.perf_counter()
    out.backward(torch.ones_like(out))
    end = time.perf_counter()
    grads = [x.grad for x in args if x.grad is not None]
    for x in args:
        x.grad = None
    return middle - start, end - middle, grads


def peak() -> float:
    """The largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="selective scan: ours and step by step")
    for name, value in (("batch", 32), ("width", 512), ("length", 300), ("state", 16), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--quick", action="store_true", help="leave the reference out")
    args = parser.parse_args()
    tensors = inputs(args.batch, args.width, args.length, args.state)
    print(f"{torch.get_num_threads()} threads, batch {args.batch}, width {args.width}, ", end="")
    print(f"length {args.length}, state {args.state}; float32")
    mine = leaves(tensors, time_last=False)
    measure(ours, mine)  # compiles
    before = peak()
    runs = [measure(ours, mine) for _ in range(args.repeats)]
    forward, backward = min(r[0] for r in runs), min(r[1] for r in runs)
    print(f"ours       forward {forward:7.3f} s  backward {backward:7.3f} s  best of {args.repeats}", end="")
    print(f"  peak {before:.2f} GiB of the process")
    if args.quick:
        return
    theirs = leaves(tensors, time_last=True)
    slow_forward, slow_backward, truth = measure(reference, theirs)
    print(f"reference  forward {slow_forward:7.3f} s  backward {slow_backward:7.3f} s  once       ", end="")
    print(f"  peak {peak():.2f} GiB of the process")
    print(f"ratio      {(slow_forward + slow_backward) / (forward + backward):.0f} times")
    for name, one, other in zip(
        ("u", "delta", "A", "B", "C", "D", "z", "bias"), runs[0][2], truth, strict=True
    ):
        turned = other.transpose(1, 2) if other.dim() == 3 else other
        worst = float((one - turned).abs().max() / turned.abs().max())
        print(f"gradient of {name}: differs by {worst:.1e} of its largest value")


if __name__ == "__main__":
    main()

"""Layers inside `torch.vmap`, where several detectors run as one (see `training.stacked`).

There a tensor does not show its first dimension, the stack. Code that looks at values (`mask.all()`),
calls a kernel of our own or wants the library's fused one asks `stacked` and takes one of two ways out:
`folded` makes the stack a part of the batch, `in_turn` runs one detector after another. Both keep gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Work = Callable[..., Tensor]


def stacked(x: Tensor) -> bool:
    """Whether `x` stands for one tensor per detector."""
    # the compiler of `train.compile` has no stacks, and cannot look into the question
    return not torch.compiler.is_compiling() and bool(torch._C._functorch.is_batchedtensor(x))


def folded(work: Work, *inputs: Tensor) -> Tensor:
    """`work(*inputs)` called once on tensors [stack * B, ...]; every input and the result begin with B.

    Only for work that does the same to every row of the batch. One input at least is `stacked`.
    """
    result: Tensor = _Folded.apply(work, *inputs)  # type: ignore[no-untyped-call]
    return result


def in_turn(work: Work, *inputs: Tensor) -> Tensor:
    """`work(*inputs)` called for each detector by itself. One input at least is `stacked`."""
    result: Tensor = _InTurn.apply(work, *inputs)  # type: ignore[no-untyped-call]
    return result


class _Rule(torch.autograd.Function):
    """Only its rule under `vmap` is ever used, and that is written in operations with gradients."""

    @staticmethod
    def forward(work: Work, *inputs: Tensor) -> Tensor:
        return work(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise RuntimeError("for stacked tensors only")


class _Folded(_Rule):
    @staticmethod
    def vmap(info: Any, in_dims: Any, work: Work, *inputs: Tensor) -> tuple[Tensor, int]:
        wide = (_in_front(x, dim, info.batch_size) for x, dim in zip(inputs, in_dims[1:], strict=True))
        return work(*(x.flatten(0, 1) for x in wide)).unflatten(0, (info.batch_size, -1)), 0


class _InTurn(_Rule):
    @staticmethod
    def vmap(info: Any, in_dims: Any, work: Work, *inputs: Tensor) -> tuple[Tensor, int]:
        dims = in_dims[1:]
        made = [
            work(*(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return torch.stack(made), 0


def _in_front(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)

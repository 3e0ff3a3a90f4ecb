"""Data parallel training of a dual encoder: each process embeds a share of every batch.

JKU, DCASE 2025 Task 6 technical report: distributed data parallel training that allows for parameters
without a gradient (`ddp_find_unused_parameters_true`). The loss of eq. 2 compares all pairs of a batch, so
the embeddings of all ranks are gathered with their gradient: the result is that of one process with the same
batch, up to rounding and to the random draws (dropout, masks, patch-out), which each rank makes for itself.

Gradient: every rank computes the whole loss L from the embeddings e_1 .. e_R. Rank r holds dL/de_r de_r/dw,
whose sum over ranks is dL/dw; DistributedDataParallel divides that sum by R, so gathering multiplies by R
on the way back. The temperature is not gathered: each rank has all of its gradient, and the mean is right.

Rank 0 reads what was asked for, decides, validates and writes. The others are told the plan, train the same
epochs beside it, and write nothing but a scratch folder.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from amrctl.encoders.dual.model import DualEncoder, Embedded, Pairs
from amrctl.errors import AmrctlError
from amrctl.launch import Ranks
from amrctl.run_folder import RunFolder
from amrctl.training.loop import train
from amrctl.training.precision import pick_device
from amrctl.training.task import Asked

T = TypeVar("T")

# While rank 0 reads or validates, the others wait. torchrun ends them all when one dies, so this need not.
_PATIENCE = timedelta(hours=12)


def device_of(asked: str, ranks: Ranks) -> torch.device:
    """The device of this rank: with CUDA the GPU of its number. Raises `AmrctlError`."""
    found = pick_device(asked)
    if not ranks.several or found.type != "cuda":
        return found
    if ":" in asked:
        raise AmrctlError(f"--device {asked}: torchrun gives each process a GPU; use --device cuda")
    if torch.cuda.device_count() < ranks.count:
        raise AmrctlError(
            f"torchrun with {ranks.count} processes: {torch.cuda.device_count()} GPUs are visible; "
            "set --nproc-per-node to that, or use --device cpu"
        )
    return torch.device("cuda", ranks.rank)


@contextlib.contextmanager
def opened(ranks: Ranks, asked: str) -> Iterator[None]:
    """Connect the ranks while the body runs; nothing to do for one alone. `asked`: the `--device`.

    Raises `AmrctlError` when another process ends before this one.
    """
    if not ranks.several:
        yield
        return
    device = device_of(asked, ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        # what is told goes over the host in any case
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise AmrctlError(
                f"torchrun: another of the {ranks.count} processes ended; the same command goes on"
            ) from error
        raise
    dist.destroy_process_group()  # not after an error: it would wait for the others


def told(ranks: Ranks, value: T) -> T:
    """The first rank's `value` (plain Python types), on every rank."""
    if not ranks.several:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
    return held[0]


def follow(request: Asked) -> None:
    """What every rank but the first does while that one is in `seeds.train_seeds`. Raises `AmrctlError`."""
    made_of, plan = told(request.ranks, (dict[str, Any](), dict[int, Path | None]()))
    if not plan:
        return
    job = request.load(made_of)
    for seed, state in plan.items():
        with tempfile.TemporaryDirectory(prefix="amrctl-") as scratch:
            folder = RunFolder(scratch)
            if state is not None:  # read before the first step, which waits for all ranks
                folder.state.symlink_to(state.resolve())
            train(job, folder, seed, {**made_of, "seed": seed}, resume=state is not None)


def announce(ranks: Ranks, made_of: Mapping[str, Any], plan: Mapping[int, Path | None]) -> None:
    """The first rank's word to those that `follow`: the fingerprint, and for each seed to train the
    `state.pt` that it goes on from, None to start."""
    told(ranks, (dict(made_of), dict(plan)))


def prepared(network: DualEncoder, ranks: Ranks) -> DualEncoder:
    """The network with batch statistics over all ranks, where it has batch norms.

    Raises `AmrctlError` on the CPU, where torch cannot do that.
    """
    if not ranks.several or not any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()
    ):
        return network
    if next(network.parameters()).device.type != "cuda":
        raise AmrctlError(
            f"torchrun with {ranks.count} processes: the recipe's network has batch norms, whose statistics "
            "are shared between GPUs only; train it in one process"
        )
    found: DualEncoder = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return found


def spread(network: DualEncoder, ranks: Ranks) -> Callable[[Pairs], Embedded]:
    """The forward pass of a batch over all ranks: from this rank's share to both sides of all pairs."""
    device = next(network.parameters()).device
    sides = DistributedDataParallel(
        _Sides(network),
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=True,
    )

    def forward(batch: Pairs) -> Embedded:
        audio, text, scale = sides(batch)
        sizes = ranks.sizes(batch.total)
        # a rank without a share has embedded a pair of another's: it counts for nothing
        own = torch.cat((audio, text), dim=1)[: sizes[ranks.rank]]
        whole: Tensor = _Gathered.apply(own, sizes, ranks.rank)  # type: ignore[no-untyped-call]
        found = whole.chunk(2, dim=1)
        return Embedded(found[0], found[1], scale)

    return forward


class _Sides(nn.Module):
    """The network with a tuple for its output, which torch searches for tensors."""

    def __init__(self, network: DualEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        out: Embedded = self.network(batch)
        return out.audio, out.text, out.scale


class _Gathered(torch.autograd.Function):
    """Rows of all ranks in their order, [n_r, W] to [sum of n_r, W]. The gradient is this rank's part times
    the number of ranks (see above), without communication: all ranks compute the same loss."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        padded = rows.new_zeros(max(sizes), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.split(ctx.sizes)[ctx.rank] * len(ctx.sizes), None, None

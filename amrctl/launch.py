"""This process among those that torch's launcher started: `torchrun --nproc-per-node N -m amrctl ...`.

Without the launcher a process is alone. The first one speaks, writes and decides; the others are quiet.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from amrctl.errors import AmrctlError

_HELD = 10.0  # seconds; torchrun needs a tenth of one to end the others after the first has ended


@dataclass(frozen=True)
class Ranks:
    """Number `rank` (from 0) of `count` processes, `here` of which run on this machine."""

    rank: int = 0
    count: int = 1
    here: int = 1

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    @property
    def first(self) -> bool:
        """Whether this one speaks and writes."""
        return self.rank == 0

    def sizes(self, total: int) -> list[int]:
        """How many of `total` things each rank takes; they differ by one at most, and can be 0."""
        ends = [total * rank // self.count for rank in range(self.count + 1)]
        return [end - begin for begin, end in pairwise(ends)]

    def own(self, total: int) -> slice:
        """Which of `total` things this rank takes; those of all ranks follow one another."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)


ALONE = Ranks()


def from_environment(variables: Mapping[str, str] | None = None) -> Ranks:
    """What the launcher's variables say. `LOCAL_RANK` tells them from a cluster's `WORLD_SIZE` alone."""
    found = os.environ if variables is None else variables
    if "LOCAL_RANK" not in found or int(found.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    count = int(found["WORLD_SIZE"])
    return Ranks(int(found["RANK"]), count, int(found.get("LOCAL_WORLD_SIZE", count)))


def check(ranks: Ranks, verb: str) -> None:
    """Raise `AmrctlError` for a verb that several processes would only do several times."""
    if not ranks.several:
        return
    if verb not in ("pretrain", "finetune"):
        raise AmrctlError(
            f"torchrun with {ranks.count} processes: {verb} takes one; data parallel training is for "
            "pretrain and finetune with a recipe of task retrieval (detectors take --seeds)"
        )
    if ranks.here != ranks.count:
        raise AmrctlError(
            f"torchrun with {ranks.count} processes, {ranks.here} of them here: data parallel training is "
            "for one machine; leave --nnodes out"
        )


@contextlib.contextmanager
def quiet(ranks: Ranks) -> Iterator[None]:
    """Let the first process alone speak.

    What goes wrong in all of them is told by the first, whose end makes torchrun end the others: they wait
    for that. One that is still there afterwards was wrong alone, and lets its error out.
    """
    if ranks.first:
        yield
        return
    try:
        with contextlib.redirect_stdout(_Nowhere()), contextlib.redirect_stderr(_Nowhere()):
            yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception:
        time.sleep(_HELD)
        raise
    except SystemExit as stop:
        if stop.code:
            time.sleep(_HELD)
        raise


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)

"""What the loop asks of whatever is trained: a network, its batches, its loss, its validation.

`run.Job` is a detector's, `retrieval.job.RetrievalJob` a dual encoder's. The loop knows neither.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from amrctl.launch import ALONE, Ranks
from amrctl.losses.total import Loss
from amrctl.progress import SILENT, Reporter
from amrctl.recipe import AnyRecipe
from amrctl.run_folder import RunFolder
from amrctl.training.precision import Resolved

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Validated:
    """What one validation found: metrics in percent per set, the deciding set first; and how to write
    the answers on that set, called with the folder once `best.safetensors` is there."""

    scores: dict[str, dict[str, float]]
    write: Callable[[RunFolder], None]


class Trainable(ABC, Generic[N]):
    """A request with everything read, shared by all its seeds.

    `provenance` goes into every checkpoint, with the seed added; `verb` is what this training is called;
    `ancestry`: hashes of the weights that `build` starts from, () for fresh ones. `ranks`: this process
    among those that train together; the first alone keeps the run folder.
    """

    recipe: AnyRecipe
    device: torch.device
    precision: Resolved
    provenance: Mapping[str, Any]
    verb: str
    ranks: Ranks = ALONE

    @property
    @abstractmethod
    def ancestry(self) -> tuple[str, ...]:
        """Hashes of the weights that training starts from, nearest first."""

    @abstractmethod
    def build(self, seed: int) -> N:
        """The network before its first step, on the device."""

    def rehearse(self, seed: int) -> None:
        """Raise what is wrong with the recipe and the initial weights, before anything is written."""
        self.build(seed)

    @abstractmethod
    def criterion(self, network: N) -> Callable[[Any, Any], Loss]:
        """The loss of the network's output on a batch."""

    def spread(self, network: N) -> Callable[[Any], Any]:
        """The forward pass in training; that of several processes where there are several."""
        return network

    @abstractmethod
    def place(self) -> bool:
        """Bring the data near the device; whether that was possible."""

    @abstractmethod
    def steps(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def epoch(self, seed: int, number: int) -> Iterator[Any]:
        """The batches of one epoch, each with `to(device)`; the same arguments give the same batches."""

    @abstractmethod
    def validate(self, network: N) -> Validated:
        """Answer every validation set."""

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """What holds while it trains."""
        return contextlib.nullcontext()

    def compared(self, value: float) -> float:
        """The form of a metric in which two epochs are compared."""
        return value

    @abstractmethod
    def save(
        self, network: N, path: Path, epoch: int, metrics: Mapping[str, float], provenance: dict[str, Any]
    ) -> None:
        """Write a checkpoint."""


class Asked(ABC):
    """What the user asked to be trained."""

    recipe: AnyRecipe
    device: str
    ranks: Ranks = ALONE

    @abstractmethod
    def fingerprint(self, report: Reporter = SILENT) -> dict[str, Any]:
        """What decides the bits of a run, except its seed. Raises the error of a missing input."""

    @abstractmethod
    def load(self, made_of: Mapping[str, Any], report: Reporter = SILENT) -> Trainable[Any]:
        """Everything read and checked; `made_of` is the `fingerprint`. Raises `AmrctlError`."""


def stems(paths: Sequence[Path]) -> list[str]:
    """File names without suffix; a number is added where two are alike."""
    names: list[str] = []
    for path in paths:
        name, count = path.stem, 1
        while name in names:
            count += 1
            name = f"{path.stem}-{count}"
        names.append(name)
    return names

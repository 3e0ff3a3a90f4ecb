"""Bases of encoders that run a frozen torch network: device, precision, batches, provenance."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from amrctl.encoders.base import Card, EncoderConfig, Rows, Sentence
from amrctl.errors import FeatureError
from amrctl.processor import cpu_has_bf16

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Frozen:
    """What audio and text share. `network` is frozen, in evaluation mode, on `device`.

    Class attributes of an encoder: `name`, `dim`, `card`, `version` (raised when its numbers change),
    `normalisation` (what is done to the rows), and `space` where audio and text rows can be compared.
    """

    name: str
    dim: int
    card: Card
    version: int = 1
    normalisation: str = "none"
    space: str | None = None
    batch: int = 16
    half_on_cpu: bool = False  # whether precision `auto` is bf16 on a CPU that multiplies it

    def __init__(
        self, config: EncoderConfig, network: nn.Module, *, sha256: str | None, checkpoint: str | None
    ) -> None:
        import torch

        self.device = pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device, half_on_cpu=self.half_on_cpu)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.checkpoint, self.sha256 = checkpoint, sha256
        if config.batch is not None:
            self.batch = config.batch
        self._half: torch.dtype | None = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        if self._half is not None:
            _narrow(self.network, self._half)

    def attributes(self) -> Mapping[str, Any]:
        """What the feature file says about the stream; what is None is left out there."""
        return {
            "version": self.version,
            "normalisation": self.normalisation,
            "space": self.space,
            "checkpoint": self.checkpoint,
            "checkpoint_sha256": self.sha256,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "precision": self.precision,
        }

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Without gradients, and in half precision where that was asked for."""
        import torch

        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=self._half, enabled=self._half is not None),
        ):
            yield

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        """A stretch of `forward` that half precision must not touch."""
        import torch

        with torch.autocast(self.device.type, enabled=False):
            yield


class FrozenAudio(Frozen, ABC):
    """Base of audio encoders that run a torch network.

    A subclass gives `name`, `sample_rate`, `dim`, `card`, maybe other `window`, `hop`, `grid`, `tail`,
    and `forward`; and `front_end` where samples become something else in float32 first.
    """

    sample_rate: int
    window: float = 1.0
    hop: float = 1.0
    grid: str = "plain"
    tail: str = "round"
    half_on_cpu = True  # sound is most of the work, sentences little
    rearrange: bool = True  # False: `forward` also where `direct` is faster

    def __init__(
        self, config: EncoderConfig, network: nn.Module, *, sha256: str | None, checkpoint: str | None
    ) -> None:
        super().__init__(config, network, sha256=sha256, checkpoint=checkpoint)
        self.window = config.window or self.window
        self.hop = config.hop or self.hop
        self._direct: Callable[[Tensor], Tensor] | None = None
        self._arranged = not self.plain

    @property
    def plain(self) -> bool:
        """Whether the network runs on a CPU in float32 or bfloat16."""
        return self.device.type == "cpu" and self.precision in ("fp32", "bf16")

    def direct(self) -> Callable[[Tensor], Tensor] | None:
        """What `forward` gives, by ways that are faster on a CPU in float32 or bfloat16; None: no others.

        It is called without autocast, at the same time for several windows, each on one thread. May
        rearrange the weights of `network`.
        """
        return None

    def front_end(self, samples: Tensor) -> Tensor:
        """`(n, window samples)` float32 on `device` to what `forward` takes; never in half precision."""
        return samples

    @abstractmethod
    def forward(self, samples: Tensor) -> Tensor:
        """What `front_end` gave, to `(n, dim)`; called without gradients, maybe in half precision."""

    def encode(self, windows: Rows) -> Rows:
        """`(n, window samples)` float32 to `(n, dim)` float32, at most `batch` windows at a time."""
        import torch

        size = round(self.window * self.sample_rate)
        if windows.ndim != 2 or windows.shape[1] != size:
            raise ValueError(f"{self.name} takes windows of {size} samples, not shape {windows.shape}")
        done = np.empty((len(windows), self.dim), np.float32)
        for start in range(0, len(windows), self.batch):
            piece = np.ascontiguousarray(windows[start : start + self.batch], np.float32)
            rows = self._rows_of(torch.from_numpy(piece).to(self.device))
            done[start : start + len(piece)] = rows.float().cpu().numpy()
        return done

    def _rows_of(self, samples: Tensor) -> Tensor:
        if self.rearrange and not self._arranged:
            self._direct, self._arranged = self.direct(), True
        direct = self._direct
        if direct is not None:
            from amrctl.encoders.networks.pieces import in_pieces

            return in_pieces(lambda some: direct(self.front_end(some)), samples)
        with self.running():
            with self.in_float32():
                ready = self.front_end(samples)
            return self.forward(ready)


class FrozenText(Frozen, ABC):
    """Base of text encoders that run a torch network; a subclass gives `name`, `dim`, `card`, `forward`."""

    @abstractmethod
    def forward(self, sentences: Sequence[str]) -> list[Sentence]:
        """Encode a batch; called without gradients, maybe in half precision. Rows are float32 numpy."""

    def encode(self, sentences: Sequence[str]) -> list[Sentence]:
        """Encode each sentence, at most `batch` at a time."""
        done: list[Sentence] = []
        for start in range(0, len(sentences), self.batch):
            with self.running():
                done += self.forward(sentences[start : start + self.batch])
        return done


def _narrow(network: nn.Module, half: torch.dtype) -> None:
    """Keep the weights of products in half precision: autocast would make them so at every call.

    Norms, tables and whatever is parametrised stay as they are.
    """
    from torch import nn
    from torch.nn.utils import parametrize

    for part in network.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and not parametrize.is_parametrized(part):
            part.to(half)


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is a CUDA device where there is one. Raises `FeatureError`."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise FeatureError("--device cuda: torch sees no CUDA device here; leave it out or write cpu")
    return torch.device(name)


def pick_precision(name: str, device: torch.device, *, half_on_cpu: bool = False) -> str:
    """`fp32`, `bf16` or `fp16`.

    `auto` is bf16 on a GPU, or fp16 on one without it; on a CPU fp32, with `half_on_cpu` bf16 where the
    processor multiplies such numbers itself.
    """
    import torch

    if name != "auto":
        return name
    if device.type == "cpu":
        return "bf16" if half_on_cpu and cpu_has_bf16() else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def require(package: str, encoder: str) -> None:
    """Raise `FeatureError` when a package that an encoder needs is not installed."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise FeatureError(
            f"{encoder} needs the package {package}, which is not installed; pip install 'amrctl[encoders]'"
        )

"""Opening a trained dual encoder, and what may be asked of it: vectors of sounds and of sentences.

    dual = load_dual("run/best.safetensors")
    dual.embed_audio(samples)             # (dim,) float32 of length 1; samples at dual.sample_rate, or blocks
    dual.embed_text(["a dog barks"])      # (1, dim) float32 of length 1
    scores = audio_vectors @ text_vectors.T   # cosines: both lie in the space dual.space

Vectors of two encoders can be compared when their `space` is equal, and only then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from amrctl.checkpoint_file import FORMAT, read_metadata, write_file
from amrctl.encoders.base import Rows, Sentence
from amrctl.encoders.dual import segments
from amrctl.encoders.dual.model import DualEncoder
from amrctl.encoders.frozen import pick_device, pick_precision
from amrctl.errors import CheckpointError
from amrctl.provenance import sha256
from amrctl.recipe import any_from_dict
from amrctl.recipe_retrieval import RetrievalRecipe
from amrctl.run_folder import find_checkpoint

Samples = npt.NDArray[np.float32]
KEYS = ("recipe", "memory", "epoch", "metrics", "provenance")
BATCH = 16  # segments or sentences that a network gets at a time


@dataclass
class DualCheckpoint:
    """A dual encoder in memory: weights and what explains them. `memory`: see `DualEncoder.memory`."""

    tensors: dict[str, Tensor]
    recipe: RetrievalRecipe
    memory: Mapping[str, Any]
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path | str, *, overwrite: bool = True) -> None:
        """Write the file. Raises `OutputError`."""
        metadata = {
            "format": FORMAT,
            "recipe": self.recipe.to_dict(),
            "memory": self.memory,
            "epoch": self.epoch,
            "metrics": self.metrics,
            "provenance": self.provenance,
        }
        write_file(path, self.tensors, metadata, overwrite=overwrite)

    def fill(self, network: DualEncoder, where: str) -> None:
        """Copy the weights into a network of the same making. Raises `CheckpointError` naming a key."""
        own = network.state_dict()
        for what, keys in (
            ("lacks", [key for key in own if key not in self.tensors]),
            ("has, and the recipe has not,", [key for key in self.tensors if key not in own]),
        ):
            if keys:
                raise CheckpointError(f"{where} {what} {len(keys)} weights; the first is '{keys[0]}'")
        for key, value in own.items():
            if value.shape != self.tensors[key].shape:
                raise CheckpointError(
                    f"{where}: '{key}' is {tuple(self.tensors[key].shape)}, not {tuple(value.shape)}"
                )
        network.load_state_dict(self.tensors)

    def network(self, where: str = "checkpoint") -> DualEncoder:
        """The network, filled, in evaluation mode."""
        made = DualEncoder(self.recipe.model, self.memory)
        self.fill(made, where)
        return made.eval()


def read_dual(path: Path | str, *, sets: Iterable[str] = ()) -> DualCheckpoint:
    """Read a dual encoder's checkpoint. Raises `CheckpointError`, also for one of a detector."""
    meta = read_metadata(path)
    if not isinstance(meta["recipe"], dict) or meta["recipe"].get("task") != "retrieval":
        raise CheckpointError(f"{path} is not a dual encoder: its recipe's task is not retrieval")
    meta = read_metadata(path, KEYS)
    recipe = any_from_dict(meta["recipe"], where=str(path), sets=sets)
    return DualCheckpoint(
        safetensors.torch.load_file(str(path)),
        cast(RetrievalRecipe, recipe),
        meta["memory"],
        meta["epoch"],
        meta["metrics"],
        meta["provenance"],
    )


class Segment(NamedTuple):
    """A stretch of a recording: `start` in seconds, and its unit vector `(dim,)`."""

    start: float
    vector: Rows


class Dual:
    """A trained dual encoder that answers in numpy; frozen, in evaluation mode.

    `sample_rate`: Hz of the samples that it hears. `segment`, `hop`: seconds. `dim`: width of the shared
    space. `space`: its name, which holds the hash of the weights. `sha256`: of the checkpoint.
    """

    def __init__(
        self,
        network: DualEncoder,
        *,
        sha256: str,
        name: str = "amrctl",
        device: str = "auto",
        precision: str = "fp32",
    ) -> None:
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.name, self.sha256 = name, sha256
        self.space = f"amrctl:{sha256[:16]}"
        self.dim, self.sample_rate = network.dim, network.audio.sample_rate
        self.segment, self.hop = network.audio.config.segment, network.audio.config.hop
        self.parameters = sum(p.numel() for p in network.parameters())
        self._half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    def embed_audio(self, sound: Samples | Iterable[Samples]) -> Rows:
        """One recording to `(dim,)`: `sound` is `(S,)` float32 samples at `sample_rate`, or its blocks
        in order (then memory does not grow with the length but by a row for each segment)."""
        rows = torch.cat([rows for _, rows in self._rows(sound)])
        with self._running():
            pooled: Tensor = self.network.recordings(rows, (len(rows),))
        vector: Rows = _numpy(pooled)[0]
        return vector

    def embed_segments(self, sound: Samples | Iterable[Samples]) -> list[Segment]:
        """Each segment of a recording by itself, in order: what an archive searches."""
        found: list[Segment] = []
        for first, rows in self._rows(sound):
            with self._running():
                alone: Tensor = self.network.recordings(rows, (1,) * len(rows))
            found += [Segment(at, vector) for at, vector in zip(first, _numpy(alone), strict=True)]
        return found

    def embed_windows(self, windows: Rows) -> Rows:
        """`(n, S)` samples, each row a sound of its own of at most `segment` seconds, to `(n, dim)`.

        With rows of one second: frame vectors."""
        least = int(np.ceil(self.network.audio.least * self.sample_rate)) + 1
        if windows.shape[1] < least:
            windows = np.pad(windows, ((0, 0), (0, least - windows.shape[1])))
        done = []
        for first in range(0, len(windows), BATCH):
            rows = self._hear(np.ascontiguousarray(windows[first : first + BATCH], np.float32))
            with self._running():
                done.append(_numpy(self.network.recordings(rows, (1,) * len(rows))))
        return np.concatenate(done) if done else np.zeros((0, self.dim), np.float32)

    def embed_text(self, sentences: Sequence[str]) -> Rows:
        """Sentences to `(n, dim)`."""
        found = [sentence.pooled for sentence in self.embed_tokens(sentences)]
        return np.stack([v for v in found if v is not None]) if found else np.zeros((0, self.dim), np.float32)

    def embed_tokens(self, sentences: Sequence[str]) -> list[Sentence]:
        """Sentences to unit vectors of their tokens `(L, dim)` and of the whole `(dim,)`."""
        done: list[Sentence] = []
        for first in range(0, len(sentences), BATCH):
            tokens = self.network.text.tokenize(sentences[first : first + BATCH])
            with self._running():
                each, whole = self.network.words(tokens.to(self.device))
            for row, mask, pooled in zip(_numpy(each), tokens.mask.numpy(), _numpy(whole), strict=True):
                done.append(Sentence(np.ascontiguousarray(row[mask]), pooled))
        return done

    def _rows(self, sound: Samples | Iterable[Samples]) -> Iterator[tuple[list[float], Tensor]]:
        """Of a recording's segments, some at a time: where they begin in seconds, and the tower's rows."""
        rate = self.sample_rate
        blocks = [sound] if isinstance(sound, np.ndarray) else sound
        pieces = segments.stream(blocks, round(self.segment * rate), round(self.hop * rate))
        while held := list(islice(pieces, BATCH)):
            yield [first / rate for first, _ in held], self._hear(np.stack([piece for _, piece in held]))

    def _hear(self, windows: Samples) -> Tensor:
        with torch.inference_mode():
            spectra = self.network.audio.front(torch.from_numpy(windows).to(self.device))
        with self._running():
            return cast(Tensor, self.network.audio(spectra)).float()

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        half = self._half
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=half, enabled=half is not None):
            yield


def _numpy(rows: Tensor) -> Rows:
    return cast(Rows, rows.float().cpu().numpy())


def load_dual(
    checkpoint: Path | str,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32",
) -> Dual:
    """Open a trained dual encoder: a `.safetensors` file, or a run folder (its best).

    Raises `CheckpointError`: no such file, not ours, or a detector.
    """
    path = find_checkpoint(checkpoint)
    network = read_dual(path).network(str(path))
    return Dual(network, sha256=sha256(path), name=str(path), device=device, precision=precision)

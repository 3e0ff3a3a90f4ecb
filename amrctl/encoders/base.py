"""What a frozen encoder is, and how one is found by name.

An encoder is a file in this folder that registers a class in the slot `audio-encoder` or
`text-encoder` of `amrctl.registry`. The folder is scanned when a name is looked up, so a file
must not import anything heavy (torch, transformers) before its encoder is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import Field

from amrctl import registry
from amrctl.errors import FeatureError, near
from amrctl.registry import ComponentConfig

Rows = npt.NDArray[np.float32]


class EncoderConfig(ComponentConfig):
    """Options of an encoder; the part of its spelling after the colon is `checkpoint`."""

    checkpoint: str | None = Field(None, description="file with weights, for encoders that have some")


class Weightless(EncoderConfig):
    """Options of an encoder without weights: none."""

    checkpoint: None = None


@runtime_checkable
class AudioEncoder(Protocol):
    """Frames of sound to vectors. Frame i of a recording is the window that begins at `i * hop` s."""

    name: str
    sample_rate: int  # Hz that `encode` expects
    window: float  # seconds that one frame hears
    hop: float  # seconds from one frame to the next
    dim: int

    def encode(self, windows: Rows) -> Rows:
        """`(n, round(window * sample_rate))` float32 samples to `(n, dim)` float32.

        A window's row must not depend, to the last bit, on the windows beside it.
        """
        ...

    def attributes(self) -> Mapping[str, Any]:
        """What the feature file says about the stream: `normalisation`, `version`, `checkpoint`,
        `parameters` (how many frozen weights; submissions report them), ..."""
        ...


@dataclass(frozen=True, slots=True)
class Sentence:
    """One encoded sentence: `tokens` (L, D) float32, and `pooled` (P,) float32 where there is one."""

    tokens: Rows
    pooled: Rows | None = None


@runtime_checkable
class TextEncoder(Protocol):
    """Sentences to token vectors."""

    name: str
    dim: int

    def encode(self, sentences: Sequence[str]) -> list[Sentence]:
        """Encode each sentence; at least one token each, in reading order."""
        ...

    def attributes(self) -> Mapping[str, Any]:
        """What the feature file says about the stream."""
        ...


AUDIO, TEXT = "audio-encoder", "text-encoder"


def _build(slot: str, spec: str) -> Any:
    kind, colon, checkpoint = spec.partition(":")
    if kind not in registry.kinds(slot):
        what = slot.replace("-", " ")
        raise FeatureError(f"no {what} is called '{kind}'{near(kind, registry.kinds(slot))}")
    entry = registry.find(slot, kind)
    config = cast(type[EncoderConfig], entry.config)
    takes_weights = config.model_fields["checkpoint"].annotation is not type(None)
    if takes_weights != bool(colon and checkpoint):
        wanted = f"{kind}:CHECKPOINT" if takes_weights else kind
        raise FeatureError(f"--{slot} {spec}: write it as {wanted}")
    return entry.build(config(kind=kind, checkpoint=checkpoint or None))


def load_audio_encoder(spec: str) -> AudioEncoder:
    """Build the audio encoder called `spec`: `NAME`, or `NAME:CHECKPOINT` where it has weights.

    Raises `FeatureError` with the nearest name when there is none.
    """
    return cast(AudioEncoder, _build(AUDIO, spec))


def load_text_encoder(spec: str) -> TextEncoder:
    """Build the text encoder called `spec`; see `load_audio_encoder`."""
    return cast(TextEncoder, _build(TEXT, spec))

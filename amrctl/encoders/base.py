"""What a frozen encoder is, and how one is found by name.

An encoder is a file in this folder that registers a class in the slot `audio-encoder` or
`text-encoder` of `amrctl.registry`. The folder is scanned when a name is looked up, so a file
must not import anything heavy (torch, transformers) before its encoder is built.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from amrctl import registry
from amrctl.errors import FeatureError, near
from amrctl.registry import ComponentConfig

Rows = npt.NDArray[np.float32]
Grid = Literal["plain", "centred"]
Tail = Literal["round", "floor"]
BATCH = 32  # windows or sentences that an encoder gets at a time, unless it says otherwise


class EncoderConfig(ComponentConfig):
    """Options of an encoder; the part of its spelling after the colon is `checkpoint`."""

    default_checkpoint: ClassVar[str | None] = None  # used when the spelling has no colon

    checkpoint: str | None = Field(None, description="file, folder or hub name of the weights")
    window: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="seconds that one frame hears; none: the encoder's"
    )
    hop: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="seconds from frame to frame; none: the encoder's"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where its network runs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="of its network; auto: bf16 where the device has it, else fp16 on a GPU, fp32 on a CPU",
    )
    batch: int | None = Field(None, gt=0, description="windows or sentences at a time; none: the encoder's")


class Weightless(EncoderConfig):
    """Options of an encoder without weights: none; it computes on the CPU in float32."""

    checkpoint: None = None


@dataclass(frozen=True, slots=True)
class Card:
    """What `extract-tef --list` says of an encoder without building it.

    `rate`: Hz (none for text); `weights`: where to get them ("" where there are none); `needs`:
    names of the packages beyond the installed ones, as they are imported.
    """

    dim: int
    rate: int | None
    weights: str
    licence: str
    needs: tuple[str, ...] = ()
    note: str = ""


@runtime_checkable
class AudioEncoder(Protocol):
    """Frames of sound to vectors.

    Optional members, read with a default: `grid` (`Grid`, default "plain"): on the plain grid frame i
    is the window that begins at `i * hop` s; on the centred grid half a window of silence comes before
    and after the recording, so frame i is centred on `i * hop` s. `tail` (`Tail`, default "round"): how
    many frames there are, see `amrctl.data.framing.frame_count`. `batch`: windows at a time (default
    `BATCH`). `network`: the torch network of an encoder that has one; it brings its own threads.
    """

    name: str
    sample_rate: int  # Hz that `encode` expects
    window: float  # seconds that one frame hears
    hop: float  # seconds from one frame to the next
    dim: int

    def encode(self, windows: Rows) -> Rows:
        """`(n, round(window * sample_rate))` float32 samples to `(n, dim)` float32.

        A window's row must not depend on the windows beside it: to the last bit for an encoder
        without a network, within rounding for a network.
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
    """Sentences to token vectors. Optional member: `batch`, sentences at a time (default `BATCH`)."""

    name: str
    dim: int

    def encode(self, sentences: Sequence[str]) -> list[Sentence]:
        """Encode each sentence; at least one token each, in reading order."""
        ...

    def attributes(self) -> Mapping[str, Any]:
        """What the feature file says about the stream."""
        ...


AUDIO, TEXT = "audio-encoder", "text-encoder"


def needs_weights(slot: str, kind: str) -> bool:
    """Whether an encoder reads weights from a file, a folder or the hub."""
    return registry.find(slot, kind).config.model_fields["checkpoint"].annotation is not type(None)


def spelling(slot: str, kind: str) -> str | None:
    """How a command names the encoder: `NAME`, or `NAME:WEIGHTS` where the weights are the user's to bring;
    None where no encoder has that name."""
    if kind not in registry.kinds(slot):
        return None
    takes_its_own = getattr(registry.find(slot, kind).config, "default_checkpoint", None) is not None
    return kind if takes_its_own or not needs_weights(slot, kind) else f"{kind}:WEIGHTS"


def _build(slot: str, spec: str, options: Mapping[str, Any]) -> Any:
    kind, colon, checkpoint = spec.partition(":")
    if kind not in registry.kinds(slot):
        what = slot.replace("-", " ")
        raise FeatureError(f"no {what} is called '{kind}'{near(kind, registry.kinds(slot))}")
    entry = registry.find(slot, kind)
    config = cast(type[EncoderConfig], entry.config)
    takes_weights = needs_weights(slot, kind)
    if takes_weights:
        fits = bool(checkpoint) if colon else config.default_checkpoint is not None
    else:
        fits = not colon
    if not fits:
        if takes_weights:
            told = f"needs weights; write it as {kind}:CHECKPOINT (extract-tef --list says where to get them)"
        else:
            told = f"has no weights; write it as {kind}"
        raise FeatureError(f"--{slot} {spec}: {kind} {told}")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        made = config(kind=kind, checkpoint=checkpoint or config.default_checkpoint, **given)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise FeatureError(f"--{fault['loc'][-1]} {fault['input']}: {fault['msg'].lower()}") from None
    return entry.build(made)


def load_audio_encoder(spec: str, **options: Any) -> AudioEncoder:
    """Build the audio encoder called `spec`: `NAME`, or `NAME:CHECKPOINT` where it has weights.

    `options`: fields of `EncoderConfig` (`window`, `hop`, `device`, `precision`, `batch`); None
    means the encoder's own. Raises `FeatureError`: no such name (with the nearest), wrong options,
    weights that do not load, a package that is not installed.
    """
    encoder = cast(AudioEncoder, _build(AUDIO, spec, options))
    window, hop = options.get("window"), options.get("hop")
    if window is not None and window != encoder.window:
        raise FeatureError(
            f"--window {window:g}: {encoder.name} hears {encoder.window:g} s, no more, no less"
        )
    if hop is not None and hop != encoder.hop:
        encoder.hop = hop  # where a frame begins is no matter of the encoder's
    return encoder


def load_text_encoder(spec: str, **options: Any) -> TextEncoder:
    """Build the text encoder called `spec`; see `load_audio_encoder`."""
    return cast(TextEncoder, _build(TEXT, spec, options))


@dataclass(frozen=True, slots=True)
class Entry:
    """One encoder as it is listed. `missing`: packages of its card that are not installed; `default`:
    the weights it takes when its spelling names none."""

    name: str
    side: Literal["audio", "text"]
    card: Card
    missing: tuple[str, ...]
    default: str | None


def catalogue() -> list[Entry]:
    """All encoders, audio first, by name; none is built."""
    entries = []
    sides: tuple[tuple[Literal["audio", "text"], str], ...] = (("audio", AUDIO), ("text", TEXT))
    for side, slot in sides:
        for name in registry.kinds(slot):
            found = registry.find(slot, name)
            build: Any = found.build
            card = getattr(build, "card", None)
            if card is None:  # without weights there is nothing more to tell
                card = Card(int(build.dim), getattr(build, "sample_rate", None), "", "that of amrctl")
            missing = tuple(need for need in card.needs if importlib.util.find_spec(need) is None)
            default = getattr(found.config, "default_checkpoint", None)
            entries.append(Entry(name, side, card, missing, default))
    return entries

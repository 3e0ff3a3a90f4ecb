"""The encoder of an archive: windows of some seconds, in a space that sentences share.

A recording is cut on the plain grid, whatever the encoder's own: window i begins at `i * hop` seconds,
what a window hears beyond the end is silence, and there are as many windows as hops (at least one, one
more if at least half a hop is left). Rows are scaled to length 1, so that a product is a cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from amrctl import registry
from amrctl.data.extract_jobs import described
from amrctl.data.framing import batch_of
from amrctl.encoders.base import AUDIO, TEXT, AudioEncoder, Rows, TextEncoder, load_audio_encoder
from amrctl.encoders.base import load_text_encoder as load_text
from amrctl.errors import ArchiveError, FeatureError

WINDOW = 10.0  # seconds
WINDOWS = "windows"  # what the encoder of the archive is called among those that hear a recording


class Named:
    """An encoder under a name of its own, on a grid of its own: several may hear a recording in one pass."""

    def __init__(self, encoder: AudioEncoder, name: str, grid: str, tail: str) -> None:
        self.encoder, self.name, self.grid, self.tail = encoder, name, grid, tail
        self.sample_rate, self.window, self.hop = encoder.sample_rate, encoder.window, encoder.hop
        self.dim, self.batch = encoder.dim, batch_of(encoder)
        self.network = getattr(encoder, "network", None)

    def encode(self, windows: Rows) -> Rows:
        """As the encoder."""
        return self.encoder.encode(windows)

    def attributes(self) -> Mapping[str, Any]:
        """As the encoder."""
        return self.encoder.attributes()


def named(encoder: AudioEncoder, name: str) -> Named:
    """`encoder` as it is, called `name`."""
    return Named(
        encoder, name, str(getattr(encoder, "grid", "plain")), str(getattr(encoder, "tail", "round"))
    )


def load_windows(
    spec: str, window: float | None, hop: float | None, options: Mapping[str, Any]
) -> AudioEncoder:
    """The encoder called `spec`, to hear windows of `window` seconds every `hop`.

    None: 10 s, and half a window. Raises `FeatureError`: as `load_audio_encoder` (also for an encoder
    that cannot hear so much at once), a hop longer than the window, no space that sentences share.
    """
    if window is not None and hop is not None and hop > window:
        raise FeatureError(f"--hop {hop:g} is more than --window {window:g}: what lies between is not heard")
    kind, _, _ = spec.partition(":")
    if kind in registry.kinds(AUDIO):
        refuse_without_space(kind)
    encoder = load_audio_encoder(spec, **options, window=WINDOW if window is None else window)
    encoder.hop = encoder.window / 2 if hop is None else hop
    if encoder.hop > encoder.window:
        raise FeatureError(
            f"--hop {encoder.hop:g} is more than the {encoder.window:g} s that {encoder.name} hears"
        )
    if not space_of(encoder):
        raise FeatureError(no_space(kind))
    return encoder


def refuse_without_space(kind: str) -> None:
    """Raise `FeatureError` for an encoder that no sentence can be compared with, before it is loaded.

    An encoder without weights was not trained with sentences, and one without a text encoder of its
    name, or of a longer one, has no partner.
    """
    entry = registry.find(AUDIO, kind)
    weightless = entry.config.model_fields["checkpoint"].annotation is type(None)
    if weightless or not _partners(kind):
        raise FeatureError(no_space(kind))


def no_space(kind: str) -> str:
    """What is said of an audio encoder that shares no space with sentences."""
    return (
        f"--audio-encoder {kind} shares no space with sentences, so an archive of its vectors cannot be "
        "searched; take one that does, as laion-clap, m2d-clap or amrctl:RUN (amrctl extract-tef "
        "--list shows them; a detector still reads its own features: --features-for)"
    )


def space_of(encoder: AudioEncoder | TextEncoder) -> str | None:
    """What an encoder's rows, or its pooled vectors, can be compared with; None: nothing."""
    return described(encoder).get("space") or None


def _partners(kind: str) -> list[str]:
    """Text encoders that may belong to an audio encoder: of its name, then of one that begins with it.

    The audio encoder's name may be the longer one too, as `m2d-clap-unpadded`.
    """
    known = registry.kinds(TEXT)
    same = [k for k in known if k == kind]
    longer = [k for k in known if k.startswith(f"{kind}-")]
    shorter = [k for k in known if any(k == s or k.startswith(f"{s}-") for s in _stems(kind))]
    return list(dict.fromkeys([*same, *longer, *shorter]))


def _stems(kind: str) -> list[str]:
    parts = kind.split("-")
    return ["-".join(parts[:n]) for n in range(len(parts) - 1, 1, -1)]


def find_text(encoder: AudioEncoder, spec: str, text: str | None, options: Mapping[str, Any]) -> str:
    """How the text encoder in the space of `encoder` is spelt; `text` if that is given and it fits.

    Raises `FeatureError` when there is none, or the one that is given lies in another space.
    """
    kind, _, weights = spec.partition(":")
    tried = [text] if text else [f"{k}:{weights}" if weights else k for k in _partners(kind)]
    faults = []
    for candidate in tried:
        try:
            load_reader(candidate, str(space_of(encoder)), encoder.dim, options)
        except FeatureError as error:
            faults.append(str(error))
        else:
            return candidate
    raise FeatureError(faults[0] if text or len(faults) == 1 else "; ".join(faults) or no_space(kind))


def load_reader(spec: str, space: str, dim: int, options: Mapping[str, Any]) -> TextEncoder:
    """The text encoder `spec`. Raises `FeatureError` when its sentences lie in another space."""
    reader = load_text(spec, **options)
    found = space_of(reader)
    if found != space:
        raise FeatureError(
            f"text encoder {spec} has the space {found or '(none)'}, the archive's vectors have {space}; "
            "name the text encoder of the same weights"
        )
    return reader


def sentence_rows(reader: TextEncoder, sentences: list[str], dim: int) -> Rows:
    """One row of length 1 per sentence, `(sentences, dim)` float32. Raises `ArchiveError`."""
    pooled = [answer.pooled for answer in reader.encode(sentences)]
    rows = [row for row in pooled if row is not None and row.shape == (dim,)]
    if len(rows) < len(pooled):
        raise ArchiveError(
            f"text encoder {reader.name} gives no sentence vector of {dim} numbers; name the one that "
            "belongs to the archive's audio encoder"
        )
    return unit(np.stack(rows))


def unit(rows: Rows) -> Rows:
    """Rows scaled to length 1, float32; a row of zeros stays one."""
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    scaled: Rows = (rows / np.maximum(length, 1e-12)).astype(np.float32)
    return scaled

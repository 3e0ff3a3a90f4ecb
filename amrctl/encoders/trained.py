"""`amrctl:CHECKPOINT`: the two sides of a dual encoder that was trained here, as rows of one space.

A frame is a second of sound that passes the audio side by itself, a token a row of the text side; both go
through the map into the shared space and have length 1. The streams carry the same `space`, so the
similarity verifier compares them by their cosine. Sentences have a pooled vector too. The stream names its
checkpoint with the folder, as it was given: the best of every run has the same file name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amrctl.encoders.base import AUDIO, TEXT, Card, EncoderConfig, Rows, Sentence
from amrctl.encoders.frozen import require
from amrctl.encoders.weights import local
from amrctl.errors import FeatureError
from amrctl.registry import component

if TYPE_CHECKING:
    from amrctl.encoders.dual.load import Dual

_WEIGHTS = "made by amrctl pretrain or finetune with a recipe of task retrieval"


def _open(config: EncoderConfig) -> Dual:
    require("transformers", "amrctl")
    from amrctl.encoders.dual.load import load_dual

    return load_dual(local(config.checkpoint), device=config.device, precision=config.precision)


class _Side:
    """What both sides say of themselves."""

    name = "amrctl"

    def __init__(self, config: EncoderConfig) -> None:
        self._dual = _open(config)
        self.network = self._dual.network
        self.dim = self._dual.dim
        self.batch = config.batch or 16

    def attributes(self) -> Mapping[str, Any]:
        """What the feature file says about the stream."""
        dual = self._dual
        return {
            "version": 1,
            "normalisation": "length 1",
            "space": dual.space,
            "checkpoint": dual.name,
            "checkpoint_sha256": dual.sha256,
            "parameters": dual.parameters,
            "precision": dual.precision,
        }


@component(AUDIO, "amrctl", EncoderConfig)
class TrainedAudio(_Side):
    """The audio side; see the top of this file."""

    card = Card(1024, 32_000, _WEIGHTS, "yours", ("transformers",), "row and rate are the checkpoint's")
    window = 1.0
    hop = 1.0

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.sample_rate = self._dual.sample_rate
        self.window, self.hop = config.window or self.window, config.hop or self.hop
        if self.window > self._dual.segment:
            raise FeatureError(
                f"--window {self.window:g}: {self._dual.name} hears at most {self._dual.segment:g} s; "
                f"give --window {self._dual.segment:g} or less"
            )

    def encode(self, windows: Rows) -> Rows:
        """`(n, window samples)` to `(n, dim)` float32 of length 1."""
        return self._dual.embed_windows(windows)


@component(TEXT, "amrctl", EncoderConfig)
class TrainedText(_Side):
    """The text side; see the top of this file."""

    card = Card(1024, None, _WEIGHTS, "yours", ("transformers",), "the row is the checkpoint's")

    def encode(self, sentences: Sequence[str]) -> list[Sentence]:
        """Tokens `(L, dim)` and the sentence `(dim,)`, float32 of length 1."""
        return self._dual.embed_tokens(sentences)

"""Sentence token: a learned token that reads the sentence, as its summary.

Source: CG-DETR (Moon et al., 2023, arXiv 2311.08835), clip-word correlation learner. There it exists in
training only, within `clip-words`; as a component of its own it also runs at inference, for parts that
want a summary of the text (`clip-words` uses it then with `sentence: fusion`; the hook `film` does), as in
the Yokohama report (DCASE 2026 Task 6), sections 2.3 and 2.4, there with register tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from amrctl.model.layers.encoder_layer import TokenEncoder
from amrctl.model.layers.options import LayerConfig
from amrctl.model.types import Dims, Tokens
from amrctl.registry import component

NAME = "sentence-token"
WORDS = f"{NAME}.words"


class SentenceTokenConfig(LayerConfig):
    kind: Literal["sentence-token"] = "sentence-token"
    layers: int = Field(1, ge=1)
    registers: int = Field(0, ge=0, description="learned tokens beside the sentence, dropped afterwards")


@component("fusion", NAME, SentenceTokenConfig)
class SentenceToken(nn.Module):
    """Writes `extras["sentence-token"]` [B, H] and `extras["sentence-token.words"]` [B, L, H], the words
    after the same layers; nothing else changes."""

    companions: ClassVar[dict[str, tuple[Any, ...]]] = {  # what reads it
        "fusion": ("dummy-tokens", "adaptive-cross-attention"),
        "auxiliary": ({"kind": "clip-words", "sentence": "fusion"},),
    }

    def __init__(self, config: SentenceTokenConfig, dims: Dims) -> None:
        super().__init__()
        self.encoder = TokenEncoder(config, dims.hidden, config.layers, config.registers)

    def forward(self, tokens: Tokens) -> Tokens:
        token, words = self.encoder(tokens.text, None, tokens.text_mask)
        return replace(tokens, extras={**tokens.extras, NAME: token, WORDS: words})

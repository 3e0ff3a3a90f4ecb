"""Dummy tokens: keys beside the words, for frames that the sentence says nothing about.

Source: CG-DETR (Moon et al., 2023, arXiv 2311.08835), adaptive cross-attention, as in its released code
and lighthouse's port: learned tokens read the sentence in a small encoder and are kept apart from each
other by a term on their cosines. `adaptive-cross-attention` uses them; the audio and the text pass
unchanged. A pair's dummies follow its sentence, that of a mismatched pair too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amrctl.data.batch import Batch
from amrctl.model.layers.attention import key_mask
from amrctl.model.layers.encoder_layer import encoder_layers
from amrctl.model.layers.options import LayerConfig
from amrctl.model.layers.pooling import off_diagonal_cosine
from amrctl.model.types import Dims, LossTerm, Matches, Output, Tokens
from amrctl.registry import component

NAME = "dummy-tokens"
POSITION = f"{NAME}.position"


class DummyTokensConfig(LayerConfig):
    kind: Literal["dummy-tokens"] = "dummy-tokens"
    count: int = Field(45, ge=1)
    layers: int = Field(2, ge=1, description="of the encoder over [dummies | text]")
    weight: float = Field(1.0, ge=0, description="of the term that keeps the dummies apart")


class Orthogonal:
    """Mean absolute cosine of different dummies of a pair, over all count x count places."""

    name, all_layers = "orthogonal-dummies", False

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        return off_diagonal_cosine(output.extras[NAME])


@component("fusion", NAME, DummyTokensConfig)
class DummyTokens(nn.Module):
    """Writes `extras["dummy-tokens"]` [B, count, H], which have read the text, and
    `extras["dummy-tokens.position"]` [B, count, H], their learned position code."""

    def __init__(self, config: DummyTokensConfig, dims: Dims) -> None:
        super().__init__()
        self.weight = config.weight
        self.tokens = nn.Parameter(torch.randn(config.count, dims.hidden))
        self.position = nn.Parameter(torch.randn(config.count, dims.hidden))
        self.layers = encoder_layers(config, dims.hidden, config.layers)

    def forward(self, tokens: Tokens) -> Tokens:
        count, size = len(self.tokens), len(tokens.text)
        own = self.position.expand(size, -1, -1)
        x = torch.cat((self.tokens.expand(size, -1, -1), tokens.text), dim=1)
        position = torch.cat((own, torch.zeros_like(tokens.text)), dim=1)
        mask = key_mask(nn.functional.pad(tokens.text_mask, (count, 0), value=True))
        for layer in self.layers:
            x = layer(x, position, mask)
        return replace(tokens, extras={**tokens.extras, NAME: x[:, :count], POSITION: own})

    def loss_terms(self) -> list[LossTerm]:
        return [Orthogonal(self.weight)]

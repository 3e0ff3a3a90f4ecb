"""A small transformer over words, trained from scratch: no vocabulary, no weights to download.

Ours, for `retrieval-small`. A word is the mean of learned vectors of its pieces: the word, its stem and
its character n-grams (those of the encoder `words`), each hashed to a row of one table. A word that was
never seen in training shares pieces with those that were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amrctl.encoders.dual.towers import Memory, TextTower, Tokens
from amrctl.encoders.words import grams, split, stem
from amrctl.registry import ComponentConfig, component


class Config(ComponentConfig):
    """Size of the network."""

    kind: Literal["small"] = "small"
    width: int = Field(256, ge=8)
    layers: int = Field(2, ge=0)
    heads: int = Field(4, ge=1)
    inner: int = Field(512, ge=8)
    dropout: float = Field(0.1, ge=0, lt=1)
    rows: int = Field(16_384, ge=256, description="of the table that pieces of words are hashed to")
    max_tokens: int = Field(32, ge=1, description="words of a sentence that are read")


@lru_cache(maxsize=1 << 16)
def pieces(word: str, rows: int) -> tuple[int, ...]:
    """Rows of a word's pieces, from 1 on (0 is padding), each once, in a fixed order."""
    names = [f"word {word}", f"stem {stem(word)}", *(f"gram {gram}" for gram in grams(word))]
    numbers = (int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names)
    return tuple(dict.fromkeys(1 + number % (rows - 1) for number in numbers))


@component("retrieval-text", "small", Config)
class Small(TextTower):
    """Words to rows; `Tokens.ids` is [N, L, pieces] here."""

    def __init__(self, config: Config, memory: Memory | None = None) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.table = nn.Embedding(config.rows, config.width, padding_idx=0)
        self.places = nn.Parameter(torch.zeros(config.max_tokens, config.width))
        nn.init.trunc_normal_(self.places, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.heads,
                config.inner,
                config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Pieces of each word; a sentence without words has one empty word."""
        rows = self.config.rows
        words = [[pieces(w, rows) for w in split(s)[: self.config.max_tokens]] for s in sentences]
        longest = max(map(len, words))
        most = max(len(word) for sentence in words for word in sentence)
        ids = torch.zeros(len(words), longest, most, dtype=torch.int64)
        for n, sentence in enumerate(words):
            for i, word in enumerate(sentence):
                ids[n, i, : len(word)] = torch.tensor(word)
        return Tokens(ids, ids[..., 0] > 0)

    def forward(self, tokens: Tokens) -> Tensor:
        """[N, L, W]."""
        real = (tokens.ids > 0).sum(-1, keepdim=True).clamp(min=1)
        x = self.table(tokens.ids).sum(2) / real.sqrt()  # of unit spread however many pieces there are
        x = self.dropout(x + self.places[: x.shape[1]])
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~tokens.mask)
        rows: Tensor = self.norm(x)
        return rows

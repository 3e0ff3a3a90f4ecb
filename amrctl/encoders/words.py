"""`words`: token embeddings from hashed words and character n-grams; nothing to download.

A sentence is lower-cased and cut into words (runs of letters, digits and inner apostrophes). A
word's vector is the sum of three parts, scaled to length 1: the word itself (share 1), its stem
(share 2: endings such as -s, -ing, -ed cut off, so that "barks" lies near "barking"), and the 3-, 4-
and 5-grams of `<word>` together (share 1.5). Every piece has a fixed sign vector of its own, the 256
bits of its SHA-256. Stop words are scaled to `STOP_WEIGHT`. Row 0 of a sentence is its summary, the
mean of its word vectors scaled to length 1; the words follow in order. The pooled vector is row 0.

Summing n-grams is fastText's idea (Bojanowski et al., TACL 2017); with hashed signs instead of
trained vectors it is a random projection of the bag of pieces.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from amrctl.encoders.base import TEXT, Rows, Sentence, Weightless
from amrctl.registry import component

DIM = 256  # the bits of one SHA-256, one sign each
WORD_SHARE, STEM_SHARE, GRAM_SHARE = 1.0, 2.0, 1.5
STOP_WEIGHT = 0.25
STOP_WORDS = frozenset((
    "a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "by", "for", "from", "with", "as", "is",
    "are", "was", "were", "be", "been", "being", "it", "its", "this", "that", "there", "then", "while",
    "some", "someone", "something",
))  # fmt: skip
ENDINGS = ("ings", "ing", "ed", "es", "ly", "s", "e")  # the first that fits is cut off
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def split(sentence: str) -> list[str]:
    """The words of a sentence in order, lower-cased; a sentence without any has one empty word."""
    return [word.replace("’", "'") for word in _WORD.findall(sentence.lower())] or [""]


def stem(word: str) -> str:
    """The word less its possessive and the first of `ENDINGS` that leaves 3 letters; then a doubled
    last consonant is made single (running, run) and a last y an i (cry, cries)."""
    base = word.removesuffix("'s")
    for ending in ENDINGS:
        if base.endswith(ending) and len(base) - len(ending) >= 3:
            base = base[: -len(ending)]
            break
    if len(base) > 3 and base[-1] == base[-2] and base[-1] not in "aeiou":
        base = base[:-1]
    return base[:-1] + "i" if base.endswith("y") and len(base) > 2 else base


def grams(word: str) -> list[str]:
    """The 3-, 4- and 5-grams of `<word>`, by length, then place."""
    marked = f"<{word}>"
    return [marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1)]


def signs(digest: bytes) -> npt.NDArray[np.float64]:
    """The bits of a digest as -1 and +1, shape `(bits,)`."""
    return np.unpackbits(np.frombuffer(digest, dtype=np.uint8)).astype(np.float64) * 2 - 1


def summarised(rows: npt.NDArray[np.float64]) -> Sentence:
    """Token vectors `(n, dim)` behind their mean scaled to length 1, the pooled vector too; float32."""
    mean = rows.mean(axis=0)
    summary = mean / max(float(np.linalg.norm(mean)), 1e-12)
    tokens: Rows = np.concatenate([summary[None], rows]).astype(np.float32)
    return Sentence(tokens, tokens[0].copy())


def _signs(text: str) -> npt.NDArray[np.float64]:
    return signs(hashlib.sha256(text.encode()).digest())


@lru_cache(maxsize=1 << 16)
def word_vector(word: str) -> npt.NDArray[np.float64]:
    """A word's direction, shape `(DIM,)`, length 1; read-only."""
    total = WORD_SHARE * _signs(f"word {word}") + STEM_SHARE * _signs(f"stem {stem(word)}")
    parts = [_signs(f"gram {gram}") for gram in grams(word)]
    if parts:
        # Independent signs add up like the root of their number; divided by it, the shares hold.
        total = total + GRAM_SHARE / np.sqrt(len(parts)) * np.sum(parts, axis=0)
    vector: npt.NDArray[np.float64] = total / np.linalg.norm(total)
    vector.flags.writeable = False
    return vector


@component(TEXT, "words", Weightless)
class Words:
    """The text encoder `words`; see the top of this file."""

    name = "words"
    dim = DIM

    def __init__(self, config: Weightless | None = None) -> None:
        pass

    def encode(self, sentences: Sequence[str]) -> list[Sentence]:
        """One `Sentence` each: tokens `(1 + words, 256)`, pooled `(256,)`, float32."""
        return [self._one(sentence) for sentence in sentences]

    def _one(self, sentence: str) -> Sentence:
        rows = np.stack(
            [word_vector(word) * (STOP_WEIGHT if word in STOP_WORDS else 1.0) for word in split(sentence)]
        )
        return summarised(rows)

    def attributes(self) -> Mapping[str, Any]:
        return {"version": 1, "normalisation": "length 1; stop words 0.25", "parameters": 0}

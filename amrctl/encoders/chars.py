"""`chars`: token vectors from runs of characters that know no words; nothing to download.

A sentence is lower-cased, its words (as `words` cuts them) are joined by single spaces with one before
and one after, and runs of 8 characters, each 4 further on, are its tokens; the last may be shorter, and
every character is in one. A token's vector is the sum of its 2-, 3- and 4-grams, spaces included, scaled to
length 1: so a token hears the end of one word and the beginning of the next, and order within four
characters. Every n-gram has a fixed sign vector of its own, the 384 bits of its SHA-384. Row 0 of a
sentence is its summary, the mean of its token vectors scaled to length 1; the pooled vector is row 0.

Beside `words` this is a tokenizer that cuts elsewhere, with vectors in another space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from amrctl.encoders.base import TEXT, Sentence, Weightless
from amrctl.encoders.words import signs, split, summarised
from amrctl.registry import component

DIM = 384  # the bits of one SHA-384, one sign each
RUN, STEP = 8, 4  # characters
GRAMS = (2, 3, 4)


def runs(sentence: str) -> list[str]:
    """The tokens of a sentence in order; at least one."""
    text = f" {' '.join(split(sentence))} "
    return [text[at : at + RUN] for at in range(0, max(len(text) - RUN + STEP, 1), STEP)]


@lru_cache(maxsize=1 << 16)
def run_vector(run: str) -> npt.NDArray[np.float64]:
    """A token's direction, shape `(DIM,)`, length 1; read-only. `run`: at least two characters."""
    pieces = [run[i : i + n] for n in GRAMS for i in range(len(run) - n + 1)]
    total = np.sum([signs(hashlib.sha384(piece.encode()).digest()) for piece in pieces], axis=0)
    vector: npt.NDArray[np.float64] = total / max(float(np.linalg.norm(total)), 1e-12)
    vector.flags.writeable = False
    return vector


@component(TEXT, "chars", Weightless)
class Chars:
    """The text encoder `chars`; see the top of this file."""

    name = "chars"
    dim = DIM

    def __init__(self, config: Weightless | None = None) -> None:
        pass

    def encode(self, sentences: Sequence[str]) -> list[Sentence]:
        """One `Sentence` each: tokens `(1 + runs, 384)`, pooled `(384,)`, float32."""
        return [self._one(sentence) for sentence in sentences]

    def _one(self, sentence: str) -> Sentence:
        return summarised(np.stack([run_vector(run) for run in runs(sentence)]))

    def attributes(self) -> Mapping[str, Any]:
        return {"version": 1, "normalisation": "length 1", "parameters": 0}

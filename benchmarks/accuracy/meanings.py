"""What simfeatures.py takes sentences to mean: the directions that its simulated sounds are made of."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MEANINGS = 48  # numbers of its semantic space
Doubles = npt.NDArray[np.float64]


def draws(text: str) -> np.random.Generator:
    """The generator that simfeatures.py has for a text."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def read_rows(manifests: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines of all manifests, as simfeatures.py reads them."""
    lines = [line for path in manifests for line in path.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines if line.strip()]


def words(query: str) -> list[str]:
    """Lower-cased words, as simfeatures.py cuts them."""
    return re.findall(r"[a-z']+", query.lower()) or ["sound"]


class Meanings:
    """What every query means: the idf-weighted mean of its words' directions, `(48,)`, length 1."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        count: dict[str, int] = {}
        for row in rows:
            for word in set(words(row["query"])):
                count[word] = count.get(word, 0) + 1
        self._idf = {word: math.log(1 + len(rows) / n) for word, n in count.items()}
        self._words: dict[str, Doubles] = {}

    def word(self, word: str) -> Doubles:
        """A word's direction."""
        if word not in self._words:
            v = draws("w:" + word).standard_normal(MEANINGS)
            self._words[word] = v / np.linalg.norm(v)
        return self._words[word]

    def query(self, query: str) -> Doubles:
        """A query's direction."""
        v = sum((self._idf[word] * self.word(word) for word in words(query)), np.zeros(MEANINGS))
        return np.asarray(v / (np.linalg.norm(v) + 1e-9))

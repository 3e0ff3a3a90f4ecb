"""The verifiers by name, without building one: what each reads, and what it needs beyond the package."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from amrctl.errors import AmrctlError, near


@dataclass(frozen=True)
class Card:
    """What `rerank --list` says. `reads`: the options it needs; `needs`: packages, as they are imported;
    `weights`: where to get them; `default`: what it takes when its spelling names none."""

    name: str
    what: str
    reads: tuple[str, ...]
    needs: tuple[str, ...] = ()
    weights: str = ""
    licence: str = ""
    default: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """Packages of `needs` that are not installed."""
        return tuple(name for name in self.needs if importlib.util.find_spec(name) is None)


CARDS = (
    Card("similarity", "how well a window covers the similar seconds", ("--features",)),
    Card(
        "qwen2.5-omni",
        "an audio language model, run here",
        ("--audio",),
        ("transformers",),
        "https://huggingface.co/Qwen/Qwen2.5-Omni-7B (or -3B)",
        "7B: Apache 2.0; 3B: research only; as far as known, read it there",
        "Qwen/Qwen2.5-Omni-7B",
    ),
    Card("http", "an audio language model behind an address", ("--audio", "--endpoint", "--model")),
)


def find(spelling: str) -> tuple[Card, str | None]:
    """`NAME` or `NAME:WEIGHTS` → its card and the weights. Raises `AmrctlError`."""
    name, colon, weights = spelling.partition(":")
    for card in CARDS:
        if card.name == name:
            if colon and not (card.default and weights):
                told = f"write it as {name}:FOLDER" if card.default else f"write it as {name}"
                raise AmrctlError(f"--verifier {spelling}: {told}")
            return card, weights or None
    raise AmrctlError(f"no verifier is called '{name}'{near(name, [card.name for card in CARDS])}")

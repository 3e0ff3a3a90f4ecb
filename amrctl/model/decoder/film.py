"""FiLM on the content queries: the sentence steers what the decoder starts to look for.

Source: Yokohama, DCASE 2026 Task 6, section 2.4, after Perez et al. (AAAI 2018): content (1 + scale) +
offset, both by a linear layer from the text summary. That layer starts at zero (ours), so that the hook
starts as the identity, to the bit. The report's content queries are learned: `decoder: {content: learned}`.
The summary is that of the fusion component `sentence-token`, at inference too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from torch import nn

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.model.decoder.conditional import DecoderHook, Queries
from amrctl.model.fusion.sentence_token import NAME as SUMMARY
from amrctl.model.types import Dims, Memory
from amrctl.registry import ComponentConfig, component

NAME = "film"


class FilmConfig(ComponentConfig):
    kind: Literal["film"] = "film"


@component("hooks", NAME, FilmConfig)
class Film(DecoderHook):
    """content * (1 + scale(summary)) + offset(summary), before the first layer."""

    companions: ClassVar[dict[str, tuple[str, ...]]] = {"fusion": (SUMMARY,)}

    def __init__(self, config: FilmConfig, dims: Dims) -> None:
        super().__init__()
        self.film = nn.Linear(dims.hidden, 2 * dims.hidden)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def start(self, queries: Queries, memory: Memory, batch: Batch) -> Queries:
        if SUMMARY not in memory.extras:
            raise RecipeError(
                f"model.decoder.hooks: '{NAME}' needs a summary of the text; add '{SUMMARY}' to model.fusion"
            )
        scale, offset = self.film(memory.extras[SUMMARY])[:, None].chunk(2, -1)
        return replace(queries, content=queries.content * (1 + scale) + offset)

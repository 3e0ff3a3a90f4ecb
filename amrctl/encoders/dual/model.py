"""The dual encoder: a recording and a sentence as unit vectors of one space.

JKU, "Enhancing Language-Based Audio Retrieval with Partial Fine-Tuning and Attention Pooling", DCASE 2025,
section 4: two encoders, each followed by a linear map into the shared space; similarity is the cosine
(eq. 1). Segment rows are pooled before the map, as in the public baseline.

B recordings or sentences, S segments, D width of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from amrctl import registry
from amrctl.encoders.dual.towers import AudioTower, TextTower, Tokens
from amrctl.recipe_retrieval import RetrievalModel


@dataclass
class Pairs:
    """One batch. `spectra` [n, T, F]: the segments of all recordings one after another; `counts`: how
    many are each recording's; `sentences`: one a recording; `total`: pairs of the whole batch, of which
    several processes have a share each (0: not told)."""

    spectra: Tensor
    counts: tuple[int, ...]
    sentences: tuple[str, ...]
    total: int = 0

    def __len__(self) -> int:
        return len(self.counts)

    def to(self, device: torch.device | str) -> Pairs:
        """The same on another device."""
        return replace(self, spectra=self.spectra.to(device))


@dataclass
class Embedded:
    """`audio` and `text` [B, D] of length 1; `scale`: 1 / temperature, a number."""

    audio: Tensor
    text: Tensor
    scale: Tensor


class DualEncoder(nn.Module):
    """Both towers, the pooling of segments, both maps and the temperature."""

    def __init__(self, model: RetrievalModel, memory: Mapping[str, Any] | None = None) -> None:
        """`memory`: what `memory()` of a trained one said; without it pretrained weights are read."""
        super().__init__()

        told = memory or {}
        self.audio = audio_tower(model, told.get("audio"))
        self.text: TextTower = _built("retrieval-text", model.text, told.get("text"))
        self.pooling: nn.Module = _built("retrieval-pooling", model.pooling, self.audio.width)
        self.audio_projection = nn.Linear(self.audio.width, model.dim)
        self.text_projection = nn.Linear(self.text.width, model.dim)
        start = torch.tensor(math.log(model.temperature.initial))
        self.log_temperature = nn.Parameter(start, requires_grad=model.temperature.learned)
        self.dim = model.dim

    def memory(self) -> dict[str, Any]:
        """JSON values that build this network again beside its weights."""
        return {"audio": dict(self.audio.memory()), "text": dict(self.text.memory())}

    def forward(self, batch: Pairs) -> Embedded:
        """Both sides of a batch."""
        rows = self.audio(batch.spectra)
        tokens = self.text.tokenize(batch.sentences).to(rows.device)
        return Embedded(
            self.recordings(rows, batch.counts),
            self.sentences(tokens),
            (-self.log_temperature.float()).exp(),
        )

    def recordings(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of segments [n, W], `counts` of them for each recording, to unit vectors [B, D] float32."""
        sizes = torch.tensor(counts)
        mask = (torch.arange(max(counts))[None] < sizes[:, None]).to(rows.device)
        padded = rows.new_zeros(*mask.shape, rows.shape[1])
        padded = padded.masked_scatter(mask[..., None], rows)
        return self.placed(self.pooling(padded, mask))

    def placed(self, rows: Tensor) -> Tensor:
        """Rows of the audio tower [..., W] to unit vectors [..., D] float32."""
        return functional.normalize(self.audio_projection(rows).float(), dim=-1)

    def sentences(self, tokens: Tokens) -> Tensor:
        """Sentences to unit vectors [B, D] float32."""
        rows = self.text.pool(self.text(tokens), tokens.mask)
        return functional.normalize(self.text_projection(rows).float(), dim=-1)

    def words(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Unit vectors of the tokens [B, L, D] (nonsense on padding) and of the sentences [B, D]."""
        rows = self.text(tokens)
        whole = self.text_projection(self.text.pool(rows, tokens.mask)).float()
        each = self.text_projection(rows).float()
        return functional.normalize(each, dim=-1), functional.normalize(whole, dim=-1)


def audio_tower(model: RetrievalModel, memory: Mapping[str, Any] | None = None) -> AudioTower:
    """The audio side alone; `memory` as that of the tower."""
    tower: AudioTower = _built("retrieval-audio", model.audio, memory)
    return tower


def _built(slot: str, config: Any, more: Any) -> Any:
    return registry.find(slot, config.kind).build(config, more)

"""Clip-word correlation learner: moments and sentences meet in one space, and teach the cross-attention.

Source: CG-DETR (Moon et al., 2023, arXiv 2311.08835), clip-word correlation learner, as in its released
code and lighthouse's port. A moment token reads the frames inside the labels, and once more those outside;
a sentence token reads the words, and once more the dummies. `ms-align` brings a moment and its sentence
together and tells inside from outside; the products of frames with words and dummies are the targets of
the attention weights (`distill`).

What differs from the released code, which `compat: official` brings back: there the classes of the second
part of `ms-align` are the first of several right ones; here all right ones share the target (ours).
Means there count padded frames, and padded words are targets; the inside/outside term takes the logarithm
of a rounded sigmoid, which is 100 for every clear mistake; here it is the exact cross-entropy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.model.fusion.adaptive_cross_attention import NAME as ATTENTION
from amrctl.model.fusion.dummy_tokens import NAME as DUMMIES
from amrctl.model.fusion.dummy_tokens import POSITION
from amrctl.model.fusion.sentence_token import NAME as SENTENCE
from amrctl.model.fusion.sentence_token import WORDS, SentenceToken
from amrctl.model.layers.encoder_layer import TokenEncoder
from amrctl.model.layers.feedforward import xavier_
from amrctl.model.layers.options import LayerConfig
from amrctl.model.layers.saliency import mean_of
from amrctl.model.types import Dims, LossTerm, Matches, Memory, Output, Tokens
from amrctl.registry import component

if TYPE_CHECKING:
    from amrctl.model.detector import Detector

NAME = "clip-words"
_TOKENS = tuple(f"{NAME}.{part}" for part in ("moment", "outside", "sentence", "dummy-sentence"))
_FRAMES = f"{NAME}.frames"


class ClipWordsConfig(LayerConfig):
    kind: Literal["clip-words"] = "clip-words"
    moment_layers: int = Field(1, ge=1)
    sentence_layers: int = Field(1, ge=1, description="with sentence: own")
    sentence: Literal["own", "fusion"] = Field(
        "own", description="own: a sentence token for training only; fusion: that of 'sentence-token'"
    )
    align: float = Field(1.0, ge=0, description="weight of ms-align")
    distill: float = Field(1.0, ge=0, description="weight of distill")


class MomentSentence:
    """`ms-align`: moment against sentence, moment against dummies, moment against frames; the sum."""

    name, all_layers = "ms-align", False

    def __init__(self, weight: float, official: bool) -> None:
        self.weight, self.official = weight, official

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        moment, outside, sentence, dummies = (
            functional.normalize(output.extras[key].float(), dim=-1) for key in _TOKENS
        )
        frames = output.extras[_FRAMES].float()
        if batch.targets is None:
            return frames.sum() * 0.0
        inside, real = (batch.targets.saliency > 0).to(frames.dtype), batch.audio_mask
        own = torch.arange(len(moment), device=moment.device)
        total = functional.cross_entropy(_cosines(moment, outside, sentence), own)
        other = _cosines(moment, outside, dummies)
        if self.official:
            total = total + functional.cross_entropy(other, (own == 0).long())
        else:  # anything but the own moment fits the dummies
            fitting = 1.0 - functional.one_hot(own, other.shape[1]).to(other.dtype)
            total = total + functional.cross_entropy(other, fitting / fitting.sum(1, keepdim=True))
        if self.official:
            wrong = functional.binary_cross_entropy(frames.sigmoid(), inside, reduction="none")
            return total + (wrong * real).mean()
        frames = frames.masked_fill(~real, 0.0)
        wrong = functional.binary_cross_entropy_with_logits(frames, inside, reduction="none")
        return total + mean_of(wrong, real)


def _cosines(inside: Tensor, outside: Tensor, sentences: Tensor) -> Tensor:
    """Of each pair's moment with all sentences, then of what is outside it: [B, 2B]; rows normalised."""
    return torch.cat((inside @ sentences.T, outside @ sentences.T), dim=1)


class Distill:
    """Divergence of the attention weights from the correlation, frames inside moments, mean over keys."""

    name, all_layers = "distill", False

    def __init__(self, weight: float, official: bool) -> None:
        self.weight, self.official = weight, official

    def __call__(self, output: Output, batch: Batch, matches: Matches, layer: int) -> Tensor:
        wanted, given = output.extras[NAME], output.extras[ATTENTION].float()
        rows = torch.special.xlogy(wanted, wanted) - wanted * torch.log(given + 1e-6)
        words = batch.text_mask[0]
        keys = words.sum(1) + (given.shape[-1] - words.shape[1])
        per_frame: Tensor = rows.mean(-1) if self.official else rows.sum(-1) / keys[:, None]
        if batch.targets is None:
            return per_frame.sum() * 0.0
        return mean_of(per_frame, (batch.targets.saliency > 0) & batch.audio_mask)


@component("auxiliary", NAME, ClipWordsConfig)
class ClipWords(nn.Module):
    """Writes `output.extras`: `clip-words` [B, T, D + L], the distribution over dummies and words that the
    attention of frame t should have (detached; D dummies first); `.moment`, `.outside`, `.sentence` and
    `.dummy-sentence` [B, H]; `.frames` [B, T], product of the moment token and each frame."""

    companions: ClassVar[dict[str, tuple[Any, ...]]] = {"fusion": (DUMMIES, ATTENTION)}

    def __init__(self, config: ClipWordsConfig, dims: Dims) -> None:
        super().__init__()
        self.config, self.official = config, dims.official
        self.moment = TokenEncoder(config, dims.hidden, config.moment_layers)
        xavier_(self.moment.layers)
        if config.sentence == "own":
            self.sentence = TokenEncoder(config, dims.hidden, config.sentence_layers)

    def forward(
        self, detector: Detector, batch: Batch, tokens: Tokens, memory: Memory, output: Output
    ) -> None:
        if batch.targets is None:
            return
        dummies, place = (memory.extras.get(key) for key in (DUMMIES, POSITION))
        if dummies is None or place is None or ATTENTION not in memory.extras:
            raise RecipeError(f"model.auxiliary.{NAME}: needs '{DUMMIES}' and '{ATTENTION}' in model.fusion")
        inside = batch.targets.saliency > 0
        within = inside & tokens.audio_mask
        moment, frames = self.moment(tokens.audio, tokens.audio_position, within)
        outside, others = self.moment(tokens.audio, tokens.audio_position, ~inside & tokens.audio_mask)
        encoder, sentence, words = self._sentence(detector, tokens, memory)
        dummy_sentence, dummy_words = encoder(
            dummies, place, torch.ones_like(dummies[..., 0], dtype=torch.bool)
        )
        output.extras[NAME] = self._correlation(frames, dummy_words, words, tokens.text_mask)
        for key, token in zip(_TOKENS, (moment, outside, sentence, dummy_sentence), strict=True):
            output.extras[key] = token
        frames = torch.where(inside[..., None], frames, others)
        output.extras[_FRAMES] = (frames.float() * moment.float()[:, None]).sum(-1)

    @torch.no_grad()
    def _correlation(self, frames: Tensor, dummies: Tensor, words: Tensor, real: Tensor) -> Tensor:
        """What the attention of each frame should be, [B, T, D + L].

        In float32 from the first product on: its rows are long, and what half precision rounds away stands
        in an exponent.
        """
        with torch.autocast(frames.device.type, enabled=False):
            keys = torch.cat((dummies, words), dim=1).float()
            correlation = frames.float() @ keys.transpose(1, 2)
        if not self.official:
            read = functional.pad(real, (dummies.shape[1], 0), value=True)
            correlation = correlation.masked_fill(~read[:, None], float("-inf"))
        return correlation.softmax(-1)

    def _sentence(
        self, detector: Detector, tokens: Tokens, memory: Memory
    ) -> tuple[TokenEncoder, Tensor, Tensor]:
        """The sentence's encoder, its token [B, H] and its words [B, L, H]."""
        if self.config.sentence == "own":
            return self.sentence, *self.sentence(tokens.text, None, tokens.text_mask)
        part = dict(detector.fusion.items()).get(SENTENCE)
        if not isinstance(part, SentenceToken):
            raise RecipeError(f"model.auxiliary.{NAME}: sentence 'fusion' needs '{SENTENCE}' in model.fusion")
        return part.encoder, memory.extras[SENTENCE], memory.extras[WORDS]

    def loss_terms(self) -> list[LossTerm]:
        return [
            MomentSentence(self.config.align, self.official),
            Distill(self.config.distill, self.official),
        ]

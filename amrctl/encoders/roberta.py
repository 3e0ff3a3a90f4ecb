"""`roberta-base`, `roberta-large`: a general language network, one row per token and one per sentence.

Source: RoBERTa (Liu et al., 2019, arXiv 1907.11692). Chung-Ang's system for DCASE 2026 task 6 feeds its
token rows to the detector; JKU's takes the masked mean of the tokens as the sentence (fine-tuned there).

Byte-level tokens, cased; sentences go in as they are. `<s>` and `</s>` are kept, as in the official
files of other encoders; padding is not stored. Rows are the last hidden state; the sentence vector is
the mean of all token rows, `<s>` and `</s>` among them. The network has no pooling layer: the released
one was never trained for that. A sentence is cut at the 512 tokens that it has positions for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from amrctl.encoders.base import TEXT, Card, EncoderConfig, Sentence
from amrctl.encoders.frozen import FrozenText
from amrctl.encoders.hub import TOKENIZER, folder_of, load_network, name_of, read_config
from amrctl.encoders.vocabulary import BYTE_LEVEL, JOINT, load_tokenizer
from amrctl.encoders.weights import sha256_of
from amrctl.errors import FeatureError
from amrctl.registry import component


def _card(dim: int, name: str) -> Card:
    return Card(dim, None, f"https://huggingface.co/FacebookAI/{name}", "MIT", ("transformers",))


class BaseConfig(EncoderConfig):
    """Options of `roberta-base`."""

    default_checkpoint: ClassVar[str | None] = "FacebookAI/roberta-base"


class LargeConfig(EncoderConfig):
    """Options of `roberta-large`."""

    default_checkpoint: ClassVar[str | None] = "FacebookAI/roberta-large"


class _Roberta(FrozenText):
    def __init__(self, config: EncoderConfig) -> None:
        assert config.checkpoint is not None
        folder = folder_of(config.checkpoint, encoder=self.name, extra=TOKENIZER)
        told = read_config(folder, encoder=self.name, model_type="roberta", hidden_size=self.dim)
        from transformers import RobertaModel

        self._tokenizer = load_tokenizer("RobertaTokenizer", [folder], BYTE_LEVEL)
        words = told.get("vocab_size", 50_265)
        if len(self._tokenizer) != words:
            raise FeatureError(
                f"the tokenizer in {folder} knows {len(self._tokenizer):,} tokens, the network "
                f"{words:,}; put the {JOINT}, or {' and '.join(BYTE_LEVEL)}, there that belong to the weights"
            )
        network = load_network(
            RobertaModel,
            folder,
            encoder=self.name,
            unused=r"embeddings\.position_ids$",
            add_pooling_layer=False,
        )
        # Positions begin after the number of the padding token.
        self._longest = network.config.max_position_embeddings - network.config.pad_token_id - 1
        super().__init__(config, network, sha256=sha256_of(folder), checkpoint=name_of(config.checkpoint))

    def forward(self, sentences: Sequence[str]) -> list[Sentence]:
        """Token rows `(L, dim)` and their mean `(dim,)` of each sentence."""
        given = self._tokenizer(
            list(sentences), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self.device)
        hidden = self.network(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
        rows = hidden.last_hidden_state.float().cpu().numpy()
        real = given["attention_mask"].bool().cpu().numpy()
        tokens = [np.ascontiguousarray(row[mask]) for row, mask in zip(rows, real, strict=True)]
        return [Sentence(token, token.mean(axis=0)) for token in tokens]


@component(TEXT, "roberta-base", BaseConfig)
class RobertaBase(_Roberta):
    """The text encoder `roberta-base`; see the top of this file."""

    name, dim, card = "roberta-base", 768, _card(768, "roberta-base")


@component(TEXT, "roberta-large", LargeConfig)
class RobertaLarge(_Roberta):
    """The text encoder `roberta-large`; see the top of this file."""

    name, dim, card = "roberta-large", 1024, _card(1024, "roberta-large")

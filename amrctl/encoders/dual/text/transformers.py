"""A language network of transformers as the text side, all of it trained.

JKU, DCASE 2025, section 4: RoBERTa-large, masked mean over the valid tokens in place of the first one;
table 1 tries MPNet, BGE (a BERT), DeBERTa-v3 and GTR-T5 too. Sentences are lower-cased and stripped of
punctuation, cut at 32 tokens, dropout 0.2: the public baseline of DCASE 2025 task 6, the paper is silent.
The tokenizer is stored in the checkpoint, so that it is used without the folder it came from.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any, Literal

import tokenizers
import torch
import transformers
from pydantic import Field
from torch import Tensor

from amrctl.encoders.dual.towers import Memory, TextTower, Tokens
from amrctl.encoders.hub import TOKENIZER, folder_of, load_network, quietly, read_config, short
from amrctl.errors import FeatureError, near
from amrctl.registry import ComponentConfig, component

# `model_type` in config.json: class, and what its constructor is told. Pooling layers are not built:
# the published ones were not trained, or not for this.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("RobertaModel", {"add_pooling_layer": False}),
    "bert": ("BertModel", {"add_pooling_layer": False}),
    "mpnet": ("MPNetModel", {"add_pooling_layer": False}),
    "deberta-v2": ("DebertaV2Model", {}),
    "t5": ("T5EncoderModel", {}),
}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate")
VOCABULARIES = (*TOKENIZER, "spiece.model", "spm.model")
NAME = "transformers-text"


class Config(ComponentConfig):
    """Which weights, and how sentences are given to them."""

    kind: Literal["transformers-text"] = "transformers-text"
    checkpoint: str = Field("FacebookAI/roberta-large", description="folder in the Hub's layout, or hub name")
    max_tokens: int = Field(32, ge=2, description="longer sentences are cut")
    plain: bool = Field(True, description="lower case, no punctuation")
    dropout: float | None = Field(0.2, ge=0, lt=1, description="everywhere; none: the network's own")
    pool: Literal["mean", "first"] = Field("mean", description="mean of the tokens, or the first one")


@component("retrieval-text", NAME, Config)
class Transformers(TextTower):
    """Sentences to the last hidden state of their tokens."""

    def __init__(self, config: Config, memory: Memory | None = None) -> None:
        super().__init__()
        self.config = config
        if memory is None:
            folder = folder_of(
                config.checkpoint,
                encoder=NAME,
                extra=(*TOKENIZER, "spiece.model", "spm.model"),
                how="--set model.text.checkpoint=FOLDER",
            )
            told = read_config(folder, encoder=NAME)
            cls, options = _class(str(told.get("model_type")), str(folder))
            dropout = {key: config.dropout for key in DROPOUTS if key in told and config.dropout is not None}
            self.network = load_network(
                cls, folder, encoder=NAME, unused=r"embeddings\.position_ids$|^pooler\.", **options, **dropout
            )
            with quietly():
                try:
                    loaded = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
                    written = loaded.backend_tokenizer.to_str()
                except Exception as error:  # each kind of tokenizer raises its own
                    raise FeatureError(f"{NAME}: {folder}: no tokenizer ({short(error)})") from None
            self._pad = int(loaded.pad_token_id or 0)
        else:
            cls, options = _class(memory["config"]["model_type"], "the checkpoint")
            self.network = cls(cls.config_class.from_dict(memory["config"]), **options)
            written, self._pad = memory["tokenizer"], int(memory["pad"])
        self._written = written
        self._tokenizer = tokenizers.Tokenizer.from_str(written)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(config.max_tokens)
        settings = self.network.config
        self.width = int(getattr(settings, "hidden_size", None) or settings.d_model)

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Numbers of the tokens, those of beginning and end among them."""
        given = [_plain(s) for s in sentences] if self.config.plain else list(sentences)
        found = [e.ids or [self._pad] for e in self._tokenizer.encode_batch(given)]
        longest = max(map(len, found))
        ids = torch.full((len(found), longest), self._pad, dtype=torch.int64)
        mask = torch.zeros(len(found), longest, dtype=torch.bool)
        for n, numbers in enumerate(found):
            ids[n, : len(numbers)] = torch.tensor(numbers)
            mask[n, : len(numbers)] = True
        return Tokens(ids, mask)

    def forward(self, tokens: Tokens) -> Tensor:
        """[N, L, W]."""
        rows: Tensor = self.network(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        return rows

    def pool(self, rows: Tensor, mask: Tensor) -> Tensor:
        """The mean over real tokens, or the first token (`<s>`, [CLS])."""
        return super().pool(rows, mask) if self.config.pool == "mean" else rows[:, 0].float()

    def memory(self) -> Memory:
        """The network's settings and the tokenizer."""
        return {
            "config": json.loads(self.network.config.to_json_string(use_diff=False)),
            "tokenizer": self._written,
            "pad": self._pad,
        }


def _class(model_type: str, where: str) -> tuple[Any, dict[str, Any]]:
    if model_type not in CLASSES:
        raise FeatureError(
            f"{NAME}: {where} holds a network of type '{model_type}'{near(model_type, list(CLASSES))}"
        )
    name, options = CLASSES[model_type]
    return getattr(transformers, name), options


def _plain(sentence: str) -> str:
    return sentence.lower().translate(str.maketrans("", "", string.punctuation))

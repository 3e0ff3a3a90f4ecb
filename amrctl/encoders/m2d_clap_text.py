"""`m2d-clap` and `m2d-clap-sentence`: text rows of M2D-CLAP 2025, from the BERT inside its checkpoint.

BERT base, uncased, fine-tuned. `m2d-clap` keeps the last hidden state of every token, [CLS] and [SEP]
included, at most 32 (KAIST's recipe); `m2d-clap-sentence` keeps the one at [CLS] alone, as one row
(Yokohama's published script, and NTT's own sentence vector). Neither is projected or scaled. The pooled
vector is the one at [CLS] in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from amrctl.encoders.base import TEXT, Card, EncoderConfig, Rows, Sentence
from amrctl.encoders.frozen import FrozenText, require
from amrctl.encoders.m2d_clap import DIM, LICENCE, WEIGHTS
from amrctl.encoders.vocabulary import load_tokenizer
from amrctl.encoders.weights import local, place, read_tensors, sha256_of
from amrctl.errors import FeatureError
from amrctl.registry import component

if TYPE_CHECKING:
    from transformers import BertModel

ROOT = "text_encoder.text_encoder."
MAX_TOKENS = 32
HUB = "google-bert/bert-base-uncased"  # whose tokenizer it is


def read_text_network(path: Path, shape: Mapping[str, int]) -> BertModel:
    """The BERT of an official checkpoint of 2025; `shape` changes its size. Raises `FeatureError`."""
    tensors = read_tensors(path, "model")
    if not any(key.startswith(ROOT) for key in tensors):
        raise FeatureError(f"{path}: holds no text encoder (no key begins with '{ROOT}'); the 2025 files do")
    from transformers import BertConfig, BertModel

    sizes: Any = shape  # transformers' types do not see which of its options these are
    network = BertModel(BertConfig(**sizes))
    place(
        network,
        tensors,
        {ROOT + name: name for name, _ in network.named_parameters()},
        where=str(path),
        ignore=lambda key: not key.startswith(ROOT) or key == f"{ROOT}embeddings.position_ids",
    )
    return network


def read_tokenizer(beside: Path, vocabulary: int) -> Any:
    """BERT's tokenizer from the folder `beside` the weights, its subfolder `bert-base-uncased`, or the Hub.

    Raises `FeatureError`: there is none, or one of another network.
    """
    places = [beside, beside / HUB.rpartition("/")[2]]
    found = load_tokenizer("BertTokenizer", places, ["vocab.txt"], hub=HUB)
    ids = found("A B")["input_ids"]
    if len(found) != vocabulary or (ids[0], ids[-1]) != (found.cls_token_id, found.sep_token_id):
        raise FeatureError(
            f"{found.name_or_path}: not the tokenizer of {HUB} ({len(found):,} tokens, the weights know "
            f"{vocabulary:,})"
        )
    return found


@component(TEXT, "m2d-clap", EncoderConfig)
class M2dClapText(FrozenText):
    """The text encoder `m2d-clap`; see the top of this file."""

    name = "m2d-clap"
    dim = DIM
    card = Card(DIM, None, WEIGHTS, LICENCE, ("transformers",), f"at most 32 tokens; tokenizer {HUB}")
    shape: ClassVar[Mapping[str, int]] = {}  # what differs from BERT base

    def __init__(self, config: EncoderConfig) -> None:
        require("transformers", self.name)
        path = local(config.checkpoint)
        network = read_text_network(path, self.shape)
        super().__init__(config, network, sha256=sha256_of(path), checkpoint=path.name)
        self._tokenizer: Any = read_tokenizer(path.parent, network.config.vocab_size)

    def forward(self, sentences: Sequence[str]) -> list[Sentence]:
        """Tokens `(L, 768)` and the vector at [CLS], `(768,)`, of each sentence."""
        import torch

        ids = [self._tokenizer(s, truncation=True, max_length=MAX_TOKENS)["input_ids"] for s in sentences]
        done: dict[int, Sentence] = {}
        # Sentences of equal length together: no padding, and so no mask.
        for length in sorted({len(row) for row in ids}):
            places = [i for i, row in enumerate(ids) if len(row) == length]
            batch = torch.tensor([ids[i] for i in places], device=self.device)
            states = self.network(input_ids=batch).last_hidden_state.float().cpu().numpy()
            done.update({i: self._sentence(rows) for i, rows in zip(places, states, strict=True)})
        return [done[i] for i in range(len(ids))]

    def _sentence(self, rows: Rows) -> Sentence:
        return Sentence(rows.copy(), rows[0].copy())


@component(TEXT, "m2d-clap-sentence", EncoderConfig)
class M2dClapSentence(M2dClapText):
    """The text encoder `m2d-clap-sentence`; see the top of this file."""

    name = "m2d-clap-sentence"
    card = Card(DIM, None, WEIGHTS, LICENCE, ("transformers",), f"one row, [CLS]; tokenizer {HUB}")

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        # This vector was trained against the audio rows; a mean over token rows was not.
        self.space = f"m2d-clap:{(self.sha256 or '')[:16]}"

    def _sentence(self, rows: Rows) -> Sentence:
        return Sentence(rows[:1].copy(), rows[0].copy())

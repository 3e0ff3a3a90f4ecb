"""`ms-clap` for sentences: MS-CLAP 2023's text side, GPT-2, one row of 768 numbers per token.

Source and weights: see `ms_clap`. A space and the end-of-text token are added to the sentence as it is
(capitals stay); the rows are GPT-2's last hidden states after its final norm, those of the two added
tokens included, neither projected nor scaled. Attention looks back only, so padding (token 0, `!`) on
the right changes no row.

The pooled vector, 1,024 numbers, is the official projection of the end-of-text row: linear1, then
layer norm of linear1 + linear2(GELU(linear1)); not scaled. The official code takes the row at the number
of tokens that are not `!`, less one: the same row, except in a sentence with a `!`, where it is an
earlier one. Here it is always the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amrctl.encoders.base import TEXT, Card, Sentence
from amrctl.encoders.frozen import FrozenText, require
from amrctl.encoders.ms_clap import (
    LICENCE,
    SIZES,
    WEIGHTS,
    MsClapConfig,
    Sizes,
    known,
    read_official,
    text_table,
)
from amrctl.encoders.vocabulary import BYTE_LEVEL, load_tokenizer
from amrctl.encoders.weights import place, sha256_of
from amrctl.errors import FeatureError
from amrctl.registry import component

if TYPE_CHECKING:
    from torch import Tensor, nn

END, PAD = "<|endoftext|>", "!"
SUFFIX = f" {END}"


def text_network(sizes: Sizes, tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """`gpt`, a `GPT2Model`, and `head`, the projection, filled; see `ms_clap.audio_network`."""
    from torch import nn
    from transformers import GPT2Config, GPT2Model

    network = nn.Module()
    network.gpt = GPT2Model(
        GPT2Config(
            n_embd=sizes.width,
            n_layer=sizes.layers,
            n_head=sizes.text_heads,
            vocab_size=sizes.vocabulary,
            n_positions=sizes.positions,
            bos_token_id=sizes.vocabulary - 1,
            eos_token_id=sizes.vocabulary - 1,
        )
    )
    network.head = nn.ModuleDict(
        {
            "linear1": nn.Linear(sizes.width, sizes.joint, bias=False),
            "linear2": nn.Linear(sizes.joint, sizes.joint, bias=False),
            "layer_norm": nn.LayerNorm(sizes.joint),
        }
    )
    place(network, tensors, text_table(sizes), where=where, ignore=known(sizes))
    return network


def gpt2_tokenizer(beside: Path, vocabulary: int) -> Any:
    """GPT-2's tokenizer from the folder `beside` the weights, its subfolder `gpt2`, or the Hub.

    Raises `FeatureError`: there is none, or one of another network.
    """
    found = load_tokenizer(
        "GPT2Tokenizer", [beside, beside / "gpt2"], BYTE_LEVEL, hub="openai-community/gpt2"
    )
    ids = found.convert_tokens_to_ids([PAD, END])
    if ids != [0, vocabulary - 1]:
        raise FeatureError(
            f"{found.name_or_path}: not GPT-2's tokenizer ({PAD} and {END} are {ids[0]} and {ids[1]}, "
            f"not 0 and {vocabulary - 1})"
        )
    return found


@component(TEXT, "ms-clap", MsClapConfig)
class MsClapText(FrozenText):
    """The text encoder `ms-clap`; see the top of this file."""

    name = "ms-clap"
    dim = 768
    card = Card(
        768, None, WEIGHTS, LICENCE, ("transformers",), "GPT-2 tokens; tokenizer openai-community/gpt2"
    )

    def __init__(self, config: MsClapConfig) -> None:
        require("transformers", self.name)
        path, tensors = read_official(config.checkpoint)
        network = text_network(SIZES, tensors, str(path))
        self.tokenizer = gpt2_tokenizer(path.parent, SIZES.vocabulary)
        super().__init__(config, network, sha256=sha256_of(path), checkpoint=path.name)
        self.dim, self.longest = SIZES.width, SIZES.positions

    def tokens(self, sentence: str) -> list[int]:
        """Token ids of a sentence with its two added tokens, as many as there are."""
        ids: list[int] = self.tokenizer(sentence + SUFFIX)["input_ids"]
        if len(ids) > self.longest:
            raise FeatureError(
                f"{self.name} reads {self.longest} tokens, not {len(ids)}: '{sentence[:60]}...'"
            )
        return ids

    def forward(self, sentences: Sequence[str]) -> list[Sentence]:
        """Tokens `(L, 768)` and pooled `(1024,)` of each sentence."""
        import torch
        from torch.nn import functional

        ids = [self.tokens(sentence) for sentence in sentences]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=self.device)
        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=self.device)
        gpt, head = self.network.get_submodule("gpt"), self.network.get_submodule("head")
        hidden = gpt(input_ids=padded, attention_mask=real, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(ids), device=self.device), real.sum(1) - 1]
        first = head.get_submodule("linear1")(last)
        second = head.get_submodule("linear2")(functional.gelu(first))
        pooled = head.get_submodule("layer_norm")(first + second)
        return [
            Sentence(hidden[i, : len(row)].float().cpu().numpy(), pooled[i].float().cpu().numpy())
            for i, row in enumerate(ids)
        ]

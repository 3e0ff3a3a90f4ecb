"""`laion-clap` for sentences: LAION-CLAP's text side, RoBERTa-base tuned with it, one row per token.

Source and weights: see `laion_clap`. The tokens are RoBERTa's, `<s>` and `</s>` included, cut to 77 as in
training; the rows are the last hidden states, 768 numbers, neither projected nor scaled. The pooled
vector is the model's sentence embedding: pooler, projection, scaled to length 1; its 512 numbers share
a space with the rows of the audio encoder `laion-clap` of the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amrctl.encoders.base import TEXT, Card, Sentence
from amrctl.encoders.frozen import FrozenText, require
from amrctl.encoders.laion_checkpoint import read_official
from amrctl.encoders.laion_clap import LICENCE, WEIGHTS, LaionClapConfig
from amrctl.encoders.vocabulary import BYTE_LEVEL, load_tokenizer
from amrctl.errors import FeatureError
from amrctl.registry import component

LENGTH = 77  # tokens, with `<s>` and `</s>`
ENDS = ("<s>", "<pad>", "</s>")


def roberta_tokenizer(beside: Path, ids: list[int]) -> Any:
    """RoBERTa's tokenizer from `beside` the weights, its subfolder `roberta-base`, or the Hub.

    `ids`: of `ENDS` in the network. Raises `FeatureError`: there is none, or one of another network.
    """
    places = [beside, beside / "roberta-base"]
    found = load_tokenizer("RobertaTokenizer", places, BYTE_LEVEL, hub="FacebookAI/roberta-base")
    given = found.convert_tokens_to_ids(list(ENDS))
    if given != ids:
        raise FeatureError(
            f"{found.name_or_path}: not RoBERTa's tokenizer ({', '.join(ENDS)} are {given}, not {ids})"
        )
    return found


@component(TEXT, "laion-clap", LaionClapConfig)
class LaionClapText(FrozenText):
    """The text encoder `laion-clap`; see the top of this file."""

    name = "laion-clap"
    dim = 768
    normalisation = "none; pooled vectors have length 1"
    card = Card(
        768,
        None,
        WEIGHTS,
        LICENCE,
        ("transformers",),
        "tokens before the projection; pooled 512, shared space",
    )

    def __init__(self, config: LaionClapConfig) -> None:
        require("transformers", self.name)
        official = read_official(config.checkpoint, self.name)
        model = official.model
        text = model.config.text_config
        ids = [text.bos_token_id, text.pad_token_id, text.eos_token_id]
        self.tokenizer, self.pad = roberta_tokenizer(official.folder, ids), text.pad_token_id
        del model.audio_model, model.audio_projection
        self.dim, self.space = text.hidden_size, f"laion-clap:{official.sha256[:16]}"
        super().__init__(config, model, sha256=official.sha256, checkpoint=official.name)

    def forward(self, sentences: Sequence[str]) -> list[Sentence]:
        """Tokens `(L, 768)` and pooled `(512,)`, of length 1, of each sentence."""
        import torch
        from torch.nn import functional

        ids: list[list[int]] = [
            self.tokenizer(sentence, truncation=True, max_length=LENGTH)["input_ids"]
            for sentence in sentences
        ]
        longest = max(map(len, ids))
        padded = [row + [self.pad] * (longest - len(row)) for row in ids]
        real = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
        out = self.network.get_submodule("text_model")(
            input_ids=torch.tensor(padded, device=self.device),
            attention_mask=torch.tensor(real, device=self.device),
        )
        projected = self.network.get_submodule("text_projection")(out.pooler_output)
        pooled = functional.normalize(projected.float(), dim=-1)
        return [
            Sentence(out.last_hidden_state[i, : len(row)].float().cpu().numpy(), pooled[i].cpu().numpy())
            for i, row in enumerate(ids)
        ]

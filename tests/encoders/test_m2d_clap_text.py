"""`m2d-clap` for sentences: BERT inside the official file, and numbers worked out by hand from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from amrctl.encoders.base import TextEncoder, load_text_encoder
from amrctl.encoders.m2d_clap_text import ROOT, M2dClapText
from amrctl.errors import FeatureError
from tests.encoders import by_hand
from tests.encoders.by_hand import Array, Weights

OFFICIAL = """
text_encoder.text_encoder.embeddings.word_embeddings.weight 30522 768
text_encoder.text_encoder.embeddings.position_embeddings.weight 512 768
text_encoder.text_encoder.embeddings.token_type_embeddings.weight 2 768
text_encoder.text_encoder.embeddings.LayerNorm.weight 768
text_encoder.text_encoder.embeddings.LayerNorm.bias 768
text_encoder.text_encoder.encoder.layer.N.attention.self.query.weight 768 768
text_encoder.text_encoder.encoder.layer.N.attention.self.query.bias 768
text_encoder.text_encoder.encoder.layer.N.attention.self.key.weight 768 768
text_encoder.text_encoder.encoder.layer.N.attention.self.key.bias 768
text_encoder.text_encoder.encoder.layer.N.attention.self.value.weight 768 768
text_encoder.text_encoder.encoder.layer.N.attention.self.value.bias 768
text_encoder.text_encoder.encoder.layer.N.attention.output.dense.weight 768 768
text_encoder.text_encoder.encoder.layer.N.attention.output.dense.bias 768
text_encoder.text_encoder.encoder.layer.N.attention.output.LayerNorm.weight 768
text_encoder.text_encoder.encoder.layer.N.attention.output.LayerNorm.bias 768
text_encoder.text_encoder.encoder.layer.N.intermediate.dense.weight 3072 768
text_encoder.text_encoder.encoder.layer.N.intermediate.dense.bias 3072
text_encoder.text_encoder.encoder.layer.N.output.dense.weight 768 3072
text_encoder.text_encoder.encoder.layer.N.output.dense.bias 768
text_encoder.text_encoder.encoder.layer.N.output.LayerNorm.weight 768
text_encoder.text_encoder.encoder.layer.N.output.LayerNorm.bias 768
text_encoder.text_encoder.pooler.dense.weight 768 768
text_encoder.text_encoder.pooler.dense.bias 768
"""
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "dog", "bark", "##s", "##ing", "in", "the", "rain", ",", "."),
]
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}
WIDTHS = {"w768": 24, "w3072": 40, "w30522": len(WORDS)}
SENTENCES = ["A dog barks, barking.", "Rain", "the dog in the rain.", "", "a zebra"]
IDS = [
    [2, 5, 6, 7, 8, 13, 7, 9, 14, 3],
    [2, 12, 3],
    [2, 11, 6, 10, 11, 12, 14, 3],
    [2, 3],
    [2, 5, 1, 3],
]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(M2dClapText, "shape", SHAPE)


def checkpoint(folder: Path, *, rename: Mapping[str, str] | None = None) -> tuple[Path, dict[str, Tensor]]:
    """A small file in the official form; the audio side and the temperature lie beside the text encoder."""
    tensors = by_hand.random_tensors(by_hand.official(OFFICIAL, 2, **WIDTHS))
    held = {(rename or {}).get(key, key): tensor for key, tensor in tensors.items()}
    beside = {"backbone.cls_token": torch.zeros(1, 1, 24), "logit_scale": torch.tensor(2.0)}
    positions = {f"{ROOT}embeddings.position_ids": torch.arange(512)[None]}  # older versions wrote it
    torch.save({"model": held | beside | positions}, folder / "checkpoint-30.pth")
    return folder / "checkpoint-30.pth", tensors


def vocabulary(folder: Path, words: list[str] = WORDS) -> None:
    """A WordPiece vocabulary in the form of `bert-base-uncased`: a token a line."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")


def states(ids: list[int], weights: Weights) -> Array:
    """Last hidden states of BERT, `(L, width)`, from the tensors."""
    names = f"{ROOT}embeddings."
    x = weights[f"{names}word_embeddings.weight"][ids]
    x = x + weights[f"{names}position_embeddings.weight"][: len(ids)]
    x = by_hand.layer_norm(
        x + weights[f"{names}token_type_embeddings.weight"][0], weights, f"{names}LayerNorm", 1e-12
    )
    for i in range(2):
        layer = f"{ROOT}encoder.layer.{i}"
        query, key, value = (
            by_hand.linear(x, weights, f"{layer}.attention.self.{part}") for part in ("query", "key", "value")
        )
        heard = by_hand.linear(
            by_hand.attention(query, key, value, 3), weights, f"{layer}.attention.output.dense"
        )
        x = by_hand.layer_norm(x + heard, weights, f"{layer}.attention.output.LayerNorm", 1e-12)
        inner = by_hand.gelu(by_hand.linear(x, weights, f"{layer}.intermediate.dense"))
        x = x + by_hand.linear(inner, weights, f"{layer}.output.dense")
        x = by_hand.layer_norm(x, weights, f"{layer}.output.LayerNorm", 1e-12)
    return x


def loaded(name: str, path: Path, **options: Any) -> TextEncoder:
    return load_text_encoder(f"{name}:{path}", device="cpu", **options)


def test_bert_base_has_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        inside = {ROOT + key: tuple(p.shape) for key, p in BertModel(BertConfig()).state_dict().items()}
    assert inside == by_hand.official(OFFICIAL, 12)
    assert len(inside) == 199


def test_rows_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    path, tensors = checkpoint(tmp_path)
    vocabulary(tmp_path / "bert-base-uncased")
    weights = by_hand.in_float64(tensors)
    for got, ids in zip(loaded("m2d-clap", path, batch=3).encode(SENTENCES), IDS, strict=True):
        expected = states(ids, weights)
        assert got.tokens.dtype == np.float32
        np.testing.assert_allclose(got.tokens, expected, rtol=0, atol=1e-5)
        assert got.pooled is not None
        np.testing.assert_array_equal(got.pooled, got.tokens[0])


def test_the_sentence_is_the_row_at_cls(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    vocabulary(tmp_path)  # beside the weights is as good
    tokens, rows = (loaded(name, path).encode(SENTENCES) for name in ("m2d-clap", "m2d-clap-sentence"))
    for token, one in zip(tokens, rows, strict=True):
        np.testing.assert_array_equal(one.tokens, token.tokens[:1])
        assert one.pooled is not None
        np.testing.assert_array_equal(one.pooled, token.tokens[0])
    # the cosine of a mean over tokens with sound means nothing
    assert "space" in loaded("m2d-clap-sentence", path).attributes()
    assert loaded("m2d-clap", path).attributes()["space"] is None


def test_a_long_sentence_is_cut_to_32_tokens_with_its_end_kept(tmp_path: Path) -> None:
    path, tensors = checkpoint(tmp_path)
    vocabulary(tmp_path)
    (got,) = loaded("m2d-clap", path).encode(["dog " * 50])
    expected = states([2, *[6] * 30, 3], by_hand.in_float64(tensors))
    np.testing.assert_allclose(got.tokens, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", ["embeddings.LayerNorm.bias", "encoder.layer.1.attention.self.key.weight"])
def test_a_renamed_key_is_named(tmp_path: Path, key: str) -> None:
    path, _ = checkpoint(tmp_path, rename={ROOT + key: f"{ROOT}{key}_x"})
    with pytest.raises(FeatureError) as caught:
        loaded("m2d-clap", path)
    assert f"missing: '{ROOT}{key}'" in str(caught.value)
    assert f"unknown: '{ROOT}{key}_x'" in str(caught.value)


def test_a_file_without_text_encoder_says_so(tmp_path: Path) -> None:
    torch.save({"model": {"cls_token": torch.zeros(1, 1, 24)}}, tmp_path / "checkpoint-300.pth")
    with pytest.raises(FeatureError, match="holds no text encoder"):
        loaded("m2d-clap", tmp_path / "checkpoint-300.pth")


def test_without_a_tokenizer_the_files_and_their_place_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = checkpoint(tmp_path)

    def absent(name: str, file: str, **_: object) -> None:
        assert (name, file) == ("google-bert/bert-base-uncased", "tokenizer.json")

    monkeypatch.setattr("transformers.utils.hub.cached_file", absent)
    monkeypatch.setattr("amrctl.encoders.hub._answers", lambda: True)
    with pytest.raises(FeatureError) as caught:
        loaded("m2d-clap", path)
    for said in ("tokenizer.json", "vocab.txt", str(tmp_path / "bert-base-uncased"), "google-bert"):
        assert said in str(caught.value)


def test_the_tokenizer_of_another_network_is_refused(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    vocabulary(tmp_path, [*WORDS, "cat"])
    with pytest.raises(FeatureError, match=r"not the tokenizer of google-bert.*16 tokens.*15"):
        loaded("m2d-clap", path)

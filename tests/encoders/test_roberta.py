"""RoBERTa against its network run sentence by sentence, with a tokenizer written by the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import RobertaConfig, RobertaModel

from amrctl.encoders.base import TextEncoder, load_text_encoder
from amrctl.errors import FeatureError

SENTENCES = [
    "a dog barks",
    "Rain",
    "",
    "rain falls on a tin roof while a car passes",
    "café ☂",
    "a dog barks",
]
DIMS = {"roberta-base": 768, "roberta-large": 1024}


def vocabulary() -> dict[str, int]:
    """Special tokens as the official files number them, single bytes, and one pair."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "ai", "<mask>"]
    return {word: i for i, word in enumerate(words)}


@pytest.fixture(scope="module", params=sorted(DIMS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An encoder's name and a folder with a small random network of its width and the tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    words = vocabulary()
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(words),
        hidden_size=DIMS[request.param],
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=42,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    RobertaModel(config, add_pooling_layer=True).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\na i\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    return request.param, folder


def ids(sentence: str) -> list[int]:
    """`<s>`, the bytes of the sentence with `ai` as one, `</s>`: what the vocabulary above says."""
    words = vocabulary()
    byte = bytes_to_letters()
    letters = "".join(byte[b] for b in sentence.encode())
    found = [words["<s>"]]
    while letters:
        step = 2 if letters.startswith("ai") else 1
        found.append(words[letters[:step]])
        letters = letters[step:]
    return [*found, words["</s>"]]


def bytes_to_letters() -> list[str]:
    """The letter for each byte: itself where it can be printed, else one from 256 on, in order."""
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(moved)) for b in range(256)]


def test_rows_are_those_of_the_sentence_alone(made: tuple[str, Path]) -> None:
    name, folder = made
    encoder = load_text_encoder(f"{name}:{folder}", batch=4)
    assert isinstance(encoder, TextEncoder)
    answers = encoder.encode(SENTENCES)
    network: Any = RobertaModel.from_pretrained(folder, add_pooling_layer=False)
    network.eval()
    for sentence, answer in zip(SENTENCES, answers, strict=True):
        given = ids(sentence)[:40]
        given[-1] = vocabulary()["</s>"]  # a sentence that is cut keeps its end
        with torch.no_grad():
            hidden = network(input_ids=torch.tensor([given])).last_hidden_state[0].double().numpy()
        assert answer.tokens.shape == (len(given), DIMS[name])
        assert answer.tokens.dtype == np.float32
        np.testing.assert_allclose(answer.tokens, hidden, atol=2e-5)
        assert answer.pooled is not None
        np.testing.assert_allclose(answer.pooled, hidden.mean(axis=0), atol=2e-5)
    assert len(ids(SENTENCES[3])) > 40
    assert encoder.encode([]) == []
    assert encoder.attributes()["parameters"] == sum(p.numel() for p in network.parameters())


def test_what_is_missing_is_told(made: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = made
    tensors = load_file(folder / "model.safetensors")
    key = "encoder.layer.1.output.dense.weight"
    del tensors[key]
    tensors["embeddings.position_ids"] = torch.arange(42)[None]  # in old files, of no use
    tensors["lm_head.bias"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(
        FeatureError, match=r"lacks the tokenizer's files; put tokenizer\.json, or vocab\.json"
    ):
        load_text_encoder(f"{name}:{tmp_path}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FeatureError, match=r"the tokenizer in .* cannot be read"):
        load_text_encoder(f"{name}:{tmp_path}")
    (tmp_path / "tokenizer.json").unlink()
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "vocab.json").write_text(json.dumps({**vocabulary(), "zz": len(vocabulary())}))
    with pytest.raises(FeatureError, match=r"knows 263 tokens, the network 262; put the tokenizer\.json"):
        load_text_encoder(f"{name}:{tmp_path}")
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(FeatureError, match=rf"does not hold its weights; missing: '{key}'$"):
        load_text_encoder(f"{name}:{tmp_path}")
    tensors[key] = load_file(folder / "model.safetensors")[key]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    load_text_encoder(f"{name}:{tmp_path}")
    other = next(other for other in DIMS if other != name)
    with pytest.raises(FeatureError, match="hidden_size is"):
        load_text_encoder(f"{other}:{folder}")

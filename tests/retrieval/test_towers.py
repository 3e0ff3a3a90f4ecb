"""The published architectures, small and with random weights: what trains, what is stored, what is heard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import RobertaConfig, RobertaModel

from amrctl import registry
from amrctl.encoders.dual.audio.passt import Config as PasstConfig
from amrctl.encoders.dual.audio.passt import Passt
from amrctl.encoders.dual.audio.transformers import Config as AudioConfig
from amrctl.encoders.dual.audio.transformers import TransformersAudio
from amrctl.encoders.dual.load import Dual, DualCheckpoint, load_dual, read_dual
from amrctl.encoders.dual.model import DualEncoder, Pairs
from amrctl.encoders.dual.text.transformers import Config as TextConfig
from amrctl.encoders.dual.text.transformers import Transformers
from amrctl.encoders.networks.vit import VitSize
from amrctl.errors import CheckpointError, FeatureError
from amrctl.losses.retrieval_total import RetrievalCriterion
from amrctl.model.checkpoint import read as read_detector
from amrctl.recipe import RetrievalRecipe, load_any
from tests.encoders.test_passt import checkpoint as official_passt
from tests.encoders.test_roberta import ids, vocabulary

SIZE = {"depth": 12, "width": 24, "heads": 3, "hidden": 32}
SHORT = ("model.audio.segment=1", "model.audio.hop=0.5")
SPOKEN = ["a dog barks", "rain falls on a roof", "rain"]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roberta")
    words = vocabulary()
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5,
    )  # fmt: skip
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\na i\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    return folder


def recipe(roberta: Path, *sets: str) -> RetrievalRecipe:
    made = load_any(
        "jku-passt-roberta",
        "finetune",
        [
            f"model.text.checkpoint={roberta}",
            "model.dim=20",
            "model.audio.segment=1",
            "model.audio.hop=0.5",
            *sets,
        ],
    )
    assert isinstance(made, RetrievalRecipe)
    return made


def network(made: RetrievalRecipe) -> DualEncoder:
    """The recipe's dual encoder with a narrow PaSST of all 12 blocks."""
    torch.manual_seed(0)
    text = Transformers(made.model.text)  # type: ignore[arg-type]
    memory = {"audio": {"stride": 16, "columns": 62, "size": SIZE}, "text": text.memory()}
    dual = DualEncoder(made.model, memory)
    dual.text.load_state_dict(text.state_dict())
    return dual


def pairs(dual: DualEncoder, counts: tuple[int, ...] = (2, 1, 3)) -> Pairs:
    sound = np.random.default_rng(0).normal(size=(sum(counts), dual.audio.sample_rate)).astype(np.float32)
    return Pairs(dual.audio.front(torch.from_numpy(sound)), counts, tuple(SPOKEN))


def test_of_passt_only_blocks_8_to_11_and_the_last_norm_move(roberta: Path) -> None:
    made = recipe(roberta, "train.optimizer.lr=0.01")
    dual = network(made)
    before = {name: value.detach().clone() for name, value in dual.named_parameters()}
    config = made.train.optimizer
    trained = [p for p in dual.parameters() if p.requires_grad]
    optimizer = registry.find("optimizer", config.kind).build(config, trained)
    criterion = RetrievalCriterion(made)
    dual.train()
    losses = []
    for _ in range(2):
        loss = criterion(dual(pairs(dual)), None)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
    assert np.isfinite(losses).all()
    moved = {name for name, value in dual.named_parameters() if not torch.equal(value, before[name])}
    audio = {name for name in moved if name.startswith("audio.")}
    assert {".".join(name.split(".")[:4]) for name in audio} == {
        *(f"audio.network.blocks.{i}" for i in range(8, 12)), "audio.network.norm.weight",
        "audio.network.norm.bias",
    }  # fmt: skip
    key_bias = {name for name in before if name.endswith(("k_proj.bias", "key.bias"))}  # softmax takes it out
    still = {
        name for name in before
        if name not in moved and not name.startswith("audio.network.") and name not in key_bias
    }  # fmt: skip
    positions = {name for name in still if "embeddings" in name}  # rows of tokens that did not occur
    assert still <= positions
    assert "log_temperature" in moved
    fixed = network(recipe(roberta, "model.temperature.learned=false"))
    assert not fixed.log_temperature.requires_grad


def test_patch_out_and_masks_are_for_training_only(roberta: Path) -> None:
    dual = network(recipe(roberta, "model.audio.drop_columns=2", "model.audio.drop_rows=2"))
    batch = pairs(dual)
    dual.audio.train()
    a, b = dual.audio(batch.spectra), dual.audio(batch.spectra)
    assert not torch.equal(a, b)
    dual.eval()
    assert torch.equal(dual.audio(batch.spectra), dual.audio(batch.spectra))


def test_official_weights_are_placed_by_name(tmp_path: Path) -> None:
    path, tensors = official_passt(tmp_path)
    small = VitSize(depth=2, width=24, heads=3, hidden=40)
    tower = Passt(PasstConfig.model_validate({"checkpoint": str(path)}), size=small)
    weight = tensors["blocks.1.attn.qkv.weight"]
    found = tower.network.state_dict()
    torch.testing.assert_close(found["blocks.1.attention.k_proj.weight"], weight.chunk(3)[1])
    torch.testing.assert_close(found["projection.weight"], tensors["patch_embed.proj.weight"])
    again = Passt(
        PasstConfig.model_validate({"checkpoint": "gone.pt"}), tower.memory()
    )  # the file is not needed any more
    again.load_state_dict(tower.state_dict())
    assert (again.network.stride, again.network.columns) == (10, 99)
    with pytest.raises(FeatureError, match=r"gone\.pt"):
        Passt(PasstConfig.model_validate({"checkpoint": "gone.pt"}))


def test_text_is_the_masked_mean_over_real_tokens(roberta: Path) -> None:
    tower = Transformers(TextConfig.model_validate({"checkpoint": str(roberta), "dropout": None})).eval()
    tokens = tower.tokenize(["A dog, barks!", "Rain"])
    assert tokens.ids[0, : int(tokens.mask[0].sum())].tolist() == ids("a dog barks")
    reference: Any = RobertaModel.from_pretrained(roberta, add_pooling_layer=False)
    reference.eval()
    with torch.inference_mode():
        found = tower.pool(tower(tokens), tokens.mask)
        for row, spoken in zip(found, ("a dog barks", "rain"), strict=True):
            alone = reference(input_ids=torch.tensor([ids(spoken)])).last_hidden_state[0]
            torch.testing.assert_close(row, alone.mean(0), rtol=1e-4, atol=1e-5)
        first = Transformers(
            TextConfig.model_validate({"checkpoint": str(roberta), "pool": "first"}), tower.memory()
        )
        first.load_state_dict(tower.state_dict())
        rows = first.eval()(tokens)
        assert torch.equal(first.pool(rows, tokens.mask), rows[:, 0])
    long = tower.tokenize(["dog " * 60])
    assert long.ids.shape[1] == 32


def test_a_checkpoint_needs_nothing_else(roberta: Path, tmp_path: Path) -> None:
    made = recipe(roberta)
    dual = network(made)
    path = tmp_path / "c.safetensors"
    DualCheckpoint(dual.state_dict(), made, dual.memory(), 3, {"R@1": 4.0}).write(path)
    (roberta / "config.json").rename(roberta / "away")
    try:
        found = load_dual(path)
    finally:
        (roberta / "away").rename(roberta / "config.json")
    rate = found.sample_rate
    sound = np.random.default_rng(1).normal(size=int(2.3 * rate)).astype(np.float32)
    whole = found.embed_audio(sound)
    np.testing.assert_allclose(np.linalg.norm(whole), 1, rtol=1e-5)
    np.testing.assert_array_equal(whole, found.embed_audio(np.array_split(sound, 7)))
    starts = [round(s.start, 3) for s in found.embed_segments(sound)]
    assert starts == [0, 0.5, 1.0, 1.3]
    np.testing.assert_allclose(  # one segment's vector is that of the stretch alone
        found.embed_segments(sound)[1].vector,
        found.embed_audio(sound[rate // 2 : rate // 2 + rate]),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        found.embed_windows(sound[None, :rate])[0], found.embed_audio(sound[:rate]), atol=1e-5
    )
    text = found.embed_text(SPOKEN)
    np.testing.assert_allclose(text[1], found.embed_text([SPOKEN[1]])[0], atol=1e-5)
    for sentence, spoken in zip(found.embed_tokens(SPOKEN), SPOKEN, strict=True):
        assert sentence.tokens.shape == (len(ids(spoken)), 20)
        np.testing.assert_allclose(np.linalg.norm(sentence.tokens, axis=1), 1, rtol=1e-5)
    assert found.space == f"amrctl:{found.sha256[:16]}"
    assert isinstance(found, Dual)


def test_foreign_and_damaged_checkpoints_are_told(roberta: Path, tmp_path: Path) -> None:
    made = recipe(roberta)
    dual = network(made)
    path = tmp_path / "c.safetensors"
    tensors: dict[str, Any] = dict(dual.state_dict())
    gone = tensors.pop("audio_projection.bias")
    DualCheckpoint(tensors, made, dual.memory()).write(path)
    with pytest.raises(CheckpointError, match=r"lacks 1 weights; the first is 'audio_projection.bias'"):
        load_dual(path)
    DualCheckpoint({**tensors, "audio_projection.bias": gone[:3]}, made, dual.memory()).write(path)
    with pytest.raises(CheckpointError, match=r"'audio_projection.bias' is \(3,\), not \(20,\)"):
        load_dual(path)
    with pytest.raises(CheckpointError, match="a detector is needed"):
        read_detector(path)
    with pytest.raises(CheckpointError, match="no amrctl metadata"):
        read_dual(roberta / "model.safetensors")


def whisper(folder: Path) -> int:
    settings = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=80, vocab_size=20, max_source_positions=1500,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperModel(settings).save_pretrained(folder)
    extractor: Any = transformers.WhisperFeatureExtractor
    extractor(feature_size=80).save_pretrained(folder)
    return 16


def data2vec(folder: Path) -> int:
    settings = transformers.Data2VecAudioConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=1,
        conv_pos_kernel_size=3, num_conv_pos_embedding_groups=2, vocab_size=8,
    )  # fmt: skip
    transformers.Data2VecAudioModel(settings).save_pretrained(folder)
    extractor: Any = transformers.Wav2Vec2FeatureExtractor
    extractor().save_pretrained(folder)
    return 16


@pytest.mark.parametrize("write", [whisper, data2vec])
def test_other_audio_networks_are_wrapped(write: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    width = write(tmp_path)
    tower = TransformersAudio(
        AudioConfig.model_validate({"checkpoint": str(tmp_path), "segment": 1, "hop": 1})
    ).eval()
    assert (tower.sample_rate, tower.width) == (16_000, width)
    sound = torch.randn(2, 16_000)
    spectra = tower.front(sound)
    with torch.inference_mode():
        rows = tower(spectra)
        assert rows.shape == (2, width)
        torch.testing.assert_close(tower(tower.front(sound[1:])), rows[1:], rtol=1e-4, atol=1e-5)
        again = TransformersAudio(
            AudioConfig.model_validate({"checkpoint": "gone", "segment": 1}),
            json.loads(json.dumps(tower.memory())),
        )
        again.load_state_dict(tower.state_dict())
        torch.testing.assert_close(again.eval()(again.front(sound)), rows)
    tower.train()
    tower(spectra).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())

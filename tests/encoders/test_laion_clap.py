"""LAION-CLAP: the front end and rows of transformers' own classes, and the original files' names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from amrctl.data.features import FeatureFile
from amrctl.encoders.base import load_audio_encoder, load_text_encoder
from amrctl.errors import FeatureError
from tests.conftest import Cli
from tests.encoders import clap_official as direct
from tests.encoders.clap_official import part, waves

EMBED, WIDTH, JOINT = 16, 24, 12
MERGES = ("Ġ d", "Ġd o", "Ġdo g")
VOCABULARY = direct.byte_level(("<mask>",), MERGES, ("<s>", "<pad>", "</s>", "<unk>"))
RATE = 48_000


def model(fused: bool = False) -> Any:
    """A narrow `ClapModel` with random weights, none of which is idle."""
    from transformers import ClapConfig, ClapModel

    made: Any = ClapModel(
        ClapConfig(
            projection_dim=JOINT,
            audio_config={
                "patch_embeds_hidden_size": EMBED,
                "hidden_size": 8 * EMBED,
                "enable_fusion": fused,
                "fusion_type": "aff_2d" if fused else None,
            },
            text_config={
                "vocab_size": len(VOCABULARY),
                "hidden_size": WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 1,
                "intermediate_size": 2 * WIDTH,
                "max_position_embeddings": 90,
                "layer_norm_eps": 1e-5,
            },
        )
    )
    made.eval()
    shapes = {key: tuple(value.shape) for key, value in made.named_parameters()}
    for key, value in direct.filled(shapes, 4).items():
        made.get_parameter(key).data.copy_(torch.from_numpy(value))
    norm = made.audio_model.audio_encoder.batch_norm
    norm.running_mean.fill_(-30)
    norm.running_var.fill_(200)
    return made


def write(folder: Path, made: Any, **front: Any) -> Path:
    """A folder as the Hub has it."""
    from transformers import ClapFeatureExtractor

    made.save_pretrained(folder)
    front = {"frequency_min": 50, "truncation": "rand_trunc", **front}
    ClapFeatureExtractor(**front).save_pretrained(folder)
    direct.write_vocabulary(folder, VOCABULARY, MERGES)
    return folder


@pytest.fixture(scope="module")
def unfused() -> Any:
    return model()


@pytest.fixture(scope="module")
def fused() -> Any:
    return model(fused=True)


@pytest.fixture(scope="module")
def hub(unfused: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("unfused"), unfused)


@pytest.fixture(scope="module")
def fused_hub(fused: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("fused"), fused, truncation="fusion")


def processed(folder: Path, heard: np.ndarray) -> Any:
    from transformers import ClapFeatureExtractor

    extractor: Any = ClapFeatureExtractor.from_pretrained(folder)
    return extractor(list(heard), sampling_rate=RATE, return_tensors="pt")


def load(folder: Path, name: str = "laion-clap", seconds: float = 1.0) -> Any:
    return load_audio_encoder(f"{name}:{folder}", window=seconds, device="cpu")


@pytest.mark.parametrize(
    ("padding", "samples"),
    [*(("repeatpad", n) for n in (48_000, 48_001, 12_345, 480_000)), ("repeat", 12_345), ("pad", 12_345)],
)
def test_front_end_equals_transformers(unfused: Any, tmp_path: Path, samples: int, padding: str) -> None:
    folder = write(tmp_path, unfused, padding=padding)
    heard = waves(samples, 1)
    found = load(folder, seconds=samples / RATE).front_end(torch.from_numpy(heard))
    wanted = processed(folder, heard)["input_features"]
    assert found.shape == wanted.shape == (1, 1, 1001, 64)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_a_second_is_heard_ten_times(hub: Path) -> None:
    heard = waves(48_000, 1)
    found = load(hub).front_end(torch.from_numpy(heard))[0, 0]
    bank = direct.slaney(RATE, 1024, 64, 50, 14_000)
    wanted = direct.decibels(direct.power(np.tile(heard[0], 10), 1024, 480) @ bank)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    np.testing.assert_allclose(found[100:200], found[800:900], atol=2e-3)


def test_rows_equal_transformers(unfused: Any, hub: Path) -> None:
    heard = waves(48_000)
    with torch.inference_mode():
        given = processed(hub, heard)
        shared = unfused.get_audio_features(**given).pooler_output
        hidden = unfused.audio_model(given["input_features"]).pooler_output
    projected, before = load(hub), load(hub, "laion-clap-hidden")
    assert (hidden[0] - hidden[1]).abs().mean() > 0.05  # the two windows are told apart
    np.testing.assert_allclose(before.encode(heard), hidden, atol=1e-4)
    rows = projected.encode(heard)
    np.testing.assert_allclose(rows, shared, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(projected.encode(heard[1:])[0], rows[1], atol=1e-5)
    assert (projected.dim, before.dim, projected.sample_rate) == (JOINT, 8 * EMBED, RATE)
    text = load_text_encoder(f"laion-clap:{hub}").attributes()
    assert projected.attributes()["space"] == text["space"] is not None
    assert before.attributes()["space"] is None
    assert projected.attributes()["normalisation"] == "length 1"


def test_of_a_long_window_the_middle_is_heard(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = waves(12 * RATE, 1)
    monkeypatch.setattr(np.random, "randint", lambda low, high: (high - 1) // 2)
    found = load(hub, seconds=12.0).front_end(torch.from_numpy(heard))
    np.testing.assert_allclose(found, processed(hub, heard)["input_features"], atol=2e-3)


@pytest.mark.parametrize("seconds", [1.0, 10.005, 12.0])
def test_a_fused_model_hears_the_same_every_time(
    fused: Any, fused_hub: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = waves(round(seconds * RATE))
    monkeypatch.setattr(np.random, "choice", lambda places: places[len(places) // 2])
    given = processed(fused_hub, heard)
    longer = torch.full((2, 1), seconds == 12)  # not the random one of transformers
    with torch.inference_mode():
        wanted = fused.get_audio_features(given["input_features"], is_longer=longer).pooler_output
    encoder = load(fused_hub, seconds=seconds)
    front = encoder.front_end(torch.from_numpy(heard))
    assert front.shape == (2, 4 if seconds == 12 else 1, 1001, 64)
    np.testing.assert_allclose(front, given["input_features"][:, : front.shape[1]], atol=2e-3)
    np.testing.assert_allclose(encoder.encode(heard), wanted, atol=1e-5)


def test_sentences_equal_transformers(unfused: Any, hub: Path) -> None:
    encoder = load_text_encoder(f"laion-clap:{hub}", device="cpu")
    sentences = ["A dog barks", "", "rain " * 40]
    word = VOCABULARY
    spelled = [["<s>", *"A", "Ġdog", "Ġ", *"barks", "</s>"], ["<s>", "</s>"]]
    found = encoder.encode(sentences)
    for sentence, letters, row in zip(sentences, spelled, found, strict=False):
        with torch.inference_mode():
            out = unfused.get_text_features(input_ids=torch.tensor([[word[c] for c in letters]]))
        np.testing.assert_allclose(row.tokens, out.last_hidden_state[0], atol=1e-5)
        assert row.pooled is not None
        np.testing.assert_allclose(row.pooled, out.pooler_output[0], atol=1e-5)
        np.testing.assert_allclose(encoder.encode([sentence])[0].tokens, row.tokens, atol=1e-5)
    assert found[2].tokens.shape == (77, WIDTH)


def original_shapes(embed: int, width: int, words: int, joint: int) -> direct.Shapes:
    """The trained tensors of an original file (96, 768, 50265, 512), but with two layers of text."""
    shapes = {f"audio_branch.{key}": shape for key, shape in direct.htsat_shapes(embed).items()}
    text: direct.Shapes = {
        "embeddings.word_embeddings.weight": (words, width),
        "embeddings.position_embeddings.weight": (514, width),
        "embeddings.token_type_embeddings.weight": (1, width),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for layer in range(2):
        for stem, out, into in (
            ("attention.self.query", 1, 1),
            ("attention.self.key", 1, 1),
            ("attention.self.value", 1, 1),
            ("attention.output.dense", 1, 1),
            ("attention.output.LayerNorm", 1, 0),
            ("intermediate.dense", 4, 1),
            ("output.dense", 1, 4),
            ("output.LayerNorm", 1, 0),
        ):
            name = f"encoder.layer.{layer}.{stem}"
            text[f"{name}.weight"] = (out * width, into * width) if into else (width,)
            text[f"{name}.bias"] = (out * width,)
    shapes |= {f"text_branch.{key}": shape for key, shape in text.items()}
    for side, size in (("audio", 8 * embed), ("text", width)):
        shapes |= {f"{side}_projection.0.weight": (joint, size), f"{side}_projection.0.bias": (joint,)}
        shapes |= {f"{side}_projection.2.weight": (joint, joint), f"{side}_projection.2.bias": (joint,)}
    return shapes | {"logit_scale_a": (), "logit_scale_t": ()}


def write_original(path: Path, arrays: direct.Arrays) -> Path:
    tensors = {f"module.{key}": torch.from_numpy(np.array(value)) for key, value in arrays.items()}
    # Published files hold scores of their training beside the weights.
    torch.save({"epoch": np.int64(3), "score": np.float64(0.5), "name": "x", "state_dict": tensors}, path)
    direct.write_vocabulary(path.parent / "roberta-base", VOCABULARY, MERGES)
    return path


@pytest.fixture(scope="module")
def original() -> direct.Arrays:
    return direct.filled(original_shapes(EMBED, WIDTH, len(VOCABULARY), JOINT), 5)


def test_original_files_are_the_sums_of_their_tensors(original: direct.Arrays, tmp_path: Path) -> None:
    unread: dict[str, Any] = {
        "audio_branch.spectrogram_extractor.stft.conv_real.weight": np.zeros((2, 1, 2)),
        "audio_branch.logmel_extractor.melW": np.zeros((2, 2)),
        "audio_branch.tscam_conv.weight": np.zeros(2),
        "audio_branch.layers.0.blocks.1.attn_mask": np.zeros(2),
        "audio_transform.sequential.0.weight": np.zeros(2),
        "text_transform.sequential.3.bias": np.zeros(2),
        "text_branch.embeddings.position_ids": np.arange(514)[None],
    }
    path = write_original(tmp_path / "630k.pt", original | unread)
    heard = waves(48_000, 1)
    bank = direct.slaney(RATE, 1024, 64, 50, 14_000)
    mel = direct.decibels(direct.power(np.tile(heard[0], 10), 1024, 480) @ bank)
    hidden = direct.htsat(part(original, "audio_branch."), mel)
    np.testing.assert_allclose(load(path, "laion-clap-hidden").encode(heard)[0], hidden, atol=3e-4)
    head = part(original, "audio_projection.")
    row = direct.linear(np.maximum(0, direct.linear(hidden, head, "0")), head, "2")
    np.testing.assert_allclose(load(path).encode(heard)[0], row / np.linalg.norm(row), atol=1e-4)
    sentence = load_text_encoder(f"laion-clap:{path}").encode(["rain"])[0]
    assert sentence.tokens.shape == (6, WIDTH)


@pytest.mark.parametrize("which", ["unfused", "fused"])
def test_original_names_mean_what_the_hub_means(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made = request.getfixturevalue(which)
    folder = request.getfixturevalue("hub" if which == "unfused" else "fused_hub")
    arrays: direct.Arrays = {key: value.numpy() for key, value in made.state_dict().items()}
    swaps = {
        "audio_model.audio_encoder.": "audio_branch.",
        "text_model.": "text_branch.",
        "projection.linear1": "projection.0",
        "projection.linear2": "projection.2",
        "batch_norm.": "bn0.",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
    }
    blocks = {
        "attention.self.": "attn.",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    theirs: direct.Arrays = {}
    for key, value in arrays.items():
        inside = "blocks." in key
        for ours, name in (swaps | blocks if inside else swaps).items():
            key = key.replace(ours, name)
        theirs[key] = value
    for key in [key for key in theirs if ".attn.query." in key]:
        names = [key.replace("query", name) for name in ("query", "key", "value")]
        theirs[key.replace("query", "qkv")] = np.concatenate([theirs.pop(name) for name in names])
    path = write_original(tmp_path / "original.pt", theirs)
    for seconds in (1.0, 12.0) if which == "fused" else (1.0,):
        heard = waves(round(seconds * RATE), 1)
        np.testing.assert_array_equal(
            load(path, seconds=seconds).encode(heard), load(folder, seconds=seconds).encode(heard)
        )


@pytest.mark.parametrize(
    "key",
    [
        "audio_branch.layers.2.blocks.5.mlp.fc2.bias",
        "audio_branch.patch_embed.proj.weight",
        "text_branch.encoder.layer.1.output.dense.weight",
        "audio_projection.0.bias",
        "logit_scale_t",
    ],
)
def test_a_renamed_key_of_an_original_file_is_named(
    original: direct.Arrays, tmp_path: Path, key: str
) -> None:
    path = write_original(tmp_path / "x.pt", {k + "_" * (k == key): v for k, v in original.items()})
    for loads in (load_audio_encoder, load_text_encoder):
        with pytest.raises(FeatureError, match=f"x.pt: .*missing: 'module.{key}'"):
            loads(f"laion-clap:{path}")


@pytest.mark.parametrize(
    "key", ["audio_model.audio_encoder.norm.bias", "text_model.pooler.dense.weight", "logit_scale_a"]
)
def test_a_renamed_or_misshapen_key_of_a_folder_is_named(unfused: Any, tmp_path: Path, key: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = write(tmp_path, unfused)
    tensors = load_file(folder / "model.safetensors")
    first = tensors.pop(key)
    for loads in (load_audio_encoder, load_text_encoder):
        save_file(tensors | {key + "x": first}, folder / "model.safetensors")
        with pytest.raises(FeatureError, match=f"missing: '{key}'; unknown: '{key}x'"):
            loads(f"laion-clap:{folder}")
        save_file(tensors | {key: first.reshape(1, *first.shape)}, folder / "model.safetensors")
        with pytest.raises(FeatureError, match=f"of another shape: '{key}' is"):
            loads(f"laion-clap:{folder}")


def test_buffers_may_be_missing_or_floats(hub: Path, unfused: Any, tmp_path: Path) -> None:
    heard = waves(48_000, 1)
    wanted = load(hub).encode(heard)
    state = unfused.state_dict()
    counts = [key for key, value in state.items() if not value.is_floating_point()]
    assert {key.rpartition(".")[2] for key in counts} == {
        "relative_position_index",
        "num_batches_tracked",
        "position_ids",
        "token_type_ids",
    }
    folder = write(tmp_path, unfused)
    (folder / "model.safetensors").unlink()
    for kept in ({}, {key: state[key].float() for key in counts}):
        trained = {key: value for key, value in state.items() if key not in counts}
        torch.save(trained | kept, folder / "pytorch_model.bin")
        np.testing.assert_array_equal(load(folder).encode(heard), wanted)


def test_wrong_folders_are_told(unfused: Any, tmp_path: Path) -> None:
    def said(message: str, spec: str | Path = tmp_path) -> None:
        with pytest.raises(FeatureError, match=message):
            load_audio_encoder(f"laion-clap:{spec}")

    said("no such file with weights", "nowhere/630k.pt")
    torch.save({"model": {"caption_encoder.x": torch.zeros(1)}}, tmp_path / "ms.pth")
    said("ms.pth: .*missing: 'audio_branch.patch_embed.proj.weight'", tmp_path / "ms.pth")
    write(tmp_path, unfused)
    path = tmp_path / "preprocessor_config.json"
    given = json.loads(path.read_text())
    path.write_text(json.dumps(given | {"truncation": "fusion"}))
    said("front end is that of a fused model, the network is not one")
    path.write_text(json.dumps({key: value for key, value in given.items() if key != "frequency_min"}))
    said(r"preprocessor_config.json: frequency_min: Field required")
    path.write_text("{")
    said(r"preprocessor_config.json: Invalid JSON")
    path.unlink()
    said(r"preprocessor_config.json: missing; the folder must be as the Hub offers it")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "wavlm"}))
    said(r'model_type is "wavlm", not "clap"')


def test_an_unsafe_original_file_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": re.compile("x")}, path)
    with pytest.raises(FeatureError, match=r"x.pt: .*take the same weights from the Hub"):
        load_audio_encoder(f"laion-clap:{path}")


def test_a_foreign_tokenizer_is_told(unfused: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, unfused)
    direct.write_vocabulary(folder, direct.byte_level(("<s>", "<pad>", "</s>", "<unk>"), MERGES), MERGES)
    with pytest.raises(
        FeatureError, match=r"not RoBERTa's tokenizer \(<s>, <pad>, </s> are \[259, 260, 261\]"
    ):
        load_text_encoder(f"laion-clap:{folder}")


def test_larger_models_are_read_from_their_shapes(tmp_path: Path) -> None:
    """Sizes of the true unfused file, by a list that takes no memory."""
    shapes = original_shapes(96, 768, 50_265, 512)
    count = sum(int(np.prod(shape)) for key, shape in shapes.items() if key.startswith("audio_branch"))
    assert round(count / 1e6, 1) == 27.5
    tensors = {f"module.{key}": torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    from amrctl.encoders.laion_checkpoint import _config_of

    config = _config_of(tensors, tmp_path)
    from transformers import ClapConfig

    wanted: Any = ClapConfig()
    for name in ("depths", "num_attention_heads", "patch_embeds_hidden_size", "hidden_size"):
        assert list(np.ravel(getattr(config.audio_config, name))) == list(
            np.ravel(getattr(wanted.audio_config, name))
        )
    for name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size"):
        assert getattr(config.text_config, name) == getattr(wanted.text_config, name)
    assert (config.projection_dim, config.text_config.layer_norm_eps) == (512, 1e-5)


def test_the_command_makes_features_that_share_a_space(hub: Path, tmp_path: Path, cli: Cli) -> None:
    """Sound files in, feature file out: the rows of `encode`, and spaces that a cosine may join."""
    heard = waves(3 * RATE, 1)[0] / 4
    soundfile.write(tmp_path / "a.wav", heard, RATE, subtype="FLOAT")
    query = {"qid": "q", "query": "a dog", "vid": "a", "duration": 3.0, "relevant_windows": [[0, 1]]}
    (tmp_path / "m.jsonl").write_text(json.dumps(query) + "\n")
    out = tmp_path / "f.h5"
    names = ("laion-clap", "laion-clap-hidden")
    done = cli(
        *("extract-tef", "--manifest", tmp_path / "m.jsonl", "--audio", tmp_path, "--dtype", "float32"),
        *(word for name in names for word in ("--audio-encoder", f"{name}:{hub}")),
        *("--text-encoder", f"laion-clap:{hub}", "--out", out),
    )
    assert done.code == 0, done.err
    with FeatureFile(out) as file:
        for name in names:
            rows = load(hub, name).encode(heard.reshape(3, RATE))
            np.testing.assert_allclose(file.load("audio", name).get("a"), rows, atol=1e-5)
        audio, text = file.streams("audio"), file.streams("text")["laion-clap"]
        assert audio["laion-clap"].space == text.space is not None
        assert audio["laion-clap-hidden"].space is None
        assert text.pooled == JOINT

"""MS-CLAP: the official file's keys, and rows that are the sums of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amrctl.encoders import ms_clap, ms_clap_text
from amrctl.encoders.base import load_audio_encoder, load_text_encoder
from amrctl.errors import FeatureError
from tests.encoders import clap_official as direct
from tests.encoders.clap_official import part, waves

EMBED, WIDTH, JOINT, POSITIONS = 16, 24, 20, 40
MERGES = ("Ġ d", "Ġd o", "Ġdo g", "a r")
VOCABULARY = direct.byte_level(("<|endoftext|>",), MERGES)
HTSAT = "audio_encoder.base.htsat."


def official_shapes(embed: int, width: int, vocabulary: int, positions: int, joint: int) -> direct.Shapes:
    """Every tensor of `CLAP_weights_2023.pth` that a network reads, in its official name."""
    shapes = {HTSAT + key: shape for key, shape in direct.htsat_shapes(embed).items()}
    shapes |= {
        f"{HTSAT}spectrogram_extractor.stft.conv_real.weight": (513, 1, 1024),
        f"{HTSAT}spectrogram_extractor.stft.conv_imag.weight": (513, 1, 1024),
        f"{HTSAT}logmel_extractor.melW": (513, 64),
    }
    text = direct.gpt2_shapes(width, vocabulary, positions)
    shapes |= {f"caption_encoder.base.{key}": shape for key, shape in text.items()}
    for side, size in (("audio_encoder", 8 * embed), ("caption_encoder", width)):
        stem = f"{side}.projection"
        shapes |= {f"{stem}.linear1.weight": (joint, size), f"{stem}.linear2.weight": (joint, joint)}
        shapes |= {f"{stem}.layer_norm.weight": (joint,), f"{stem}.layer_norm.bias": (joint,)}
    return shapes | {"logit_scale": ()}


def front_end() -> direct.Arrays:
    """Transform and filters as the official file brings them."""
    turn = np.arange(513)[:, None] * np.arange(1024) * (-2j * np.pi / 1024)
    kernel = np.exp(turn) * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024))
    stem = f"{HTSAT}spectrogram_extractor.stft.conv"
    parts = {"real": kernel.real, "imag": kernel.imag}
    made = {f"{stem}_{part}.weight": values[:, None].astype(np.float32) for part, values in parts.items()}
    bank = direct.slaney(32_000, 1024, 64, 50, 14_000)
    return made | {f"{HTSAT}logmel_extractor.melW": bank.astype(np.float32)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ms_clap.Sizes(
        embed=EMBED, width=WIDTH, vocabulary=len(VOCABULARY), positions=POSITIONS, joint=JOINT
    )
    monkeypatch.setattr(ms_clap, "SIZES", sizes)
    monkeypatch.setattr(ms_clap_text, "SIZES", sizes)


@pytest.fixture(scope="module")
def arrays() -> direct.Arrays:
    return direct.filled(official_shapes(EMBED, WIDTH, len(VOCABULARY), POSITIONS, JOINT), 0) | front_end()


def write(folder: Path, arrays: direct.Arrays) -> Path:
    """A file as microsoft/msclap has it, with GPT-2's vocabulary beside it."""
    path = folder / "CLAP_weights_2023.pth"
    torch.save({"model": {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}}, path)
    direct.write_vocabulary(folder / "gpt2", VOCABULARY, MERGES)
    return path


def decibels(arrays: direct.Arrays, wave: np.ndarray) -> direct.Array:
    bank = arrays[f"{HTSAT}logmel_extractor.melW"].astype(np.float64)
    return direct.decibels(direct.power(wave, 1024, 320) @ bank)


def test_official_keys_and_shapes_of_the_true_size_load() -> None:
    shapes = official_shapes(96, 768, 50_257, 1024, 1024)
    trained = {key: math.prod(shape) for key, shape in shapes.items()}
    assert len(part(trained, "caption_encoder.base.")) == 148
    assert sum(part(trained, "caption_encoder.base.").values()) == 124_439_808  # GPT-2 base
    fixed = ("spectrogram", "logmel", "bn0.running")
    htsat = [n for key, n in part(trained, HTSAT).items() if not key.startswith(fixed)]
    assert round(sum(htsat) / 1e6, 1) == 27.5
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}  # takes no memory
    tensors |= {key: torch.from_numpy(value) for key, value in front_end().items()}
    network = ms_clap.audio_network(ms_clap.Sizes(), tensors, "x")
    assert not any(value.any() for value in network.get_submodule("clap").parameters())
    # The text network at this size takes seconds to build; its names and shapes are compared instead.
    with torch.device("meta"):
        from transformers import GPT2Config, GPT2Model

        known = {key: tuple(value.shape) for key, value in GPT2Model(GPT2Config()).state_dict().items()}
    assert known == part(shapes, "caption_encoder.base.")
    assert {*ms_clap.audio_table(ms_clap.Sizes()), *ms_clap.text_table(ms_clap.Sizes())} == {
        key for key in shapes if key != "logit_scale" and not key.startswith("audio_encoder.projection")
    }


@pytest.mark.usefixtures("small")
def test_rows_are_the_sums_of_the_official_tensors(arrays: direct.Arrays, tmp_path: Path) -> None:
    encoder = load_audio_encoder(f"ms-clap:{write(tmp_path, arrays)}", device="cpu")
    heard = waves(44_100)
    rows = encoder.encode(heard)
    assert rows.dtype == np.float32
    assert np.abs(rows[0] - rows[1]).mean() > 0.05  # the two windows are told apart
    for row, wave in zip(rows, heard, strict=True):
        mel = decibels(arrays, wave)
        assert mel.shape == (138, 64)
        wanted = direct.htsat(part(arrays, HTSAT), mel)
        np.testing.assert_allclose(row, wanted, atol=2e-4)
    np.testing.assert_allclose(encoder.encode(heard[1:])[0], rows[1], atol=1e-5)
    told = encoder.attributes()
    assert told["normalisation"] == "none"
    assert told["checkpoint"] == "CLAP_weights_2023.pth"
    assert len(told["checkpoint_sha256"]) == 64
    assert encoder.dim == rows.shape[1] == 8 * EMBED


@pytest.mark.usefixtures("small")
def test_long_windows_are_averaged_over_pieces(arrays: direct.Arrays, tmp_path: Path) -> None:
    path = write(tmp_path, arrays)
    heard = waves(8 * 44_100, 1)
    mel = decibels(arrays, heard[0])
    assert len(mel) == 1103
    pieces = [direct.htsat(part(arrays, HTSAT), mel[start : start + 689]) for start in (0, 344)]
    row = load_audio_encoder(f"ms-clap:{path}", window=8.0, device="cpu").encode(heard)[0]
    np.testing.assert_allclose(row, np.mean(pieces, axis=0), atol=3e-4)
    seven: Any = load_audio_encoder(f"ms-clap:{path}", window=7.0, device="cpu")
    assert seven.front_end(torch.zeros(1, 7 * 44_100)).shape == (1, 965, 64)
    with pytest.raises(FeatureError, match=r"--window 0.011: ms-clap needs at least 0.0116 s"):
        load_audio_encoder(f"ms-clap:{path}", window=0.011)


@pytest.mark.usefixtures("small")
def test_the_two_grids(arrays: direct.Arrays, tmp_path: Path) -> None:
    path = write(tmp_path, arrays)
    plain, centred = (
        load_audio_encoder(f"{name}:{path}", device="cpu") for name in ("ms-clap", "ms-clap-centred")
    )
    assert (plain.sample_rate, plain.window, plain.hop) == (44_100, 1.0, 1.0)
    assert (getattr(plain, "grid", None), getattr(plain, "tail", None)) == ("plain", "floor")
    assert getattr(centred, "grid", None) == "centred"
    heard = waves(44_100, 1)
    np.testing.assert_array_equal(plain.encode(heard), centred.encode(heard))


@pytest.mark.usefixtures("small")
def test_what_is_not_read_may_be_there_as_floats(arrays: direct.Arrays, tmp_path: Path) -> None:
    heard, sentence = waves(44_100, 1), ["a dog"]
    path = write(tmp_path, arrays)
    bare = load_audio_encoder(f"ms-clap:{path}").encode(heard)
    text = load_text_encoder(f"ms-clap:{path}").encode(sentence)[0]
    y, x = np.divmod(np.arange(64), 8)
    places = (y[:, None] - y + 7) * 15 + (x[:, None] - x + 7)
    more: direct.Arrays = {f"{HTSAT}bn0.num_batches_tracked": np.array(7, np.float32)}
    for stage, (depth, _, _) in enumerate(direct.STAGES):
        for block in range(depth):
            stem = f"{HTSAT}layers.{stage}.blocks.{block}"
            more[f"{stem}.attn.relative_position_index"] = places.astype(np.float32)
    more[f"{HTSAT}layers.0.blocks.1.attn_mask"] = np.zeros((64, 64, 64), np.float32)
    more |= {f"{HTSAT}{name}": np.zeros(3, np.float32) for name in ("tscam_conv.weight", "head.bias")}
    more |= {
        f"caption_encoder.base.h.{layer}.attn.{mask}": np.ones((1, 1, 4, 4), np.float32)
        for layer in range(12)
        for mask in ("bias", "masked_bias")
    }
    path = write(tmp_path, arrays | more)
    np.testing.assert_array_equal(load_audio_encoder(f"ms-clap:{path}").encode(heard), bare)
    again = load_text_encoder(f"ms-clap:{path}").encode(sentence)[0]
    np.testing.assert_array_equal(again.tokens, text.tokens)

    key = f"{HTSAT}layers.2.blocks.3.attn.relative_position_index"
    path = write(tmp_path, arrays | more | {key: more[key].T})
    with pytest.raises(FeatureError, match=rf"'{key}' numbers the places"):
        load_audio_encoder(f"ms-clap:{path}")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "key",
    [
        f"{HTSAT}layers.2.blocks.5.attn.qkv.bias",
        f"{HTSAT}logmel_extractor.melW",
        f"{HTSAT}bn0.running_var",
        "caption_encoder.base.h.11.mlp.c_proj.weight",
        "caption_encoder.projection.linear2.weight",
        "audio_encoder.projection.layer_norm.bias",
        "logit_scale",
    ],
)
def test_a_renamed_key_is_named(arrays: direct.Arrays, tmp_path: Path, key: str) -> None:
    renamed = {other + "_" if other == key else other: value for other, value in arrays.items()}
    path = write(tmp_path, renamed)
    loads: dict[str, Callable[[str], Any]] = {"audio": load_audio_encoder, "text": load_text_encoder}
    needed = {"audio": HTSAT, "text": "caption_encoder"}
    for side, load in loads.items():
        # Missing where it is needed; unknown under its new name on both sides.
        missing = f"missing: '{key}'; " if key.startswith(needed[side]) else ""
        with pytest.raises(FeatureError, match=rf"CLAP_weights_2023.pth: .*{missing}unknown: '{key}_'$"):
            load(f"ms-clap:{path}")


@pytest.mark.usefixtures("small")
def test_wrong_shapes_transforms_and_files_are_named(arrays: direct.Arrays, tmp_path: Path) -> None:
    key = f"{HTSAT}layers.1.downsample.reduction.weight"
    path = write(tmp_path, arrays | {key: arrays[key].T})
    with pytest.raises(FeatureError, match=rf"'{key}' is \(128, 64\), not \(64, 128\)"):
        load_audio_encoder(f"ms-clap:{path}")
    key = f"{HTSAT}spectrogram_extractor.stft.conv_imag.weight"
    path = write(tmp_path, arrays | {key: arrays[key] * np.float32(0.99)})
    with pytest.raises(FeatureError, match=rf"'{key}' is no Fourier transform"):
        load_audio_encoder(f"ms-clap:{path}")
    with pytest.raises(FeatureError, match=r"nothing.pth: no such file"):
        load_audio_encoder(f"ms-clap:{tmp_path / 'nothing.pth'}")
    with pytest.raises(FeatureError, match="write it as ms-clap:CHECKPOINT"):
        load_audio_encoder("ms-clap")


@pytest.mark.usefixtures("small")
def test_sentences_are_the_sums_of_the_official_tensors(arrays: direct.Arrays, tmp_path: Path) -> None:
    encoder = load_text_encoder(f"ms-clap:{write(tmp_path, arrays)}", device="cpu")
    sentences = ["A dog barks!", "", "rain"]
    letter = VOCABULARY
    ids = {
        "A dog barks!": [
            letter[c] for c in ("A", "Ġdog", "Ġ", "b", "ar", "k", "s", "!", "Ġ", "<|endoftext|>")
        ],
        "": [letter["Ġ"], letter["<|endoftext|>"]],
        "rain": [letter[c] for c in ("r", "a", "i", "n", "Ġ", "<|endoftext|>")],
    }
    assert letter["!"] == 0
    text, head = part(arrays, "caption_encoder.base."), part(arrays, "caption_encoder.projection.")
    together = encoder.encode(sentences)
    for sentence, found in zip(sentences, together, strict=True):
        wanted = direct.gpt2(text, ids[sentence], heads=12)
        np.testing.assert_allclose(found.tokens, wanted, atol=2e-5)
        first = wanted[-1] @ head["linear1.weight"].T
        joint = direct.norm(first + direct.gelu(first) @ head["linear2.weight"].T, head, "layer_norm")
        assert found.pooled is not None
        np.testing.assert_allclose(found.pooled, joint, atol=1e-4)
        np.testing.assert_allclose(encoder.encode([sentence])[0].tokens, found.tokens, atol=1e-5)
    with pytest.raises(FeatureError, match="reads 40 tokens, not 62"):
        encoder.encode(["x" * 60])


@pytest.mark.usefixtures("small")
def test_the_tokenizer_may_lie_beside_the_weights(arrays: direct.Arrays, tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    path = write(tmp_path, arrays)
    wanted = load_text_encoder(f"ms-clap:{path}").encode(["a dog barks"])[0].tokens
    joint: Any = GPT2Tokenizer.from_pretrained(str(tmp_path / "gpt2"))
    joint.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    for file in (tmp_path / "gpt2").iterdir():
        file.unlink()
    found = load_text_encoder(f"ms-clap:{path}").encode(["a dog barks"])[0].tokens
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.usefixtures("small")
def test_a_missing_or_foreign_tokenizer_is_told(
    arrays: direct.Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, arrays)
    turned = {word: len(VOCABULARY) - 1 - i for word, i in VOCABULARY.items()}
    direct.write_vocabulary(tmp_path / "gpt2", turned, MERGES)
    with pytest.raises(FeatureError, match=r"not GPT-2's tokenizer \(! and <\|endoftext\|> are 260 and 0"):
        load_text_encoder(f"ms-clap:{path}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "gpt2" / "merges.txt").unlink()
    with pytest.raises(
        FeatureError, match=r"put tokenizer.json, or vocab.json and merges.txt of openai-.*gpt2 into .*/gpt2$"
    ):
        load_text_encoder(f"ms-clap:{path}")

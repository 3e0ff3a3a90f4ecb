"""WavLM against transformers' own front end and network, on small networks with the true front shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForCTC, WavLMModel

from amrctl.encoders import hub
from amrctl.encoders.base import AudioEncoder, Rows, load_audio_encoder
from amrctl.encoders.frozen import FrozenAudio
from amrctl.errors import FeatureError


def small(large: bool) -> WavLMConfig:
    """The true family and width, few layers and narrow convolutions."""
    return WavLMConfig(
        hidden_size=1024 if large else 768,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer" if large else "group",
        do_stable_layer_norm=large,
    )


@pytest.fixture(scope="module", params=["wavlm-base", "wavlm-base-plus", "wavlm-large"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An encoder's name and a folder with random weights for it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    WavLMModel(small(request.param == "wavlm-large")).save_pretrained(folder)
    return request.param, folder


def noise(n: int, samples: int = 16000, seed: int = 0) -> Rows:
    loud = np.random.default_rng(seed).uniform(0.01, 0.5, (n, 1))
    made: Rows = (loud * np.random.default_rng(seed + 1).standard_normal((n, samples)) + 0.1).astype(
        np.float32
    )
    return made


def test_rows_are_the_mean_over_frames_of_the_last_hidden_state(made: tuple[str, Path]) -> None:
    name, folder = made
    encoder = load_audio_encoder(f"{name}:{folder}", batch=2)
    assert isinstance(encoder, AudioEncoder)
    windows = noise(5)
    rows = encoder.encode(windows)
    extractor: Any = Wav2Vec2FeatureExtractor
    front = extractor(do_normalize=name == "wavlm-large")
    ready = front(list(windows), sampling_rate=16000, return_tensors="pt")["input_values"]
    network: Any = WavLMModel.from_pretrained(folder)
    network.eval()
    with torch.no_grad():
        hidden = network(ready).last_hidden_state
    assert hidden.shape == (5, 49, encoder.dim)
    np.testing.assert_allclose(rows, hidden.double().mean(dim=1).numpy(), atol=2e-5)
    attributes = encoder.attributes()
    assert attributes["parameters"] == sum(p.numel() for p in network.parameters())
    assert len(attributes["checkpoint_sha256"]) == 64
    assert (attributes["precision"], attributes["checkpoint"]) == ("fp32", folder.name)


def test_only_the_large_network_hears_no_gain(made: tuple[str, Path]) -> None:
    name, folder = made
    encoder = load_audio_encoder(f"{name}:{folder}")
    assert isinstance(encoder, FrozenAudio)
    windows = noise(3)
    ready = encoder.front_end(torch.from_numpy(windows)).numpy()
    if name == "wavlm-large":
        exact = windows.astype(np.float64)
        exact = (exact - exact.mean(axis=1, keepdims=True)) / np.sqrt(exact.var(axis=1, keepdims=True) + 1e-7)
        np.testing.assert_allclose(ready, exact, atol=1e-5)
    else:
        np.testing.assert_array_equal(ready, windows)
    louder = encoder.encode(windows * 2 + 0.05)
    assert np.allclose(louder, encoder.encode(windows), atol=1e-4) == (name == "wavlm-large")


@pytest.mark.parametrize(
    ("samples", "frames"), [(400, 1), (16000, 49), (16080, 50), (16400, 51), (32000, 99)]
)
def test_how_many_frames_the_convolutions_make(samples: int, frames: int) -> None:
    network: Any = WavLMModel(small(False))
    network.eval()
    with torch.no_grad():
        assert network.feature_extractor(torch.zeros(1, samples)).shape[2] == frames


def test_window_and_precision(made: tuple[str, Path]) -> None:
    name, folder = made
    encoder = load_audio_encoder(f"{name}:{folder}", window=0.5, hop=0.25, precision="bf16")
    assert (encoder.window, encoder.hop) == (0.5, 0.25)
    exact = load_audio_encoder(f"{name}:{folder}", window=0.5).encode(noise(2, 8000))
    rough = encoder.encode(noise(2, 8000))
    assert encoder.attributes()["precision"] == "bf16"
    assert 0 < np.abs(rough - exact).max() < 0.15 * np.abs(exact).max()
    with pytest.raises(ValueError, match="windows of 8000 samples"):
        encoder.encode(noise(1))
    with pytest.raises(FeatureError, match=r"--window 0\.02: .* needs at least 0\.025 s"):
        load_audio_encoder(f"{name}:{folder}", window=0.02)


def change(folder: Path, to: Path, *, drop: str = "", add: str = "", cut: str = "") -> Path:
    """A copy of a folder whose weights lack one key, have one more, or one of another shape."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    if drop:
        del tensors[drop]
    if add:
        tensors[add] = torch.zeros(3)
    if cut:
        tensors[cut] = tensors[cut][:1].clone()
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def test_every_key_is_accounted_for(made: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = made
    key = "encoder.layers.1.attention.k_proj.weight"
    for number, (changed, said) in enumerate(
        (
            ({"drop": key}, f"missing: '{key}'"),
            ({"drop": key, "add": key + "s"}, f"missing: '{key}'; unknown: '{key}s'"),
            ({"cut": key}, f"of another shape: '{key}'"),
            ({"add": "encoder.layers.2.attention.k_proj.weight"}, "unknown: 'encoder.layers.2"),
        )
    ):
        with pytest.raises(FeatureError, match="does not hold its weights") as caught:
            load_audio_encoder(f"{name}:{change(folder, tmp_path / str(number), **changed)}")
        assert said in str(caught.value)
    for number, changed in enumerate(({"add": "lm_head.weight"}, {"drop": "masked_spec_embed"}), 10):
        load_audio_encoder(f"{name}:{change(folder, tmp_path / str(number), **changed)}")


def test_a_network_with_a_head_and_old_names_is_the_same(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = WavLMForCTC(small(False))
    whole.wavlm.save_pretrained(tmp_path / "bare")
    tensors = {  # as torch stored a normalised weight when the official files were written
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in whole.state_dict().items()
    }
    assert any(key.endswith("weight_g") for key in tensors)
    (tmp_path / "old").mkdir()
    shutil.copy(tmp_path / "bare" / "config.json", tmp_path / "old")
    torch.save(tensors, tmp_path / "old" / "pytorch_model.bin")
    one, other = (load_audio_encoder(f"wavlm-base:{tmp_path / name}") for name in ("bare", "old"))
    np.testing.assert_array_equal(one.encode(noise(2)), other.encode(noise(2)))


def test_a_folder_of_another_kind_is_told(made: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = made
    other = "wavlm-base" if name == "wavlm-large" else "wavlm-large"
    with pytest.raises(FeatureError, match=rf"config\.json is not of {other}: hidden_size is"):
        load_audio_encoder(f"{other}:{folder}")
    to = tmp_path / "changed"
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, "model_type": "wav2vec2"}))
    with pytest.raises(FeatureError, match=r'model_type is "wav2vec2", not "wavlm"'):
        load_audio_encoder(f"{name}:{to}")
    (to / "config.json").write_text("{")
    with pytest.raises(FeatureError, match="not readable JSON"):
        load_audio_encoder(f"{name}:{to}")
    shutil.copy(folder / "config.json", to)
    (to / "model.safetensors").write_bytes(b"12345678 this is no header")
    with pytest.raises(FeatureError, match="cannot be loaded"):
        load_audio_encoder(f"{name}:{to}")
    (to / "model.safetensors").unlink()
    with pytest.raises(FeatureError, match=r"holds no weights \(model\.safetensors or pytorch_model\.bin\)"):
        load_audio_encoder(f"{name}:{to}")
    (to / "config.json").unlink()
    with pytest.raises(FeatureError, match=r"has no config\.json"):
        load_audio_encoder(f"{name}:{to}")


def test_names_that_are_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def refuse(name: str, file: str, **_: object) -> None:
        asked.append((name, file))
        raise OSError("We have no such thing.\nAsk elsewhere.")

    monkeypatch.setattr("transformers.utils.hub.cached_file", refuse)
    monkeypatch.setattr(hub, "_answers", lambda: True)
    with pytest.raises(FeatureError, match=r"not give microsoft/wavlm-large \(We have no such") as caught:
        load_audio_encoder("wavlm-large")
    assert "\n" not in str(caught.value)
    assert asked == [("microsoft/wavlm-large", "config.json")]
    for spec, said in (("wavlm-base:../gone", "there is no folder"), (f"wavlm-base:{__file__}", "is a file")):
        with pytest.raises(FeatureError, match=said):
            load_audio_encoder(spec)
    assert len(asked) == 1


def test_a_hub_out_of_reach_is_asked_once(
    made: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is quick and says so; what was downloaded before is still found."""
    asked: list[str] = []

    class Session:
        def head(self, url: str, **_: object) -> None:
            asked.append(url)
            raise OSError("no such host")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub._answers.cache_clear()
    try:
        for _ in range(2):
            with pytest.raises(FeatureError, match=r"not answer \(microsoft/wavlm-base/config\.json was not"):
                load_audio_encoder("wavlm-base")
        name, folder = made
        kept = tmp_path / f"models--microsoft--{name}"
        shutil.copytree(folder, kept / "snapshots" / "1")
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text("1")
        assert load_audio_encoder(name).attributes()["checkpoint"] == f"microsoft/{name}"
    finally:
        hub._answers.cache_clear()
    assert len(asked) == 1

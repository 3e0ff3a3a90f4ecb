"""`m2d-clap`: the official file by its literal names, and numbers worked out by hand from it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from amrctl.encoders.base import AudioEncoder, load_audio_encoder
from amrctl.encoders.m2d_clap import M2dClap, read_audio_network
from amrctl.encoders.networks.m2d import M2dAudio
from amrctl.encoders.networks.vit import VitSize
from amrctl.errors import FeatureError
from tests.conftest import Cli
from tests.encoders import by_hand
from tests.encoders.by_hand import Array, Weights

BLOCK = """
{0}.norm1.weight 768
{0}.norm1.bias 768
{0}.attn.qkv.weight 2304 768
{0}.attn.qkv.bias 2304
{0}.attn.proj.weight 768 768
{0}.attn.proj.bias 768
{0}.norm2.weight 768
{0}.norm2.bias 768
{0}.mlp.fc1.weight 3072 768
{0}.mlp.fc1.bias 3072
{0}.mlp.fc2.weight 768 3072
{0}.mlp.fc2.bias 768
"""
BACKBONE = """
{0}cls_token 1 1 768
{0}pos_embed 1 311 768
{0}patch_embed.proj.weight 768 1 16 16
{0}patch_embed.proj.bias 768
{0}norm.weight 768
{0}norm.bias 768
"""
OFFICIAL_2025 = (
    BACKBONE.format("backbone.")
    + BLOCK.format("backbone.blocks.N")
    + """
backbone.norm_stats 2
backbone.audio_proj.sem_token 1 1 768
backbone.audio_proj.sem_blocks.0.norm1.weight 768
backbone.audio_proj.sem_blocks.0.norm1.bias 768
backbone.audio_proj.sem_blocks.0.attn.qkv.weight 2304 768
backbone.audio_proj.sem_blocks.0.attn.qkv.bias 2304
backbone.audio_proj.sem_blocks.0.attn.proj.weight 768 768
backbone.audio_proj.sem_blocks.0.attn.proj.bias 768
backbone.audio_proj.sem_blocks.0.norm2.weight 768
backbone.audio_proj.sem_blocks.0.norm2.bias 768
backbone.audio_proj.sem_blocks.0.mlp.fc1.weight 768 768
backbone.audio_proj.sem_blocks.0.mlp.fc1.bias 768
backbone.audio_proj.sem_blocks.0.mlp.fc2.weight 768 768
backbone.audio_proj.sem_blocks.0.mlp.fc2.bias 768
backbone.audio_proj.norm.weight 768
backbone.audio_proj.norm.bias 768
"""
)
OFFICIAL_2024 = (
    BACKBONE.format("").replace("311", "191")
    + BLOCK.format("blocks.N")
    + """
audio_proj.0.weight 768 768
audio_proj.0.bias 768
audio_proj.2.weight 768 768
audio_proj.2.bias 768
"""
)
SMALL = VitSize(depth=2, width=24, heads=3, hidden=40)
WIDTHS = {"w768": 24, "w2304": 72, "w3072": 40}
STATS = (-7.261779308319092, 4.3511505126953125)


def checkpoint(
    folder: Path,
    listing: str = OFFICIAL_2025,
    *,
    rename: Mapping[str, str] | None = None,
    replace: Mapping[str, Tensor] | None = None,
) -> tuple[Path, dict[str, Tensor]]:
    """A small file in the official form, with the arguments of a training beside the tensors."""
    tensors = by_hand.random_tensors(by_hand.official(listing, SMALL.depth, **WIDTHS))
    if "backbone.norm_stats" in tensors:
        tensors["backbone.norm_stats"] = torch.tensor(STATS)
    tensors |= dict(replace or {})
    held = {(rename or {}).get(key, key): tensor for key, tensor in tensors.items()}
    path = folder / "checkpoint-30.pth"
    torch.save({"model": held, "args": argparse.Namespace(lr=1e-3, model="m2d_clap_vit_base")}, path)
    return path, tensors


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(M2dClap, "size", SMALL)
    monkeypatch.setattr(M2dClap, "dim", SMALL.width)


def sound(seconds: float, count: int = 1) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.standard_normal((count, round(seconds * 16_000))) * 0.1).astype(np.float32)


def log_mel(samples: Array) -> Array:
    """`(frames, 80)`, neither centred nor scaled."""
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    bank = by_hand.slaney_triangles(16_000, 400, 80, 50, 8000)
    return np.log(by_hand.power_spectra(samples, 400, taper, 160) @ bank.T + 1.1920929e-07)


def row(frames: Array, weights: Weights, root: str, columns: int, grid: int, pad: bool) -> Array:
    """One window of scaled spectra to its row, by the description of the sheet of facts."""
    image = frames.T
    if pad:
        image = np.pad(image, ((0, 0), (0, -image.shape[1] % 16)))
    cells = by_hand.patches(image, weights, f"{root}patch_embed.proj", (16, 16))
    assert cells.shape[:2] == (5, columns)
    positions = weights[f"{root}pos_embed"][0]
    tokens = [weights[f"{root}cls_token"][0, 0] + positions[0]]
    tokens += [cells[r, c] + positions[1 + r * grid + c] for r in range(5) for c in range(columns)]
    x = np.stack(tokens)
    for i in range(SMALL.depth):
        x = by_hand.vit_block(x, weights, f"{root}blocks.{i}", SMALL.heads, 1e-6)
    x = by_hand.layer_norm(x, weights, f"{root}norm", 1e-6)[1:]
    head = f"{root}audio_proj"
    if f"{head}.0.weight" in weights:
        inner = np.maximum(0, by_hand.linear(x.mean(0), weights, f"{head}.0"))
        return by_hand.linear(inner, weights, f"{head}.2")
    x = np.concatenate([weights[f"{head}.sem_token"][0], x])
    x = by_hand.vit_block(x, weights, f"{head}.sem_blocks.0", 1, 1e-5)
    return by_hand.layer_norm(x[0], weights, f"{head}.norm", 1e-5)


def loaded(name: str, path: Path, **options: object) -> AudioEncoder:
    return load_audio_encoder(f"{name}:{path}", device="cpu", **options)


def test_the_network_takes_the_official_names_and_shapes_and_no_others() -> None:
    shapes = by_hand.official(OFFICIAL_2025, 12)
    assert len(shapes) == 166  # what NTT's own loader counts
    with torch.device("meta"):
        network = M2dAudio()
    inside = network.state_dict()
    for key, names in network.table("backbone.").items():
        parts = [inside[name].shape for name in ([names] if isinstance(names, str) else names)]
        assert shapes.pop(key) == (sum(part[0] for part in parts), *parts[0][1:]), key
    assert not shapes
    assert {
        n for names in network.table("").values() for n in ([names] if isinstance(names, str) else names)
    } == set(inside)


def test_a_file_of_true_size_loads_and_gives_768_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(M2dClap, "size", None)
    monkeypatch.setattr(M2dClap, "dim", 768)
    shapes = by_hand.official(OFFICIAL_2025, 12)
    torch.save({"model": by_hand.constant_tensors(shapes)}, tmp_path / "checkpoint-30.pth")
    encoder = loaded("m2d-clap", tmp_path / "checkpoint-30.pth")
    rows = encoder.encode(sound(1))
    assert rows.shape == (1, 768)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    stored = {key: np.prod(shape) for key, shape in shapes.items() if key != "backbone.norm_stats"}
    assert encoder.attributes()["parameters"] == sum(stored.values())


@pytest.mark.parametrize(("name", "columns"), [("m2d-clap", 7), ("m2d-clap-unpadded", 6)])
def test_rows_of_2025_are_those_worked_out_by_hand(tmp_path: Path, name: str, columns: int) -> None:
    path, tensors = checkpoint(tmp_path)
    weights = by_hand.in_float64(tensors)
    windows = sound(1, count=3)
    encoder = loaded(name, path, batch=2)
    assert (encoder.window, encoder.hop, encoder.sample_rate) == (1.0, 1.0, 16_000)
    rows = encoder.encode(windows)
    for window, got in zip(windows, rows, strict=True):
        frames = (log_mel(window.astype(np.float64)) - STATS[0]) / STATS[1]
        assert frames.shape == (101, 80)
        expected = row(frames, weights, "backbone.", columns, 62, pad=name == "m2d-clap")
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_rows_of_2024_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    """No prefix, a perceptron as head, constants of old, and parts of the pre-training that are not used."""
    unused = {
        "mask_token": torch.zeros(1, 1, 24),
        "decoder_pos_embed": torch.zeros(1, 191, 8),
        "decoder_embed.weight": torch.zeros(8, 24),
        "target_blocks.0.norm1.weight": torch.zeros(24),
        "logit_scale": torch.tensor(1.0),
        "text_proj.weight": torch.zeros(24, 24),
    }
    path, tensors = checkpoint(tmp_path, OFFICIAL_2024, replace=unused)
    window = sound(1)
    frames = (log_mel(window[0].astype(np.float64)) + 7.1) / 4.2
    expected = row(frames, by_hand.in_float64(tensors), "", 7, 38, pad=True)
    got = loaded("m2d-clap", path).encode(window)[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_front_end_agrees_with_its_definition() -> None:
    network = M2dAudio(size=SMALL)
    t = np.arange(16_000) / 16_000
    tones = np.sin(2 * np.pi * 440 * t) + 1e-4 * np.sin(2 * np.pi * 7900 * t)
    for samples in (sound(1)[0].astype(np.float64), tones, np.zeros(8000)):
        got = network.log_mel(torch.from_numpy(samples).float()[None])[0] * 4.2 - 7.1
        np.testing.assert_allclose(got.numpy(), log_mel(samples), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("seconds", "padded", "unpadded"),
    [(0.5, 20, 15), (1, 35, 30), (2, 65, 60), (5, 160, 155), (10, 310, 310), (30, 930, 930)],
)
def test_tokens_of_a_window(seconds: float, padded: int, unpadded: int) -> None:
    samples = torch.from_numpy(sound(seconds))
    for pad, count in ((True, padded), (False, unpadded)):
        network = M2dAudio(pad=pad, size=VitSize(depth=1, width=8, heads=1, hidden=8)).eval()
        assert network.tokens(network.log_mel(samples)).shape == (1, count, 8)


def test_long_windows_are_cut_in_units_whose_tokens_follow_each_other() -> None:
    network = M2dAudio(size=SMALL).eval()
    frames = torch.randn(2, 2 * 1001 + 20, 80)
    alone = [network.tokens(frames[:, a:b]) for a, b in ((0, 1001), (1001, 2002), (2002, 2022))]
    assert [part.shape[1] for part in alone] == [310, 310, 10]
    torch.testing.assert_close(network.tokens(frames), torch.cat(alone, dim=1))


def test_patches_of_20_ms_are_told_from_the_shapes(tmp_path: Path) -> None:
    listing = OFFICIAL_2025.replace("pos_embed 1 311", "pos_embed 1 501").replace("768 1 16 16", "768 1 80 2")
    path, _ = checkpoint(tmp_path, listing)
    network = read_audio_network(path, pad=True, size=SMALL)
    assert network.tokens(torch.zeros(1, 101, 80)).shape == (1, 51, 24)


@pytest.mark.parametrize(
    "key",
    [
        "backbone.cls_token",
        "backbone.pos_embed",
        "backbone.patch_embed.proj.weight",
        "backbone.blocks.1.attn.qkv.bias",
        "backbone.norm_stats",
        "backbone.audio_proj.sem_token",
        "backbone.audio_proj.norm.weight",
    ],
)
def test_a_renamed_key_is_named(tmp_path: Path, key: str) -> None:
    path, _ = checkpoint(tmp_path, rename={key: f"{key}_x"})
    with pytest.raises(FeatureError) as caught:
        loaded("m2d-clap", path)
    assert str(path) in str(caught.value)
    assert f"missing: '{key}'" in str(caught.value)
    assert f"unknown: '{key}_x'" in str(caught.value)


def test_files_that_are_not_a_release_are_refused(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, replace={"backbone.norm.bias": torch.zeros(25)})
    with pytest.raises(FeatureError, match=r"'backbone\.norm\.bias' is \(25,\), not \(24,\)"):
        loaded("m2d-clap", path)
    path, _ = checkpoint(tmp_path, replace={"backbone.pos_embed": torch.zeros(1, 201, 24)})
    with pytest.raises(FeatureError, match=r"16x16 with 40 columns.*'backbone\.pos_embed'"):
        loaded("m2d-clap", path)
    torch.save({"model": {"conv1.weight": torch.zeros(3)}}, path)
    with pytest.raises(FeatureError, match=r"missing: 'cls_token'"):
        loaded("m2d-clap", path)
    with pytest.raises(FeatureError, match="no such file"):
        loaded("m2d-clap", tmp_path / "nothing.pth")
    with pytest.raises(FeatureError, match="m2d-clap:CHECKPOINT"):
        load_audio_encoder("m2d-clap")


def test_a_window_must_hold_a_patch(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    assert loaded("m2d-clap-unpadded", path, window=0.15).encode(sound(0.15)).shape == (1, 24)
    assert loaded("m2d-clap", path, window=0.02).encode(sound(0.02)).shape == (1, 24)
    with pytest.raises(FeatureError, match=r"--window 0\.14: m2d-clap-unpadded needs at least 0\.15 s"):
        loaded("m2d-clap-unpadded", path, window=0.14)
    with pytest.raises(FeatureError, match=r"--window 0\.01"):
        loaded("m2d-clap", path, window=0.01)


def test_half_precision_stays_near(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    windows = sound(1, count=3)
    full, half = (loaded("m2d-clap", path, precision=name).encode(windows) for name in ("fp32", "bf16"))
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.05 * np.abs(full).max()


def test_from_sound_file_to_feature_file(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path)
    samples = sound(2.5)[0]
    soundfile.write("dog.wav", samples, 16_000, subtype="FLOAT")
    line = {"qid": "1", "query": "a dog", "duration": 2.5, "vid": "dog", "relevant_windows": [[0, 1]]}
    Path("m.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    encoder = ("--audio", ".", "--audio-encoder", "m2d-clap:checkpoint-30.pth")
    done = cli(
        *("extract-tef", "--manifest", "m.jsonl", *encoder, "--out", "f.h5"),
        *("--workers", 1, "--dtype", "float32"),
    )
    assert done.code == 0, done.err
    with h5py.File("f.h5") as file:
        stored = file["audio/m2d-clap"]
        expected = loaded("m2d-clap", tmp_path / "checkpoint-30.pth").encode(samples[:32_000].reshape(2, -1))
        np.testing.assert_allclose(stored["rows"][:], expected, rtol=0, atol=1e-4)  # whole seconds only
        assert stored.attrs["checkpoint"] == "checkpoint-30.pth"


def test_only_rows_of_one_file_share_a_space(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    space = loaded("m2d-clap", path).attributes()["space"]
    assert space == loaded("m2d-clap-unpadded", path).attributes()["space"]
    path, _ = checkpoint(tmp_path, replace={"backbone.norm.bias": torch.zeros(24)})
    assert space != loaded("m2d-clap", path).attributes()["space"]

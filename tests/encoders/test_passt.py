"""`passt`: the official files by their literal names, and numbers worked out by hand from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amrctl.encoders.base import AudioEncoder, load_audio_encoder
from amrctl.encoders.networks.passt import PasstMel, PasstNetwork
from amrctl.encoders.networks.vit import VitSize
from amrctl.encoders.passt import Passt, read_passt
from amrctl.errors import FeatureError
from tests.encoders import by_hand
from tests.encoders.by_hand import Array, Weights

OFFICIAL = """
cls_token 1 1 768
dist_token 1 1 768
new_pos_embed 1 2 768
freq_new_pos_embed 1 768 12 1
time_new_pos_embed 1 768 1 99
patch_embed.proj.weight 768 1 16 16
patch_embed.proj.bias 768
blocks.N.norm1.weight 768
blocks.N.norm1.bias 768
blocks.N.attn.qkv.weight 2304 768
blocks.N.attn.qkv.bias 2304
blocks.N.attn.proj.weight 768 768
blocks.N.attn.proj.bias 768
blocks.N.norm2.weight 768
blocks.N.norm2.bias 768
blocks.N.mlp.fc1.weight 3072 768
blocks.N.mlp.fc1.bias 3072
blocks.N.mlp.fc2.weight 768 3072
blocks.N.mlp.fc2.bias 768
norm.weight 768
norm.bias 768
head.0.weight 768
head.0.bias 768
head.1.weight 527 768
head.1.bias 527
head_dist.weight 527 768
head_dist.bias 527
"""
# rows of patches, columns in time, stride, spectra of the longest sound, published as
VARIANTS = [
    (12, 99, 10, 1000, "passt-s-f128-p16-s10-ap.476-swa, passt-s-kd-ap.486"),
    (8, 62, 16, 1000, "passt-s-f128-p16-s16-ap.468"),
    (12, 200, 10, 2000, "passt-s-f128-20sec"),
    (12, 300, 10, 3000, "passt-s-f128-30sec"),
]
SMALL = VitSize(depth=2, width=24, heads=3, hidden=40)
WIDTHS = {"w768": 24, "w2304": 72, "w3072": 40}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Passt, "size", SMALL)
    monkeypatch.setattr(Passt, "dim", SMALL.width)


def listing(rows: int = 12, columns: int = 99) -> str:
    return OFFICIAL.replace("768 12 1", f"768 {rows} 1").replace("1 99", f"1 {columns}")


def checkpoint(
    folder: Path, text: str = OFFICIAL, *, rename: Mapping[str, str] | None = None
) -> tuple[Path, dict[str, Tensor]]:
    """A small file in the official form: tensors by name and nothing around them."""
    tensors = by_hand.random_tensors(by_hand.official(text, SMALL.depth, **WIDTHS))
    path = folder / "passt.pt"
    torch.save({(rename or {}).get(key, key): tensor for key, tensor in tensors.items()}, path)
    return path, tensors


def sound(seconds: float, count: int = 1) -> np.ndarray:
    rng = np.random.default_rng(5)
    return (rng.standard_normal((count, round(seconds * 32_000))) * 0.1).astype(np.float32)


def log_mel(samples: Array) -> Array:
    """`(frames, 128)`, scaled, from the definition of the front end."""
    emphasised = samples[1:] - 0.97 * samples[:-1]
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 799)  # symmetric
    bank = by_hand.kaldi_triangles(32_000, 1024, 128, 0, 15_000)
    return (np.log(by_hand.power_spectra(emphasised, 1024, taper, 320) @ bank.T + 1e-5) + 4.5) / 5


def row(frames: Array, weights: Weights, stride: int) -> Array:
    """One window of spectra to its row, by the description of the sheet of facts."""
    cells = by_hand.patches(frames.T, weights, "patch_embed.proj", (stride, stride))
    rows, columns = cells.shape[:2]
    tokens = [
        weights[name][0, 0] + weights["new_pos_embed"][0, i]
        for i, name in enumerate(("cls_token", "dist_token"))
    ]
    for r in range(rows):
        for c in range(columns):
            place = weights["freq_new_pos_embed"][0, :, r, 0] + weights["time_new_pos_embed"][0, :, 0, c]
            tokens.append(cells[r, c] + place)
    x = np.stack(tokens)
    for i in range(SMALL.depth):
        x = by_hand.vit_block(x, weights, f"blocks.{i}", SMALL.heads, 1e-6)
    x = by_hand.layer_norm(x, weights, "norm", 1e-6)
    return np.asarray((x[0] + x[1]) / 2)


def loaded(path: Path, **options: Any) -> AudioEncoder:
    return load_audio_encoder(f"passt:{path}", device="cpu", **options)


@pytest.mark.parametrize(("rows", "columns", "stride", "spectra", "name"), VARIANTS)
def test_the_network_takes_the_official_names_and_shapes(
    rows: int, columns: int, stride: int, spectra: int, name: str
) -> None:
    shapes = by_hand.official(listing(rows, columns), 12)
    with torch.device("meta"):
        network = PasstNetwork(stride=stride, columns=columns)
    inside = network.state_dict()
    for key, names in network.table().items():
        parts = [inside[part].shape for part in ([names] if isinstance(names, str) else names)]
        assert shapes.pop(key) == (sum(part[0] for part in parts), *parts[0][1:]), (name, key)
    assert {key.partition(".")[0] for key in shapes} == {"head", "head_dist"}


@pytest.mark.parametrize(("rows", "columns", "stride", "spectra", "name"), VARIANTS)
def test_stride_and_length_are_told_from_the_shapes(
    tmp_path: Path, rows: int, columns: int, stride: int, spectra: int, name: str
) -> None:
    path, _ = checkpoint(tmp_path, listing(rows, columns))
    network = read_passt(path, size=SMALL)
    assert (network.stride, network.columns) == (stride, columns), name
    seconds = spectra // 100
    assert loaded(path, window=float(seconds)).window == seconds
    with pytest.raises(FeatureError, match=rf"--window {seconds + 1}: passt\.pt takes windows of 0\.16 to"):
        loaded(path, window=float(seconds + 1))


@pytest.mark.parametrize(("stride", "columns", "tokens"), [(10, 99, 110), (16, 62, 50)])
def test_spectra_and_tokens_of_a_second(stride: int, columns: int, tokens: int) -> None:
    spectra = PasstMel()(torch.from_numpy(sound(1)))
    assert spectra.shape == (1, 100, 128)
    network = PasstNetwork(stride=stride, columns=columns, size=SMALL).eval()
    assert network.tokens(spectra).shape == (1, tokens, 24)
    assert PasstMel()(torch.zeros(1, 320_000)).shape == (1, 1000, 128)


@pytest.mark.parametrize(("rows", "columns", "stride"), [(12, 99, 10), (8, 62, 16)])
def test_rows_are_those_worked_out_by_hand(tmp_path: Path, rows: int, columns: int, stride: int) -> None:
    path, tensors = checkpoint(tmp_path, listing(rows, columns))
    weights = by_hand.in_float64(tensors)
    windows = sound(1, count=3)
    encoder = loaded(path, batch=2)
    assert (encoder.window, encoder.hop, encoder.sample_rate) == (1.0, 1.0, 32_000)
    for window, got in zip(windows, encoder.encode(windows), strict=True):
        expected = row(log_mel(window.astype(np.float64)), weights, stride)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_front_end_agrees_with_its_definition() -> None:
    t = np.arange(32_000) / 32_000
    tones = np.sin(2 * np.pi * 440 * t) + 1e-3 * np.sin(2 * np.pi * 14_500 * t)
    for samples in (sound(1)[0].astype(np.float64), tones, np.zeros(16_000)):
        got = PasstMel()(torch.from_numpy(samples).float()[None])[0]
        np.testing.assert_allclose(got.numpy(), log_mel(samples), rtol=0, atol=5e-4)


def test_a_file_of_true_size_loads_and_gives_768_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Passt, "size", None)
    monkeypatch.setattr(Passt, "dim", 768)
    torch.save(by_hand.constant_tensors(by_hand.official(OFFICIAL, 12)), tmp_path / "passt.pt")
    encoder = loaded(tmp_path / "passt.pt")
    rows = encoder.encode(sound(1))
    assert rows.shape == (1, 768)
    assert np.isfinite(rows).all()
    assert round(encoder.attributes()["parameters"] / 1e6, 1) == 85.3


@pytest.mark.parametrize(
    "key", ["cls_token", "freq_new_pos_embed", "time_new_pos_embed", "blocks.0.mlp.fc2.bias", "norm.weight"]
)
def test_a_renamed_key_is_named(tmp_path: Path, key: str) -> None:
    path, _ = checkpoint(tmp_path, rename={key: f"{key}_x"})
    with pytest.raises(FeatureError) as caught:
        loaded(path)
    assert f"missing: '{key}'" in str(caught.value)
    assert f"unknown: '{key}_x'" in str(caught.value)


def test_files_that_are_not_a_release_are_refused(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, listing(rows=11))
    with pytest.raises(FeatureError, match=r"'freq_new_pos_embed' has 11 rows; .*12 \(stride 10\)"):
        loaded(path)
    path, _ = checkpoint(tmp_path, OFFICIAL.replace("16 16", "16 20"))
    with pytest.raises(FeatureError, match=r"'patch_embed\.proj\.weight' is \(24, 1, 16, 20\)"):
        loaded(path)
    with pytest.raises(FeatureError, match=r"--window 0\.1: passt\.pt takes windows of 0\.16 to 10\.05 s"):
        loaded(checkpoint(tmp_path)[0], window=0.1)


def test_patchout_leaves_out_whole_rows_and_columns_in_training_only() -> None:
    network = PasstNetwork(size=VitSize(depth=1, width=8, heads=2, hidden=8), drop_rows=4, drop_columns=6)
    spectra = torch.randn(3, 100, 128)
    torch.manual_seed(0)
    assert network.train().tokens(spectra).shape == (3, 2 + (12 - 4) * (9 - 6), 8)
    assert network.eval().tokens(spectra).shape == (3, 2 + 12 * 9, 8)
    # without blocks the tokens that stay are some of all tokens, in their order
    network.blocks, network.norm = torch.nn.ModuleList(), torch.nn.Identity()  # type: ignore[assignment]
    every = network.tokens(spectra)[0, 2:].unflatten(0, (12, 9))
    kept = network.train().tokens(spectra)[0, 2:].unflatten(0, (8, 3))
    places = [
        [(every[r, c] - kept[i, j]).abs().max() == 0 for r in range(12) for c in range(9)]
        for i in range(8)
        for j in range(3)
    ]
    found = np.array([np.flatnonzero(row) for row in places]).reshape(8, 3)
    assert (np.diff(found, axis=0) > 0).all()
    assert (np.diff(found, axis=1) > 0).all()
    assert (found // 9 == found[:, :1] // 9).all()
    assert (found % 9 == found[:1] % 9).all()


def test_upper_blocks_train_while_the_lower_ones_stand_still() -> None:
    network = PasstNetwork(size=VitSize(depth=3, width=8, heads=2, hidden=8), drop_columns=2).train()
    network.requires_grad_(False)
    network.blocks[2].requires_grad_(True)
    network.norm.requires_grad_(True)
    network(torch.randn(2, 50, 128)).square().sum().backward()
    moved = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert moved == {n for n, _ in network.named_parameters() if n.startswith(("blocks.2.", "norm."))}

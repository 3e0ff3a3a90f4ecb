"""Networks rearranged for a CPU against the published ones, and the loops between their products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import WavLMConfig, WavLMModel

from amrctl.encoders.base import load_audio_encoder
from amrctl.encoders.frozen import FrozenAudio
from amrctl.encoders.networks import kernels
from amrctl.encoders.networks.htsat import Htsat, supported
from amrctl.encoders.networks.pieces import in_pieces
from amrctl.encoders.networks.places import LONGEST, Places
from amrctl.encoders.networks.products import array
from tests.encoders import test_laion_clap as laion
from tests.encoders.clap_official import waves


def wavlm(folder: Path, *, large: bool, bias: bool) -> Path:
    """A small network whose norms, biases of places and gates are not idle."""
    torch.manual_seed(3)
    network = WavLMModel(
        WavLMConfig(
            hidden_size=1024 if large else 768,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            conv_dim=(16,) * 7,
            conv_bias=bias,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=8,
            feat_extract_norm="layer" if large else "group",
            do_stable_layer_norm=large,
        )
    )
    for name, values in network.named_parameters():
        if "norm" in name or "rel_attn" in name or "gru" in name or name.endswith("bias"):
            values.data += 0.3 * torch.randn(values.shape)
    network.save_pretrained(folder)
    return folder


def both(spec: str, **options: Any) -> tuple[FrozenAudio, FrozenAudio]:
    """An encoder rearranged, and as published."""
    made: list[FrozenAudio] = []
    for rearrange in (True, False):
        encoder = load_audio_encoder(spec, device="cpu", **options)
        assert isinstance(encoder, FrozenAudio)
        encoder.rearrange = rearrange
        made.append(encoder)
    return made[0], made[1]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["wavlm-base", "wavlm-large"])
def test_wavlm_has_the_published_numbers(tmp_path: Path, name: str, bias: bool) -> None:
    folder = wavlm(tmp_path / "w", large=name == "wavlm-large", bias=bias)
    for seconds in (0.025, 0.3, 1.0, 3.0):
        ours, published = both(f"{name}:{folder}", window=seconds)
        heard = waves(round(seconds * 16_000), 5)
        wanted = published.encode(heard)
        found = ours.encode(heard)
        assert ours._direct is not None
        assert published._direct is None
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
        # The weights moved, the network did not change.
        ours._direct = None
        np.testing.assert_allclose(ours.encode(heard), wanted, atol=1e-5 * np.abs(wanted).max())
        assert ours.attributes() == published.attributes()


def test_wavlm_is_near_in_half_precision(tmp_path: Path) -> None:
    for large in (False, True):
        name = "wavlm-large" if large else "wavlm-base"
        spec = f"{name}:{wavlm(tmp_path / name, large=large, bias=True)}"
        ours, published = both(spec, precision="bf16")
        heard = waves(16_000, 6)
        exact = both(spec)[1].encode(heard)
        off = [np.linalg.norm(one.encode(heard) - exact) for one in (ours, published)]
        assert 0 < off[0] < max(1.5 * off[1], 0.01 * np.linalg.norm(exact))


def test_threads_take_windows_of_their_own(tmp_path: Path) -> None:
    spec = f"wavlm-base:{wavlm(tmp_path / 'w', large=False, bias=False)}"
    ours, published = both(spec)
    heard, threads = waves(16_000, 7), torch.get_num_threads()
    wanted = published.encode(heard)
    try:
        torch.set_num_threads(3)
        for n in (7, 2):
            np.testing.assert_allclose(ours.encode(heard[:n]), wanted[:n], atol=1e-5 * np.abs(wanted).max())
            assert torch.get_num_threads() == 3
        order = in_pieces(lambda some: some + torch.get_num_threads(), torch.arange(7.0)[:, None])
        np.testing.assert_array_equal(order[:, 0], np.arange(1.0, 8.0))
        with pytest.raises(ZeroDivisionError):
            in_pieces(lambda some: some / (1 // 0), torch.zeros(4, 1))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("fused", [False, True])
def test_htsat_has_the_published_numbers(tmp_path: Path, fused: bool) -> None:
    made = laion.model(fused)
    folder = laion.write(tmp_path, made, truncation="fusion" if fused else "rand_trunc")
    for seconds in (1.0, 2.5, 7.0) if not fused else (1.0, 12.0):
        ours, published = both(f"laion-clap-hidden:{folder}", window=seconds)
        heard = waves(round(seconds * laion.RATE), 3)
        front, whole = (one.front_end(torch.from_numpy(heard)).numpy() for one in (ours, published))
        np.testing.assert_array_equal(front, whole)  # a copy of a sound has the spectra of the others
        wanted = published.encode(heard)
        np.testing.assert_allclose(ours.encode(heard), wanted, atol=1e-5 * np.abs(wanted).max())
        assert published._direct is None
        ours._direct = None
        np.testing.assert_allclose(ours.encode(heard), wanted, atol=1e-5 * np.abs(wanted).max())
    exact = both(f"laion-clap:{folder}")[1].encode(waves(laion.RATE, 4))
    rough = both(f"laion-clap:{folder}", precision="bf16")[0].encode(waves(laion.RATE, 4))
    assert 0 < np.abs(rough - exact).max() < 0.05


def test_what_is_not_as_published_is_left_alone() -> None:
    encoder = laion.model().audio_model.audio_encoder
    assert supported(encoder)
    assert Htsat(encoder).image is not None
    with pytest.raises(ValueError, match="holds 1024 frames, not 1025"):
        Htsat(encoder)(torch.zeros(1, 1, 1025, 64))
    encoder.config.hidden_act = "relu"
    assert not supported(encoder)


@pytest.mark.parametrize(("taps", "frames"), [(128, 49), (128, 1), (16, 7), (15, 40), (9, LONGEST + 1)])
def test_places_are_the_convolution(taps: int, frames: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv1d(24, 24, taps, padding=taps // 2, groups=4)
    x = torch.randn(3, frames, 24)
    with torch.inference_mode():
        wanted = convolution(x.transpose(1, 2))[:, :, :frames].transpose(1, 2)
        np.testing.assert_allclose(Places(convolution)(x), wanted, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loops_are_torchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    near = 2e-6 if dtype == torch.float32 else 0.02
    x, plus = (4 * torch.randn(30, 50)).to(dtype), torch.randn(50)
    weight, bias = torch.randn(50), torch.randn(50)
    changed = x.clone()
    kernels.gelu(array(changed), array(plus))
    np.testing.assert_allclose(changed.float(), functional.gelu(x.float() + plus), atol=near, rtol=near)
    changed = x.clone()
    kernels.norm_gelu(array(changed), array(plus), array(weight), array(bias), 1e-5, array(changed))
    normed = functional.layer_norm(x.float() + plus, (50,), weight, bias)
    np.testing.assert_allclose(changed.float(), functional.gelu(normed), atol=2 * near, rtol=near)

    order = torch.randperm(40)[:30]
    for keep in (False, True):
        total, out = torch.randn(40, 50), torch.empty(30, 50, dtype=dtype)
        sums = total.clone()
        sums[order] += x.float() + plus
        normed = functional.layer_norm(sums[order], (50,), weight, bias)
        given = array(total), order.numpy(), array(x), array(plus), array(weight), array(bias), 1e-5
        kernels.add_norm(*given, array(out), keep)
        np.testing.assert_allclose(out.float(), normed, atol=2 * near, rtol=near)
        if keep:
            sums[order] = normed
        np.testing.assert_allclose(total, sums, atol=4e-6)

    table = torch.randn(2, 3, 5, 5)
    table[1, :, :, 2:] = -100
    kinds = torch.tensor([0, 1, 1, 0, 0, 1], dtype=torch.int32)
    for loud, level in ((9, 0), (9, 300), (9, -300), (1000, 0)):
        scores = (loud * torch.randn(6, 3, 5, 5) + level).to(dtype)
        wanted = (scores.float() * 0.5 + table[kinds]).softmax(-1)
        kernels.soften_windows(array(scores), array(table), kinds.numpy(), 0.5)
        np.testing.assert_allclose(scores.float(), wanted, atol=near * (1 + loud / 100))
    broken = torch.full((1, 1, 1, 3), torch.nan, dtype=dtype)
    kernels.soften_windows(array(broken), np.zeros((1, 1, 1, 3), np.float32), np.zeros(1, np.int32), 1.0)
    assert broken.isnan().all()

"""Mel front ends against their definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amrctl.encoders.mel import decibels, hann, mel_bank, mel_power
from tests.encoders import clap_official as direct


@pytest.mark.parametrize(
    ("rate", "fft", "bands", "low", "high"), [(48_000, 1024, 64, 50, 14_000), (16_000, 400, 80, 50, 8000)]
)
def test_slaney_bank_is_its_definition(rate: int, fft: int, bands: int, low: float, high: float) -> None:
    bank = mel_bank(rate=rate, fft=fft, bands=bands, low=low, high=high, scale="slaney", area=True)
    assert bank.shape == (fft // 2 + 1, bands)
    assert bank.dtype == torch.float32
    np.testing.assert_allclose(bank, direct.slaney(rate, fft, bands, low, high), atol=1e-8)


def test_htk_and_kaldi_banks_are_their_definitions() -> None:
    bins = np.fft.rfftfreq(1024, 1 / 32_000)

    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (50, 14_000))
    edges = 700 * (10 ** (np.linspace(low, high, 66) / 2595) - 1)
    rise = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    bank = mel_bank(rate=32_000, fft=1024, bands=64, low=50, high=14_000, scale="htk")
    np.testing.assert_allclose(bank, np.maximum(0, np.minimum(rise, fall)), atol=1e-6)

    mel = 1127 * np.log(1 + bins / 700)[:, None]
    edges = np.linspace(0, 1127 * np.log(1 + 15_000 / 700), 130)
    straight = np.minimum((mel - edges[:-2]), (edges[2:] - mel)) / (edges[1] - edges[0])
    straight[-1] = 0
    bank = mel_bank(rate=32_000, fft=1024, bands=128, low=0, high=15_000, scale="kaldi")
    np.testing.assert_allclose(bank, np.maximum(0, straight), atol=1e-6)


@pytest.mark.parametrize(("samples", "hop"), [(4410, 320), (513, 320), (4800, 480)])
def test_power_is_the_sum_that_it_says(samples: int, hop: int) -> None:
    wave = np.random.default_rng(0).normal(size=(3, samples)).astype(np.float32)
    bank = mel_bank(rate=32_000, fft=1024, bands=64, low=50, high=14_000, scale="slaney", area=True)
    found = decibels(mel_power(torch.from_numpy(wave), bank, hann(1024), hop))
    assert found.shape == (3, samples // hop + 1, 64)
    assert found.dtype == torch.float32
    for one, mel in zip(wave, found, strict=True):
        wanted = direct.decibels(direct.power(one, 1024, hop) @ bank.numpy().astype(np.float64))
        np.testing.assert_allclose(mel, wanted, atol=2e-4)


def test_a_short_symmetric_window_lies_in_the_middle() -> None:
    wave = np.random.default_rng(1).normal(size=3200).astype(np.float32)
    window = np.zeros(1024)
    window[112:912] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 799)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, 512, mode="reflect"), 1024)[::320]
    wanted = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    found = mel_power(torch.from_numpy(wave)[None], torch.eye(513), hann(800, periodic=False), 320)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


def test_silence_is_minus_100_decibels() -> None:
    bank = mel_bank(rate=48_000, fft=1024, bands=64, low=50, high=14_000, scale="slaney", area=True)
    assert (decibels(mel_power(torch.zeros(1, 4800), bank, hann(1024), 480)) == -100).all()

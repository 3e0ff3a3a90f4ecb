"""Fourier features of time against exact arithmetic, and what of the tokens they change."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from amrctl.model.detector import build
from amrctl.model.layers.fourier_tef import fourier, tef3
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe


def test_the_columns() -> None:
    found = tef3(torch.tensor([4, 300]), 4)
    assert found[0].tolist() == [[0, 0.75, 0.25], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.75, 0, 0.25]]
    torch.testing.assert_close(found[1, 2], torch.tensor([2 / 300, 297 / 300, 1 / 300], dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 7, 300, 3601])
def test_every_band_is_exact_to_float32(n: int) -> None:
    """Against rational arithmetic: the last band turns 16384 times, where float32 angles are noise."""
    bands = 16
    got = fourier(tef3(torch.tensor([n]), n)[0], bands).view(n, 3, 2 * bands)
    for t in {0, n // 3, n - 1}:
        for c, value in enumerate((Fraction(t, n), 1 - Fraction(t + 1, n), Fraction(1, n))):
            for k in range(bands):
                turn = float(value * 2**k % 2)
                wanted = math.sin(math.pi * turn), math.cos(math.pi * turn)
                assert got[t, c, k].item() == pytest.approx(wanted[0], abs=1e-6)
                assert got[t, c, bands + k].item() == pytest.approx(wanted[1], abs=1e-6)


def test_it_is_added_after_projection_in_place_of_the_raw_columns() -> None:
    torch.manual_seed(0)
    sets = ["model.tokens.tef=fourier-3d", "model.tokens.bands=4"]
    tokens = build(recipe(*sets), (AUDIO_DIM,), (TEXT_DIM,), training=False).eval().tokens
    assert tokens.get_parameter("audio.0.linear.weight").shape[1] == AUDIO_DIM
    assert tokens.get_parameter("time.mlp.layers.0.weight").shape[1] == 6 * 4
    data = batch()
    code = tokens(data).audio - tokens.get_submodule("audio")(data.audio[0])
    for b, frames in enumerate((12, 17, 9)):
        mlp = tokens.get_submodule("time.mlp")
        alone = mlp(fourier(tef3(torch.tensor([frames]), frames), 4))[0]
        torch.testing.assert_close(code[b, :frames], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(code[0, 0], code[1, 0])  # the third column: another share of the whole

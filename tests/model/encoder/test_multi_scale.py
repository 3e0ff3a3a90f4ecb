"""Multi-scale fusion against a slow definition in float64, for every length and under any padding."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amrctl.errors import RecipeError
from amrctl.model.encoder.multi_scale import MultiScale, MultiScaleConfig
from amrctl.model.layers.scales import upsample_weights
from amrctl.model.types import Dims, Memory
from tests.small import recipe, rows_of

WIDTH = 6
Doubles = npt.NDArray[np.float64]


def memory(lengths: list[int], padding: int, seed: int) -> Memory:
    """Recordings of these lengths; what stands on padding is not a number."""
    g = torch.Generator().manual_seed(seed)
    rows, mask = rows_of(lengths, WIDTH, g)
    rows = nn.functional.pad(rows, (0, 0, 0, padding))
    mask = nn.functional.pad(mask, (0, padding))
    rows = torch.where(mask[..., None], rows, torch.nan)
    text, mark = (
        torch.randn(len(lengths), 2, WIDTH, generator=g),
        torch.randn(len(lengths), WIDTH, generator=g),
    )
    real = torch.ones(text.shape[:2], dtype=torch.bool)
    return Memory(rows, mask, torch.zeros_like(rows), text, real, mark, mark)


def encoder(factors: tuple[int, ...]) -> MultiScale:
    torch.manual_seed(1)
    made = MultiScale(MultiScaleConfig(factors=factors, dropout=0.0), Dims(WIDTH, (5,), (6,)))
    for vector in (made.norm.weight, made.norm.bias, made.fuse.bias):
        nn.init.normal_(vector)
    return made.eval()


def doubles(tensor: Tensor) -> Doubles:
    return tensor.detach().double().numpy()


def slowly(made: MultiScale, rows: Doubles) -> Doubles:
    """One recording, frame by frame."""
    views = [rows]
    for factor, linear in zip(made.factors, made.scales, strict=True):
        assert isinstance(linear, nn.Linear)
        groups = [list(range(s, min(s + factor, len(rows)))) for s in range(0, len(rows), factor)]
        coarse = np.stack([rows[group].mean(0) for group in groups])
        z = coarse @ doubles(linear.weight).T + doubles(linear.bias)
        z = 0.5 * z * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        centres = np.array([np.mean(group) + 0.5 for group in groups])
        at = np.arange(len(rows)) + 0.5
        views.append(np.stack([np.interp(at, centres, column) for column in z.T], axis=1))
    x = rows + np.concatenate(views, 1) @ doubles(made.fuse.weight).T + doubles(made.fuse.bias)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + made.norm.eps)
    return np.asarray(x * doubles(made.norm.weight) + doubles(made.norm.bias))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 19), min_size=1, max_size=4),
    factors=st.sampled_from([(2, 4), (4, 2), (3,), (2, 5, 7), (16,)]),
    padding=st.integers(0, 5),
)
def test_it_is_the_definition_for_every_length(
    lengths: list[int], factors: tuple[int, ...], padding: int
) -> None:
    made, given_ = encoder(factors), memory(lengths, padding, sum(lengths))
    with torch.no_grad():
        got = made(given_)
    assert got.audio.shape == given_.audio.shape
    for b, n in enumerate(lengths):
        wanted = slowly(made, doubles(given_.audio[b, :n]))
        np.testing.assert_allclose(got.audio[b, :n].numpy(), wanted, rtol=1e-3, atol=1e-4)
    assert got.text is given_.text
    assert got.summary is given_.summary


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 19), min_size=2, max_size=4),
    factors=st.sampled_from([(2, 4), (3, 8)]),
)
def test_a_row_of_a_batch_is_the_row_alone(lengths: list[int], factors: tuple[int, ...]) -> None:
    made, together = encoder(factors), memory(lengths, 2, len(lengths))
    with torch.no_grad():
        got = made(together).audio
        for b, n in enumerate(lengths):
            part = slice(b, b + 1)
            alone = Memory(
                together.audio[part, :n],
                together.audio_mask[part, :n],
                together.audio_position[part, :n],
                together.text[part],
                together.text_mask[part],
                together.summary[part],
                together.summary_position[part],
            )
            torch.testing.assert_close(made(alone).audio[0], got[b, :n], rtol=1e-5, atol=1e-5)


@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 4))
def test_what_is_spread_out_again_adds_up(length: int, factor: int, padding: int) -> None:
    """A constant stays; a ramp stays between the first and the last coarse centre."""
    weights = upsample_weights(torch.tensor([length]), length + padding, factor)[0]
    torch.testing.assert_close(weights.sum(1), torch.ones(length + padding))
    assert (weights >= 0).all()
    starts = np.arange(0, length, factor)
    centres = (starts + np.minimum(starts + factor, length)) / 2
    padded = np.zeros(weights.shape[1])
    padded[: len(centres)] = centres
    at = np.arange(length) + 0.5
    wanted = at.clip(centres[0], centres[-1])
    np.testing.assert_allclose(weights[:length].double().numpy() @ padded, wanted, rtol=1e-5)
    assert not weights[:, len(centres) :].any()


@pytest.mark.parametrize("factors", ["[]", "[1]", "[2, 2]", "[0, 4]"])
def test_factors_that_are_no_scales(factors: str) -> None:
    with pytest.raises(RecipeError, match=r"model\.encoder\.multi-scale\.factors"):
        recipe(f"model.encoder=[{{kind: multi-scale, factors: {factors}}}]")

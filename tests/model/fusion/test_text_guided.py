"""The enhancer against its definition written out in float64 loops, and what it must leave alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from amrctl.errors import RecipeError
from amrctl.model.fusion.text_guided import TextGuided, TextGuidedConfig
from amrctl.model.types import Dims, Tokens
from tests.small import recipe, rows_of

WIDTH, HEADS = 8, 2


def tokens() -> Tokens:
    generator = torch.Generator().manual_seed(1)
    audio, audio_mask = rows_of((6, 9), WIDTH, generator)
    text, text_mask = rows_of((4, 2), WIDTH, generator)
    position = torch.randn(2, 9, WIDTH, generator=generator)
    summary = torch.zeros(2, WIDTH)
    return Tokens(audio, audio_mask, position, text, text_mask, summary, summary)


def enhancer(*, fresh: bool = False, dropout: float = 0.0, frames: int = 3) -> TextGuided:
    torch.manual_seed(0)
    config = TextGuidedConfig(heads=HEADS, dropout=dropout, frames=frames)
    made = TextGuided(config, Dims(WIDTH, (WIDTH,), (WIDTH,)))
    if not fresh:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(std=0.5)
    return made


@pytest.mark.parametrize("training", [False, True])
def test_it_starts_as_the_identity(training: bool) -> None:
    given = tokens()
    made = enhancer(fresh=True, dropout=0.3).train(training)
    out = made(given)
    assert torch.equal(out.audio, given.audio)
    assert out.text is given.text
    filled = enhancer(dropout=0.3).train(training)
    assert not torch.equal(filled(given).audio, given.audio)
    with torch.no_grad():  # what a soup fills in where a checkpoint has no enhancer
        for name in TextGuided.identity_when_zero:
            filled.get_parameter(name).zero_()
    assert torch.equal(filled(given).audio, given.audio)


def slow(made: TextGuided, given: Tokens, b: int) -> Tensor:
    """One pair, frame by frame, in float64 and without padding."""
    weights = {name: p.detach().double() for name, p in made.named_parameters()}
    frames, words = int(given.audio_mask[b].sum()), int(given.text_mask[b].sum())
    audio, position = given.audio[b, :frames].double(), given.audio_position[b, :frames].double()
    text = given.text[b, :words].double()
    stacked, bias = weights["attention.in_proj_weight"], weights["attention.in_proj_bias"]
    query, key, value = (
        x @ stacked[i * WIDTH : (i + 1) * WIDTH].T + bias[i * WIDTH : (i + 1) * WIDTH]
        for i, x in enumerate((audio + position, text, text))
    )
    size = WIDTH // HEADS
    scale, offset = (weights["film.weight"] @ text.mean(0) + weights["film.bias"]).split(WIDTH)
    modulated = []
    for t in range(frames):
        found = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            scores = torch.stack([query[t, part] @ key[i, part] / math.sqrt(size) for i in range(words)])
            share = scores.exp() / scores.exp().sum()
            found.append(torch.stack([share[i] * value[i, part] for i in range(words)]).sum(0))
        seen = weights["attention.out_proj.weight"] @ torch.cat(found) + weights["attention.out_proj.bias"]
        x = audio[t] + seen
        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
        x = x * weights["norm.weight"] + weights["norm.bias"]
        modulated.append(x * (1 + scale) + offset)
    out = []
    for t in range(frames):
        x = weights["conv.bias"].clone()
        for k in range(3):
            if 0 <= t + k - 1 < frames:
                x += weights["conv.weight"][:, 0, k] * modulated[t + k - 1]
        x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        out.append(audio[t] + weights["out.weight"] @ x + weights["out.bias"])
    return torch.stack(out)


def test_it_is_its_definition() -> None:
    made, given = enhancer().eval(), tokens()
    got = made(given).audio
    for b, frames in enumerate((6, 9)):
        torch.testing.assert_close(got[b, :frames].double(), slow(made, given, b), rtol=1e-4, atol=1e-5)


def test_padding_never_leaks() -> None:
    made, given = enhancer(frames=5).eval(), tokens()
    wanted = made(given).audio
    dirty = replace(
        given,
        audio=given.audio.masked_fill(~given.audio_mask[..., None], math.nan),
        text=given.text.masked_fill(~given.text_mask[..., None], 1e6),
    )
    assert torch.equal(made(dirty).audio[given.audio_mask], wanted[given.audio_mask])
    mask = functional.pad(given.audio_mask, (0, 4))
    audio, position = (
        functional.pad(x, (0, 0, 0, 4), value=3.0) for x in (given.audio, given.audio_position)
    )
    got = made(replace(given, audio=audio, audio_position=position, audio_mask=mask)).audio
    torch.testing.assert_close(got[:, :9][given.audio_mask], wanted[given.audio_mask])


def test_the_sentence_steers_it() -> None:
    made, given = enhancer().eval(), tokens()
    other = made(replace(given, text=given.text.flip(0), text_mask=given.text_mask.flip(0)))
    assert (other.audio - made(given).audio)[given.audio_mask].abs().min() > 1e-6


def test_an_even_reach_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"frames: .*must be odd \(it is 4\)"):
        recipe("model.fusion=[{kind: text-guided-enhancer, frames: 4}, text-to-audio]")

"""3-way cross-attention against torch's own attention, recording by recording, without padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amrctl.model.fusion.three_way import Step, ThreeWay, ThreeWayConfig, ThreeWayRound
from amrctl.model.types import Dims, Tokens
from tests.small import rows_of

WIDTH, HEADS = 16, 4
FRAMES, WORDS = (7, 3, 5), (2, 4, 1)


def tokens() -> Tokens:
    g = torch.Generator().manual_seed(2)
    audio, real = rows_of(FRAMES, WIDTH, g)
    text, words = rows_of(WORDS, WIDTH, g)
    audio = torch.where(real[..., None], audio, 50.0)  # what stands on padding must not matter
    text = torch.where(words[..., None], text, -50.0)
    position = torch.randn(audio.shape, generator=g)
    mark = torch.randn(3, WIDTH, generator=g)
    return Tokens(audio, real, position, text, words, mark, mark)


def fusion(layers: int) -> ThreeWay:
    torch.manual_seed(0)
    made = ThreeWay(
        ThreeWayConfig(layers=layers, heads=HEADS, inner=None, dropout=0.0), Dims(WIDTH, (5,), (6,))
    )
    for name, parameter in made.named_parameters():
        if "norm" in name or "bias" in name:
            nn.init.normal_(parameter, std=0.3)
    return made


def step(part: nn.Module, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`x`, `query` [T, H]; `key`, `value` [L, H]; the attention is torch's."""
    assert isinstance(part, Step)
    own = part.attention
    seen, _ = functional.multi_head_attention_forward(
        query[:, None],
        key[:, None],
        value[:, None],
        WIDTH,
        HEADS,
        own.in_proj_weight,
        own.in_proj_bias,
        None,
        None,
        False,
        0.0,
        own.out_proj.weight,
        own.out_proj.bias,
        need_weights=False,
    )
    x = functional.layer_norm(x + seen[:, 0], (WIDTH,), part.norm1.weight, part.norm1.bias)
    inner = part.feedforward.linear1(x)
    inner = torch.where(inner > 0, inner, inner * part.feedforward.activation.weight)
    x = x + part.feedforward.linear2(inner)
    return functional.layer_norm(x, (WIDTH,), part.norm2.weight, part.norm2.bias)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_three_steps(layers: int) -> None:
    made, given = fusion(layers), tokens()
    got = made(given)
    for b, (n, words) in enumerate(zip(FRAMES, WORDS, strict=True)):
        audio, text, at = given.audio[b, :n], given.text[b, :words], given.audio_position[b, :n]
        for layer in made.layers:
            assert isinstance(layer, ThreeWayRound)
            audio = step(layer.hear, audio, audio + at, text, text)
            text = step(layer.reread, text, text, audio + at, audio)
            audio = step(layer.update, audio, audio + at, text, text)
        torch.testing.assert_close(got.audio[b, :n], audio, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.text[b, :words], text, rtol=1e-4, atol=1e-5)
    assert got.summary is given.summary
    assert got.audio_position is given.audio_position


def test_the_sentence_is_changed_by_what_is_heard() -> None:
    """And the last step reads that changed sentence, not the one it was given."""
    made, given = fusion(1), tokens()
    got = made(given)
    other = made(replace(given, audio=given.audio + given.audio_mask[..., None]))
    assert not torch.allclose(got.text[0, :2], other.text[0, :2], atol=1e-3)
    (round_,) = made.layers
    assert isinstance(round_, ThreeWayRound)
    hidden = round_.reread
    with torch.no_grad():
        hidden.norm2.weight.zero_()
        hidden.norm2.bias.fill_(0.7)
    flat = made(given)
    torch.testing.assert_close(flat.text[0], torch.full((4, WIDTH), 0.7))
    assert not torch.allclose(flat.audio[0], got.audio[0], atol=1e-3)

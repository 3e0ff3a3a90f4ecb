"""The text summary, registers in an encoder, and the layer norms before cross-attention."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from amrctl.model.encoder.transformer import Transformer, TransformerConfig
from amrctl.model.fusion.layer_norms import LayerNorms, LayerNormsConfig
from amrctl.model.fusion.sentence_token import SentenceToken, SentenceTokenConfig
from amrctl.model.layers.encoder_layer import EncoderLayer
from amrctl.model.types import Dims, Memory
from tests.model.fusion.test_temporal_difference import tokens

WIDTH = 8
DIMS = Dims(WIDTH, (WIDTH,), (WIDTH,))


def test_the_summary_is_the_first_token_of_an_encoder_over_the_real_words() -> None:
    torch.manual_seed(0)
    made = SentenceToken(SentenceTokenConfig.model_validate({"heads": 2, "registers": 3}), DIMS).eval()
    given = tokens()
    out = made(given)
    assert out.text is given.text
    assert out.audio is given.audio
    encoder = made.encoder
    (layer,) = encoder.layers
    assert isinstance(layer, EncoderLayer)
    assert encoder.registers is not None
    for b, words in enumerate((4, 2, 1)):  # spelled out, without padding
        x = torch.cat((encoder.token[None], given.text[b, :words], encoder.registers.tokens))[None]
        position = torch.zeros_like(x)
        position[0, 0] = encoder.position
        wanted = layer(x, position, None)[0]
        torch.testing.assert_close(out.extras["sentence-token"][b], wanted[0])
        torch.testing.assert_close(out.extras["sentence-token.words"][b, :words], wanted[1 : words + 1])
    assert out.extras["sentence-token.words"].shape == given.text.shape


@pytest.mark.parametrize("registers", [0, 4])
def test_registers_are_seen_and_then_dropped(registers: int) -> None:
    torch.manual_seed(0)
    made = Transformer(TransformerConfig.model_validate({"heads": 2, "registers": registers}), DIMS).eval()
    memory = Memory(**vars(tokens()))
    out = made(memory)
    assert out.audio.shape == memory.audio.shape
    rest = {name for name, _ in made.named_parameters() if not name.startswith("layers.")}
    assert rest == ({"registers.tokens"} if registers else set())
    for b, frames in enumerate((6, 9, 1)):
        x = torch.cat((memory.summary[b : b + 1], memory.audio[b, :frames]))
        position = torch.cat((memory.summary_position[b : b + 1], memory.audio_position[b, :frames]))
        if made.registers is not None:
            x = torch.cat((x, made.registers.tokens))
            position = functional.pad(position, (0, 0, 0, registers))
        x, position = x[None], position[None]
        for layer in made.layers:
            x = layer(x, position, None)
        torch.testing.assert_close(out.summary[b], x[0, 0])
        torch.testing.assert_close(out.audio[b, :frames], x[0, 1 : frames + 1])
    if made.registers is not None:
        with torch.no_grad():
            made.registers.tokens.mul_(50)
        assert not torch.allclose(made(memory).summary, out.summary)


def test_each_side_is_normalised_by_its_own_weights() -> None:
    made = LayerNorms(LayerNormsConfig(), DIMS)
    with torch.no_grad():
        made.audio.weight.fill_(2.0)
        made.text.bias.fill_(3.0)
    given = tokens()
    given = replace(given, audio=given.audio * 10 + 4)
    out = made(given)
    for b, frames in enumerate((6, 9, 1)):
        for x, got, scale, shift in (
            (given.audio[b, :frames], out.audio[b, :frames], 2.0, 0.0),
            (given.text[b, :1], out.text[b, :1], 1.0, 3.0),
        ):
            for row, found in zip(x.double(), got, strict=True):
                spread = math.sqrt(float(((row - row.mean()) ** 2).mean()) + 1e-5)
                wanted = (row - row.mean()) / spread * scale + shift
                torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)

"""Gated feature streams: eq. 1 by hand, closed gates, and tokens of unlike tokenizers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from amrctl.data.batch import Batch, Heard, Spread
from amrctl.errors import RecipeError
from amrctl.model.detector import Detector, build
from amrctl.model.layers.feedforward import InputBlock
from amrctl.model.tokens.gated_streams import Gated, GatedStreams, at_places_of
from amrctl.model.types import Tokens
from tests.small import AUDIO_DIM, TEXT_DIM, batch, padded, recipe, row_of, rows_of
from tests.test_contract import close, without_dropout

AUDIO, TEXT = (AUDIO_DIM, 3, 7), (TEXT_DIM, 4)
FRAMES, WORDS, PIECES = (12, 17, 9), (4, 2, 6), (3, 5, 1)


def several() -> Batch:
    """Three audio streams and two text streams of unlike widths; the second tokenizer cuts differently."""
    generator = torch.Generator().manual_seed(5)
    whole = batch(FRAMES, WORDS)
    more = [rows_of(FRAMES, dim, generator)[0] for dim in AUDIO[1:]]
    pieces, mask = rows_of(PIECES, TEXT[1], generator)
    return replace(
        whole,
        audio=(*whole.audio, *more),
        text=(*whole.text, pieces),
        text_mask=(*whole.text_mask, mask),
    )


def made(
    kind: str = "gated-streams", audio: tuple[int, ...] = AUDIO, text: tuple[int, ...] = TEXT
) -> Detector:
    torch.manual_seed(0)
    detector = build(recipe(f"model.tokens={{kind: {kind}}}"), audio, text, training=True)
    generator = torch.Generator().manual_seed(9)
    for part in detector.modules():
        if isinstance(part, Gated):
            part.gate.data = torch.randn((), generator=generator)
    return detector


def tokens_of(detector: Detector, data: Batch) -> Tokens:
    found: Tokens = detector.tokens(data)
    return found


def blocks(stack: nn.Module, x: Tensor) -> Tensor:
    """Norm, linear, ReLU but after the last: the input blocks without dropout."""
    parts = [part for part in stack.children() if isinstance(part, InputBlock)]
    for i, part in enumerate(parts):
        x = functional.layer_norm(x, x.shape[-1:], part.norm.weight, part.norm.bias)
        x = functional.linear(x, part.linear.weight, part.linear.bias)
        x = x.clamp(min=0) if i < len(parts) - 1 else x
    return x


def test_equation_1_recording_by_recording() -> None:
    detector, whole = made().eval(), several()
    tokens = detector.tokens
    assert isinstance(tokens, GatedStreams)
    with torch.no_grad():
        got = tokens_of(detector, whole)
        for b in range(3):
            n, words, pieces = FRAMES[b], WORDS[b], PIECES[b]
            t = torch.arange(n)[:, None]
            tef = torch.cat((t / n, (t + 1) / n), 1)
            wanted = blocks(tokens.audio, torch.cat((whole.audio[0][b, :n], tef), 1))
            for part, stream in zip(tokens.more_audio, whole.audio[1:], strict=True):
                assert isinstance(part, Gated)
                wanted += 1 / (1 + float((-part.gate).exp())) * blocks(part.blocks, stream[b, :n])
            torch.testing.assert_close(got.audio[b, :n], wanted)
            (part,) = tokens.more_text
            assert isinstance(part, Gated)
            own = blocks(part.blocks, whole.text[1][b, :pieces]).numpy()
            centres = ((np.arange(words) + 0.5) / words, (np.arange(pieces) + 0.5) / pieces)
            read = np.stack([np.interp(*centres, column) for column in own.T], axis=1)
            wanted = blocks(tokens.text, whole.text[0][b, :words])
            wanted += 1 / (1 + float((-part.gate).exp())) * torch.from_numpy(read).float()
            torch.testing.assert_close(got.text[b, :words], wanted)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_places_between_tokens_are_numpys(lengths: list[tuple[int, int]], more: int) -> None:
    have, want = [n for n, _ in lengths], [n for _, n in lengths]
    rows, mask = rows_of(have, 2, torch.Generator().manual_seed(sum(have)))
    rows, mask = functional.pad(rows, (0, 0, 0, more)), functional.pad(mask, (0, more))
    rows = torch.where(mask[..., None], rows, torch.nan)
    wanted = torch.arange(max(want) + more)[None] < torch.tensor(want)[:, None]
    got = at_places_of(rows, mask, wanted)
    assert got.shape == (len(lengths), max(want) + more, 2)
    for b, (k, n) in enumerate(lengths):
        places = ((np.arange(n) + 0.5) / n, (np.arange(k) + 0.5) / k)
        for column in range(2):
            expected = np.interp(*places, rows[b, :k, column].numpy())
            np.testing.assert_allclose(got[b, :n, column].numpy(), expected, rtol=1e-4, atol=1e-5)
        assert not got[b, n:].any()
        if k == n:
            assert torch.equal(got[b, :n], rows[b, :k])


@pytest.mark.parametrize("training", [False, True])
def test_closed_gates_are_the_single_stream_to_the_bit(training: bool) -> None:
    """Also with the same draws of dropout: the main streams draw first."""
    several_streams, whole = made().train(training), several()
    single = made("projection", AUDIO[:1], TEXT[:1]).train(training)
    own = several_streams.state_dict()
    assert set(single.state_dict()) == {name for name in own if not name.startswith("tokens.more_")}
    single.load_state_dict({name: own[name] for name in single.state_dict()})
    alone = replace(whole, audio=whole.audio[:1], text=whole.text[:1], text_mask=whole.text_mask[:1])

    def said(detector: Detector, data: Batch) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        tokens = tokens_of(detector, data)
        return tokens.audio[whole.audio_mask], tokens.text[whole.text_mask[0]]

    for one, other in zip(said(several_streams, whole), said(single, alone), strict=True):
        assert not torch.equal(one, other)
    for part in several_streams.modules():
        if isinstance(part, Gated):
            part.gate.data.fill_(-torch.inf)
    for one, other in zip(said(several_streams, whole), said(single, alone), strict=True):
        assert torch.equal(one, other)
    if not training:
        one, other = several_streams(whole), single(alone)
        assert torch.equal(one.spans, other.spans)
        assert torch.equal(one.logits, other.logits)


def test_gates_start_half_open_and_every_stream_learns() -> None:
    torch.manual_seed(0)
    detector, whole = build(recipe("model.tokens=gated-streams"), AUDIO, TEXT, training=True), several()
    gates = [part.gate for part in detector.modules() if isinstance(part, Gated)]
    assert [float(gate.sigmoid().detach()) for gate in gates] == [0.5] * 3
    output = detector(whole)
    (output.spans.sum() + output.saliency[whole.audio_mask].sum()).backward()
    for name, parameter in detector.tokens.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_padding_and_companions_change_nothing() -> None:
    detector, whole = made().eval(), several()
    without_dropout(detector)
    with torch.no_grad():
        once, longer = detector(whole), detector(padded(whole, 7, 3))
        close(once.spans, longer.spans, "spans")
        close(once.logits, longer.logits, "logits")
        for b in range(3):
            alone = detector(row_of(whole, b))
            close(alone.spans[:, 0], once.spans[:, b], "spans")
            close(alone.saliency[0], once.saliency[b, : FRAMES[b]], "saliency")


def test_recordings_that_are_shared_are_projected_once() -> None:
    detector, whole = made().eval(), several()
    row = torch.tensor([1, 0, 0])
    heard = Heard(tuple(x[:2] for x in whole.audio), whole.audio_mask[:2], whole.lengths[:2])
    shared = replace(
        whole,
        audio=Spread(heard.audio, row),
        audio_mask=whole.audio_mask[row],
        lengths=whole.lengths[row],
        recordings=heard,
        row=row,
    )
    plain = replace(shared, audio=tuple(x[row] for x in whole.audio), recordings=None, row=None)
    seen: list[int] = []
    detector.get_submodule("tokens.more_audio.1").register_forward_hook(
        lambda module, inputs, result: seen.append(len(result))
    )
    with torch.no_grad():
        torch.testing.assert_close(tokens_of(detector, shared).audio, tokens_of(detector, plain).audio)
    assert seen == [2, 3]


def test_the_single_stream_component_says_which_reads_several() -> None:
    with pytest.raises(RecipeError, match=r"recipe lists 3 and 2 \('gated-streams' reads several\)"):
        made("projection")

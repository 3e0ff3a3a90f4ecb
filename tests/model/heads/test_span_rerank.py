"""Span re-ranking against a loop over frames in float64, and the blend of its score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from amrctl.errors import RecipeError
from amrctl.inference.scores.span_rerank import SpanRerankScore, SpanRerankScoreConfig
from amrctl.losses.labels import foreground
from amrctl.model.heads.span_rerank import Resemblance, SpanRerank, SpanRerankConfig
from amrctl.model.layers.pooling import window_mean
from amrctl.model.types import Decoded, Dims, Matches, Memory, Output
from tests.small import batch, rows_of

DIMS = Dims(6, (5,), (6,))


def memory(lengths: list[int]) -> Memory:
    generator = torch.Generator().manual_seed(1)
    audio, mask = rows_of(lengths, 6, generator)
    text, text_mask = rows_of([3, 1][: len(lengths)], 6, generator)
    whole = torch.zeros(len(lengths), 6)
    return Memory(
        audio=torch.where(mask[..., None], audio, 5.0),
        audio_mask=mask,
        audio_position=audio,
        text=torch.where(text_mask[..., None], text, -5.0),
        text_mask=text_mask,
        summary=whole,
        summary_position=whole,
    )


def decoded() -> Decoded:
    return Decoded(torch.zeros(1, 2, 3, 6), torch.zeros(1, 2, 3, 2))


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    centre=st.floats(0, 1, width=32),
    width=st.floats(0, 1, width=32),
)
@example(
    lengths=[2], centre=2.0**-60, width=0.0
)  # in float32, start + 1 is 1: frame 1 begins there, not before
@example(lengths=[8], centre=float(np.nextafter(np.float32(0.375), np.float32(1))), width=0.0)
def test_a_window_is_the_mean_of_the_frames_that_begin_in_it(
    lengths: list[int], centre: float, width: float
) -> None:
    audio, _ = rows_of(lengths, 2, torch.Generator().manual_seed(0))
    spans = torch.tensor([[[centre, width]]]).expand(len(lengths), -1, -1)
    got = window_mean(audio, torch.tensor(lengths), spans)
    for b, n in enumerate(lengths):
        # the same float32 steps for the edges: which frame an edge falls on is not the question here
        low, high = (spans[b, 0, :1] - spans[b, 0, 1:] / 2), (spans[b, 0, :1] + spans[b, 0, 1:] / 2)
        start = min((low.clamp(0, 1) * n).item(), n - 1)
        end = (high.clamp(0, 1) * n).item()
        own = [audio[b, t].double() for t in range(n) if start <= t < end or t - 1 < start <= t]
        assert own
        torch.testing.assert_close(got[b, 0].double(), torch.stack(own).mean(0), rtol=1e-5, atol=1e-6)


def test_the_resemblance_is_the_cosine_of_the_projected_means() -> None:
    torch.manual_seed(0)
    head = SpanRerank(SpanRerankConfig.model_validate({}), DIMS)
    there = memory([8, 4])
    # windows at the start, in the middle, and of no length at the end: frames 0-1, 3-5 and the last
    spans = torch.tensor([[0.125, 0.25], [0.5625, 0.375], [1.0, 0.0]]).expand(2, 3, 2)
    output = Output(spans=spans[None])
    head(there, decoded(), output)
    got = output.extras["span-rerank"]
    assert got.shape == (2, 3)
    frames = {8: [[0, 1], [3, 4, 5], [7]], 4: [[0], [2], [3]]}
    span, text = head.span.double(), head.text.double()
    for b, n in enumerate((8, 4)):
        words = there.text[b, : (3, 1)[b]].double().mean(0)
        for q, own in enumerate(frames[n]):
            pooled = there.audio[b, own].double().mean(0)
            cosine = torch.cosine_similarity(span(pooled), text(words), dim=0)
            assert got[b, q].item() == pytest.approx((cosine.item() + 1) / 2, abs=1e-6)


def test_windows_are_detached_and_the_memory_is_not() -> None:
    head = SpanRerank(SpanRerankConfig.model_validate({}), DIMS)
    there = memory([8, 4])
    there.audio.requires_grad_()
    spans = torch.full((1, 2, 3, 2), 0.5, requires_grad=True)
    output = Output(spans=spans)
    head(there, decoded(), output)
    output.extras["span-rerank"].sum().backward()
    assert spans.grad is None
    assert there.audio.grad is not None
    assert bool(there.audio.grad[there.audio_mask].any())
    assert not there.audio.grad[~there.audio_mask].any()


def test_the_term_is_the_cross_entropy_of_eq_3() -> None:
    likeness = torch.tensor([[0.9, 0.2, 1.0], [0.5, 0.7, 0.1]])
    output = Output(extras={"span-rerank": likeness})
    matches = Matches(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([0, 0]))
    found = [0.9, 0.1]
    rest = [0.2, 1 - 1e-6, 0.5, 0.7]
    everyone = -sum(map(math.log, found)) - sum(math.log(1 - r) for r in rest)
    value = Resemblance(0.5, "all")(output, batch(), matches, -1)
    assert value.item() == pytest.approx(everyone / 6, rel=1e-2)  # 1 - 1e-6 in float32
    value = Resemblance(0.5, "matched")(output, batch(), matches, -1)
    assert value.item() == pytest.approx(-sum(map(math.log, found)) / 2)
    none = Matches(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))
    assert Resemblance(0.5, "matched")(output, batch(), none, -1).item() == 0
    assert Resemblance(0.5, "all")(output, batch(), none, -1).isfinite()


def test_official_pools_in_padded_frames() -> None:
    torch.manual_seed(0)
    there = memory([8, 4])
    spans = torch.tensor([[0.75, 0.5]]).expand(1, 2, 1, 2)
    found = []
    for official in (False, True):
        torch.manual_seed(0)
        output = Output(spans=spans)
        SpanRerank(SpanRerankConfig.model_validate({}), Dims(6, (5,), (6,), official))(
            there, decoded(), output
        )
        found.append(output.extras["span-rerank"])
    assert torch.equal(found[0][0], found[1][0])  # the longest of the batch
    assert not torch.equal(found[0][1], found[1][1])


def blend(alpha: float, **extras: Any) -> torch.Tensor:
    logits = torch.randn(2, 2, 3, 2, generator=torch.Generator().manual_seed(3))
    score = SpanRerankScore(SpanRerankScoreConfig(alpha=alpha))
    return score(Output(logits=logits, extras=extras), batch(frames=(3, 4), tokens=(1, 2)))


def test_the_score_blends_and_passes_through_at_one() -> None:
    logits = torch.randn(2, 2, 3, 2, generator=torch.Generator().manual_seed(3))
    probability = functional.softmax(logits[-1], -1)[..., 0]
    assert torch.equal(blend(1.0), foreground(logits[-1]))
    assert torch.equal(blend(1.0, **{"span-rerank": torch.rand(2, 3)}), probability)
    likeness = torch.rand(2, 3)
    torch.testing.assert_close(blend(0.25, **{"span-rerank": likeness}), 0.25 * probability + 0.75 * likeness)
    with pytest.raises(RecipeError, match="span-rerank"):
        blend(0.5)

"""The quality head: what it reads, what it may not move, and how its answer ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl import registry
from amrctl.errors import RecipeError
from amrctl.losses.iou_quality import iou_target
from amrctl.losses.total import Criterion
from amrctl.model.detector import build
from amrctl.model.layers.windows import boundary_confidence, value_at
from amrctl.model.types import Output
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe

HEADS = "model.heads=[foreground, span, saliency, boundary, quality]"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_values_between_frames_are_numpys(seed: int, frames: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(9)[None] < torch.tensor([[9], [frames]])
    curve = torch.randn(2, 9, generator=generator).masked_fill(~mask, torch.nan)
    at = torch.rand(3, 2, 6, generator=generator) * 1.4 - 0.2
    at[0, :, :3] = torch.tensor([0.0, 0.5, 1.0])
    got = value_at(curve, at, mask)
    for b, count in enumerate((9, frames)):
        grid = (np.arange(count) + 0.5) / count
        wanted = np.interp(at[:, b].numpy(), grid, curve[b, :count].numpy())
        np.testing.assert_allclose(got[:, b].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_confidence_by_hand() -> None:
    """Four real frames; a window from 0.25 (between the first two) to 0.875 (the last one's centre)."""
    logits = torch.full((1, 6, 2), 9.0)
    probability = torch.tensor([[0.2, 0.6, 0.5, 0.5], [0.5, 0.5, 0.1, 0.9]])
    logits[0, :4] = torch.logit(probability).T
    mask = torch.tensor([[True] * 4 + [False] * 2])
    spans = torch.tensor([[[[0.5625, 0.625], [0.875, 0.0], [0.5, 3.0]]]], requires_grad=True)
    got = boundary_confidence(logits.requires_grad_(), spans, mask)
    # a window of no length at the last frame; one that reaches beyond both ends
    torch.testing.assert_close(got, torch.tensor([[[0.4 * 0.9, 0.5 * 0.9, 0.2 * 0.9]]]))
    assert not got.requires_grad
    assert torch.equal(boundary_confidence(None, spans, mask), torch.ones(1, 1, 3))


def test_it_judges_without_moving_what_it_judges() -> None:
    """Its loss reaches the head and the query states, neither the boundary heads nor the span head."""
    made = recipe(HEADS)
    torch.manual_seed(0)
    detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    data = batch()
    output = detector(data)
    assert output.quality is not None
    assert output.quality.shape == (2, 3, 7)
    criterion = Criterion(made, detector)
    (term,) = (t for t in criterion.terms if t.name == "quality-head")
    assert (term.weight, term.all_layers) == (1.0, True)
    output.quality.square().sum().backward()
    reached = {
        name.split(".")[1] for name, p in detector.heads.named_parameters("heads") if p.grad is not None
    }
    assert reached == {"quality"}
    assert detector.get_parameter("decoder.query_embed.weight").grad is not None
    # confidence and width matter all the same
    with torch.no_grad():
        before = detector.eval()(data).quality
        for column in (-2, -1):
            weight = detector.get_parameter("heads.quality.mlp.layers.0.weight")
            weight[:, column] += 0.5
            assert not torch.allclose(before, detector(data).quality)
            weight[:, column] -= 0.5


def test_it_needs_the_windows_first() -> None:
    detector = build(
        recipe("model.heads=[foreground, quality, span, saliency]"), (AUDIO_DIM,), (TEXT_DIM,), training=True
    )
    with pytest.raises(RecipeError, match="'quality' needs the head 'span' before it"):
        detector(batch())


def test_the_blend_by_hand() -> None:
    """Eq. 6 on the last layer: p_fg 0.75 and p_quality 0.2."""
    odds = torch.tensor([3.0]).log().item()
    logits = torch.tensor([[[[0.0, 9.0]]], [[[odds, 0.0]]]])
    output = Output(logits=logits, quality=torch.logit(torch.tensor([[[0.9]], [[0.2]]])))
    entry = registry.find("score", "quality-blend")
    for raw, wanted in (({}, 0.2 * 0.75 + 0.8 * 0.2), ({"lambda": 0.0}, 0.75), ({"lambda": 1.0}, 0.2)):
        score = entry.build(entry.config.model_validate({"kind": "quality-blend", **raw}))
        assert float(score(output, batch())) == pytest.approx(wanted)
    with pytest.raises(RecipeError, match="needs the head 'quality'"):
        score(Output(logits=logits), batch())


def test_lambda_is_a_key_like_any_other() -> None:
    made = recipe(HEADS, "inference.score={kind: quality-blend}", "inference.score.lambda=0.25")
    assert made.to_dict()["inference"]["score"] == {"kind": "quality-blend", "lambda": 0.25}
    for text, message in (
        ("lamda=0.5", "unknown key; did you mean 'lambda'"),
        ("lambda=2", "less than or equal to 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe(HEADS, "inference.score={kind: quality-blend}", f"inference.score.{text}")


CHUNG_ANG = "model.heads=[foreground, span, saliency, {kind: quality, reads: state, loss: l1}]"


def test_the_state_alone() -> None:
    """Chung-Ang's branch reads neither boundaries nor width, and its loss is the L1 of matched windows."""
    made = recipe(CHUNG_ANG)
    torch.manual_seed(0)
    detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    assert detector.get_parameter("heads.quality.mlp.layers.0.weight").shape == (32, 32)
    data = batch()
    output = detector(data)
    (term,) = (t for t in Criterion(made, detector).terms if t.name == "quality-head")
    assert output.quality is not None
    matches = Criterion(made, detector)._match(output, data)[-1]
    told = output.quality[-1].sigmoid()
    assert len(matches.row) == 6
    wanted = iou_target(output, data, matches, -1)
    distance = (told - wanted).abs()[matches.row, matches.query].mean()
    torch.testing.assert_close(term(output, data, matches, -1), distance)


def test_the_product_by_hand() -> None:
    """Eq. 2 on the last layer: p_fg 0.75 and q 0.2."""
    odds = torch.tensor([3.0]).log().item()
    logits = torch.tensor([[[[0.0, 9.0]]], [[[odds, 0.0]]]])
    output = Output(logits=logits, quality=torch.logit(torch.tensor([[[0.9]], [[0.2]]])))
    entry = registry.find("score", "product")
    score = entry.build(entry.config.model_validate({"kind": "product"}))
    assert float(score(output, batch())) == pytest.approx(0.75 * 0.2)
    with pytest.raises(RecipeError, match="'product' needs the head 'quality'"):
        score(Output(logits=logits), batch())

"""Loss terms against hand-worked values, closed forms and their definitions written out slowly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.losses.labels import Label, LabelConfig, counted, foreground
from amrctl.losses.saliency import Saliency, SaliencyConfig
from amrctl.losses.spans import GiouConfig, SpanConfig, SpanGiou, SpanL1
from amrctl.losses.total import Criterion
from amrctl.model.detector import build
from amrctl.model.layers.saliency import hinge, negative_pair, rank
from amrctl.model.types import Matches, Output
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe

INF = math.inf


def pairs(*found: tuple[int, int, int]) -> Matches:
    row, query, moment = torch.tensor(found, dtype=torch.int64).view(-1, 3).unbind(1)
    return Matches(row, query, moment)


def with_spans(spans: list[list[list[float]]]) -> Batch:
    """Two pairs whose moments are given as (centre, width)."""
    whole = batch((6, 6), (2, 2))
    assert whole.targets is not None
    mask = torch.ones(2, len(spans[0]), dtype=torch.bool)
    return replace(whole, targets=replace(whole.targets, spans=torch.tensor(spans), mask=mask))


# --- spans -------------------------------------------------------------------------------------------


def test_span_terms_by_hand() -> None:
    # (0.2, 0.2) is 0.1..0.3 against (0.3, 0.2), 0.2..0.4: IoU 1/3 and no gap
    # (0.1, 0.2) is 0..0.2 against (0.75, 0.5), 0.5..1: gIoU -0.3/1
    data = with_spans([[[0.3, 0.2], [0.9, 0.1]], [[0.75, 0.5], [0.9, 0.1]]])
    spans = torch.zeros(1, 2, 3, 2)
    spans[0, 0, 2] = torch.tensor([0.2, 0.2])
    spans[0, 1, 1] = torch.tensor([0.1, 0.2])
    output, matches = Output(spans=spans), pairs((0, 2, 0), (1, 1, 0))
    l1 = SpanL1(SpanConfig(weight=1))(output, data, matches, 0)
    assert float(l1) == pytest.approx((0.1 + 0.0 + 0.65 + 0.3) / 4)
    giou = SpanGiou(GiouConfig(weight=1))(output, data, matches, 0)
    assert float(giou) == pytest.approx(((1 - 1 / 3) + (1 + 0.3)) / 2)


@pytest.mark.parametrize("term", [SpanL1(SpanConfig(weight=1)), SpanGiou(GiouConfig(weight=1))])
def test_span_terms_without_a_pair_are_zero_with_a_gradient(term: SpanL1 | SpanGiou) -> None:
    spans = torch.rand(1, 2, 3, 2, requires_grad=True)
    value = term(Output(spans=spans), batch((6, 6), (2, 2)), pairs(), 0)
    assert value.item() == 0
    value.backward()
    assert spans.grad is not None
    assert not spans.grad.any()


# --- labels ------------------------------------------------------------------------------------------


def test_label_by_hand() -> None:
    """Two pairs of two queries; equal logits cost log 2, weighted 1 and 0.1, over all four."""
    data = with_spans([[[0.5, 0.2]], [[0.5, 0.2]]])
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0] = torch.tensor([3.0, 1.0])
    output = Output(logits=logits, spans=torch.full((1, 2, 2, 2), 0.1))
    got = Label(LabelConfig.model_validate({"weight": 1}))(output, data, pairs((0, 1, 0), (1, 0, 0)), 0)
    matched = math.log(2) + math.log(1 + math.exp(-2))
    assert float(got) == pytest.approx((matched + 0.1 * 2 * math.log(2)) / 4)
    got = Label(LabelConfig(weight=1, background=0.5))(output, data, pairs((0, 1, 0), (1, 0, 0)), 0)
    assert float(got) == pytest.approx((matched + 0.5 * 2 * math.log(2)) / 4)


def test_a_query_on_a_moment_left_out_is_not_background() -> None:
    data = with_spans([[[0.5, 0.2]], [[0.5, 0.2]]])
    assert data.targets is not None
    data.targets.ignored = torch.tensor([[[0.25, 0.125]], [[0.25, 0.125]]])
    data.targets.ignored_mask = torch.tensor([[True], [False]])
    # on it; IoU 0.5 with it (half as wide); just below; on it but matched
    row = [[0.25, 0.125], [0.25, 0.0625], [0.25, 0.0624], [0.25, 0.125]]
    output = Output(logits=torch.zeros(1, 2, 4, 2), spans=torch.tensor([[row, row]]))
    matches = pairs((0, 3, 0), (1, 0, 0))
    assert counted(output, data, matches, 0).tolist() == [[False, False, True, True], [True] * 4]
    got = Label(LabelConfig.model_validate({"weight": 1}))(output, data, matches, 0)
    # two matched, one + three background, two ignored: zero, but counted in the mean
    assert float(got) == pytest.approx(math.log(2) * (2 + 0.1 * 4) / 8)


def test_foreground_of_two_logits_and_of_one() -> None:
    two = torch.tensor([[2.0, -1.0]], dtype=torch.bfloat16)
    assert float(foreground(two)[0]) == pytest.approx(1 / (1 + math.exp(-3)))
    assert foreground(two).dtype == torch.float32
    assert float(foreground(torch.tensor([[3.0]]))[0]) == pytest.approx(1 / (1 + math.exp(-3)))


# --- saliency ----------------------------------------------------------------------------------------


def test_hinge_by_hand() -> None:
    curve = torch.tensor([[1.0, 0.0, 0.9, 5.0], [0.0, 0.0, 0.0, 0.0]])
    inside, outside = torch.tensor([[0, 2], [0, 1]]), torch.tensor([[1, 0], [2, 3]])
    both = torch.tensor([True, True])
    # row 0: 0.2 + 0 - 1 < 0; 0.2 + 1 - 0.9 = 0.3.  row 1: 0.2 twice
    assert float(hinge(curve, inside, outside, both, 0.2)) == pytest.approx((0.3 + 0.4) / 2)
    assert float(hinge(curve, inside, outside, torch.tensor([True, False]), 0.2)) == pytest.approx(0.3 / 2)


def slow_rank(curve: Tensor, other: Tensor, inside: Tensor, real: Tensor, other_real: Tensor) -> float:
    """The definition in float64: softmax over both curves at temperature 0.5, 1e-6 in the logarithm."""
    total = 0.0
    for b in range(len(curve)):
        scores = [float(z) / 0.5 if r else -2000.0 for z, r in zip(curve[b], real[b], strict=True)]
        scores += [float(z) / 0.5 if r else -2000.0 for z, r in zip(other[b], other_real[b], strict=True)]
        top = max(scores)
        norm = math.log(sum(math.exp(s - top) for s in scores) + 1e-6)
        chosen = [s - top - norm for s, i in zip(scores, inside[b], strict=False) if i]
        total += -sum(chosen) / (len(chosen) + 1e-6) if chosen else 0.0
    return total / len(curve) / 12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 10.0]))
def test_rank_is_its_definition(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    curve, other = torch.randn(2, 3, 7, generator=generator) * scale
    real = torch.arange(7)[None] < torch.tensor([[7], [4], [2]])
    other_real = real.clone()
    other_real[1] = False
    inside = ((torch.rand(3, 7, generator=generator) > 0.5) & real).float()
    inside[2] = 0
    wanted = slow_rank(curve, other, inside, real, other_real)
    assert float(rank(curve, other, inside, real, other_real)) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    nothing = torch.zeros_like(real)
    alone = float(rank(curve, None, inside, real, nothing))
    assert alone == pytest.approx(slow_rank(curve, other, inside, real, nothing), rel=1e-4, abs=1e-6)


def test_negative_pair_by_hand() -> None:
    """-log(1 - sigmoid(0)) = log 2 per real frame: a sum over frames, a mean over rows."""
    real = torch.tensor([[True, True, True], [True, False, False]])
    assert float(negative_pair(torch.zeros(2, 3), real)) == pytest.approx(math.log(2) * 4 / 2)
    assert float(negative_pair(torch.full((2, 3), 30.0), real)) == pytest.approx(30.0 * 4 / 2)


@pytest.mark.parametrize(
    ("size", "where"),
    [
        *((size, "padding") for size in (1e4, -1e4, INF, -INF, math.nan)),
        (1e4, "everywhere"),
        (-1e4, "everywhere"),
    ],
)
def test_saliency_stays_finite(size: float, where: str) -> None:
    """Large scores overflowed in the released code, and on padding gave NaN (reference 1.15, no. 6)."""
    data = batch((7, 12), (2, 2))
    generator = torch.Generator().manual_seed(0)
    curves = torch.randn(2, 2, 12, generator=generator)
    there = ~data.audio_mask if where == "padding" else torch.ones_like(data.audio_mask)
    large = curves.masked_fill(there, size).requires_grad_()
    term = Saliency(SaliencyConfig.model_validate({"weight": 1}))
    value = term(Output(saliency=large[0], extras={"negative-pairs": large[1]}), data, pairs(), 0)
    assert value.isfinite()
    value.backward()
    assert large.grad is not None
    assert large.grad.isfinite().all()
    if where == "padding":
        assert not large.grad[:, ~data.audio_mask].any()
        plain = term(Output(saliency=curves[0], extras={"negative-pairs": curves[1]}), data, pairs(), 0)
        assert value.item() == pytest.approx(float(plain))


def test_saliency_is_its_three_parts_and_skips_rows_without_a_stranger() -> None:
    data = batch((7, 12), (2, 2))
    targets = data.targets
    assert targets is not None
    targets.negative_row = torch.tensor([1, -1])
    curve, other = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(3))
    stranger = data.audio_mask & torch.tensor([[True], [False]])
    term = Saliency(SaliencyConfig(weight=1, margin=0.7, rows="together"))
    got = term(Output(saliency=curve, extras={"negative-pairs": other}), data, pairs(), 0)
    parts = (
        hinge(curve, targets.positives, targets.negatives, targets.pair_mask, 0.7)
        + negative_pair(other, stranger)
        + rank(curve, other, targets.saliency, data.audio_mask, stranger)
    )
    assert float(got) == pytest.approx(float(parts))
    changed = other.clone()
    changed[1] = 77.0  # the row that has no stranger
    again = term(Output(saliency=curve, extras={"negative-pairs": changed}), data, pairs(), 0)
    assert float(again) == pytest.approx(float(got))
    without = term(Output(saliency=curve), data, pairs(), 0)
    parts = hinge(curve, targets.positives, targets.negatives, targets.pair_mask, 0.7) + rank(
        curve, None, targets.saliency, data.audio_mask, stranger
    )
    assert float(without) == pytest.approx(float(parts))


# --- the sum -----------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_over_layers() -> None:
    made = recipe("losses.span=3", "losses.giou=0.5", "losses.label=2", "losses.saliency=0.25")
    torch.manual_seed(0)
    detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    data = batch()
    output = detector(data)
    loss = Criterion(made, detector)(output, data)
    last = Output(output.logits[-1:], output.spans[-1:], output.saliency, extras=output.extras)
    alone = Criterion(made, detector)(last, data)
    first = Output(output.logits[:1], output.spans[:1], output.saliency, extras=output.extras)
    other = Criterion(made, detector)(first, data)
    for name, weight in (("span", 3), ("giou", 0.5), ("label", 2)):
        assert float(loss.raw[name]) == pytest.approx(float(alone.raw[name]))
        both = weight * (float(alone.raw[name]) + float(other.raw[name]))
        assert float(loss.weighted[name]) == pytest.approx(both)
    assert float(loss.weighted["saliency"]) == pytest.approx(0.25 * float(loss.raw["saliency"]))
    assert loss.total.item() == pytest.approx(sum(float(v) for v in loss.weighted.values()))


def test_of_two_equal_spans_the_surer_query_is_matched() -> None:
    """The class cost of matching is the weight of the class term; without one, the first query wins."""
    made = recipe("losses.saliency=null", "model.auxiliary=[]")
    detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    data = with_spans([[[0.5, 0.2]], [[0.5, 0.2]]])
    logits = torch.tensor([0.0, 3.0, -3.0])[:, None] * torch.tensor([0.5, -0.5])  # p_fg 0.5, 0.95, 0.05
    output = Output(logits=logits.expand(1, 2, 3, 2), spans=torch.full((1, 2, 3, 2), 0.4))
    got = float(Criterion(made, detector)(output, data).raw["label"])
    surer, other, wrong = (math.log(1 + math.exp(-z)) for z in (3.0, 0.0, 3.0))
    assert got == pytest.approx((surer + 0.1 * (other + wrong)) / 3)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["losses.giou=null"], "matching needs 'span' and 'giou'"),
        (
            ["losses=[{kind: span, weight: 1}, {kind: giou, weight: 1}, {kind: span, weight: 2}]"],
            "'span' is there twice",
        ),
        (
            ["model.heads=[foreground, span]", "model.auxiliary=[]"],
            "losses.saliency: needs the head 'saliency'",
        ),
        (["model.heads=[foreground, saliency]"], "training needs 'foreground' and 'span'"),
        (["model.heads=[foreground, span]"], "this recipe needs the head 'saliency'"),
    ],
)
def test_recipes_whose_parts_do_not_meet(sets: list[str], message: str) -> None:
    made, data = recipe(*sets), batch()
    detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=True)

    def train() -> None:
        Criterion(made, detector)(detector(data), data)

    with pytest.raises(RecipeError, match=message):
        train()


def test_blind_data_cannot_train() -> None:
    made = recipe()
    detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    data = replace(batch(), targets=None)
    with pytest.raises(RecipeError, match="these queries have none"):
        Criterion(made, detector)(detector(data), data)

"""Varifocal classification and the L1 of the task-aligned IoU head, against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from amrctl.losses.iou_quality import Quality
from amrctl.losses.labels import Label, LabelConfig
from amrctl.losses.total import Criterion
from amrctl.losses.varifocal import Varifocal, VarifocalConfig
from amrctl.model.detector import build
from amrctl.model.types import Output
from tests.losses.test_terms import pairs, with_spans
from tests.small import AUDIO_DIM, TEXT_DIM, recipe

# moments 0.4..0.6; windows with IoU 1/2, 0 (apart) and 1
DATA = with_spans([[[0.5, 0.2]], [[0.5, 0.2]]])
SPANS = torch.tensor([[[[0.55, 0.1], [0.1, 0.1]], [[0.5, 0.2], [0.1, 0.1]]]])
MATCHES = pairs((0, 0, 0), (1, 0, 0))


def config_of(**options: float | None) -> VarifocalConfig:
    return VarifocalConfig.model_validate({"weight": 1, **options})


def term_of(**options: float) -> Varifocal:
    return Varifocal(config_of(**options))


def cost(logit: float, q: float, alpha: float = 0.75, gamma: float = 2.0) -> float:
    p = 1 / (1 + math.exp(-logit))
    if q > 0:
        return -q * (q * math.log(p) + (1 - q) * math.log(1 - p))
    return float(-alpha * p**gamma * math.log(1 - p))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.75, 2.0), (0.3, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("classes", [1, 2])
def test_by_the_formula(classes: int, alpha: float, gamma: float) -> None:
    margins = torch.tensor([[[0.4, -1.0], [2.0, 1.5]]])[..., None]
    logits = margins if classes == 1 else torch.cat((margins + 0.3, torch.full_like(margins, 0.3)), -1)
    term = term_of(alpha=alpha, gamma=gamma)
    got = term(Output(logits=logits, spans=SPANS), DATA, MATCHES, 0)
    wanted = cost(0.4, 0.5) + cost(2.0, 1.0)
    wanted += cost(-1.0, 0, alpha, gamma) + cost(1.5, 0, alpha, gamma)
    assert float(got) == pytest.approx(wanted / 2, rel=1e-5)  # two are matched


def test_a_matched_query_that_misses_counts_as_background() -> None:
    term = term_of()
    logits = torch.tensor([[[[0.4], [-1.0]], [[2.0], [1.5]]]])
    got = term(Output(logits=logits, spans=SPANS), DATA, pairs((0, 1, 0)), 0)
    assert float(got) == pytest.approx(sum(cost(x, 0) for x in (0.4, -1.0, 2.0, 1.5)), rel=1e-5)
    nothing = term(Output(logits=logits, spans=SPANS), DATA, pairs(), 0)
    assert float(nothing) == pytest.approx(float(got))


@pytest.mark.parametrize("size", [60.0, 1e4])
def test_sure_answers_stay_finite(size: float) -> None:
    logits = torch.tensor([[[[size], [size]], [[-size], [-size]]]], requires_grad=True)
    got = term_of()(Output(logits=logits, spans=SPANS), DATA, MATCHES, 0)
    got.backward()
    # matched at IoU 1/2: q ((1 - q) size); background: alpha size; matched at IoU 1 and wrong: size
    assert got.item() == pytest.approx((0.25 * size + 0.75 * size + size) / 2, rel=1e-5)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_iou_is_no_way_to_a_gradient() -> None:
    spans = SPANS.clone().requires_grad_()
    logits = torch.zeros(1, 2, 2, 1, requires_grad=True)
    quality = torch.zeros(1, 2, 2, requires_grad=True)
    output = Output(logits=logits, spans=spans, quality=quality)
    total = term_of()(output, DATA, MATCHES, 0)
    total = total + Quality.of_head(1.0, "l1")(output, DATA, MATCHES, 0)
    total.backward()
    assert spans.grad is None


def test_the_iou_head_is_taught_where_there_is_a_pair() -> None:
    quality = torch.tensor([[[0.5, 9.0], [-1.0, 9.0]]], requires_grad=True)
    term = Quality.of_head(1.0, "l1")
    got = term(Output(spans=SPANS, quality=quality), DATA, MATCHES, 0)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert float(got.detach()) == pytest.approx((abs(sigmoid(0.5) - 0.5) + abs(sigmoid(-1.0) - 1.0)) / 2)
    (grad,) = torch.autograd.grad(got, quality)
    assert grad[0, :, 0].all()
    assert not grad[0, :, 1].any()
    nothing = term(Output(spans=SPANS, quality=quality), DATA, pairs(), 0)
    assert nothing.item() == 0
    assert nothing.requires_grad


def test_the_cost_of_matching_is_its_own() -> None:
    """Of two equal windows the surer query is matched, as far as the span cost lets it."""
    losses = {"span": 10, "giou": 1, "varifocal": {"weight": 1, "cost": 4}}
    made = recipe(f"losses={losses}", "model.auxiliary=[]", "model.heads=[{kind: task-aligned, iou: false}]")
    detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    # in L1 the first query is better by 0.2, the second is surer by 0.8
    spans = torch.tensor([[0.5, 0.2], [0.6, 0.3]]).expand(2, 2, 2, 2)
    logits = torch.tensor([[-2.2], [2.2]]).expand(2, 2, 2, 1)
    for weight, first in ((4.0, False), (None, True)):
        term = made.model_copy(update={"losses": [*made.losses[:2], config_of(cost=weight)]})
        loss = Criterion(term, detector)(Output(logits=logits, spans=spans), DATA)
        assert float(loss.raw["span"]) == pytest.approx(0.0 if first else 0.1, abs=1e-6)
    assert [t.all_layers for t in Criterion(made, detector).terms] == [True] * 3


def test_one_logit_is_judged_like_two() -> None:
    logits = torch.randn(1, 2, 2, 1, generator=torch.Generator().manual_seed(0))
    both = torch.cat((logits, torch.zeros_like(logits)), -1)
    term = Label(LabelConfig.model_validate({"weight": 1}))
    one, two = (term(Output(logits=x, spans=SPANS), DATA, MATCHES, 0) for x in (logits, both))
    torch.testing.assert_close(one, two)
    assert one > 0

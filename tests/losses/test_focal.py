"""Focal classification against closed forms, and in the place of `label`."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from amrctl.losses.focal import Focal, FocalConfig
from amrctl.losses.total import Criterion
from amrctl.model.detector import build
from amrctl.model.types import Output
from tests.losses.test_terms import pairs, with_spans
from tests.small import AUDIO_DIM, TEXT_DIM, recipe

DATA = with_spans([[[0.5, 0.2]], [[0.5, 0.2]]])
FAR = torch.full((1, 2, 2, 2), 0.1)


def term(**options: float) -> Focal:
    return Focal(FocalConfig.model_validate({"weight": 4, **options}))


def test_by_hand() -> None:
    """Row 0: equal logits, p_t = 1/2 both ways. Row 1: foreground by 2, matched; background by 1, not."""
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0] = torch.tensor([3.0, 1.0])
    logits[0, 1, 1] = torch.tensor([-0.5, 0.5])
    output, matches = Output(logits=logits, spans=FAR), pairs((0, 1, 0), (1, 0, 0))
    half = 0.25 * math.log(2)
    p, r = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    wanted = 0.75 * half + 0.25 * half
    wanted += 0.75 * (1 - p) ** 2 * -math.log(p) + 0.25 * (1 - r) ** 2 * -math.log(r)
    assert float(term()(output, DATA, matches, 0)) == pytest.approx(wanted / 4)
    single = Output(logits=logits[..., :1] - logits[..., 1:], spans=FAR)
    assert float(term()(single, DATA, matches, 0)) == pytest.approx(wanted / 4)


def test_without_focus_it_is_the_cross_entropy() -> None:
    logits = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    matches = pairs((0, 0, 0), (1, 1, 0))
    got = term(alpha=0.5, gamma=0.0)(Output(logits=logits, spans=FAR), DATA, matches, 0)
    classes = torch.tensor([[0, 1], [1, 0]])
    wanted = functional.cross_entropy(logits[0].transpose(1, 2), classes)
    assert got.item() == pytest.approx(0.5 * wanted.item())
    (mine,) = torch.autograd.grad(got, logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(0.5 * wanted, logits)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("size", [60.0, 1e4])
def test_sure_answers_stay_finite(size: float) -> None:
    """Right by far costs nothing; wrong by far costs alpha times the margin."""
    logits = torch.tensor([[[[size, 0.0], [size, 0.0]], [[0.0, size], [0.0, size]]]], requires_grad=True)
    got = term()(Output(logits=logits, spans=FAR), DATA, pairs((0, 0, 0), (1, 0, 0)), 0)
    got.backward()
    assert got.item() == pytest.approx((0.25 * size + 0.75 * size) / 4, rel=1e-5)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_it_stands_in_for_label() -> None:
    """Its weight is the class cost of matching; it counts on both layers and skips moments left out."""
    made = recipe("losses.label=null", "losses.focal=6", "losses.saliency=null", "model.auxiliary=[]")
    detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    data = with_spans([[[0.5, 0.2]], [[0.5, 0.2]]])
    logits = torch.tensor([0.0, 3.0, -3.0])[:, None] * torch.tensor([0.5, -0.5])
    output = Output(logits=logits.expand(2, 2, 3, 2), spans=torch.full((2, 2, 3, 2), 0.4))
    loss = Criterion(made, detector)(output, data)

    def cost(margin: float, alpha: float) -> float:
        p = 1 / (1 + math.exp(-margin))
        return -alpha * (1 - p) ** 2 * math.log(p)

    # of equal spans the surer query is matched: that is what the class cost does
    wanted = (cost(3, 0.75) + cost(0, 0.25) + cost(3, 0.25)) / 3
    assert float(loss.raw["focal"]) == pytest.approx(wanted)
    assert float(loss.weighted["focal"]) == pytest.approx(2 * 6 * wanted)
    assert data.targets is not None
    data.targets.ignored = torch.full((2, 1, 2), 0.4)
    data.targets.ignored_mask = torch.ones(2, 1, dtype=torch.bool)
    assert float(Criterion(made, detector)(output, data).raw["focal"]) == pytest.approx(cost(3, 0.75) / 3)

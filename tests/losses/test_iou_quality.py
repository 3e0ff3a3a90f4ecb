"""The IoU-aware terms by hand: eq. 4 on the foreground margin, and the same for the quality head."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from amrctl.losses.iou_quality import Quality, QualityConfig, iou_target
from amrctl.model.types import LossTerm, Output
from tests.losses.test_terms import pairs, with_spans

# 0.1..0.3 against 0.2..0.4 is IoU 1/3; an exact window; 0.45..0.55 within 0.3..0.7 is 1/4
DATA = with_spans([[[0.3, 0.2], [0.9, 0.1]], [[0.9, 0.1], [0.5, 0.4]]])
SPANS = torch.tensor([[[[0.6, 0.1], [0.9, 0.1], [0.2, 0.2]], [[0.5, 0.1], [0.2, 0.2], [0.7, 0.1]]]])
MATCHES = pairs((0, 1, 1), (0, 2, 0), (1, 0, 1))
TARGET = [[0.0, 1.0, 1 / 3], [0.25, 0.0, 0.0]]
TERMS = [Quality(QualityConfig(weight=1)), Quality.of_head(1.0)]


def said(margins: Tensor, spans: Tensor = SPANS) -> Output:
    """Both kinds of answer at once: the margin of two logits, and the head's logit."""
    two = torch.stack((0.7 * margins, -0.3 * margins), dim=-1)
    return Output(logits=two, quality=margins, spans=spans)


def test_targets() -> None:
    torch.testing.assert_close(iou_target(said(torch.zeros(1, 2, 3)), DATA, MATCHES, 0), torch.tensor(TARGET))


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.name)
def test_by_hand(term: LossTerm) -> None:
    margins = torch.tensor([[[1.0, 2.0, -1.0], [0.5, 0.0, -3.0]]])
    wanted = 0.0
    for row, targets in zip(margins[0].tolist(), TARGET, strict=True):
        for z, q in zip(row, targets, strict=True):
            p = 1 / (1 + math.exp(-z))
            wanted -= q * math.log(p) + (1 - q) * math.log(1 - p)
    assert float(term(said(margins), DATA, MATCHES, 0)) == pytest.approx(wanted / 6, rel=1e-5)
    assert term.all_layers


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.name)
def test_only_the_confidence_learns(term: LossTerm) -> None:
    """The gradient is (p - IoU) / 6 for each answer, none for the windows."""
    margins = torch.tensor([[[1.0, 2.0, -1.0], [0.5, 0.0, -3.0]]], requires_grad=True)
    spans = SPANS.clone().requires_grad_()
    given = said(margins, spans)
    assert given.logits is not None
    term(given, DATA, MATCHES, 0).backward()
    assert spans.grad is None or not spans.grad.any()
    torch.testing.assert_close(margins.grad, (margins.detach().sigmoid() - torch.tensor([TARGET])) / 6)


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.name)
def test_a_window_on_a_moment_left_out_is_not_taught_to_be_bad(term: LossTerm) -> None:
    assert DATA.targets is not None
    ignored = SPANS[0, :, :1].clone()  # row 0: an unmatched query lies on it; row 1: a matched one
    targets = replace(DATA.targets, ignored=ignored, ignored_mask=torch.ones(2, 1, dtype=torch.bool))
    margins = torch.zeros(1, 2, 3)
    all_six = float(term(said(margins), DATA, MATCHES, 0))
    assert all_six == pytest.approx(math.log(2))
    assert float(term(said(margins), replace(DATA, targets=targets), MATCHES, 0)) == pytest.approx(
        all_six * 5 / 6
    )


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.name)
def test_without_moments_everything_is_background(term: LossTerm) -> None:
    margins = torch.full((1, 2, 3), -2.0)
    assert float(term(said(margins), DATA, pairs(), 0)) == pytest.approx(math.log(1 + math.exp(-2)))


# --- L1 of matched windows (Chung-Ang) -----------------------------------------------------------------


def test_l1_by_hand() -> None:
    """|p - IoU| of the three matched windows; the others do not count, nor do the windows learn."""
    term = Quality.of_head(2.0, "l1")
    assert (term.name, term.weight, term.all_layers) == ("quality-head", 2.0, True)
    margins = torch.tensor([[[1.0, 2.0, -1.0], [0.5, 0.0, -3.0]]], requires_grad=True)
    spans = SPANS.clone().requires_grad_()
    p = [1 / (1 + math.exp(-z)) for z in (2.0, -1.0, 0.5)]
    wanted = sum(abs(a - b) for a, b in zip(p, (1.0, 1 / 3, 0.25), strict=True)) / 3
    value = term(said(margins, spans), DATA, MATCHES, 0)
    assert value.item() == pytest.approx(wanted, rel=1e-6)
    value.backward()
    assert spans.grad is None or not spans.grad.any()
    signs = (-1, -1, 1)  # too little, too little, too much
    slopes = [s * a * (1 - a) / 3 for s, a in zip(signs, p, strict=True)]
    torch.testing.assert_close(
        margins.grad, torch.tensor([[[0.0, slopes[0], slopes[1]], [slopes[2], 0.0, 0.0]]])
    )


def test_l1_without_moments_is_zero() -> None:
    margins = torch.full((1, 2, 3), -2.0, requires_grad=True)
    value = Quality.of_head(1.0, "l1")(said(margins), DATA, pairs(), 0)
    value.backward()
    assert value.item() == 0
    assert margins.grad is not None
    assert not margins.grad.any()

"""Teacher terms against a plain loop over all assignments, and by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from amrctl import registry
from amrctl.data.batch import Batch, Targets, Teacher
from amrctl.losses.teacher import match_teacher
from amrctl.model.types import Matches, Output

NONE = Matches(*(torch.zeros(0, dtype=torch.int64),) * 3)


def batch(teacher: Teacher | None, rows: int) -> Batch:
    spans = torch.zeros(rows, 1, 2)
    mask = torch.zeros(rows, 1, dtype=torch.bool)
    pairs = torch.zeros(rows, 2, dtype=torch.int64)
    flat = torch.zeros(rows, dtype=torch.int64)
    targets = Targets(
        spans, mask, spans, mask, torch.zeros(rows, 4), pairs, pairs, flat.bool(), flat, teacher
    )
    fields: dict[str, Any] = {
        "qids": [""] * rows,
        "vids": [""] * rows,
        "audio": (torch.zeros(rows, 4, 2),),
        "audio_mask": torch.ones(rows, 4, dtype=torch.bool),
        "text": (torch.zeros(rows, 1, 2),),
        "text_mask": (torch.ones(rows, 1, dtype=torch.bool),),
        "lengths": flat + 4,
        "seconds": flat.double() + 4,
        "starts": flat,
    }
    return Batch(**fields, targets=targets)


def term(kind: str) -> Any:
    entry = registry.find("losses", kind)
    return entry.build(entry.config.model_validate({"kind": kind}))


def giou(a: Tensor, b: Tensor) -> float:
    c, w, d, v = (float(x) for x in (*a, *b))
    left, right = (c - w / 2, c + w / 2), (d - v / 2, d + v / 2)
    inter = max(0.0, min(left[1], right[1]) - max(left[0], right[0]))
    union = w + v - inter
    hull = max(left[1], right[1]) - min(left[0], right[0])
    return inter / union - (hull - union) / hull


def drawn(seed: int, rows: int = 4, queries: int = 5, most: int = 3) -> tuple[Output, Teacher]:
    torch.manual_seed(seed)
    spans = torch.rand(2, rows, queries, 2) * 0.4 + 0.2
    logits = torch.randn(2, rows, queries, 2)
    counts = torch.randint(0, most + 1, (rows,))
    counts[0] = most
    mask = torch.arange(most)[None] < counts[:, None]
    teacher = Teacher(torch.rand(rows, most, 2) * 0.4 + 0.2, torch.rand(rows, most), mask)
    return Output(logits=logits.requires_grad_(), spans=spans.requires_grad_()), teacher


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("queries", [5, 2])
def test_terms_against_all_assignments(seed: int, queries: int) -> None:
    output, teacher = drawn(seed, queries=queries)
    assert output.spans is not None
    assert output.logits is not None
    spans, logits = output.spans[-1].detach(), output.logits[-1].detach()
    weighted = weights = bce = 0.0
    pairs = 0
    for b in range(4):
        real = [k for k in range(3) if teacher.mask[b, k]]
        size = min(queries, len(real))
        best: tuple[float, list[tuple[int, int]]] = (math.inf, [])
        for chosen in itertools.permutations(range(queries), size):
            for columns in itertools.combinations(real, size):
                pairing = list(zip(chosen, columns, strict=True))
                cost = sum(
                    10 * float((spans[b, q] - teacher.spans[b, k]).abs().sum())
                    - giou(spans[b, q], teacher.spans[b, k])
                    for q, k in pairing
                )
                best = min(best, (cost, pairing))
        for q, k in best[1]:
            score = float(teacher.scores[b, k])
            l1 = float((spans[b, q] - teacher.spans[b, k]).abs().mean())
            weighted += score * (l1 + 1 - giou(spans[b, q], teacher.spans[b, k]))
            weights += score
            p = 1 / (1 + math.exp(-float(logits[b, q, 0] - logits[b, q, 1])))
            bce -= score * math.log(p) + (1 - score) * math.log(1 - p)
            pairs += 1
    inputs = batch(teacher, 4)
    span, score_term = term("teacher-span"), term("teacher-score")
    assert span(output, inputs, NONE, 1).item() == pytest.approx(weighted / weights, rel=1e-4)
    assert score_term(output, inputs, NONE, 1).item() == pytest.approx(bce / pairs, rel=1e-4)
    assert (span.weight, score_term.weight) == (2.0, 0.5)
    assert not span.all_layers
    assert not score_term.all_layers


def test_windows_without_a_partner_get_no_gradient() -> None:
    output, teacher = drawn(1)
    row, query, _ = match_teacher(output.spans[-1].detach(), teacher)  # type: ignore[index]
    (
        term("teacher-span")(output, batch(teacher, 4), NONE, 1)
        + term("teacher-score")(output, batch(teacher, 4), NONE, 1)
    ).backward()
    touched = torch.zeros(4, 5, dtype=torch.bool)
    touched[row, query] = True
    for tensor in (output.spans, output.logits):
        assert tensor is not None
        assert tensor.grad is not None
        assert (tensor.grad[0] == 0).all()  # the auxiliary layer is left alone
        assert ((tensor.grad[1] != 0).any(-1) == touched).all()


def test_nothing_to_learn_is_zero_with_a_gradient() -> None:
    output, teacher = drawn(2)
    empty = Teacher(teacher.spans, teacher.scores, torch.zeros_like(teacher.mask))
    for given in (None, empty):
        for kind in ("teacher-span", "teacher-score"):
            loss = term(kind)(output, batch(given, 4), NONE, 1)
            assert loss.item() == 0
            loss.backward()
    silent = Teacher(teacher.spans, torch.zeros_like(teacher.scores), teacher.mask)
    assert term("teacher-span")(output, batch(silent, 4), NONE, 1).item() == 0


def test_one_sigmoid_score() -> None:
    output, teacher = drawn(3)
    assert output.logits is not None
    single = Output(logits=(output.logits[..., :1] - output.logits[..., 1:]).detach(), spans=output.spans)
    inputs = batch(teacher, 4)
    both = [term("teacher-score")(o, inputs, NONE, 1).item() for o in (output, single)]
    assert both[0] == pytest.approx(both[1])

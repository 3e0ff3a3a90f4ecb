"""Boundary contrast against eq. 4 written as loops over sides and frames in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from amrctl.losses.total import Criterion
from amrctl.model.auxiliary.boundary_contrast import boundary_contrast
from amrctl.model.detector import build
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe

K, TAU = 3, 0.1


def unit(*shape: int, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def spans_of(moments: list[list[tuple[int, int]]], lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Frames (first, after last) → padded spans and mask."""
    most = max(1, *(len(m) for m in moments))
    spans, mask = torch.zeros(len(moments), most, 2), torch.zeros(len(moments), most, dtype=torch.bool)
    for b, (row, n) in enumerate(zip(moments, lengths, strict=True)):
        for m, (start, end) in enumerate(row):
            spans[b, m] = torch.tensor([(start + end) / 2 / n, (end - start) / n])
            mask[b, m] = True
    return spans, mask


def slow(audio: Tensor, text: Tensor, moments: list[list[tuple[int, int]]], lengths: list[int]) -> float:
    """Eq. 4 as it is written."""
    audio, text = audio.double(), text.double()
    values = []
    for b, (row, n) in enumerate(zip(moments, lengths, strict=True)):
        for start, end in row:
            if end - start < 2:
                continue
            sides = (
                ([t for t in range(start, start + K) if t < end], [start - 1 - k for k in range(K)]),
                ([t for t in range(end - K, end) if t >= start], [end + k for k in range(K)]),
            )
            for inside, outside in sides:
                outside = [t for t in outside if 0 <= t < n]
                if not outside:
                    continue
                pooled = sum((audio[b, t] for t in inside), torch.zeros(audio.shape[-1])) / len(inside)
                pooled = pooled / pooled.norm()
                top = math.exp(float(text[b] @ pooled) / TAU)
                rest = sum(math.exp(float(text[b] @ audio[b, t]) / TAU) for t in outside)
                values.append(-math.log(top / (top + rest)))
    return sum(values) / len(values) if values else 0.0


def fast(audio: Tensor, text: Tensor, moments: list[list[tuple[int, int]]], lengths: list[int]) -> float:
    spans, mask = spans_of(moments, lengths)
    return boundary_contrast(audio, text, spans, mask, torch.tensor(lengths), K, TAU).item()


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[list[tuple[int, int]]]]:
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=3))
    moments = []
    for n in lengths:
        edges = st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda m: m[0] < m[1])
        moments.append(draw(st.lists(edges, max_size=3)))
    return lengths, moments


@settings(deadline=None)
@given(cases())
def test_it_is_eq_4(case: tuple[list[int], list[list[tuple[int, int]]]]) -> None:
    lengths, moments = case
    audio, text = unit(len(lengths), max(lengths), 4), unit(len(lengths), 4, seed=1)
    assert fast(audio, text, moments, lengths) == pytest.approx(
        slow(audio, text, moments, lengths), rel=1e-4, abs=1e-6
    )


def test_sides_without_outside_and_short_moments_are_skipped() -> None:
    audio, text = unit(1, 9, 4), unit(1, 4, seed=1)
    assert fast(audio, text, [[(0, 9)]], [9]) == 0  # the whole recording
    assert fast(audio, text, [[(3, 4)]], [9]) == 0  # one frame
    assert fast(audio, text, [[]], [9]) == 0
    start_only = fast(audio, text, [[(5, 9)]], [9])
    assert start_only == pytest.approx(slow(audio, text, [[(5, 9)]], [9]), rel=1e-5)


def test_the_inside_pool_ends_with_the_moment() -> None:
    """Two frames that agree with the sentence, in a recording that never does otherwise."""
    text = unit(1, 4)
    audio = -text[:, None].expand(1, 9, 4).clone()
    audio[0, 4:6] = text[0]
    expected = math.log(1 + 3 * math.exp(-2 / TAU))
    assert fast(audio, text, [[(4, 6)]], [9]) == pytest.approx(expected, abs=1e-7)


def test_a_frame_is_inside_when_half_of_it_is_covered() -> None:
    audio, text = unit(1, 12, 4), unit(1, 4, seed=1)

    def value(start: float, end: float) -> float:
        spans = torch.tensor([[[(start + end) / 24, (end - start) / 12]]])
        one = torch.ones(1, 1, dtype=torch.bool)
        return boundary_contrast(audio, text, spans, one, torch.tensor([12]), K, TAU).item()

    assert value(3.5, 7.5) == value(3.2, 8.4) == value(3, 8)
    assert value(3.6, 7.4) == value(4, 7)


def test_the_gradient_stays_finite_and_reaches_audio_and_text() -> None:
    torch.manual_seed(0)
    resolved = recipe("model.auxiliary=[boundary-contrast]")
    detector = build(resolved, (AUDIO_DIM,), (TEXT_DIM,), training=True).train()
    whole = batch()
    output = detector(whole)
    loss = Criterion(resolved, detector)(output, whole)
    torch.testing.assert_close(
        loss.weighted["boundary-contrast"], 0.2 * output.extras["boundary-contrast"].detach()
    )
    detector.zero_grad()
    output.extras["boundary-contrast"].backward()
    touched = {name.split(".")[0] for name, p in detector.named_parameters() if p.grad is not None}
    assert touched == {"tokens", "fusion", "encoder", "auxiliary"}  # neither decoder nor heads


@pytest.mark.parametrize("frames", [(1, 1, 1), (2, 3, 1)])
def test_tiny_recordings_and_no_moments_are_finite(frames: tuple[int, ...]) -> None:
    audio = unit(3, max(frames), 4).requires_grad_()
    text = unit(3, 4).requires_grad_()
    for real in (True, False):
        mask = torch.full((3, 1), real)
        spans = torch.full((3, 1, 2), 0.5)
        loss = boundary_contrast(audio, text, spans, mask, torch.tensor(frames), K, TAU)
        loss.backward()
        assert loss.isfinite()
    for part in (audio, text):
        assert part.grad is not None
        assert part.grad.isfinite().all()

"""The span evidence adapter: soft windows with gradients everywhere, and an exact identity to begin with."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from amrctl.errors import RecipeError
from amrctl.losses.total import Criterion
from amrctl.model.detector import Detector, build
from amrctl.model.layers.windows import shift, weighted_mean, window_weights
from amrctl.model.refine.span_evidence import SpanEvidence
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe

FULL = ("model.heads=[foreground, span, saliency, boundary]", "model.refine=[span-evidence]")
# inside; at both edges of the recording; no length, in the middle, at the edges and on a frame's border
SPANS = [[0.5, 0.4], [0.0, 0.3], [1.0, 0.5], [0.6, 0.0], [0.0, 0.0], [1.0, 0.0], [0.5, 1.0], [0.25, 1e-6]]
MASK = torch.arange(11)[None] < torch.tensor([[11], [8], [1]])


def detector(*sets: str, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return build(recipe(*sets), (AUDIO_DIM,), (TEXT_DIM,), training=True)


def slow_weights(span: list[float], frames: int, edge: float) -> list[float]:
    """The definition in plain float64."""
    start, end = ((span[0] + sign * span[1] / 2) * frames for sign in (-1, 1))
    inside = [
        1 / (1 + math.exp(-(t + 0.5 - start) / edge)) / (1 + math.exp(-(end - t - 0.5) / edge))
        for t in range(frames)
    ]
    return [value / sum(inside) for value in inside]


@pytest.mark.parametrize("edge", [0.5, 2.0])
def test_weights_are_their_definition(edge: float) -> None:
    spans = torch.tensor([SPANS] * 3)
    got = window_weights(spans, MASK, edge)
    assert got.isfinite().all()
    assert not got[1, :, 8:].any()
    for b, frames in enumerate((11, 8, 1)):
        for n, span in enumerate(SPANS):
            wanted = torch.tensor(slow_weights(span, frames, edge))
            torch.testing.assert_close(got[b, n, :frames], wanted, rtol=1e-4, atol=1e-6)


def test_sharp_edges_give_the_mean_of_the_frames_inside() -> None:
    rows = torch.arange(20.0).view(1, 10, 2).masked_fill(torch.arange(10)[None, :, None] > 7, math.nan)
    mask = torch.arange(10)[None] < 8
    # frames 2, 3 and 4 of eight; no length: the frame that it lies in; all
    spans = torch.tensor([[[3.5 / 8, 3 / 8], [5.4 / 8, 0.0], [0.5, 1.0]]])
    got = weighted_mean(rows, window_weights(spans, mask, 0.01), mask)
    torch.testing.assert_close(got, torch.tensor([[[6.0, 7.0], [10.0, 11.0], [7.0, 8.0]]]))


@pytest.mark.parametrize("edge", [0.5, 0.2])
def test_gradients_reach_the_windows_ends(edge: float) -> None:
    """Against finite differences in float64, at the recording's edges and for windows of no length."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 11, 2, generator=generator, dtype=torch.float64)
    spans = torch.tensor([SPANS] * 3, dtype=torch.float64, requires_grad=True)

    def pooled(spans: Tensor) -> Tensor:
        return weighted_mean(rows, window_weights(spans, MASK, edge), MASK)

    assert torch.autograd.gradcheck(pooled, (spans,))
    (grad,) = torch.autograd.grad(pooled(spans).square().sum(), spans)
    assert (grad[:2, :, 0].abs() > 1e-9).all()  # every window's place, also that of windows of no length
    assert not grad[2].any()  # one frame: there is nothing to choose


@settings(max_examples=60, deadline=None)
@example(0.96875, -9.0)
@example(0.9998000264167786, -9.0)
@example(0.00019997358322143555, 9.0)
@given(st.floats(0, 1, width=32), st.floats(-9, 9, width=32))
def test_shift_is_a_step_before_the_sigmoid(value: float, delta: float) -> None:
    span = torch.tensor([value])
    assert torch.equal(shift(span, torch.zeros(1)), span)
    got = shift(span, torch.tensor([delta])).item()
    assert 0 <= got <= 1
    odds = math.inf if value == 1 else value / (1 - value) * math.exp(delta)
    wanted = 1.0 if odds == math.inf else odds / (1 + odds)
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_extreme_steps_stay_within_bounds() -> None:
    spans = torch.tensor([0.0, 1.0, 0.3, 0.3], requires_grad=True)
    got = shift(spans, torch.tensor([1e6, -1e6, 1e6, -1e6]))
    assert ((got >= 0) & (got <= 1)).all()
    got.sum().backward()
    assert spans.grad is not None
    assert spans.grad.isfinite().all()


@pytest.mark.parametrize("training", [False, True])
def test_it_starts_as_the_identity(training: bool) -> None:
    with_it, without = detector(*FULL), detector(FULL[0], seed=1)
    own = {k: v for k, v in with_it.state_dict().items() if not k.startswith("refine.")}
    without.load_state_dict(own)
    data = batch()
    outputs = []
    for model in (with_it.train(training), without.train(training)):
        torch.manual_seed(3)
        outputs.append(model(data))
    for name in ("logits", "spans", "saliency", "boundary"):
        assert torch.equal(getattr(outputs[0], name), getattr(outputs[1], name)), name
    with torch.no_grad():
        for name in SpanEvidence.identity_when_zero:
            with_it.get_parameter(f"refine.span-evidence.{name}").normal_()
    torch.manual_seed(3)
    changed = with_it(data)
    for name in ("logits", "spans"):
        before, after = getattr(outputs[1], name), getattr(changed, name)
        assert torch.equal(after[:-1], before[:-1])  # earlier decoder layers are left alone
        assert (after[-1] != before[-1]).all()


def test_the_detector_learns_at_first_as_without_it() -> None:
    """Identity also for gradients: those of all other weights are the same."""
    with_it, without = detector(*FULL).eval(), detector(FULL[0], seed=1).eval()
    without.load_state_dict({k: v for k, v in with_it.state_dict().items() if not k.startswith("refine.")})
    data, made = batch(), recipe("losses.saliency=null", "model.auxiliary=[]")
    for model in (with_it, without):
        Criterion(made, model)(model(data), data).total.backward()
    theirs = {name: p.grad for name, p in with_it.named_parameters()}
    for name, parameter in without.named_parameters():
        none = torch.zeros_like(parameter)
        mine, other = (none if grad is None else grad for grad in (theirs[name], parameter.grad))
        torch.testing.assert_close(mine, other, msg=name)


def test_all_of_eq_7_is_read() -> None:
    """Each part of the input moves the correction: q, e, q * e, b, w, m, r."""
    model, data = detector(*FULL).eval(), batch()
    part = model.refine["span-evidence"]
    assert isinstance(part, SpanEvidence)
    weight = model.get_parameter("refine.span-evidence.mlp.layers.0.weight")
    assert weight.shape == (32, 3 * 32 + 4)
    seen: list[Tensor] = []
    part.mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    output = model(data)
    (given,) = seen
    query, evidence, product, numbers = given.split((32, 32, 32, 4), dim=-1)
    torch.testing.assert_close(product, query * evidence)
    torch.testing.assert_close(numbers[..., 1], output.spans[-1, ..., 1])
    torch.testing.assert_close(numbers[..., 2], output.logits[-1, ..., 0] - output.logits[-1, ..., 1])
    weights = window_weights(output.spans[-1], data.audio_mask, 0.5)
    for b, frames in enumerate(data.lengths.tolist()):
        pooled = weights[b, :, :frames] @ output.saliency[b, :frames]
        torch.testing.assert_close(numbers[b, :, 3], pooled)
    assert ((numbers[..., 0] > 0) & (numbers[..., 0] < 1)).all()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["model.heads=[foreground, saliency]"], "needs the heads 'foreground'"),
        (["model.heads=[foreground, span]", "model.auxiliary=[]"], "needs the head 'saliency'"),
    ],
)
def test_what_it_needs_is_told(sets: list[str], message: str) -> None:
    model = detector(*sets, FULL[1])
    with pytest.raises(RecipeError, match=message):
        model(batch())

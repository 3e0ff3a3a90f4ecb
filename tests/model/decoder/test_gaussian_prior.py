"""The bimodal prior against the two Gaussians themselves, where floats still hold them and where not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.model.decoder.conditional import Queries
from amrctl.model.decoder.gaussian_prior import GaussianPrior, GaussianPriorConfig, log_prior
from amrctl.model.detector import build
from amrctl.model.types import Dims, Memory
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe, rows_of
from tests.test_contract import without_dropout

UNIT = st.floats(0, 1, width=32)


def attention(prior: list[float], logits: list[float]) -> list[float]:
    weights = [p * math.exp(a) for p, a in zip(prior, logits, strict=True)]
    return [w / sum(weights) for w in weights]


@settings(max_examples=60, deadline=None)
@given(centre=UNIT, width=UNIT, spread=st.tuples(*[st.floats(0.03, 1.5)] * 2), frames=st.integers(1, 25))
def test_attention_is_weighted_by_the_sum_of_two_gaussians(
    centre: float, width: float, spread: tuple[float, float], frames: int
) -> None:
    """Softmax of logits plus the prior is the weights exp(logit) (G_start + G_end), normalised."""
    start, end = centre - width / 2, centre + width / 2
    least = 0.5 / frames  # half a frame
    gauss = []
    for t in range(frames):
        p = (t + 0.5) / frames
        gauss.append(
            sum(
                math.exp(-((p - at) ** 2) / (2 * max(s, least) ** 2))
                for at, s in zip((start, end), spread, strict=True)
            )
        )
    mask = torch.arange(frames + 3)[None] < frames
    spans = torch.tensor([[[centre, width]]])
    variance = torch.tensor([[[2 * math.log(s) for s in spread]]])
    got = log_prior(spans, variance, mask)
    assert got.shape == (1, 1, frames + 3)
    assert got[0, 0, :frames].max() == 0
    logits = [math.sin(3.0 * t) for t in range(frames)]
    found = (got[0, 0, :frames] + torch.tensor(logits)).softmax(-1)
    assert found.tolist() == pytest.approx(attention(gauss, logits), abs=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("span", [(0.5, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.999, 1e-6)])
@pytest.mark.parametrize("log_variance", [-1e4, -40.0, 0.0, 1e4])
def test_it_stays_finite_with_its_gradient(
    span: tuple[float, float], log_variance: float, dtype: torch.dtype
) -> None:
    """Windows without length, at the edge and beyond it; variances that overflow; half precision."""
    spans = torch.tensor([[span]], dtype=dtype, requires_grad=True)
    raw = torch.full((1, 1, 2), log_variance, dtype=dtype, requires_grad=True)
    mask = torch.arange(300)[None] < 290
    prior = log_prior(spans, raw, mask)
    weights = prior[0, 0].to(dtype).masked_fill(~mask[0], -math.inf).softmax(-1)
    assert weights.isfinite().all()
    assert weights.float().sum().item() == pytest.approx(1, abs=0.02)
    (weights * torch.linspace(0, 1, 300)).sum().backward()
    for grad in (spans.grad, raw.grad):
        assert grad is not None
        assert grad.isfinite().all()


def test_variances_come_from_the_content_and_spans_from_the_reference() -> None:
    torch.manual_seed(0)
    made = GaussianPrior(GaussianPriorConfig(sigma=0.2), Dims(4, (4,), (4,)))
    audio, mask = rows_of((5, 9), 4, torch.Generator().manual_seed(0))
    nothing = torch.zeros(2, 4)
    memory = Memory(audio, mask, audio, audio, mask, nothing, nothing)
    reference = torch.rand(2, 3, 2, requires_grad=True)
    queries = Queries(torch.randn(2, 3, 4), reference)
    first = made.bias(queries, memory, 0)
    assert first.shape == (2, 1, 3, 9)
    alike = log_prior(reference, torch.full((2, 3, 2), 2 * math.log(0.2)), mask)
    torch.testing.assert_close(first[:, 0], alike)  # before training: sigma, whatever the content
    with torch.no_grad():
        made.log_variance.weight.normal_(std=2)
    assert not torch.allclose(made.bias(queries, memory, 0), first)
    moved = replace(queries, reference=reference.detach() * 0.5)
    assert not torch.allclose(made.bias(moved, memory, 0), made.bias(queries, memory, 0))
    # only the first layer's reference, which is a parameter, learns through the prior
    assert torch.autograd.grad(made.bias(queries, memory, 0).sum(), reference)[0].any()
    assert not torch.autograd.grad(
        made.bias(queries, memory, 1).sum(), reference, allow_unused=True, materialize_grads=True
    )[0].any()


@pytest.mark.parametrize("training", [True, False])
def test_in_half_precision_the_detector_takes_it(training: bool) -> None:
    torch.manual_seed(0)
    sets = ["model.hooks=[gaussian-prior]"]
    made = build(recipe(*sets), (AUDIO_DIM,), (TEXT_DIM,), training=False).train(training)
    without_dropout(made)
    wide = made(batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = made(batch())
    assert half.spans.isfinite().all()
    torch.testing.assert_close(half.spans.float(), wide.spans, rtol=0, atol=0.05)

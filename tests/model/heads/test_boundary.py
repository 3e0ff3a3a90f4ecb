"""Boundary heads: targets against a float64 loop, the term in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.model.detector import build
from amrctl.model.heads.boundary import Boundary, BoundaryConfig, BoundaryTerm, gaussian_targets
from amrctl.model.types import Decoded, Dims, Matches, Memory, Output
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe

NONE = Matches(*(torch.zeros(0, dtype=torch.int64),) * 3)


def data() -> Batch:
    """Frames of half a second, one moment that this epoch's draw left out, one row without a moment."""
    whole = batch((12, 17, 9), (2, 2, 2))
    assert whole.targets is not None
    mask = whole.targets.mask.clone()
    mask[2] = False
    targets = replace(
        whole.targets,
        mask=mask,
        ignored=torch.tensor([[[0.8, 0.1]], [[0.5, 0.2]], [[0.5, 0.2]]]),
        ignored_mask=torch.tensor([[True], [False], [False]]),
    )
    return replace(whole, seconds=whole.lengths.double() * 0.5, targets=targets)


@pytest.mark.parametrize("sigma", [1.0, 0.3])
def test_targets_are_their_definition(sigma: float) -> None:
    given = data()
    got = gaussian_targets(given, sigma)
    targets = given.targets
    assert targets is not None
    assert not got[2].any()  # no moment
    for b, frames in enumerate((12, 17)):
        moments = (
            targets.spans[b][targets.mask[b]].tolist() + targets.ignored[b][targets.ignored_mask[b]].tolist()
        )
        assert len(moments) == (2, 2)[b]
        for t in range(frames):
            for side, sign in enumerate((-1, 1)):
                places = [(c + sign * w / 2) * frames * 0.5 for c, w in moments]
                wanted = max(math.exp(-(((t + 0.5) * 0.5 - p) ** 2) / (2 * sigma**2)) for p in places)
                assert float(got[b, t, side]) == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_the_term_in_closed_form() -> None:
    """Constant logits z cost softplus(z) - z g on a frame with target g; the mean is over real frames."""
    given = data()
    start, end = 0.8, -1.3
    logits = torch.tensor([start, end]).expand(3, 17, 2).clone()
    wanted = gaussian_targets(given, 1.0)[given.audio_mask].mean(0).tolist()
    term = BoundaryTerm(1.0, 1.0)
    halves = [math.log1p(math.exp(z)) - z * g for z, g in zip((start, end), wanted, strict=True)]
    assert float(term(Output(boundary=logits), given, NONE, 0)) == pytest.approx(sum(halves) / 2, rel=1e-5)
    logits[~given.audio_mask] = math.nan
    logits.requires_grad_()
    value = term(Output(boundary=logits), given, NONE, 0)
    assert value.item() == pytest.approx(sum(halves) / 2, rel=1e-5)
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[~given.audio_mask].any()


def test_start_and_end_are_separate_heads() -> None:
    torch.manual_seed(0)
    head = Boundary(BoundaryConfig.model_validate({}), Dims(8, (8,), (8,)))
    audio = torch.randn(2, 5, 8)
    output = Output()
    mask = torch.ones(2, 5, dtype=torch.bool)
    states = torch.zeros(1, 2, 1, 8)
    head(
        Memory(audio, mask, audio, audio, mask, audio[:, 0], audio[:, 0]),
        Decoded(states, states[..., :2]),
        output,
    )
    assert output.boundary is not None
    assert torch.equal(output.boundary[..., :1], head.start(audio))
    assert torch.equal(output.boundary[..., 1:], head.end(audio))
    assert not torch.equal(output.boundary[..., 0], output.boundary[..., 1])
    (term,) = head.loss_terms()
    assert (term.name, term.weight, term.all_layers) == ("boundary", 1.0, False)


def test_it_stands_before_the_head_that_reads_it() -> None:
    made = recipe("model.heads=[foreground, span, saliency, quality, boundary]")
    detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    with pytest.raises(RecipeError, match="'boundary' must stand before 'quality'"):
        detector(batch())

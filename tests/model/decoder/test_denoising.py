"""Denoising queries: their noise, their sight, their terms against loops, and their absence."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from amrctl.data.batch import Batch
from amrctl.losses.total import Criterion, Loss
from amrctl.model.decoder.denoising import noised, sight
from amrctl.model.detector import Detector, build
from amrctl.model.layers.spans import giou, to_start_end
from amrctl.model.types import Output
from amrctl.recipe import Recipe
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe
from tests.test_contract import without_dropout

LEARNED, MOMENTS, COPIES = 7, 3, 5


def made(*options: str, training: bool = True) -> tuple[Recipe, Detector]:
    torch.manual_seed(0)
    entry = "{kind: denoising" + "".join(f", {o}" for o in options) + "}"
    resolved = recipe(f"model.decoder.hooks=[{entry}]")
    detector = build(resolved, (AUDIO_DIM,), (TEXT_DIM,), training=training)
    without_dropout(detector)
    return resolved, detector


def passed(*options: str, whole: Batch | None = None) -> tuple[Output, Batch, Loss]:
    resolved, detector = made(*options)
    whole = whole or batch()
    output = detector.train()(whole)
    return output, whole, Criterion(resolved, detector)(output, whole)


def test_the_noise_is_gaussian_in_recordings_and_clipped() -> None:
    spans = torch.tensor([[0.5, 0.3], [0.02, 0.9]]).expand(1, -1, -1)
    mask = torch.ones(1, 2, dtype=torch.bool)
    torch.manual_seed(0)
    got = noised(spans, mask, 20_000, 0.05)
    assert got.shape == (1, 20_000, 2, 2)
    off = got[0, :, 0] - spans[0, 0]
    assert off.mean(0).abs().max() < 2e-3
    assert (off.std(0) - 0.05).abs().max() < 1e-3
    assert abs(float((off[:, 0] * off[:, 1]).mean())) < 1e-4  # centre and width are independent
    clipped = got[0, :, 1, 0]
    assert clipped.min().item() == pytest.approx(1e-3)
    share = torch.distributions.Normal(0.02, 0.05).cdf(torch.tensor(1e-3))
    assert float((clipped <= 1e-3 + 1e-7).float().mean()) == pytest.approx(share.item(), abs=0.02)
    empty = noised(spans, torch.zeros_like(mask), 2, 0.05)
    torch.testing.assert_close(empty, torch.tensor([0.5, 0.1]).expand(1, 2, 2, 2))


def test_the_noise_comes_from_the_global_generator() -> None:
    spans, mask = torch.full((1, 1, 2), 0.4), torch.ones(1, 1, dtype=torch.bool)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = noised(spans, mask, 3, 0.05)
    torch.set_rng_state(state)
    assert torch.equal(noised(spans, mask, 3, 0.05), first)
    assert torch.equal(noised(spans, mask, 3, 0.0), spans[:, None].expand(1, 3, 1, 2))


@pytest.mark.parametrize("isolate", ["copies", "learned"])
@pytest.mark.parametrize("see_empty", [False, True])
def test_who_sees_whom(isolate: Literal["copies", "learned"], see_empty: bool) -> None:
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    copies = 3
    seen = sight(4, mask, copies, isolate=isolate, see_empty=see_empty)
    total = 4 + copies * 2
    assert seen.shape == (3, 1, total, total)
    for b in range(3):
        for i in range(total):
            for j in range(total):
                copy_i, copy_j = (-1 if k < 4 else (k - 4) // 2 for k in (i, j))
                alike = copy_i == copy_j or (isolate == "learned" and min(copy_i, copy_j) >= 0)
                real = j < 4 or see_empty or bool(mask[b, (j - 4) % 2])
                assert bool(seen[b, 0, i, j]) == ((alike and real) or i == j)


def test_learned_queries_answer_as_if_alone_and_copies_do_not_mix() -> None:
    whole = batch()
    assert whole.targets is not None
    _, plain = made("copies: 1")
    plain.decoder.hooks = torch.nn.ModuleDict()
    alone = plain.train()(whole)
    _, detector = made("copies: 1", "sigma: 0")
    one = detector.train()(whole)
    _, detector = made("copies: 4", "sigma: 0")
    four = detector.train()(whole)
    for output in (one, four):
        torch.testing.assert_close(output.spans, alone.spans, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(output.logits, alone.logits, rtol=1e-5, atol=1e-5)
    real = whole.targets.mask
    assert one.extra is not None
    assert four.extra is not None
    for copy in range(4):  # without noise all copies are the same task
        mine = four.extra.spans[:, :, copy * MOMENTS : (copy + 1) * MOMENTS]
        torch.testing.assert_close(mine[:, real], one.extra.spans[:, real], rtol=1e-5, atol=1e-6)


def test_what_empty_slots_hold_changes_nothing() -> None:
    values = []
    for filler in (0.0, 0.3):
        whole = batch()
        assert whole.targets is not None
        whole.targets.spans = torch.where(whole.targets.mask[..., None], whole.targets.spans, filler)
        torch.manual_seed(0)
        _, _, loss = passed("sigma: 0", whole=whole)
        values.append({name: v for name, v in loss.raw.items() if name.startswith("denoising")})
    assert len(values[0]) == 3
    assert values[0] == values[1]


def said(output: Output) -> tuple[Tensor, Tensor]:
    """Logits and spans of the added queries."""
    assert output.extra is not None
    assert output.extra.logits is not None
    assert output.extra.spans is not None
    return output.extra.logits, output.extra.spans


def slots(output: Output, whole: Batch) -> list[tuple[int, int, Tensor]]:
    """(row, slot, moment) of every slot that holds one."""
    assert whole.targets is not None
    mask, spans = whole.targets.mask, whole.targets.spans
    return [
        (b, copy * MOMENTS + m, spans[b, m].double())
        for b in range(len(whole))
        for copy in range(COPIES)
        for m in range(MOMENTS)
        if mask[b, m]
    ]


def test_its_terms_are_means_over_the_slots_with_a_moment() -> None:
    output, whole, loss = passed()
    logits, spans = said(output)
    l1, overlap, label = [], [], []
    for b, slot, wanted in slots(output, whole):
        span = spans[-1, b, slot].double()
        l1.append((span - wanted).abs().mean())
        overlap.append(1 - giou(to_start_end(span), to_start_end(wanted)))
        label.append(-functional.log_softmax(logits[-1, b, slot].double(), -1)[0])
    for name, values, unit in (("span", l1, 10), ("giou", overlap, 1), ("label", label, 4)):
        raw = loss.raw[f"denoising.{name}"]
        assert raw.item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-5)
        torch.testing.assert_close(loss.weighted[f"denoising.{name}"], unit * raw)


def test_its_weight_counts_in_the_recipes_units() -> None:
    resolved = recipe("model.hooks=[{kind: denoising, weight: 0.5}]", "losses.span=3", "losses.label=7")
    detector = build(resolved, (AUDIO_DIM,), (TEXT_DIM,), training=True).train()
    whole = batch()
    loss = Criterion(resolved, detector)(detector(whole), whole)
    for name, unit in (("span", 3), ("giou", 1), ("label", 7)):
        key = f"denoising.{name}"
        torch.testing.assert_close(loss.weighted[key], 0.5 * unit * loss.raw[key])
    torch.testing.assert_close(loss.total.detach(), sum(loss.weighted.values(), torch.zeros(())))


def test_released_empty_slots_are_background_in_a_weighted_mean() -> None:
    output, whole, loss = passed("empty: background", "isolate: learned")
    assert whole.targets is not None
    logits = said(output)[0][-1].double()
    real = whole.targets.mask.repeat(1, COPIES)
    # torch's own weighted mean
    wanted = functional.cross_entropy(
        logits.flatten(0, 1), (~real).long().flatten(), torch.tensor([1.0, 0.1]).double()
    )
    assert loss.raw["denoising.label"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_all_layers_counts_the_earlier_layer_too() -> None:
    _, _, last = passed("sigma: 0")
    output, whole, both = passed("sigma: 0", "all_layers: true")
    assert both.raw["denoising.span"] == last.raw["denoising.span"]
    spans = said(output)[1]
    earlier = [(spans[0, b, slot] - wanted).abs().mean() for b, slot, wanted in slots(output, whole)]
    more = both.weighted["denoising.span"] - last.weighted["denoising.span"]
    assert more.item() == pytest.approx(10 * torch.stack(earlier).mean().item(), rel=1e-4)


def test_it_is_absent_at_inference_and_without_labels() -> None:
    whole = batch()
    _, detector = made()
    assert not [name for name, _ in detector.named_parameters() if ".hooks." in name]
    evaluated = detector.eval()(whole)  # the batch has targets; the mode decides
    assert evaluated.extra is None
    detector.decoder.hooks = torch.nn.ModuleDict()
    without = detector(whole)
    assert torch.equal(evaluated.spans, without.spans)
    assert torch.equal(evaluated.logits, without.logits)
    _, detector = made()
    whole.targets = None
    assert detector.train()(whole).extra is None


def test_a_batch_without_moments_is_finite() -> None:
    whole = batch()
    assert whole.targets is not None
    whole.targets.mask.zero_()
    for options in ((), ("empty: background",)):
        _, _, loss = passed(*options, whole=whole)
        assert loss.total.isfinite()
        assert loss.raw["denoising.span"] == 0
        loss.total.backward()

"""The cascade against crops that are really gathered, one query at a time in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from amrctl.losses.total import Criterion
from amrctl.model.detector import Detector, build
from amrctl.model.layers.spans import giou, to_start_end
from amrctl.model.refine.cascade import Cascade, CascadeConfig, crops
from amrctl.model.types import Decoded, Dims, Memory, Output
from amrctl.recipe import Recipe
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe, row_of, rows_of
from tests.test_contract import without_dropout

WIDTH, QUERIES = 8, 5


def scene(lengths: list[int], *, seed: int = 0) -> tuple[Memory, Decoded, Output]:
    generator = torch.Generator().manual_seed(seed)
    audio, mask = rows_of(lengths, WIDTH, generator)
    audio = torch.where(mask[..., None], audio, 9.0)
    text, text_mask = rows_of([2] * len(lengths), WIDTH, generator)
    whole = torch.zeros(len(lengths), WIDTH)
    memory = Memory(audio, mask, audio, text, text_mask, whole, whole)
    states = torch.randn(2, len(lengths), QUERIES, WIDTH, generator=generator)
    spans = torch.rand(2, len(lengths), QUERIES, 2, generator=generator)
    spans[-1, :, 0] = torch.tensor([0.0, 0.0])  # the start, without width
    spans[-1, :, 1] = torch.tensor([1.0, 0.0])  # the end
    spans[-1, :, 2] = torch.tensor([0.5, 1.0])  # everything
    return memory, Decoded(states, spans), Output(spans=spans)


def options(**changed: float) -> CascadeConfig:
    return CascadeConfig.model_validate(changed)


def head_of(detector: Detector) -> nn.Linear:
    part = detector.refine["cascade"]
    assert isinstance(part, Cascade)
    return part.delta


def refined_of(output: Output) -> Tensor:
    assert output.refined is not None
    return output.refined


def moving(config: CascadeConfig, *, official: bool = False) -> Cascade:
    """A cascade whose head is not zero any more."""
    torch.manual_seed(0)
    part = Cascade(config, Dims(WIDTH, (AUDIO_DIM,), (TEXT_DIM,), official)).eval()
    nn.init.normal_(part.delta.weight)
    nn.init.normal_(part.attention.value.bias)
    return part


def by_hand(part: Cascade, memory: Memory, decoded: Decoded, spans: Tensor) -> Tensor:
    """Refined spans [B, N, 2] by gathering every crop."""
    part = part.double()
    attention, heads = part.attention, part.config.heads
    refined = torch.zeros(spans.shape, dtype=torch.float64)
    for b in range(len(spans)):
        n = int(memory.audio_mask[b].sum())
        for q in range(spans.shape[1]):
            start, end = to_start_end(spans[b, q]).clamp(0, 1).tolist()
            first = min(math.floor(start * n), n - 1)
            last = min(max(math.ceil(end * n), first + 1), n)
            first, last = max(first - part.config.margin, 0), min(last + part.config.margin, n)
            rows = torch.arange(last - first).clamp(max=part.config.places - 1)
            crop = memory.audio[b, first:last].double() + attention.places.weight[rows]
            state = decoded.states[-1, b, q].double()
            query, keys, values = attention.query(state), attention.key(crop), attention.value(crop)
            wide = WIDTH // heads
            mixed = []
            for h in range(heads):
                own = slice(h * wide, (h + 1) * wide)
                weights = (keys[:, own] @ query[own] / math.sqrt(wide)).softmax(0)
                mixed.append(weights @ values[:, own])
            x = part.norm1(state + attention.out(torch.cat(mixed)))
            x = part.norm2(x + part.linear2(functional.gelu(part.linear1(x))))
            moved = spans[b, q].double() + part.config.kappa * torch.tanh(part.delta(x))
            refined[b, q] = moved.clamp(0, 1)
    part.float()
    return refined.detach()


@pytest.mark.parametrize("lengths", [[30, 17, 9], [1, 2], [6]])
@pytest.mark.parametrize("places", [400, 4])
def test_it_is_eq_6_on_gathered_crops(lengths: list[int], places: int) -> None:
    part = moving(options(margin=3, places=places, heads=2, kappa=0.3))
    memory, decoded, output = scene(lengths)
    with torch.no_grad():
        part(memory, decoded, output)
    assert output.refined is not None
    assert output.spans is not None
    wanted = by_hand(part, memory, decoded, output.spans[-1])
    torch.testing.assert_close(output.refined.double(), wanted, rtol=1e-4, atol=1e-5)
    moved = (output.refined - output.spans[-1]).abs()
    assert bool((moved > 1e-3).any())
    assert float(moved.max()) <= 0.3 + 1e-6


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 12), st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_a_crop_holds_its_window_and_its_margin(n: int, margin: int, centre: float, width: float) -> None:
    spans = torch.tensor([[[centre, width]]])
    first, after = (int(edge) for edge in crops(spans, torch.tensor([n]), margin))
    start, end = (to_start_end(spans)[0, 0].clamp(0, 1) * n).tolist()
    assert 0 <= first < after <= n
    touched = {t for t in range(n) if t < end and t + 1 > start} or {min(math.floor(start), n - 1)}
    wanted = {t for t in range(n) if min(touched) - margin <= t <= max(touched) + margin}
    assert set(range(first, after)) == wanted


def small(*entries: str) -> tuple[Recipe, Detector]:
    torch.manual_seed(0)
    entry = "{kind: cascade" + "".join(f", {o}" for o in entries) + "}"
    resolved = recipe(f"model.refine=[{entry}]")
    detector = build(resolved, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    without_dropout(detector)
    return resolved, detector


def test_it_starts_as_the_identity_to_the_bit() -> None:
    _, detector = small()
    output = detector.eval()(batch())
    assert torch.equal(output.refined, output.spans[-1])
    memory, decoded, output = scene([30, 4])
    Cascade(options(), Dims(WIDTH, (1,), (1,)))(memory, decoded, output)
    assert output.spans is not None
    assert torch.equal(refined_of(output), output.spans[-1])  # also at 0 and 1


@pytest.mark.parametrize("detach", [True, False])
def test_its_gradient_stays_within_unless_the_memory_is_let_in(detach: bool) -> None:
    resolved, detector = small(f"detach_memory: {str(detach).lower()}")
    nn.init.normal_(head_of(detector).weight)
    whole = batch()
    output = detector.train()(whole)
    criterion = Criterion(resolved, detector)
    loss = criterion(output, whole)
    own = [term for term in criterion.terms if term.name.startswith("cascade")]
    assert [term.name for term in own] == ["cascade.span", "cascade.giou"]
    detector.zero_grad()
    output.refined.sum().backward()
    touched = {name.split(".")[0] for name, p in detector.named_parameters() if p.grad is not None}
    assert touched == ({"refine"} if detach else {"refine", "encoder", "fusion", "tokens"})
    assert loss.total.isfinite()


def test_both_stages_are_judged_under_the_same_matches() -> None:
    resolved, detector = small("weight: 0.5", "kappa: 0.2")
    nn.init.normal_(head_of(detector).weight)
    whole = batch()
    assert whole.targets is not None
    output = detector.train()(whole)
    criterion = Criterion(resolved, detector)
    loss = criterion(output, whole)
    matches = criterion._match(output, whole)[-1]
    l1, overlap = [], []
    for row, query, moment in zip(matches.row, matches.query, matches.moment, strict=True):
        found, wanted = output.refined[row, query].double(), whole.targets.spans[row, moment].double()
        l1.append((found - wanted).abs().mean())
        overlap.append(1 - giou(to_start_end(found), to_start_end(wanted)))
    for name, values, unit in (("span", l1, 10), ("giou", overlap, 1)):
        raw = loss.raw[f"cascade.{name}"]
        assert raw.item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-5)
        assert raw != loss.raw[name]
        torch.testing.assert_close(loss.weighted[f"cascade.{name}"], 0.5 * unit * raw)


def test_a_batch_equals_its_rows_and_padding_changes_nothing() -> None:
    _, detector = small("margin: 2", "kappa: 0.3")
    nn.init.normal_(head_of(detector).weight)
    detector.eval()
    whole = batch(frames=(12, 1, 30), tokens=(4, 2, 6))
    together = detector(whole)
    for b in range(3):
        alone = detector(row_of(whole, b))
        torch.testing.assert_close(alone.refined[0], together.refined[b], rtol=1e-4, atol=2e-5)


def test_no_moments_and_one_frame_are_finite() -> None:
    resolved, detector = small()
    nn.init.normal_(head_of(detector).weight)
    whole = batch(frames=(1, 1, 7))
    assert whole.targets is not None
    whole.targets.mask.zero_()
    loss = Criterion(resolved, detector)(detector.train()(whole), whole)
    assert loss.raw["cascade.span"] == 0
    loss.total.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in detector.parameters())


def test_official_crops_in_padded_frames() -> None:
    found = []
    for official in (False, True):
        part = moving(options(margin=0, heads=2, kappa=0.3), official=official)
        memory, decoded, output = scene([20, 5])
        part(memory, decoded, output)
        assert refined_of(output).isfinite().all()
        found.append(refined_of(output))
    torch.testing.assert_close(found[0][0], found[1][0])  # the longest of the batch
    assert not torch.allclose(found[0][1], found[1][1])

"""What every component promises, whoever adds it: found by walking the registry, run in a small detector.

A component takes and returns its slot's dataclass; a gradient reaches each of its parameters, save those
that it names in `zero_gradient`; padding and the other rows of a batch change nothing; nothing is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from amrctl import registry
from amrctl.data.batch import Batch
from amrctl.losses.total import Criterion
from amrctl.model.decoder.conditional import DecoderHook
from amrctl.model.detector import Detector, build
from amrctl.model.types import Decoded, Memory, Output, Tokens
from amrctl.recipe import Recipe, from_dict
from tests.small import AUDIO_DIM, TEXT_DIM, batch, padded, raw_recipe, row_of

SINGLE = ("tokens", "decoder")
LISTS = ("fusion", "encoder", "hooks", "heads", "refine", "auxiliary")
PARTS = [(slot, kind) for slot in (*SINGLE, *LISTS) for kind in registry.kinds(slot)]
TERMS = registry.kinds("losses")
SCORES = registry.kinds("score")
RETURNS: dict[str, type] = {"tokens": Tokens, "fusion": Tokens, "encoder": Memory, "decoder": Decoded}


def options(slot: str, kind: str) -> dict[str, Any]:
    """The default options of a component; a weight that has no default is 1."""
    config = registry.find(slot, kind).config
    required = {name for name, field in config.model_fields.items() if field.is_required()} - {"kind"}
    assert required <= {"weight"}, f"{slot} {kind}: every option but a loss's weight needs a default"
    return {"kind": kind, **dict.fromkeys(required, 1.0)}


def recipe_with(slot: str, kind: str) -> Recipe:
    """The small recipe with that component in its place, its companions after it; heads and the like come
    on top."""
    raw = raw_recipe()
    model = raw["model"]
    entry = options(slot, kind)
    build = registry.find(slot, kind).build
    for name in getattr(build, "replaces", ()):
        model[slot].remove(name)
    if slot == "losses":
        raw["losses"].setdefault(kind, {k: v for k, v in entry.items() if k != "kind"})
    elif slot == "score":
        raw["inference"]["score"] = entry
        model["heads"] += getattr(build, "needs_heads", ())
    elif slot in SINGLE:
        model[slot] = entry
    elif slot in ("fusion", "encoder"):
        model[slot] = [entry]
    elif kind not in model.get(slot, []):
        model[slot] = [*model.get(slot, []), entry]
    for where, more in getattr(build, "companions", {}).items():
        model[where] = [*model.get(where, []), *more]
    return from_dict(raw, where=f"{slot} {kind}", stage="finetune")


def made(slot: str, kind: str, *, training: bool = True) -> tuple[Recipe, Detector]:
    recipe = recipe_with(slot, kind)
    torch.manual_seed(0)
    return recipe, build(recipe, (AUDIO_DIM,), (TEXT_DIM,), training=training)


def parts_of(detector: Detector, slot: str, kind: str) -> dict[str, nn.Module]:
    """Where a component sits in the detector: path → module."""
    if slot in SINGLE:
        return {slot: getattr(detector, slot)}
    path = "decoder.hooks" if slot == "hooks" else slot
    there = dict(detector.get_submodule(path).named_children())
    return {f"{path}.{name}": part for name, part in there.items() if name == kind}


def zero_gradient(detector: nn.Module) -> set[str]:
    """All parameters that some module declares to get an exactly zero gradient."""
    return {
        f"{path}.{name}" if path else name
        for path, module in detector.named_modules()
        for name in getattr(module, "zero_gradient", ())
    }


def close(one: Tensor, other: Tensor, what: str) -> None:
    assert one.shape == other.shape, what
    worst = float((one - other).detach().abs().max())
    assert torch.allclose(one, other, rtol=1e-4, atol=2e-5), f"{what}: differs by {worst}"


def tensors_of(output: Output) -> Iterator[tuple[str, Tensor]]:
    for f in fields(output):
        value = getattr(output, f.name)
        if isinstance(value, Tensor):
            yield f.name, value
    yield from output.extras.items()


def test_there_is_something_to_walk() -> None:
    assert {slot for slot, _ in PARTS} >= {"tokens", "fusion", "encoder", "decoder", "heads", "auxiliary"}
    assert TERMS
    assert SCORES


@pytest.mark.parametrize(("slot", "kind"), PARTS)
def test_it_takes_and_returns_its_slots_record(slot: str, kind: str) -> None:
    _, detector = made(slot, kind)
    parts = parts_of(detector, slot, kind)
    assert parts
    seen: list[Any] = []
    for part in parts.values():
        assert isinstance(part, DecoderHook if slot == "hooks" else nn.Module)
        part.register_forward_hook(lambda module, inputs, result: seen.append((inputs, result)))
    whole = batch()
    output = detector.train()(whole)
    if slot in RETURNS:
        ((inputs, result),) = [s for s in seen if s[0]][:1]
        assert type(result) is RETURNS[slot]
        assert (
            type(inputs[0]) is {"tokens": Batch, "fusion": Tokens, "encoder": Memory, "decoder": Memory}[slot]
        )
        if isinstance(result, (Tokens, Memory)):
            size, frames, width = 3, 17, 32
            assert result.audio.shape == result.audio_position.shape == (size, frames, width)
            assert result.text.shape[::2] == (size, width)
            assert result.summary.shape == result.summary_position.shape == (size, width)
            assert torch.equal(result.audio_mask, whole.audio_mask)
            assert result.text_mask.shape == result.text.shape[:2]
            assert result.text_mask.dtype == torch.bool
        if isinstance(result, Decoded):
            layers, size, queries, width = result.states.shape
            assert (size, width) == (3, 32)
            assert result.references.shape == (layers, size, queries, 2)
            assert ((result.references > 0) & (result.references < 1)).all()
    elif slot in ("heads", "refine", "auxiliary"):
        assert [result for _, result in seen] == [None] * len(seen)  # they write into the output
    assert isinstance(output, Output)
    assert output.spans is not None
    assert output.logits is not None
    assert output.spans.shape[:3] == output.logits.shape[:3]
    assert ((output.spans >= 0) & (output.spans <= 1)).all()


@pytest.mark.parametrize(("slot", "kind"), PARTS)
def test_a_gradient_reaches_every_parameter(slot: str, kind: str) -> None:
    recipe, detector = made(slot, kind)
    whole = batch()
    loss = Criterion(recipe, detector)(detector.train()(whole), whole)
    assert math.isfinite(loss.total.item())
    loss.total.backward()
    known = dict(detector.named_parameters())
    declared = zero_gradient(detector)
    assert declared <= set(known), "zero_gradient names parameters that are not there"
    paths = parts_of(detector, slot, kind)
    own = {name: p for name, p in known.items() if name.startswith(tuple(f"{path}." for path in paths))}
    for name, parameter in own.items():
        assert parameter.grad is not None, f"{name} is not used; leave it out or say why"
        assert parameter.grad.isfinite().all(), name
        reached = bool(parameter.grad.any())
        assert reached != (name in declared), f"{name}: reached {reached}, declared {name in declared}"


@pytest.mark.parametrize(("slot", "kind"), PARTS)
def test_padding_changes_nothing(slot: str, kind: str) -> None:
    """At inference and, with the same draws, in training mode without dropout: outputs and every loss."""
    recipe, detector = made(slot, kind)
    short = batch()
    long = padded(short, 7, 3)
    without_dropout(detector)
    for mode in (False, True):
        detector.train(mode)
        torch.manual_seed(1)  # parts that draw shall draw the same
        a = detector(short)
        torch.manual_seed(1)
        b = detector(long)
        there = dict(tensors_of(b))
        for name, value in tensors_of(a):
            other = there[name]
            if value.dim() == 3 and other.shape[2] > value.shape[2]:  # per frame and token
                assert not other[:, :, value.shape[2] :].any(), f"{name}: padded tokens are not 0"
                other = other[:, :, : value.shape[2]]
            for real in (short.audio_mask, short.text_mask[0]):  # per frame or per token: the real ones
                if value.dim() > 1 and value.shape[:2] == real.shape:
                    value, other = value[real], other[:, : real.shape[1]][real]
            assert not value.isnan().any(), name
            close(value, other, name)
    first, second = (Criterion(recipe, detector)(out, data) for out, data in ((a, short), (b, long)))
    for name, raw in first.raw.items():
        close(raw, second.raw[name], f"loss {name}")


@pytest.mark.parametrize(("slot", "kind"), PARTS)
def test_a_batch_equals_its_rows(slot: str, kind: str) -> None:
    _, detector = made(slot, kind, training=False)
    detector.eval()
    whole = batch()
    with torch.inference_mode():
        together = detector(whole)
        for b in range(len(whole)):
            alone = detector(row_of(whole, b))
            frames = int(whole.lengths[b])
            close(alone.spans[:, 0], together.spans[:, b], "spans")
            close(alone.logits[:, 0], together.logits[:, b], "logits")
            for name in ("saliency", "boundary"):
                one, many = getattr(alone, name), getattr(together, name)
                assert (one is None) == (many is None)
                if one is not None:
                    close(one[0], many[b, :frames], name)
            assert (alone.refined is None) == (together.refined is None)
            if alone.refined is not None:
                close(alone.refined[0], together.refined[b], "refined")
            assert (alone.quality is None) == (together.quality is None)
            if alone.quality is not None:
                close(alone.quality[:, 0], together.quality[:, b], "quality")


@pytest.mark.parametrize("kind", registry.kinds("auxiliary"))
def test_training_only_parts_are_not_built_for_inference(kind: str) -> None:
    _, trained = made("auxiliary", kind)
    assert kind in trained.train()(batch()).extras
    assert kind not in trained.eval()(batch()).extras  # nor run in validation
    _, used = made("auxiliary", kind, training=False)
    assert len(trained.auxiliary) > 0
    assert len(used.auxiliary) == 0
    rest = {name for name in trained.state_dict() if not name.startswith("auxiliary.")}
    assert set(used.state_dict()) == rest


def test_a_second_pass_leaves_the_extras_of_the_first() -> None:
    seen: list[int] = []

    class Counting(nn.Module):
        def forward(self, tokens: Tokens) -> Tokens:
            tokens.extras["passes"] = tokens.extras.get("passes", torch.zeros(())) + 1
            seen.append(int(tokens.extras["passes"]))
            return tokens

    _, detector = made("auxiliary", "negative-pairs")
    detector.fusion["counting"] = Counting()
    assert detector.train()(batch()).extras["passes"] == 1
    assert seen == [1, 1]


@pytest.mark.parametrize("kind", TERMS)
def test_a_term_is_a_finite_scalar_that_is_weighted_in_one_place(kind: str) -> None:
    recipe, detector = made("losses", kind)
    whole = batch()
    output = detector.train()(whole)
    criterion = Criterion(recipe, detector)
    (term,) = (t for t in criterion.terms if t.name == kind)
    before = criterion(output, whole)
    assert before.raw[kind].shape == ()
    assert before.raw[kind].isfinite()
    assert not before.raw[kind].requires_grad
    term.weight *= 3.0
    after = criterion(output, whole)
    torch.testing.assert_close(after.raw[kind], before.raw[kind])
    torch.testing.assert_close(after.weighted[kind], 3 * before.weighted[kind])
    torch.testing.assert_close(after.total.detach(), sum(after.weighted.values(), torch.zeros(())))


@pytest.mark.parametrize("kind", TERMS)
def test_a_term_survives_a_batch_without_moments(kind: str) -> None:
    recipe, detector = made("losses", kind)
    whole = batch()
    assert whole.targets is not None
    whole.targets.mask.zero_()
    whole.targets.saliency.zero_()
    whole.targets.pair_mask.zero_()
    whole.targets.negative_row.fill_(-1)
    loss = Criterion(recipe, detector)(detector.train()(whole), whole)
    assert loss.raw[kind].isfinite()
    loss.total.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in detector.parameters())


@pytest.mark.parametrize("kind", SCORES)
def test_a_score_ranks_in_zero_to_one(kind: str) -> None:
    recipe, detector = made("score", kind, training=False)
    score: Callable[[Output, Batch], Tensor] = registry.find("score", kind).build(recipe.inference.score)
    whole = batch()
    with torch.inference_mode():
        got = score(detector.eval()(whole), whole)
    assert got.shape == (3, 7)
    assert got.dtype == torch.float32
    assert ((got >= 0) & (got <= 1)).all()


@pytest.mark.parametrize("kind", registry.kinds("optimizer"))
def test_an_optimizer_lowers_a_quadratic(kind: str) -> None:
    entry = registry.find("optimizer", kind)
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = entry.build(
        entry.config.model_validate(options("optimizer", kind) | {"lr": 0.1}), [parameter]
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss.item()

    first = closure()
    for _ in range(60):
        optimizer.step(closure)
    assert closure() < first / 10


@pytest.mark.parametrize("kind", registry.kinds("schedule"))
def test_a_schedule_stays_within_its_rate(kind: str) -> None:
    entry = registry.find("schedule", kind)
    for extra in ({}, {"warmup": 0.25}):
        schedule = entry.build(entry.config.model_validate(options("schedule", kind) | extra))
        factors = [schedule.factor(step, 5, 8) for step in range(40)]
        assert all(0 <= f <= 1 for f in factors)
        assert max(factors) == 1
        if extra:
            assert factors[:9] == sorted(factors[:9])
            assert factors[0] < 0.2


@pytest.mark.parametrize("slot", [s for s in registry.SLOTS if not s.endswith("-encoder")])
def test_the_kind_in_the_recipe_is_the_kind_of_the_config(slot: str) -> None:
    for kind in registry.kinds(slot):
        annotation = registry.find(slot, kind).config.model_fields["kind"].annotation
        assert get_args(annotation) == (kind,)


def without_dropout(module: nn.Module) -> None:
    """Dropout draws depend on shapes, so comparisons over shapes need it off."""
    for part in module.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)

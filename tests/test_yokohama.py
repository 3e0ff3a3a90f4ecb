"""Yokohama's systems: CG-DETR plus the report's changes, each of which can be taken away or added alone,
does something, and leaves the rest trainable."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.losses.total import Criterion
from amrctl.model.decoder.conditional import ConditionalDecoder
from amrctl.model.detector import Detector, build
from amrctl.model.types import MomentStatistics
from amrctl.recipe import STAGES, Recipe, load, shipped
from benchmarks.accuracy.settings import read_plan
from tests.small import AUDIO_DIM, TEXT_DIM, batch, row_of
from tests.test_contract import without_dropout

SYSTEMS = [f"yokohama-{i}" for i in (1, 2, 3, 4)]
SMALL = (  # those that a recipe has a place for
    "model.hidden_dim=32",
    "model.decoder.layers=2",
    "model.encoder.transformer.layers=1",
    "model.fusion.dummy-tokens.count=5",
    "model.fusion.dummy-tokens.layers=1",
    "model.auxiliary.sigreg.slices=32",
)
# Taking a change away; all of them together leave cg-detr.
OFF: dict[str, tuple[str, ...]] = {
    "tef": ("model.tokens.tef=concat-2d",),
    "first-difference": ("model.fusion.temporal-difference=null",),
    "second-difference": ("model.encoder.temporal-difference=null",),
    "registers": ("model.fusion.sentence-token.registers=0", "model.encoder.transformer.registers=0"),
    "film": ("model.decoder.hooks.film=null",),
    "content": ("model.decoder.content=zero",),
    "prior": ("model.decoder.hooks.gaussian-prior=null",),
    "iou-head": ("model.heads.task-aligned.iou=false",),
    "task-aligned": ("model.heads=[foreground, span, saliency]",),
    "swish": ("model.activation=null",),
    "norms": ("model.fusion.layer-norms=null",),
    "varifocal": ("losses.varifocal=null", "losses.label=4"),
    "sigreg": ("model.auxiliary.sigreg=null",),
    "widths": ("model.decoder.widths=null",),
    "queries": ("model.decoder.widths=null", "model.decoder.queries=10"),
    "sentence": (
        "model.fusion.sentence-token=null",
        "model.auxiliary.clip-words.sentence=own",
        "model.decoder.hooks.film=null",
    ),
    "shift": ("train.shift=false",),
    "asam": ("train.optimizer={kind: adamw, lr: 1.0e-4, weight_decay: 1.0e-4}",),
}


def everything_off() -> list[str]:
    """All changes taken away: hooks, then registers' hosts and the rest, each once."""
    sets = [s for name, items in OFF.items() if name != "registers" for s in items]
    sets = list(dict.fromkeys(("model.encoder.transformer.registers=0", *sets)))
    sets.remove("model.heads.task-aligned.iou=false")
    return sets


# --- the files --------------------------------------------------------------------------------


def test_the_four_systems_are_one_model() -> None:
    """They differ by features and by what the chain does with the trained weights."""
    raws = [yaml.safe_load(shipped()[name].read_text(encoding="utf-8")) for name in SYSTEMS]
    published = [raw["features"].pop("published") for raw in raws]
    assert published == ["ms-clap", "m2d-clap", "m2d-clap", "m2d-clap"]
    for name, raw in zip(SYSTEMS, raws, strict=True):
        assert raw.pop("name") == name
        assert raw.pop("source").endswith(f"system {name[-1]}")
        assert raw == raws[0]


def test_without_its_changes_it_is_cg_detr() -> None:
    bare, base = load("yokohama-1", "finetune", everything_off()), load("cg-detr", "finetune")
    assert bare.model == base.model
    assert {c.kind: c for c in bare.losses} == {c.kind: c for c in base.losses}
    ours, theirs = bare.train.model_dump(), base.train.model_dump()
    differing = {key for key in ours if ours[key] != theirs[key]}
    assert differing == {"schedule"}  # cosine with a warm-up


def test_the_reports_numbers_are_in_the_files() -> None:
    """Sections 2 and 3, and what was decided where they are silent, literally."""
    for stage in STAGES:
        raw = load("yokohama-1", stage).to_dict()
        model, train = raw["model"], raw["train"]
        parts = {(slot, e["kind"]): e for slot, v in model.items() if isinstance(v, list) for e in v}
        assert (model["activation"], model["tokens"]["tef"], model["tokens"]["bands"]) == (
            "swish",
            "fourier-3d",
            16,
        )
        decoder = model["decoder"]
        assert (decoder["queries"], decoder["content"], list(decoder["widths"])) == (
            30,
            "learned",
            [15, 50, 85],
        )
        assert parts["fusion", "sentence-token"]["registers"] == 4
        assert parts["encoder", "transformer"]["registers"] == 4
        order = [entry["kind"] for entry in model["fusion"]]
        assert order[0] == "temporal-difference"
        assert order[-2:] == ["layer-norms", "adaptive-cross-attention"]
        assert [entry["kind"] for entry in model["hooks"]] == ["film", "gaussian-prior"]
        sigreg = parts["auxiliary", "sigreg"]
        assert (sigreg["slices"], sigreg["knots"], sigreg["weight"]) == (1024, 17, 0.05)
        assert parts["heads", "task-aligned"]["weight"] == 1
        losses = {entry["kind"]: entry for entry in raw["losses"]}
        assert (losses["varifocal"]["alpha"], losses["varifocal"]["gamma"]) == (0.75, 2)
        optimizer = train["optimizer"]
        assert [optimizer[key] for key in ("kind", "every", "rho", "eta")] == ["periodic-asam", 5, 0.5, 0.01]
        assert train["schedule"] == {"kind": "cosine", "warmup": 0.05, "floor": 0.0}
        assert train["shift"] is True


# --- each change alone ------------------------------------------------------------------------


def made(*sets: str, name: str = "yokohama-1", training: bool = True) -> tuple[Recipe, Detector]:
    model = load(name, "finetune").model
    kinds = {entry.kind for entry in (*model.fusion, *model.encoder, *model.auxiliary)}
    small = [change for change in SMALL if change.count(".") < 3 or change.split(".")[2] in kinds]
    recipe = load(name, "finetune", [*small, *sets])
    torch.manual_seed(0)
    detector = build(recipe, (AUDIO_DIM,), (TEXT_DIM,), training=training)
    without_dropout(detector)
    return recipe, detector


def descend(recipe: Recipe, detector: Detector, steps: int, rate: float = 1e-3) -> None:
    """So many steps on one batch, without dropout and without decay: what moves has a gradient."""
    assert isinstance(detector.decoder, ConditionalDecoder)
    detector.decoder.start_from(MomentStatistics(np.linspace(0.05, 0.6, 40)))
    criterion, data = Criterion(recipe, detector), batch()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=rate, weight_decay=0)
    detector.train()
    for step in range(steps):
        torch.manual_seed(step)
        loss = criterion(detector(data), data)
        assert loss.total.isfinite()
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()


def still(detector: Detector, begun: dict[str, Tensor]) -> set[str]:
    return {name for name, p in detector.named_parameters() if torch.equal(p, begun[name])}


@pytest.mark.parametrize("change", OFF)
def test_without_one_change_the_rest_trains(change: str) -> None:
    sets = OFF[change]
    recipe, detector = made(*sets)
    assert recipe != made()[0]
    begun = {name: p.detach().clone() for name, p in detector.named_parameters()}
    descend(recipe, detector, 2)  # at the second step, every gate is open
    declared = {f"decoder.{name}" for name in getattr(detector.decoder, "zero_gradient", ())}
    assert still(detector, begun) <= declared
    with torch.inference_mode():
        output = detector.eval()(batch())
    assert output.spans.isfinite().all()


def flat(recipe: Recipe) -> dict[tuple[str, ...], Any]:
    """Every option of the model and the losses, and what of training a change may touch, by its place."""
    raw = recipe.to_dict()
    found: dict[tuple[str, ...], Any] = {
        ("train", "shift"): raw["train"]["shift"],
        ("train", "optimizer"): raw["train"]["optimizer"]["kind"],
    }

    def walk(place: tuple[str, ...], value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk((*place, key), item)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for entry in value:
                walk((*place, entry["kind"]), entry)
        else:
            found[place] = value

    walk((), {"model": raw["model"], "losses": raw["losses"]})
    return found


ROWS = {
    name: row
    for name, row in read_plan().rows.items()
    if name.startswith("cg-detr-") and name != "cg-detr-queries"
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_benchmark_adds_one_change_to_cg_detr(row: str) -> None:
    """Each of its options is cg-detr's or the whole system's, and it trains."""
    assert ROWS[row].recipe == "cg-detr"
    sets = ROWS[row].set
    base, whole = flat(load("cg-detr", "finetune")), flat(load("yokohama-1", "finetune"))
    mine = flat(load("cg-detr", "finetune", sets))
    differing = {place for place in mine if mine[place] != base.get(place, object())}
    assert differing
    if row == "cg-detr-film":  # FiLM without registers
        differing.remove(("model", "fusion", "sentence-token", "registers"))
    assert {place: mine[place] for place in differing} == {place: whole[place] for place in differing}
    gone = {place for place in base if place not in mine}
    assert not gone & set(whole)
    recipe, detector = made(*sets, name="cg-detr")
    descend(recipe, detector, 2)


ALONE: dict[str, tuple[str, ...]] = {
    "tef": ("model.tokens.tef=fourier-3d",),
    "first-difference": ("model.fusion=[temporal-difference, text-to-audio]",),
    "second-difference": ("model.encoder=[transformer, temporal-difference]",),
    "registers": ("model.encoder.transformer.registers=4",),
    "film": ("model.fusion=[sentence-token, text-to-audio]", "model.hooks=[film]"),
    "content": ("model.decoder.content=learned",),
    "prior": ("model.hooks=[gaussian-prior]",),
    "iou-head": ("model.heads=[task-aligned, saliency]",),
    "task-aligned": ("model.heads=[{kind: task-aligned, iou: false}, saliency]",),
    "swish": ("model.activation=swish",),
    "norms": ("model.fusion=[layer-norms, text-to-audio]",),
    "varifocal": ("losses.label=null", "losses.varifocal={weight: 1, cost: 4}"),
    "sigreg": ("model.auxiliary=[negative-pairs, {kind: sigreg, slices: 32}]",),
    "widths": ("model.decoder.queries=30", "model.decoder.widths=[15, 50, 85]"),
}


@pytest.mark.parametrize("change", ALONE)
def test_one_change_alone_trains_on_the_baseline(change: str) -> None:
    recipe, detector = made(*ALONE[change], name="qd-detr")
    begun = {name: p.detach().clone() for name, p in detector.named_parameters()}
    descend(recipe, detector, 2)
    declared = {f"decoder.{name}" for name in getattr(detector.decoder, "zero_gradient", ())}
    assert still(detector, begun) <= declared


# --- what the parts do ------------------------------------------------------------------------


@cache
def trained() -> tuple[Detector, dict[str, Tensor]]:
    recipe, detector = made()
    begun = {name: value.clone() for name, value in detector.state_dict().items()}
    descend(recipe, detector, 50, rate=5e-3)
    return detector, begun


def answers(detector: Detector, data: Batch) -> list[Tensor]:
    with torch.inference_mode():
        output = detector.eval()(data)
    return [output.spans[-1], output.logits[-1].sigmoid()]


def test_every_weight_moved() -> None:
    detector, begun = trained()
    assert still(detector, begun) == set()


@pytest.mark.parametrize(
    "change",
    ["first-difference", "second-difference", "registers", "film", "content", "prior", "swish", "norms"],
)
def test_a_change_taken_away_from_the_trained_model_changes_predictions(change: str) -> None:
    detector, _ = trained()
    data = batch(seed=3)
    _, bare = made(*OFF[change], training=False)
    weights = detector.state_dict()
    bare.load_state_dict({name: weights.get(name, value) for name, value in bare.state_dict().items()})
    pairs = zip(answers(bare, data), answers(detector, data), strict=True)
    assert max(float((mine - theirs).abs().max()) for mine, theirs in pairs) > 1e-4


@pytest.mark.parametrize("change", ["sigreg", "varifocal", "iou-head"])
def test_what_is_for_training_only_changed_the_shared_weights(change: str) -> None:
    """Same first weights, same batch, no dropout: what differs after three steps is its doing."""
    states = []
    for sets in ((), OFF[change]):
        recipe, detector = made(*sets)
        first = made()[1].state_dict()
        detector.load_state_dict({name: first[name] for name in detector.state_dict()})
        descend(recipe, detector, 3)
        states.append(detector.state_dict())
    for group in ("tokens.", "fusion.", "encoder.", "decoder."):
        names = [name for name in states[1] if name.startswith(group)]
        assert any(float((states[0][n] - states[1][n]).abs().max()) > 1e-4 for n in names), group


def test_training_only_parts_are_not_needed_at_inference() -> None:
    detector, _ = trained()
    _, bare = made(training=False)
    weights = detector.state_dict()
    assert not any(name.startswith("auxiliary.") for name in bare.state_dict())
    bare.load_state_dict({name: weights[name] for name in bare.state_dict()})
    data = batch(seed=3)
    for mine, theirs in zip(answers(bare, data), answers(detector, data), strict=True):
        assert torch.equal(mine, theirs)


def test_it_answers_alike_alone_and_in_a_batch() -> None:
    detector, _ = trained()
    data = batch(frames=(12, 17, 1), seed=4)
    together = answers(detector, data)
    for b in range(3):
        for alone, whole in zip(answers(detector, row_of(data, b)), together, strict=True):
            torch.testing.assert_close(alone[0], whole[b], rtol=1e-4, atol=2e-5)


def test_sigreg_sees_all_five_sets() -> None:
    """As the recipe leaves `sets` open, so that any of their makers can be taken away."""
    total = made()[1].train()
    torch.manual_seed(3)
    value = total(batch()).extras["sigreg"]
    shares = []
    for name in ("first-difference", "encoder-output", "second-difference", "text-summary", "dummies"):
        _, detector = made(f"model.auxiliary.sigreg.sets=[{name}]")
        torch.manual_seed(3)
        shares.append(detector.train()(batch()).extras["sigreg"])
    torch.testing.assert_close(value, torch.stack(shares).sum())


def test_without_moments_and_with_one_frame_it_trains_on() -> None:
    recipe, detector = made()
    data = batch(frames=(1, 1, 2))
    assert data.targets is not None
    for name in ("mask", "saliency", "positives", "negatives", "pair_mask"):
        getattr(data.targets, name).zero_()
    loss = Criterion(recipe, detector)(detector.train()(data), data)
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in detector.parameters())

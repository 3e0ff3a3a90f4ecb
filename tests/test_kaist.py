"""The KAIST ladder: every rung adds one entry, every entry does something, and nothing that is for
training only is left at inference."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.inference.scores.span_rerank import SpanRerankScore, SpanRerankScoreConfig
from amrctl.losses.total import Criterion
from amrctl.model.detector import Detector, build
from amrctl.recipe import load, shipped
from tests.small import AUDIO_DIM, TEXT_DIM, batch, row_of
from tests.test_contract import without_dropout, zero_gradient

SLOTS = [f"kaist-slot{i}" for i in (1, 2, 3, 4)]
LISTS = ("fusion", "heads", "refine", "auxiliary")

# The rungs between QD-DETR on the same features and slot 3, each as what it lacks of slot 3 (newest first).
LACKING = [
    "model.refine.cascade=null",
    "model.hooks.denoising=null",
    "model.auxiliary.boundary-contrast=null",
    "model.encoder=[{kind: transformer, layers: 2, heads: 8, dropout: 0.1}]",
    "model.heads.span-rerank=null",
    "model.auxiliary.coarse=null",
]
RUNGS = [LACKING[:i] for i in range(len(LACKING), -1, -1)]
TRAINING_ONLY = {
    "coarse": "model.auxiliary.coarse=null",
    "span-rerank": "model.heads.span-rerank=null",
    "boundary-contrast": "model.auxiliary.boundary-contrast=null",
    "denoising": "model.hooks.denoising=null",
}


def file_of(slot: str) -> dict[str, Any]:
    """A recipe file as data, its components by kind."""
    raw: dict[str, Any] = yaml.safe_load(shipped()[slot].read_text(encoding="utf-8"))
    raw["model"]["hooks"] = raw["model"]["decoder"].pop("hooks", [])
    return raw


def entries(items: list[Any]) -> list[Any]:
    return [{"kind": item} if isinstance(item, str) else item for item in items]


@pytest.mark.parametrize(("below", "above"), list(itertools.pairwise(SLOTS)))
def test_each_slot_is_a_strict_superset_of_the_one_before(below: str, above: str) -> None:
    old, new = file_of(below), file_of(above)
    assert old.pop("name") == below
    assert new.pop("name") == above
    assert old.pop("source")[:-1] == new.pop("source")[:-1]
    added: list[str] = []
    for slot in (*LISTS, "hooks"):
        before, after = (entries(raw["model"].pop(slot, [])) for raw in (old, new))
        rest = [entry for entry in after if entry in before]
        assert rest == before, f"{slot}: the entries of {below}, in their order"
        added += [entry["kind"] for entry in after if entry not in before]
    encoders = [raw["model"].pop("encoder") for raw in (old, new)]
    if encoders[0] != encoders[1]:
        assert above == "kaist-slot2"
        added += [entry["kind"] for entry in encoders[1]]
    proposals = new["inference"].pop("saliency_proposals", None)
    if proposals != old["inference"].pop("saliency_proposals", None):
        added.append("saliency_proposals")
    assert old == new
    assert sorted(added) == {
        "kaist-slot2": ["bimamba", "boundary-contrast", "denoising"],
        "kaist-slot3": ["cascade"],
        "kaist-slot4": ["saliency_proposals"],
    }.get(above)


def parts(recipe: Any) -> list[Any]:
    """Everything a resolved recipe consists of, one item per component or other entry."""
    raw = recipe.to_dict()
    model = raw.pop("model")
    found: list[Any] = [["model", key, value] for key, value in model.items() if not isinstance(value, list)]
    found += [[slot, entry] for slot, items in model.items() if isinstance(items, list) for entry in items]
    return found + [[key, value] for key, value in raw.items() if key not in ("name", "source")]


def test_each_rung_differs_from_its_neighbour_by_one_entry() -> None:
    ladder = [parts(load("kaist-slot3", "pretrain", sets)) for sets in RUNGS]
    for sets, low, high in zip(RUNGS, ladder, ladder[1:], strict=False):
        gone = [item for item in low if item not in high]
        new = [item for item in high if item not in low]
        assert len(new) == 1, new
        # only the encoder replaces something
        assert len(gone) == (1 if new[0][0] == "encoder" else 0), gone
        assert str(new[0][1]["kind"] if isinstance(new[0][1], dict) else new) in sets[-1] or gone
    for slot, rung in (("kaist-slot1", 2), ("kaist-slot2", 5), ("kaist-slot3", 6)):
        assert ladder[rung] == parts(load(slot, "pretrain"))
    first, baseline = load("kaist-slot3", "pretrain", RUNGS[0]).model, load("qd-detr", "pretrain").model
    assert first == baseline


def test_the_reports_numbers_are_in_the_files() -> None:
    """Sections 2.2 to 3.5 of the report, literally."""
    pretrain, finetune = load("kaist-slot3", "pretrain").to_dict(), load("kaist-slot3", "finetune").to_dict()
    rates = [(pretrain["train"], 1e-4), (finetune["train"], 8e-5)]
    for train, rate in rates:
        assert (train["epochs"], train["batch"], train["clip"], train["max_windows"]) == (200, 32, 0.1, 5)
        assert train["optimizer"]["lr"] == rate
        assert train["optimizer"]["weight_decay"] == 1e-4
        assert train["schedule"]["kind"] == "constant"
        assert train["schedule"].get("warmup", 0) == 0
        assert train["max_frames"] == 300
    raw = pretrain
    assert raw["features"]["text"][0]["max_tokens"] == 32
    model = raw["model"]
    by_kind = {
        entry["kind"]: entry
        for slot in (*LISTS, "hooks", "encoder")
        for entry in model[slot]
        if isinstance(entry, dict)
    }
    numbers: dict[str, dict[str, Any]] = {
        "coarse": {"factor": 2, "weight": 0.25},
        "span-rerank": {"weight": 0.5},
        "bimamba": {"layers": 1, "merge": "sum", "state": 16, "conv": 4, "expand": 2},
        "boundary-contrast": {"frames": 3, "temperature": 0.1, "weight": 0.2},
        "denoising": {"copies": 5, "sigma": 0.05, "weight": 1.0},
        "cascade": {"margin": 10, "kappa": 0.05, "heads": 4, "weight": 1.0, "detach_memory": True},
    }
    for kind, wanted in numbers.items():
        assert {key: by_kind[kind][key] for key in wanted} == wanted, kind
    assert model["decoder"]["queries"] == 10
    assert {term["kind"]: term["weight"] for term in raw["losses"]} == {
        "span": 10,
        "giou": 1,
        "label": 4,
        "saliency": 1,
    }
    assert raw["inference"]["score"] == {"kind": "span-rerank", "alpha": 1.0}
    four = load("kaist-slot4", "finetune").to_dict()["inference"]["saliency_proposals"]
    assert four == {"threshold": 0.5, "keep": 10}


# --- what the parts do -------------------------------------------------------------------------


def made(*sets: str, training: bool = True, slot: str = "kaist-slot3") -> tuple[Any, Detector]:
    recipe = load(slot, "finetune", ["model.hidden_dim=32", *sets])
    torch.manual_seed(0)
    detector = build(recipe, (AUDIO_DIM,), (TEXT_DIM,), training=training)
    without_dropout(detector)
    return recipe, detector


def trained(steps: int, *sets: str) -> tuple[Detector, dict[str, Tensor]]:
    """Slot 3 less what `sets` remove, after `steps` small steps; and the weights it began with.

    Whatever it lacks, it begins with the same weights.
    """
    _, whole = made()
    recipe, detector = made(*sets)
    begun = {name: value.clone() for name, value in whole.state_dict().items()}
    detector.load_state_dict({name: begun[name] for name in detector.state_dict()})
    criterion = Criterion(recipe, detector)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    detector.train()
    data = batch()
    for step in range(steps):
        torch.manual_seed(step)
        loss = criterion(detector(data), data)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    return detector, begun


@cache
def slot3() -> tuple[Detector, dict[str, Tensor]]:
    return trained(50)


@cache
def after_three_steps() -> dict[str, Tensor]:
    return trained(3)[0].state_dict()


def answers(detector: Detector, data: Batch) -> Iterator[Tensor]:
    with torch.inference_mode():
        output = detector.eval()(data)
    yield from (output.logits[-1], output.saliency)
    yield output.spans[-1] if output.refined is None else output.refined


def test_every_parts_parameters_moved() -> None:
    detector, begun = slot3()
    still = {name for name, value in detector.state_dict().items() if torch.equal(value, begun[name])}
    # the scan has no positions, so that of the summary token is never read
    unread = {n for n in zero_gradient(detector) if n.startswith("decoder.")} | {"tokens.summary_position"}
    assert still <= unread
    own = ("encoder.bimamba.", "heads.span-rerank.", "refine.cascade.", "auxiliary.boundary-contrast.")
    for prefix in own:
        names = [name for name in begun if name.startswith(prefix)]
        assert names
        assert not still.intersection(names)


@pytest.mark.parametrize("kind", TRAINING_ONLY)
def test_a_training_only_part_changed_the_shared_weights(kind: str) -> None:
    """Same first weights, same batches, no dropout: what differs after three steps is its doing."""
    mine, theirs = trained(3, TRAINING_ONLY[kind])[0].state_dict(), after_three_steps()
    for group in ("tokens.", "fusion.", "encoder."):
        names = [name for name in mine if name.startswith(group)]
        assert any(float((mine[n] - theirs[n]).abs().max()) > 1e-4 for n in names), group


def test_training_only_parts_are_not_needed_at_inference() -> None:
    detector, _ = slot3()
    data = batch(seed=3)
    for sets in ([], [TRAINING_ONLY["coarse"]], list(TRAINING_ONLY.values())):
        _, bare = made(*sets, training=False)
        weights = detector.state_dict()
        assert not any(name.startswith("auxiliary.") for name in bare.state_dict())
        bare.load_state_dict({name: weights[name] for name in bare.state_dict()})
        for mine, theirs in zip(answers(bare, data), answers(detector, data), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("sets", ["model.refine.cascade=null", "model.encoder=[]"])
def test_a_part_switched_off_in_the_trained_checkpoint_changes_predictions(sets: str) -> None:
    detector, _ = slot3()
    data = batch(seed=3)
    _, bare = made(sets, training=False)
    weights = detector.state_dict()
    bare.load_state_dict({name: weights[name] for name in bare.state_dict()})
    *_, mine = answers(bare, data)
    *_, theirs = answers(detector, data)
    assert float((mine - theirs).abs().max()) > 1e-3


def test_alpha_below_one_changes_scores_and_one_does_not() -> None:
    detector, _ = slot3()
    data = batch(seed=3)
    with torch.inference_mode():
        output = detector.eval()(data)
    scores = {a: SpanRerankScore(SpanRerankScoreConfig(alpha=a))(output, data) for a in (1.0, 0.5)}
    assert torch.equal(scores[1.0], output.logits[-1].softmax(-1)[..., 0])
    assert float((scores[0.5] - scores[1.0]).abs().max()) > 1e-2


def test_the_trained_detector_answers_alike_alone_and_in_a_batch() -> None:
    detector, _ = slot3()
    data = batch(frames=(12, 17, 1), seed=4)
    together = list(answers(detector, data))
    for b in range(3):
        frames = int(data.lengths[b])
        for alone, whole in zip(answers(detector, row_of(data, b)), together, strict=True):
            other = whole[b, :frames] if whole.shape[:2] == data.audio_mask.shape else whole[b]
            torch.testing.assert_close(alone[0], other, rtol=1e-3, atol=1e-4)


def test_without_moments_and_with_one_frame_it_trains_on() -> None:
    recipe, detector = made()
    data = copy.deepcopy(batch(frames=(1, 1, 2)))
    assert data.targets is not None
    for name in ("mask", "saliency", "positives", "negatives", "pair_mask"):
        getattr(data.targets, name).zero_()
    loss = Criterion(recipe, detector)(detector.train()(data), data)
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in detector.parameters())

"""QAM-DETR: every row of the report's Table 1 adds one entry, and every entry does something."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.inference.scores.product import Product, ProductConfig
from amrctl.losses.total import Criterion
from amrctl.model.detector import Detector, build
from amrctl.recipe import Recipe, load
from tests.model.tokens.test_gated_streams import AUDIO, FRAMES, TEXT, several
from tests.small import batch, row_of
from tests.test_contract import without_dropout

RECIPES = [f"qam-detr-{combination}" for combination in "abc"]
TABLE_2 = {
    "qam-detr-a": (["laion-clap", "ms-clap", "wavlm-base-plus"], ["laion-clap", "ms-clap"]),
    "qam-detr-b": (["laion-clap", "ms-clap"], ["laion-clap", "ms-clap"]),
    "qam-detr-c": (
        ["laion-clap", "wavlm-base", "wavlm-base-plus", "wavlm-large"],
        ["laion-clap", "roberta-base"],
    ),
}
# What each row of Table 1 adds to the row before, from the baseline on
BIMAMBA = "{kind: bimamba, layers: 2, merge: concat}"
ADDED: dict[str, list[str]] = {
    "encoder": [f"model.encoder=[{BIMAMBA}]"],
    "heads": [
        "model.heads=[foreground, span, saliency, {kind: quality, reads: state, loss: l1}]",
        "inference.score=product",
    ],
    "multi-scale": [f"model.encoder=[{BIMAMBA}, multi-scale]"],
    "fusion": ["model.fusion=[three-way]"],
    "streams": [
        "model.tokens.kind=gated-streams",
        "features.audio=[laion-clap, ms-clap, wavlm-base-plus]",
        "features.text=[laion-clap, ms-clap]",
    ],
}
STEPS = 50
OFF = {
    "bimamba": "model.encoder.bimamba=null",
    "multi-scale": "model.encoder.multi-scale=null",
    "three-way": "model.fusion=[]",
}


def rung(count: int) -> dict[str, Any]:
    """The first `count` additions on the baseline with the main stream."""
    sets = [item for items in list(ADDED.values())[:count] for item in items]
    base = ["features.audio=[laion-clap]", "features.text=[laion-clap]", "features.published=null"]
    raw = load("qd-detr", "finetune", [*base, *sets]).to_dict()
    return {key: value for key, value in raw.items() if key not in ("name", "source")}


def test_each_row_of_the_table_adds_one_entry() -> None:
    ladder = [rung(count) for count in range(len(ADDED) + 1)]
    changed = []
    for before, after in pairwise(ladder):
        keys = {key for key in after if after[key] != before[key]}
        slots = {slot for slot in after["model"] if after["model"][slot] != before["model"][slot]}
        changed.append((sorted(keys), sorted(slots)))
    assert changed == [
        (["model"], ["encoder"]),
        (["inference", "model"], ["heads"]),  # the head is there to rank: its score comes with it
        (["model"], ["encoder"]),
        (["model"], ["fusion"]),
        (["features", "model"], ["tokens"]),  # several streams need the component that reads several
    ]
    heads = [ladder[i]["model"]["heads"] for i in (1, 2)]
    assert heads[1][:-1] == heads[0]
    assert [part["kind"] for part in ladder[3]["model"]["encoder"]] == ["bimamba", "multi-scale"]
    assert ladder[3]["model"]["encoder"][0] == ladder[2]["model"]["encoder"][0]
    tokens = [dict(ladder[i]["model"]["tokens"]) for i in (4, 5)]
    assert [part.pop("kind") for part in tokens] == ["projection", "gated-streams"]
    assert {key: tokens[0][key] for key in tokens[1]} == tokens[1]


def test_the_last_row_is_the_recipe() -> None:
    whole = load("qam-detr-a", "finetune").to_dict()
    assert {key: value for key, value in whole.items() if key not in ("name", "source")} == rung(len(ADDED))


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_streams(name: str) -> None:
    recipe = load(name, "finetune")
    found = tuple([stream.name for stream in side] for side in (recipe.features.audio, recipe.features.text))
    assert found == TABLE_2[name]
    apart = {"name", "source", "features"}
    mine, first = recipe.to_dict(), load("qam-detr-a", "finetune").to_dict()
    assert {k: v for k, v in mine.items() if k not in apart} == {
        k: v for k, v in first.items() if k not in apart
    }


def test_the_reports_words_are_in_the_recipe() -> None:
    """Sections 2.1 to 2.3; numbers beside them are ours."""
    model = load("qam-detr-a", "finetune").to_dict()["model"]
    assert [part["kind"] for part in model["fusion"]] == ["three-way"]
    mamba, scales = model["encoder"]
    numbers = {"layers": 2, "merge": "concat", "state": 16, "conv": 4, "expand": 2}
    assert {key: mamba[key] for key in numbers} == numbers
    assert scales["factors"] == [2, 4]
    quality = model["heads"][-1]
    assert {key: quality[key] for key in ("kind", "reads", "loss", "weight")} == {
        "kind": "quality",
        "reads": "state",
        "loss": "l1",
        "weight": 1.0,
    }


@pytest.mark.parametrize(
    ("name", "audio", "text", "wanted"),
    [
        ("qam-detr-a", (512, 768, 768), (768, 768), 9_462_568),
        ("qam-detr-b", (512, 768), (768, 768), 9_197_863),
        ("qam-detr-c", (512, 768, 768, 1024), (768, 768), 9_793_321),
        ("qd-detr", (512,), (768,), 7_048_485),
    ],
)
def test_the_sizes_that_the_page_states(
    name: str, audio: tuple[int, ...], text: tuple[int, ...], wanted: int
) -> None:
    detector = build(load(name, "finetune"), audio, text, training=False)
    assert sum(parameter.numel() for parameter in detector.parameters()) == wanted


# --- what the parts do -------------------------------------------------------------------------


def made(*sets: str) -> tuple[Recipe, Detector]:
    recipe = load("qam-detr-a", "finetune", ["model.hidden_dim=16", *sets])
    torch.manual_seed(0)
    detector = build(recipe, AUDIO, TEXT, training=True)
    without_dropout(detector)
    return recipe, detector


def trained(steps: int, *sets: str) -> tuple[Detector, dict[str, Tensor]]:
    """The recipe after some steps, and the weights it began with."""
    recipe, detector = made(*sets)
    begun = {name: value.clone() for name, value in detector.state_dict().items()}
    criterion = Criterion(recipe, detector)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    detector.train()
    data = several()
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(detector(data), data).total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    return detector, begun


@cache
def full() -> tuple[Detector, dict[str, Tensor]]:
    return trained(STEPS)


def other_recordings() -> Batch:
    fresh = batch(FRAMES, (4, 2, 6), seed=3)
    return replace(several(), audio=(*fresh.audio, *several().audio[1:]), targets=None)


def spans(detector: Detector, data: Batch) -> Tensor:
    with torch.inference_mode():
        found: Tensor = detector.eval()(data).spans[-1]
    return found


def test_every_parts_parameters_moved() -> None:
    detector, begun = full()
    still = {name for name, value in detector.state_dict().items() if torch.equal(value, begun[name])}
    unread = {f"decoder.{name}" for name in getattr(detector.decoder, "zero_gradient", ())}
    assert still <= unread | {"tokens.summary_position"}  # a scan has no use for positions
    for part in ("tokens.more_audio.1", "tokens.more_text.0", "fusion.three-way", "encoder.multi-scale"):
        assert any(name.startswith(f"{part}.") for name in begun)
    gates = [name for name in begun if name.endswith(".gate")]
    assert len(gates) == 3
    assert all(0 < float((detector.state_dict()[name] - begun[name]).abs()) < 1 for name in gates)


@pytest.mark.parametrize("kind", OFF)
def test_a_part_switched_off_in_the_trained_checkpoint_changes_predictions(kind: str) -> None:
    detector, _ = full()
    data = other_recordings()
    _, bare = made(OFF[kind])
    weights = detector.state_dict()
    bare.load_state_dict({name: weights[name] for name in bare.state_dict()})
    assert float((spans(bare, data) - spans(detector, data)).abs().max()) > 1e-3


@pytest.mark.parametrize("gate", ["more_audio.0", "more_audio.1", "more_text.0"])
def test_each_stream_is_heard_until_its_gate_closes(gate: str) -> None:
    detector, _ = full()
    _, other = made()
    other.load_state_dict(detector.state_dict())
    other.get_parameter(f"tokens.{gate}.gate").data.fill_(-torch.inf)
    data = other_recordings()
    assert float((spans(other, data) - spans(detector, data)).abs().max()) > 1e-3
    side, index = gate.split(".")
    if side == "more_audio":  # a closed stream may hold anything
        audio = list(data.audio)
        audio[1 + int(index)] = torch.randn_like(audio[1 + int(index)])
        assert torch.equal(spans(other, replace(data, audio=tuple(audio))), spans(other, data))


def test_the_product_ranks_otherwise_than_the_foreground() -> None:
    detector, _ = full()
    with torch.inference_mode():
        output = detector.eval()(other_recordings())
    assert output.quality is not None
    assert output.logits is not None
    scores = Product(ProductConfig())(output, batch())
    foreground = output.logits[-1].softmax(-1)[..., 0]
    torch.testing.assert_close(scores, foreground * output.quality[-1].sigmoid())
    assert float((scores - foreground).abs().max()) > 1e-2


def test_the_quality_loss_changes_the_shared_weights() -> None:
    """Same first weights and batches: what differs after three steps is its doing."""
    with_, without = (trained(3, *sets)[0].state_dict() for sets in ((), ("model.heads.quality.weight=0",)))
    for group in ("tokens.", "fusion.", "encoder."):
        names = [name for name in with_ if name.startswith(group)]
        assert any(float((with_[n] - without[n]).abs().max()) > 1e-4 for n in names), group


def test_the_trained_detector_answers_alike_alone_and_in_a_batch() -> None:
    detector, _ = full()
    data = several()
    together = spans(detector, data)
    for b in range(3):
        torch.testing.assert_close(spans(detector, row_of(data, b))[0], together[b], rtol=1e-3, atol=1e-4)

"""`--init` from a checkpoint of another recipe: what the recipe adds starts fresh, the rest must fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amrctl import recipe as recipes
from amrctl.errors import CheckpointError, RecipeError
from amrctl.model import checkpoint
from amrctl.model.checkpoint import Checkpoint
from amrctl.model.detector import Detector, build
from amrctl.progress import Reporter
from amrctl.run_folder import RunFolder
from amrctl.training import run
from amrctl.training.loop import train
from tests.training.tiny import Tiny

PLAIN = "model.heads=[foreground, span, saliency]"
MORE = (
    "model.heads=[foreground, span, saliency, boundary, quality]",
    "model.refine=[span-evidence]",
    "model.fusion=[{kind: text-guided-enhancer, heads: 2}, {kind: text-to-audio, layers: 1, heads: 2}]",
)
Saver = Callable[..., tuple[Path, dict[str, torch.Tensor]]]
ADDED = ["fusion.text-guided-enhancer", "heads.boundary", "heads.quality", "refine.span-evidence"]


class Notes(Reporter):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def saved(tiny: Tiny, tmp_path: Path) -> Saver:
    """Write a checkpoint of the tiny recipe with `--set` items; `change` edits its tensors first."""

    def write(
        *sets: str, change: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None
    ) -> tuple[Path, dict[str, torch.Tensor]]:
        made = recipes.load(str(tiny.recipe), "finetune", sets)
        torch.manual_seed(77)
        tensors = dict(build(made, (6,), (6,), training=True).state_dict())
        change(tensors)
        stream = {"name": "noise", "dim": 6, "encoder": "noise", "hop": 1.0, "attrs": {}}
        path = tmp_path / "c.safetensors"
        checkpoint.write(path, Checkpoint(tensors, made, {"audio": [stream], "text": [stream]}))
        return path, tensors

    return write


def start(tiny: Tiny, init: Path | None, *sets: str) -> tuple[Detector, list[str]]:
    """The detector before its first step, and what was told."""
    request = run.Request(
        recipe=recipes.load(str(tiny.recipe), "finetune", sets),
        train=(tiny.train,),
        val=(tiny.val,),
        features=tiny.features,
        init=init,
        device="cpu",
    )
    notes = Notes()
    job = run.load(request, run.fingerprint(request), notes)
    return run.assemble(job, 5), [
        text for text in notes.told if any(word in text for word in ("fresh", "left out", "re-init"))
    ]


def test_what_the_checkpoint_never_had_starts_fresh(tiny: Tiny, saved: Saver) -> None:
    path, given = saved(PLAIN)
    detector, told = start(tiny, path, *MORE)
    assert told == [f"{path} has no {', '.join(ADDED)}: fresh weights there, the rest is loaded"]
    scratch, _ = start(tiny, None, *MORE)
    fresh = scratch.state_dict()
    for key, value in detector.state_dict().items():
        new = key.startswith(tuple(f"{part}." for part in ADDED))
        assert new == (key not in given)
        assert torch.equal(value, fresh[key] if new else given[key]), key
    same, told = start(tiny, path, PLAIN)
    assert told == []
    assert all(torch.equal(value, given[key]) for key, value in same.state_dict().items())


def test_a_second_one_of_a_kind_is_a_part_of_its_own(tiny: Tiny, saved: Saver) -> None:
    path, given = saved()
    layer = "{kind: transformer, layers: 1, heads: 2}"
    detector, told = start(tiny, path, f"model.encoder=[{layer}, {layer}]")
    assert told == [f"{path} has no encoder.transformer-2: fresh weights there, the rest is loaded"]
    key = "encoder.transformer{}.layers.0.self_attn.in_proj_weight"
    assert torch.equal(detector.state_dict()[key.format("")], given[key.format("")])


def test_a_weight_missing_in_a_part_that_was_there_is_an_error(tiny: Tiny, saved: Saver) -> None:
    key = "heads.quality.mlp.layers.1.bias"
    path, _ = saved(*MORE, change=lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointError, match=f"1 weights are missing, the first is '{key}'"):
        start(tiny, path, *MORE)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["heads.span.other"] = tensors.pop("heads.span.mlp.layers.0.weight")

    path, _ = saved(PLAIN, change=rename)
    with pytest.raises(CheckpointError, match=r"'heads\.span\.mlp\.layers\.0\.weight'.*'heads\.span\.other'"):
        start(tiny, path, *MORE)


def test_a_trained_part_is_not_dropped(tiny: Tiny, saved: Saver) -> None:
    path, _ = saved(*MORE)
    with pytest.raises(CheckpointError) as caught:
        start(tiny, path, *MORE[::2])
    assert str(caught.value) == (
        f"{path} has trained parts that recipe tiny lacks: refine.span-evidence; use a recipe that has "
        "them, or start from a checkpoint without them"
    )
    with pytest.raises(CheckpointError, match=r"lacks: encoder\.transformer; use"):
        start(tiny, path, *MORE, "model.encoder=[]")


def test_training_only_parts_may_go_and_are_named(tiny: Tiny, saved: Saver) -> None:
    path, given = saved(change=lambda tensors: tensors.update({"auxiliary.negative-pairs.w": torch.ones(2)}))
    detector, told = start(tiny, path, "model.auxiliary=[]", "losses.saliency.margin=0.3")
    assert told == [
        f"{path} has auxiliary.negative-pairs, for training only, which recipe tiny lacks: left out"
    ]
    assert all(torch.equal(value, given[key]) for key, value in detector.state_dict().items())


def test_frozen_means_that_only_the_adapter_trains(tiny: Tiny, saved: Saver) -> None:
    path, _ = saved(PLAIN)
    frozen = "model.refine=[{kind: span-evidence, freeze: true}]"
    detector, _ = start(tiny, path, PLAIN, frozen)
    training = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert training == {
        f"refine.span-evidence.mlp.layers.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")
    }
    detector, _ = start(tiny, path, PLAIN, "model.refine=[span-evidence]")
    assert all(p.requires_grad for p in detector.parameters())
    with pytest.raises(RecipeError, match=r"model\.refine\.span-evidence\.freeze: .* give --init"):
        start(tiny, None, PLAIN, frozen)


def test_what_is_frozen_does_not_start_from_the_training_moments(tiny: Tiny, saved: Saver) -> None:
    places = ("model.decoder.queries=6", "model.decoder.widths=[15, 50, 85]")
    path, given = saved(PLAIN, *places)
    moved, _ = start(tiny, path, PLAIN, *places)
    assert not torch.equal(
        moved.state_dict()["decoder.query_embed.weight"], given["decoder.query_embed.weight"]
    )
    frozen = "model.refine=[{kind: span-evidence, freeze: true}]"
    detector, told = start(tiny, path, PLAIN, *places, frozen)
    assert all(torch.equal(detector.state_dict()[key], value) for key, value in given.items())
    assert told == [f"{path} has no refine.span-evidence: fresh weights there, the rest is loaded"]


def test_frozen_weights_stand_still(tiny: Tiny, saved: Saver, tmp_path: Path) -> None:
    path, given = saved(PLAIN)
    request = run.Request(
        recipe=recipes.load(
            str(tiny.recipe), "finetune", [PLAIN, "model.refine=[{kind: span-evidence, freeze: true}]"]
        ),
        train=(tiny.train,),
        val=(tiny.val,),
        features=tiny.features,
        init=path,
        device="cpu",
    )
    made_of = run.fingerprint(request)
    outcome = train(run.load(request, made_of), RunFolder(tmp_path / "run"), 0, made_of, resume=False)
    found = checkpoint.read(outcome.folder.last)
    assert all(torch.equal(found.tensors[key], value) for key, value in given.items())
    assert found.tensors["refine.span-evidence.mlp.layers.1.weight"].any()
    counts = found.provenance["parameters"]
    assert counts["trainable"] == sum(v.numel() for k, v in found.tensors.items() if k not in given)
    assert counts["total"] == sum(v.numel() for v in found.tensors.values())

"""Soups of checkpoints of which some lack a part that starts as the identity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from amrctl import registry
from amrctl.ensemble.soup import make_soup
from amrctl.errors import CheckpointError
from amrctl.model import checkpoint
from amrctl.model.checkpoint import Checkpoint, read_metadata
from amrctl.model.detector import build
from amrctl.model.types import Dims
from amrctl.pipeline.soup import SLOTS, identity_parts
from tests import small
from tests.conftest import Cli
from tests.ensemble.test_soup import Notes

PART = "model.refine=[span-evidence]"
PREFIX = "refine.span-evidence"
ZERO = tuple(f"{PREFIX}.mlp.layers.1.{name}" for name in ("weight", "bias"))


def save(path: Path, *sets: str, seed: int, tensors: dict[str, Tensor] | None = None) -> Path:
    """A checkpoint of the small recipe with random weights, or those given."""
    torch.manual_seed(seed)
    recipe = small.recipe(*sets)
    detector = build(recipe, (small.AUDIO_DIM,), (small.TEXT_DIM,), training=False)
    drawn = {key: torch.randn_like(value) for key, value in detector.state_dict().items()}
    streams = {"audio": [{"name": "a", "dim": 5}], "text": [{"name": "t", "dim": 6}]}
    made = Checkpoint(tensors or drawn, recipe, streams, provenance={"ancestry": ["root"]})
    checkpoint.write(path, made)
    return path


def test_it_equals_a_soup_with_the_untrained_part(tmp_path: Path) -> None:
    """Also where two have the part and one has not, in any order of the checkpoints."""
    a = save(tmp_path / "a.safetensors", PART, seed=0)
    b = save(tmp_path / "b.safetensors", PART, seed=1)
    without = save(tmp_path / "c.safetensors", seed=2)
    shares = {a: 0.4, b: 0.3, without: 0.3}
    first, second = load_file(a), load_file(b)
    whole = load_file(without)
    for key in first:
        if key.startswith(PREFIX):
            mean = (0.4 * first[key].double() + 0.3 * second[key].double()) / 0.7
            whole[key] = torch.zeros_like(first[key]) if key in ZERO else mean.float()
    untrained = save(tmp_path / "d.safetensors", PART, seed=3, tensors=whole)
    wanted = load_file(make_soup([a, b, untrained], tmp_path / "w.safetensors", weights=[0.4, 0.3, 0.3]).path)
    for i, order in enumerate(([a, b, without], [without, b, a])):
        notes = Notes()
        out = tmp_path / f"soup{i}.safetensors"
        weights = [shares[path] for path in order]
        made = make_soup(order, out, weights=weights, identity=identity_parts(order), report=notes)
        found = load_file(out)
        assert found.keys() == wanted.keys()
        for key in found:
            torch.testing.assert_close(found[key], wanted[key], rtol=1e-6, atol=1e-6)
        assert [kind["kind"] for kind in read_metadata(out)["recipe"]["model"]["refine"]] == ["span-evidence"]
        told = {p["path"]: p.get("identity") for p in read_metadata(out)["provenance"]["parents"]}
        assert told == {str(a): None, str(b): None, str(without): [PREFIX]}
        assert [note for note in notes.notes if f"{without} has no {PREFIX}" in note]
        assert made.ingredients[order.index(without)].distance > 0


def test_an_untrained_part_changes_nothing(tmp_path: Path) -> None:
    """What is filled in, alone, answers as the checkpoint that lacks the part."""
    rich, plain = save(tmp_path / "a.safetensors", PART, seed=0), save(tmp_path / "b.safetensors", seed=1)
    tensors = load_file(plain) | {
        key: torch.zeros_like(value) if key in ZERO else value
        for key, value in load_file(rich).items()
        if key.startswith(PREFIX)
    }
    answers = []
    for weights, sets in ((load_file(plain), ()), (tensors, (PART,))):
        detector = build(small.recipe(*sets), (small.AUDIO_DIM,), (small.TEXT_DIM,), training=False).eval()
        detector.load_state_dict(weights)
        with torch.no_grad():
            output = detector(small.batch())
        assert output.logits is not None
        answers.append(output.logits)
    torch.testing.assert_close(answers[0], answers[1])


def declared() -> list[tuple[str, str]]:
    return [
        (slot, kind)
        for slot in SLOTS
        for kind in registry.kinds(slot)
        if getattr(registry.find(slot, kind).build, "identity_when_zero", ())
    ]


@pytest.mark.parametrize(("slot", "kind"), declared())
def test_what_components_declare_is_zero_before_training(slot: str, kind: str) -> None:
    found = registry.find(slot, kind)
    part = found.build(found.config(kind=kind), Dims(32, (5,), (6,), False))
    for name in found.build.identity_when_zero:  # type: ignore[attr-defined]
        assert not part.state_dict()[name].any()


def test_only_whole_declared_parts_are_filled(tmp_path: Path) -> None:
    rich, plain = save(tmp_path / "a.safetensors", PART, seed=0), save(tmp_path / "b.safetensors", seed=1)
    out = tmp_path / "soup.safetensors"
    with pytest.raises(CheckpointError, match=r"b\.safetensors has no 'refine"):
        make_soup([rich, plain], out)
    parts = identity_parts([rich, plain])
    assert parts == {PREFIX: ("mlp.layers.1.weight", "mlp.layers.1.bias")}
    # a head scores from its first step on: it is no identity
    heads = save(
        tmp_path / "h.safetensors",
        PART,
        "model.heads=[foreground, span, saliency, boundary, quality]",
        seed=4,
    )
    with pytest.raises(CheckpointError, match=r"b\.safetensors has no 'heads\.(boundary|quality)"):
        make_soup([heads, plain], out, identity=identity_parts([heads, plain]))
    # half a part is damage
    half = {k: v for k, v in load_file(rich).items() if k != ZERO[0]}
    damaged = save(tmp_path / "d.safetensors", PART, seed=5, tensors=half)
    with pytest.raises(CheckpointError, match=r"d\.safetensors has no 'refine.*weight'"):
        make_soup([rich, damaged], out, identity=parts)
    # parts that exclude one another leave no recipe for the soup
    other = save(tmp_path / "e.safetensors", "model.fusion=[text-guided-enhancer, text-to-audio]", seed=6)
    with pytest.raises(CheckpointError, match="no recipe describes the soup"):
        make_soup([rich, other], out, identity=identity_parts([rich, other]))
    assert not out.exists()


def test_through_the_command(tmp_path: Path, cli: Cli) -> None:
    rich, plain = save(tmp_path / "a.safetensors", PART, seed=0), save(tmp_path / "b.safetensors", seed=1)
    out = tmp_path / "soup.safetensors"
    soup = ("soup", plain, rich, "--weights", "0.3,0.7", "--out", out)
    assert "'refine" in cli(*soup).err
    for word in ("zero", "Identity", ""):
        done = cli(*soup, "--fill-missing", word)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "the only way to fill is identity" in done.err
    assert not out.exists()
    done = cli(*soup, "--fill-missing", "identity", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["tensors"] == len(load_file(rich))
    assert f"has no {PREFIX}" in done.err
    torch.testing.assert_close(load_file(out)[ZERO[0]], load_file(rich)[ZERO[0]] * 0.7)

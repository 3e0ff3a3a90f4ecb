"""Checkpoints explain themselves, and are compared key by key before they are loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from amrctl.errors import AmrctlError, CheckpointError, OutputError, RecipeError
from amrctl.model import checkpoint
from amrctl.model.checkpoint import Checkpoint
from amrctl.model.detector import Detector, build
from amrctl.recipe import Recipe
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe

FEATURES: dict[str, list[dict[str, Any]]] = {
    "audio": [{"name": "noise", "dim": AUDIO_DIM, "encoder": "noise", "hop": 1.0, "attrs": {}}],
    "text": [{"name": "noise", "dim": TEXT_DIM, "encoder": "noise", "hop": None, "attrs": {}}],
}


def detector(made: Recipe | None = None, *, training: bool = False, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return build(made or recipe(), (AUDIO_DIM,), (TEXT_DIM,), training=training).eval()


def saved(path: Path, **changes: Any) -> tuple[Checkpoint, Detector]:
    model = detector()
    made = Checkpoint(
        dict(model.state_dict()),
        recipe("losses.span=7", "compat=official"),
        FEATURES,
        epoch=12,
        metrics={"R1@0.7": 31.03},
        provenance={"trained_on": [{"path": "träin.jsonl", "sha256": "00"}]},
        rounding=1,
    )
    made = replace(made, **changes)
    checkpoint.write(path, made)
    return made, model


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    made, model = saved(path)
    found = checkpoint.read(path)
    assert replace(found, tensors={}) == replace(made, tensors={})
    assert {k: v.dtype for k, v in found.tensors.items()} == {k: v.dtype for k, v in made.tensors.items()}
    assert all(torch.equal(v, made.tensors[k]) for k, v in found.tensors.items())
    assert found.dims == ((AUDIO_DIM,), (TEXT_DIM,))
    assert checkpoint.read_metadata(path) == made.metadata()
    data = batch((12, 17, 9), (4, 6, 2))  # long with long: the released mask hides something
    restored = checkpoint.restore(found)
    assert not restored.training
    plain = checkpoint.restore(checkpoint.read(path, sets=["compat=null"]))
    with torch.inference_mode():
        assert torch.equal(plain(data).spans, model(data).spans)
        assert not torch.equal(restored(data).spans, model(data).spans)  # compat travels with the file
    first = path.read_bytes()
    checkpoint.write(path, found)
    assert path.read_bytes() == first  # same content, same bytes


def test_stored_recipe_takes_settings(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    saved(path)
    found = checkpoint.read(path, sets=["inference.keep=3", "compat=null"])
    assert (found.recipe.inference.keep, found.recipe.compat) == (3, None)
    with pytest.raises(RecipeError, match=r"c\.safetensors: inference\.kep: unknown key"):
        checkpoint.read(path, sets=["inference.kep=3"])


def test_existing_files_are_kept_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    made, _ = saved(path)
    with pytest.raises(OutputError, match="--overwrite"):
        checkpoint.write(path, made, overwrite=False)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.read(path)
    path.write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        checkpoint.read(path)
    safetensors.torch.save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no amrctl metadata"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "metadata is damaged"),
        ("[]", "metadata is damaged"),
        ("null", "metadata is damaged"),
        ('{"format": 1}', "metadata is damaged"),
        ('{"format": 99}', "checkpoint format 99, this program reads 1"),
        ("{}", "metadata is damaged"),
    ],
)
def test_damaged_metadata(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, metadata={"amrctl": text})
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.read(path)
    assert "c.safetensors" in str(caught.value)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_a_file_cut_short_is_an_error(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "c.safetensors"
    saved(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(AmrctlError, match="not a readable safetensors file"):
        checkpoint.read(path)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    made, model = saved(tmp_path / "c.safetensors")
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def refused(tensors: dict[str, torch.Tensor]) -> str:
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load_into(model, replace(made, tensors=tensors), where="c.safetensors")
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # nothing was loaded
        return str(caught.value)

    key, other = "heads.foreground.linear.bias", "decoder.norm.weight"
    changed = {k: v + 1 for k, v in made.tensors.items()}
    message = refused({k: v for k, v in changed.items() if k not in (key, other)})
    assert "2 weights are missing, the first is 'decoder.norm.weight'" in message
    assert message.startswith("c.safetensors does not fit recipe small: ")
    message = refused({**changed, "heads.quality.weight": torch.zeros(1)})
    assert "1 weights have no place in the recipe, the first is 'heads.quality.weight'" in message
    message = refused({**changed, key: torch.zeros(3)})
    assert f"'{key}' is (3,), the recipe wants (2,)" in message
    message = refused(
        {**{k: v for k, v in changed.items() if k != other}, key: torch.zeros(3), "x": torch.zeros(1)}
    )
    assert all(part in message for part in (other, key, "'x'"))


def test_skipped_parts_keep_their_values() -> None:
    giver, taker = detector(seed=1), detector(seed=2)
    given = Checkpoint(dict(giver.state_dict()), recipe(), FEATURES)
    own = taker.state_dict()["decoder.query_embed.weight"].clone()
    checkpoint.load_into(taker, given, skip=["decoder.query_embed"])
    for key, value in taker.state_dict().items():
        wanted = own if key == "decoder.query_embed.weight" else giver.state_dict()[key]
        assert torch.equal(value, wanted)
    assert not torch.equal(own, giver.state_dict()["decoder.query_embed.weight"])


def test_training_only_weights_are_passed_over_for_inference() -> None:
    model = detector()
    extra = {**model.state_dict(), "auxiliary.contrast.weight": torch.zeros(2, 2)}
    checkpoint.load_into(model, Checkpoint(extra, recipe(), FEATURES))
    restored = checkpoint.restore(Checkpoint(extra, recipe(), FEATURES))
    assert not [key for key in restored.state_dict() if key.startswith("auxiliary.")]


def test_other_feature_widths_are_told(tmp_path: Path) -> None:
    made, _ = saved(tmp_path / "c.safetensors")
    checkpoint.require_dims(made, (AUDIO_DIM,), (TEXT_DIM,), where="c", features="f.h5")
    for audio, text in (((9,), (TEXT_DIM,)), ((AUDIO_DIM,), (9,)), ((AUDIO_DIM, 9), (TEXT_DIM,))):
        with pytest.raises(
            CheckpointError, match=r"c was trained on .* features noise \(\d\); f\.h5 has width .*9"
        ):
            checkpoint.require_dims(made, audio, text, where="c", features="f.h5")


def test_metadata_is_json_in_the_file(tmp_path: Path) -> None:
    """Other programs can read what a checkpoint is."""
    path = tmp_path / "c.safetensors"
    saved(path)
    with safetensors.safe_open(str(path), framework="pt") as opened:
        meta = json.loads(opened.metadata()["amrctl"])
    assert meta["recipe"]["model"]["hidden_dim"] == 32
    assert meta["provenance"]["trained_on"][0]["path"] == "träin.jsonl"

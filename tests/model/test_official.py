"""The released baseline's numbers, from its layout of weights: golden outputs, keys, both directions."""

from __future__ import annotations

import json
import sys
import types
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amrctl.data.batch import Batch, Targets
from amrctl.errors import CheckpointError
from amrctl.losses.total import Criterion
from amrctl.model import checkpoint, official
from amrctl.model.checkpoint import Checkpoint
from amrctl.model.detector import Detector, build
from amrctl.recipe import load
from tests.conftest import Cli
from tests.small import row_of

GOLDEN = Path(__file__).parent / "golden" / "official_qd_detr.json"
FRAMES, TOKENS, MOMENTS = [37, 50, 21, 44, 9, 50], [7, 5, 12, 3, 9, 4], [1, 3, 2, 5, 1, 2]
AUDIO, TEXT = 40, 48
CLOSE = 2e-5

# --- the released layout, literally ----------------------------------------------------------------


def linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def layout(audio: int, text: int) -> dict[str, tuple[int, ...]]:
    """Key → shape of the released state dict for feature widths `audio` (without TEF) and `text`."""
    h, inner = 256, 1024
    keys: dict[str, tuple[int, ...]] = {"global_rep_token": (h,), "global_rep_pos": (h,)}
    keys |= {"query_embed.weight": (10, 2)}
    for side, width in (("aud", audio + 2), ("txt", text)):
        for i, size in enumerate((width, h)):
            keys |= norm(f"input_{side}_proj.{i}.LayerNorm", size)
            keys |= linear(f"input_{side}_proj.{i}.net.1", h, size)
    keys |= {"txt_position_embed.position_embeddings.weight": (32, h)}
    keys |= norm("txt_position_embed.LayerNorm", h)
    for i, out in enumerate((h, h, 2)):
        keys |= linear(f"span_embed.layers.{i}", out, h)
        keys |= linear(f"transformer.decoder.bbox_embed.layers.{i}", out, h)
    keys |= linear("class_embed", 2, h) | linear("saliency_proj1", h, h) | linear("saliency_proj2", h, h)
    for i in range(2):
        for stack in ("t2v_encoder", "encoder"):
            at = f"transformer.{stack}.layers.{i}"
            keys |= {f"{at}.self_attn.in_proj_weight": (3 * h, h), f"{at}.self_attn.in_proj_bias": (3 * h,)}
            keys |= linear(f"{at}.self_attn.out_proj", h, h)
        at = f"transformer.decoder.layers.{i}"
        names = [f"sa_{n}_proj" for n in ("qcontent", "qpos", "kcontent", "kpos", "v")]
        names += [f"ca_{n}_proj" for n in ("qcontent", "kcontent", "kpos", "v", "qpos_sine")]
        names += ["self_attn.out_proj", "cross_attn.out_proj"] + (["ca_qpos_proj"] if i == 0 else [])
        for name in names:
            keys |= linear(f"{at}.{name}", h, h)
        keys |= norm(f"{at}.norm3", h)
        for stack in ("t2v_encoder", "encoder", "decoder"):
            at = f"transformer.{stack}.layers.{i}"
            keys |= linear(f"{at}.linear1", inner, h) | linear(f"{at}.linear2", h, inner)
            keys |= norm(f"{at}.norm1", h) | norm(f"{at}.norm2", h)
            keys |= {f"{at}.activation.weight": (1,)}
        for head, out in (("query_scale", h), ("ref_point_head", h), ("ref_anchor_head", 1)):
            keys |= linear(f"transformer.decoder.{head}.layers.{i}", out if i else h, h)
    return keys | norm("transformer.decoder.norm", h)


def values(name: str, shape: tuple[int, ...]) -> Tensor:
    """The golden weights (see golden/README.md)."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        x = x / np.sqrt(shape[-1])
    elif name.endswith("weight") and "activation" not in name:
        x = 1 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(x.astype(np.float32))


def state(audio: int = AUDIO, text: int = TEXT) -> dict[str, Tensor]:
    return {name: values(name, shape) for name, shape in layout(audio, text).items()}


def write_ckpt(path: Path, model: dict[str, Tensor], **more: Any) -> Path:
    torch.save({"model": model, "epoch": 3, "optimizer": {}, "lr_scheduler": {}, **more}, path)
    return path


# --- golden inputs -----------------------------------------------------------------------------------


def golden_batch() -> Batch:
    rng = np.random.default_rng(5)
    size = len(FRAMES)
    audio, audio_mask = torch.zeros(size, 50, AUDIO), torch.zeros(size, 50, dtype=torch.bool)
    text, text_mask = torch.zeros(size, 12, TEXT), torch.zeros(size, 12, dtype=torch.bool)
    spans, moments = torch.zeros(size, 5, 2), torch.zeros(size, 5, dtype=torch.bool)
    for b in range(size):
        x = torch.from_numpy(rng.standard_normal((FRAMES[b], AUDIO)).astype(np.float32))
        audio[b, : FRAMES[b]] = x / (x.norm(dim=-1, keepdim=True) + 1e-5)
        audio_mask[b, : FRAMES[b]] = True
        words = rng.standard_normal((TOKENS[b], TEXT)).astype(np.float32)
        text[b, : TOKENS[b]], text_mask[b, : TOKENS[b]] = torch.from_numpy(words), True
        drawn = (rng.random((MOMENTS[b], 2)) * 0.5 + 0.1).astype(np.float32)
        spans[b, : MOMENTS[b]], moments[b, : MOMENTS[b]] = torch.from_numpy(drawn), True
    inside = torch.zeros(size, 50)
    inside[:, 2:6] = 1
    return Batch(
        qids=[str(b) for b in range(size)],
        vids=[str(b) for b in range(size)],
        audio=(audio,),
        audio_mask=audio_mask,
        text=(text,),
        text_mask=(text_mask,),
        lengths=torch.tensor(FRAMES),
        seconds=torch.tensor(FRAMES, dtype=torch.float64),
        starts=torch.zeros(size, dtype=torch.int64),
        targets=Targets(
            spans=spans,
            mask=moments,
            ignored=torch.zeros(size, 1, 2),
            ignored_mask=torch.zeros(size, 1, dtype=torch.bool),
            saliency=inside,
            positives=torch.tensor([[2, 4]] * size),
            negatives=torch.tensor([[7, 8]] * size),
            pair_mask=torch.ones(size, dtype=torch.bool),
            negative_row=torch.arange(size).roll(-1),
        ),
    )


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ckpt(tmp_path_factory.mktemp("official") / "best.ckpt", state())


def detector_of(found: Checkpoint, *, training: bool = False) -> Detector:
    detector = build(found.recipe, *found.dims, training=training)
    checkpoint.load_into(detector, found)
    return detector.train(training)


def difference(ours: Tensor, theirs: list[float]) -> float:
    return float((ours.detach().flatten() - torch.tensor(theirs)).abs().max())


# --- numbers -----------------------------------------------------------------------------------------


def test_outputs_equal_the_released_code(released: Path, golden: dict[str, Any]) -> None:
    found = checkpoint.read(released)
    assert found.recipe.compat == "official"
    assert found.dims == ((AUDIO,), (TEXT,))
    with torch.inference_mode():
        output = detector_of(found)(golden_batch())
    assert difference(output.logits[-1], golden["logits"]) < CLOSE
    assert difference(output.spans[-1], golden["spans"]) < CLOSE
    assert difference(output.spans[0], golden["aux_spans"]) < CLOSE
    assert difference(output.saliency[0, :37], golden["saliency_row0"]) < CLOSE


def test_losses_equal_the_released_code(released: Path, golden: dict[str, Any]) -> None:
    off = ["model.tokens.dropout=0", "model.fusion.0.dropout=0", "model.encoder.0.dropout=0"]
    found = checkpoint.read(released, sets=[*off, "model.decoder.dropout=0"])
    detector = detector_of(found, training=True)
    batch = golden_batch()
    output = detector(batch)
    assert difference(output.extras["negative-pairs"][0, :37], golden["negative_row0"]) < CLOSE
    loss = Criterion(found.recipe, detector)(output, batch)
    weights = {"span": 10, "giou": 1, "label": 4, "saliency": 1}
    assert set(loss.raw) == set(weights)
    for name, weight in weights.items():
        theirs = golden["losses"][f"loss_{name}"]
        assert float(loss.raw[name]) == pytest.approx(theirs, rel=1e-6, abs=CLOSE)
        both = theirs + golden["losses"].get(f"loss_{name}_0", 0.0)
        assert float(loss.weighted[name]) == pytest.approx(weight * both, rel=1e-6, abs=weight * CLOSE)
    assert len(golden["losses"]) == 7
    wanted = sum(weights[k.split("_")[1]] * v for k, v in golden["losses"].items())
    assert loss.total.item() == pytest.approx(wanted, rel=1e-6)
    loss.total.backward()
    norms = golden["gradient_norms"]
    assert len(norms) == 175
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        theirs = norms[official.theirs(name)]
        assert float(parameter.grad.norm()) == pytest.approx(theirs, rel=1e-4, abs=1e-5), name


def test_the_mask_fault_is_there_only_when_asked_for(released: Path, golden: dict[str, Any]) -> None:
    batch = golden_batch()
    with torch.inference_mode():
        for compat, equal in (("null", True), ("official", False)):
            detector = detector_of(checkpoint.read(released, sets=[f"compat={compat}"]))
            together, alone = detector(batch).spans[-1, 2], detector(row_of(batch, 2)).spans[-1, 0]
            # alone, the fault touches nothing: both answer as the released code on pair 2
            assert difference(alone, golden["single_spans"]) < CLOSE
            apart = float((together - alone).abs().max())
            assert (apart < CLOSE) if equal else (apart > 1e-3)


# --- the layout --------------------------------------------------------------------------------------


def test_export_has_the_released_keys_and_shapes(tmp_path: Path) -> None:
    """178 tensors, 7,123,237 numbers at the true feature widths, both ways without change."""
    torch.manual_seed(0)
    recipe = load("qd-detr", "finetune")
    detector = build(recipe, (768,), (768,), training=True)
    streams: dict[str, list[dict[str, Any]]] = {
        side: [{"name": "ms-clap", "dim": 768}] for side in ("audio", "text")
    }
    made = Checkpoint(dict(detector.state_dict()), recipe, streams, epoch=5)
    exported = official.export(made)
    assert {k: tuple(v.shape) for k, v in exported.items()} == layout(768, 768)
    assert len(exported) == 178
    assert sum(v.numel() for v in exported.values()) == 7_123_237
    official.write(tmp_path / "best.ckpt", made)
    again = checkpoint.read(tmp_path / "best.ckpt")
    assert set(again.tensors) == set(made.tensors)
    assert all(torch.equal(v, made.tensors[k]) for k, v in again.tensors.items())
    assert again.recipe.model == recipe.model.model_copy(
        update={
            part: getattr(again.recipe.model, part) for part in ("fusion", "encoder", "decoder")
        }  # these say 1024 where the recipe says four times the width
    )
    raw = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert raw["epoch"] == 5


def test_every_released_tensor_goes_to_its_own_place(released: Path) -> None:
    found = checkpoint.read(released)
    back = official.export(found)
    for key, value in state().items():
        if not key.startswith("txt_position_embed."):  # the network never reads it
            assert torch.equal(back[key], value), key
    assert set(back) == set(layout(AUDIO, TEXT))
    assert found.rounding == 1
    assert found.provenance["converted_from"]["path"] == "best.ckpt"


def test_renamed_and_missing_keys_are_named(tmp_path: Path, released: Path) -> None:
    detector = detector_of(checkpoint.read(released))
    for key in layout(AUDIO, TEXT):
        if key.startswith("txt_position_embed.") or ".layers.1." in key:  # unused; like layer 0 (time)
            continue
        model = state_with_renamed(key)
        path = write_ckpt(tmp_path / "renamed.ckpt", model)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load_into(detector, checkpoint.read(path), where=str(path))
        message = str(caught.value)
        named = {key, official.ours(key), f"{key}_renamed"}
        assert any(f"'{name}'" in message for name in named), message
        assert "renamed.ckpt" in message


_SKELETON: dict[str, Tensor] = {}


def state_with_renamed(key: str) -> dict[str, Tensor]:
    """Zeros (loading compares keys and shapes first), one key renamed."""
    if not _SKELETON:
        _SKELETON.update({k: torch.zeros(()).expand(s) for k, s in layout(AUDIO, TEXT).items()})
    return {(f"{k}_renamed" if k == key else k): v for k, v in _SKELETON.items()}


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    model = state()
    model["class_embed.weight"] = torch.zeros(3, 256)
    with pytest.raises(CheckpointError, match=r"'class_embed.weight' is \(3, 256\).*wants \(2, 256\)"):
        checkpoint.read(write_ckpt(tmp_path / "c.ckpt", model))


def test_options_pickled_as_easydict_are_read_without_it(tmp_path: Path) -> None:
    """The released file keeps its options as an EasyDict; reading must neither need nor run that class."""
    module = types.ModuleType("easydict")

    class EasyDict(dict[str, Any]):
        def __init__(self, items: dict[str, Any]) -> None:
            super().__init__(items)
            self.__dict__.update(items)

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    sys.modules["easydict"] = module
    try:
        options = EasyDict({"lr": 1e-4, "eval_path": "val.jsonl", "inner": EasyDict({"a": [1, 2]})})
        path = write_ckpt(tmp_path / "best.ckpt", state(), opt=options)
    finally:
        del sys.modules["easydict"]
    found = checkpoint.read(path)
    assert torch.equal(found.tensors["tokens.summary"], values("global_rep_token", (256,)))


def test_other_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    marker = tmp_path / "ran"
    torch.save({"model": Evil(str(marker))}, path)
    with pytest.raises(CheckpointError, match=r"evil\.ckpt cannot be read safely") as caught:
        checkpoint.read(path)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt cannot be read safely"):
        checkpoint.read(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds no model weights"):
        checkpoint.read(path)
    torch.save({"model": {"w": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match=r"lacks 'input_aud_proj.0.net.1.weight'"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.read(tmp_path / "none.ckpt")


class Evil:
    """Something whose unpickling would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


def test_lighthouse_files_have_their_columns_turned(tmp_path: Path, released: Path) -> None:
    """Lighthouse: `input_vid_proj`, TEF before the features, text scaled and cut to 32 tokens."""
    model = {}
    for key, value in state().items():
        if key in [f"input_aud_proj.0.{k}" for k in ("LayerNorm.weight", "LayerNorm.bias", "net.1.weight")]:
            value = torch.cat((value[..., -2:], value[..., :-2]), dim=-1)
        model[key.replace("input_aud_proj", "input_vid_proj")] = value
    ported = checkpoint.read(write_ckpt(tmp_path / "lighthouse.ckpt", model))
    plain = checkpoint.read(released)
    assert set(ported.tensors) == set(plain.tensors)
    assert all(torch.equal(v, plain.tensors[k]) for k, v in ported.tensors.items())
    (text,) = ported.recipe.features.text
    assert (text.l2, text.max_tokens) == (True, 32)
    (text,) = plain.recipe.features.text
    assert (text.l2, text.max_tokens) == (None, None)


def test_other_recipes_do_not_export(released: Path) -> None:
    found = checkpoint.read(released)
    more = replace(found, tensors={**found.tensors, "refine.cascade.weight": torch.zeros(1)})
    with pytest.raises(
        CheckpointError, match=r"'refine\.cascade\.weight' has no place in the official layout"
    ):
        official.export(more)


def test_convert_both_ways_through_the_command(cli: Cli, tmp_path: Path, released: Path) -> None:
    there, back = tmp_path / "ours.safetensors", tmp_path / "back.ckpt"
    done = cli("convert", released, "--out", there, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["recipe"] == "qd-detr"
    assert cli("convert", there, "--out", back).code == 0
    first, again = checkpoint.read(released), checkpoint.read(back)
    assert all(torch.equal(v, again.tensors[k]) for k, v in first.tensors.items())
    refused = cli("convert", released, "--out", there)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--overwrite" in refused.err
    same = cli("convert", there, "--out", tmp_path / "x.safetensors")
    assert (same.code, same.err.count("\n")) == (2, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.ckpt", "ours.safetensors"]


def small(*sets: str) -> Checkpoint:
    recipe = load("qd-detr-small", "finetune", ["model.hidden_dim=16", *sets])
    detector = build(recipe, (5,), (6,), training=False)
    streams = {
        side: [{"name": "auto", "dim": dim, "encoder": "unknown", "hop": 1.0, "attrs": {}}]
        for side, dim in (("audio", 5), ("text", 6))
    }
    return Checkpoint(dict(detector.state_dict()), recipe, streams)


def test_the_number_of_heads_survives_the_way_there_and_back(tmp_path: Path) -> None:
    """It leaves no trace in the weights, and another number gives other predictions."""
    ours = small()
    official.write(tmp_path / "x.ckpt", ours)
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["opt"] == {"nheads": 4}
    model, before = (
        official.read(tmp_path / "x.ckpt").recipe.to_dict()["model"],
        ours.recipe.to_dict()["model"],
    )
    for block in ("fusion", "encoder"):
        assert model[block][0]["heads"] == before[block][0]["heads"] == 4
        assert model[block][0]["inner"] == before[block][0]["inner"]
    assert model["decoder"]["heads"] == 4
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "silent.ckpt")
    assert official.read(tmp_path / "silent.ckpt").recipe.to_dict()["model"]["decoder"]["heads"] == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.decoder.heads=2"], "has 2 and 4 attention heads in different blocks"),
        (
            ["model.heads=[foreground, span]", "model.auxiliary=[]", "losses={span: 10, giou: 1, label: 4}"],
            "has no place in the official layout: model.heads is",
        ),
    ],
)
def test_another_network_is_not_exported(tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        official.write(tmp_path / "x.ckpt", small(*changes))
    assert list(tmp_path.iterdir()) == []

"""CG-DETR: its released layout, literally, and its numbers against a calculation from those tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amrctl.data.batch import Batch, Targets
from amrctl.errors import CheckpointError
from amrctl.losses.total import Criterion
from amrctl.model import checkpoint, official
from amrctl.model.checkpoint import Checkpoint
from amrctl.model.detector import Detector, build
from amrctl.model.official_layouts import CG_DETR
from amrctl.recipe import load
from tests.conftest import Cli
from tests.model import cg_detr_by_hand as by_hand
from tests.model.test_official import linear, norm, values, write_ckpt
from tests.test_contract import without_dropout

HIDDEN, INNER, AUDIO, TEXT = 32, 48, 10, 12
UNUSED = ("txt_proj_linear.", "txt_position_embed.")
CLOSE = 1e-5

# --- the released layout, literally ----------------------------------------------------------------


def layout(audio: int, text: int, h: int = 256, inner: int = 1024) -> dict[str, tuple[int, ...]]:
    """Key → shape of the released state dict for feature widths `audio` (without TEF) and `text`."""
    keys: dict[str, tuple[int, ...]] = {
        "global_rep_token": (10, h),
        "global_rep_pos": (1, h),
        "moment_rep_token": (h,),
        "moment_rep_pos": (h,),
        "sent_rep_token": (h,),
        "sent_rep_pos": (h,),
        "dummy_rep_token": (45, h),
        "dummy_rep_pos": (45, h),
        "token_type_embeddings.weight": (2, h),
        "query_embed.weight": (10, 2),
        "txt_position_embed.position_embeddings.weight": (32, h),
    }
    keys |= norm("txt_position_embed.LayerNorm", h)
    keys |= norm("txt_proj_linear.LayerNorm", text) | linear("txt_proj_linear.net.1", h, text)
    for side, width in (("vid", audio + 2), ("txt", text)):
        for i, size in enumerate((width, h)):
            keys |= norm(f"input_{side}_proj.{i}.LayerNorm", size)
            keys |= linear(f"input_{side}_proj.{i}.net.1", h, size)
    for i, out in enumerate((h, h, 2)):
        keys |= linear(f"span_embed.layers.{i}", out, h)
        keys |= linear(f"transformer.decoder.bbox_embed.layers.{i}", out, h)
    keys |= linear("class_embed", 2, h) | linear("saliency_proj1", h, h) | linear("saliency_proj2", h, h)
    stacks = {
        "transformer.t2v_encoder": 2,
        "txtproj_encoder": 2,
        "scls_encoder": 1,
        "transformer.mcls_encoder": 1,
        "transformer.encoder": 3,
        "transformer.decoder": 3,
    }
    for stack, count in stacks.items():
        for i in range(count):
            at = f"{stack}.layers.{i}"
            keys |= linear(f"{at}.linear1", inner, h) | linear(f"{at}.linear2", h, inner)
            keys |= norm(f"{at}.norm1", h) | norm(f"{at}.norm2", h) | {f"{at}.activation.weight": (1,)}
            keys |= linear(f"{at}.self_attn.out_proj", h, h)
            if stack not in ("transformer.decoder", "transformer.t2v_encoder"):
                keys |= {f"{at}.self_attn.in_proj_weight": (3 * h, h)}
                keys |= {f"{at}.self_attn.in_proj_bias": (3 * h,)}
    for i in range(3):
        at = f"transformer.decoder.layers.{i}"
        names = [f"sa_{n}_proj" for n in ("qcontent", "qpos", "kcontent", "kpos", "v")]
        names += [f"ca_{n}_proj" for n in ("qcontent", "kcontent", "kpos", "v", "qpos_sine")]
        names += ["cross_attn.out_proj"] + (["ca_qpos_proj"] if i == 0 else [])
        for name in names:
            keys |= linear(f"{at}.{name}", h, h)
        keys |= norm(f"{at}.norm3", h)
    for i in range(2):
        for head, out in (("query_scale", h), ("ref_point_head", h), ("ref_anchor_head", 1)):
            keys |= linear(f"transformer.decoder.{head}.layers.{i}", out if i else h, h)
    return keys | norm("transformer.decoder.norm", h)


def state() -> dict[str, Tensor]:
    """Weights by formula. The moment encoder's outputs are small, so that no sigmoid rounds to 1."""
    made = {name: values(name, shape) for name, shape in layout(AUDIO, TEXT, HIDDEN, INNER).items()}
    for name in ("weight", "bias"):
        made[f"transformer.mcls_encoder.layers.0.norm2.{name}"] *= 0.5
    return made


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ckpt(tmp_path_factory.mktemp("cg") / "best.ckpt", state())


def test_the_layout_is_the_released_one() -> None:
    keys = layout(768, 768)
    assert len(keys) == 285
    assert sum(torch.Size(shape).numel() for shape in keys.values()) == 12_219_179


def test_export_has_the_released_keys_and_shapes(tmp_path: Path) -> None:
    """At the true size, both ways without change; the recipe lacks exactly what is never used."""
    torch.manual_seed(0)
    sets = ["model.decoder.widths=[20, 80]", "model.fusion.adaptive-cross-attention.top=3"]
    recipe = load("cg-detr", "finetune", sets)  # where reference spans began is no part of a network
    detector = build(recipe, (768,), (768,), training=True)
    streams: dict[str, list[dict[str, Any]]] = {
        side: [{"name": "ms-clap", "dim": 768}] for side in ("audio", "text")
    }
    made = Checkpoint(dict(detector.state_dict()), recipe, streams, epoch=5)
    assert len(made.tensors) == 278
    assert sum(v.numel() for v in made.tensors.values()) == 12_012_075
    used = [n for key, n in layout(768, 768).items() if not key.startswith(UNUSED)]
    assert sum(torch.Size(shape).numel() for shape in used) == 12_012_075
    exported = official.export(made)
    assert {k: tuple(v.shape) for k, v in exported.items()} == layout(768, 768)
    official.write(tmp_path / "best.ckpt", made)
    again = checkpoint.read(tmp_path / "best.ckpt")
    assert set(again.tensors) == set(made.tensors)
    assert all(torch.equal(v, made.tensors[k]) for k, v in again.tensors.items())
    assert [part.kind for part in again.recipe.model.auxiliary] == ["negative-pairs", "clip-words"]
    told = torch.load(tmp_path / "best.ckpt", weights_only=True)["opt"]
    assert told == {"nheads": 8, "num_prompts": 3}
    assert again.recipe.to_dict()["model"]["fusion"][1]["top"] == 3
    inference = build(again.recipe, (768,), (768,), training=False)
    assert sum(p.numel() for p in inference.parameters()) == 10_431_529
    checkpoint.load_into(inference, again)


def test_every_released_tensor_goes_to_its_own_place(released: Path) -> None:
    found = checkpoint.read(released)
    back = official.export(found)
    assert set(back) == set(state())
    for key, value in state().items():
        if not key.startswith(UNUSED):
            assert torch.equal(back[key], value), key
    assert found.recipe.name == "cg-detr"
    assert found.recipe.compat == "official"
    assert found.dims == ((AUDIO,), (TEXT,))
    (text,) = found.recipe.features.text
    assert (text.l2, text.max_tokens) == (True, 32)
    assert found.rounding == 1


def test_files_without_the_unused_weights_are_read(tmp_path: Path, released: Path) -> None:
    kept = {key: value for key, value in state().items() if not key.startswith(UNUSED)}
    found = checkpoint.read(write_ckpt(tmp_path / "short.ckpt", kept))
    assert all(torch.equal(v, found.tensors[k]) for k, v in checkpoint.read(released).tensors.items())


@pytest.mark.parametrize(
    "key",
    [
        "global_rep_pos",
        "dummy_rep_token",
        "moment_rep_token",
        "sent_rep_pos",
        "token_type_embeddings.weight",
        "input_vid_proj.0.LayerNorm.bias",
        "txtproj_encoder.layers.1.activation.weight",
        "scls_encoder.layers.0.self_attn.in_proj_weight",
        "transformer.mcls_encoder.layers.0.norm1.bias",
        "transformer.t2v_encoder.layers.1.self_attn.out_proj.weight",
        "transformer.decoder.layers.2.ca_v_proj.bias",
    ],
)
def test_missing_extra_and_misshapen_weights_are_named(tmp_path: Path, key: str) -> None:
    whole, path = state(), tmp_path / "x.ckpt"
    missing = {k: v for k, v in whole.items() if k != key}
    with pytest.raises(CheckpointError, match=rf"x\.ckpt lacks '{key}'"):
        checkpoint.read(write_ckpt(path, missing))
    with pytest.raises(CheckpointError, match=rf"x\.ckpt: '{key}\.more' is not a weight of the released CG"):
        checkpoint.read(write_ckpt(path, {**whole, f"{key}.more": torch.zeros(1)}))
    shape = tuple(whole[key].shape)
    odd = (3, *shape) if len(shape) == 1 else (shape[0], shape[1] + 1)
    with pytest.raises(CheckpointError, match=rf"'{key}' is \({', '.join(map(str, odd))}\)"):
        checkpoint.read(write_ckpt(path, {**whole, key: torch.zeros(odd)}))


def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path, released: Path) -> None:
    found = checkpoint.read(released)
    bare = {k: v for k, v in found.tensors.items() if not k.startswith("auxiliary.")}
    with pytest.raises(CheckpointError, match=r"lacks 'auxiliary\.clip-words\.moment\.token'"):
        official.export(Checkpoint(bare, found.recipe, found.features))
    with pytest.raises(CheckpointError, match="has 4 attention heads"):
        checkpoint.read(write_ckpt(tmp_path / "x.ckpt", state(), opt={"nheads": 4}))
    two_bits = ["model.encoder.summary-to-frames=null", "model.tokens.types=false"]
    for change in two_bits:
        other = checkpoint.read(released, sets=[change])
        with pytest.raises(CheckpointError, match="has no place in the official layout"):
            official.export(other)


def test_convert_both_ways_through_the_command(cli: Cli, tmp_path: Path, released: Path) -> None:
    there, back = tmp_path / "ours.safetensors", tmp_path / "back.ckpt"
    done = cli("convert", released, "--out", there, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["recipe"] == "cg-detr"
    assert cli("convert", there, "--out", back).code == 0
    raw = torch.load(back, weights_only=True)["model"]
    assert {k: tuple(v.shape) for k, v in raw.items()} == layout(AUDIO, TEXT, HIDDEN, INNER)
    assert all(torch.equal(v, raw[k]) for k, v in state().items() if not k.startswith(UNUSED))


# --- numbers -----------------------------------------------------------------------------------------

FRAMES, TOKENS = [13, 9, 6, 13, 11], [4, 6, 3, 5, 2]
# recordings of the five pairs: of each, whether its next pair is about another one
VIDS = {"none": "abcde", "one": "aabcd", "several": "aaabb", "all": "aaaaa"}


def pairs(vids: str, released: bool) -> tuple[by_hand.Pairs, Batch]:
    """The same five pairs for the calculation by hand (TEF first) and for the detector."""
    generator = torch.Generator().manual_seed(3)
    size, length, words = len(FRAMES), max(FRAMES), max(TOKENS)
    audio, text = torch.zeros(size, length, AUDIO), torch.zeros(size, words, TEXT)
    whole = torch.zeros(size, length, AUDIO + 2)
    mask, text_mask = (torch.zeros(size, n, dtype=torch.bool) for n in (length, words))
    inside = torch.zeros(size, length)
    spans = []
    for b, (n, m) in enumerate(zip(FRAMES, TOKENS, strict=True)):
        x = torch.randn(n, AUDIO, generator=generator)
        audio[b, :n] = x / x.norm(dim=-1, keepdim=True)
        t = torch.arange(n, dtype=torch.float32)
        whole[b, :n] = torch.cat((torch.stack((t / n, t / n + 1 / n), dim=-1), audio[b, :n]), dim=-1)
        text[b, :m] = torch.randn(m, TEXT, generator=generator)
        mask[b, :n], text_mask[b, :m] = True, True
        inside[b, 1 + b % 2 : 3 + b % 3] = 1
        spans.append(torch.rand(1 + b % 3, 2, generator=generator) * 0.4 + 0.1)
    following = [(b + 1) % size for b in range(size)]
    other = [c if vids[c] != vids[b] else None for b, c in enumerate(following)]
    positives, negatives = [[2, 2 - (b % 2 == 0)] for b in range(size)], [[0, 5]] * size
    moments = torch.zeros(size, 3, 2)
    for b, s in enumerate(spans):
        moments[b, : len(s)] = s
    batch = Batch(
        qids=[str(b) for b in range(size)],
        vids=list(vids),
        audio=(audio,),
        audio_mask=mask,
        text=(text,),
        text_mask=(text_mask,),
        lengths=torch.tensor(FRAMES),
        seconds=torch.tensor(FRAMES, dtype=torch.float64),
        starts=torch.zeros(size, dtype=torch.int64),
        targets=Targets(
            spans=moments,
            mask=torch.arange(3)[None] < torch.tensor([len(s) for s in spans])[:, None],
            ignored=torch.zeros(size, 1, 2),
            ignored_mask=torch.zeros(size, 1, dtype=torch.bool),
            saliency=inside,
            positives=torch.tensor(positives),
            negatives=torch.tensor(negatives),
            pair_mask=torch.ones(size, dtype=torch.bool),
            # with the released code's rows, the detector has to find out which are real
            negative_row=torch.tensor(following if released else [-1 if c is None else c for c in other]),
        ),
    )
    hand = by_hand.Pairs(whole, text, FRAMES, TOKENS, spans, inside, positives, negatives, other)
    return hand, batch


def detector_of(path: Path, compat: str) -> tuple[Checkpoint, Detector]:
    found = checkpoint.read(path, sets=[f"compat={compat}"])
    detector = build(found.recipe, *found.dims, training=True)
    checkpoint.load_into(detector, found)
    without_dropout(detector)
    return found, detector.train()


@pytest.mark.parametrize("vids", VIDS.values(), ids=VIDS)
@pytest.mark.parametrize("compat", ["official", "null"])
def test_outputs_and_losses_equal_the_calculation_by_hand(released: Path, compat: str, vids: str) -> None:
    hand, batch = pairs(vids, compat == "official")
    found, detector = detector_of(released, compat)
    output = detector(batch)
    theirs = {name: value.double().requires_grad_(vids == VIDS["one"]) for name, value in state().items()}
    told = by_hand.forward(theirs, hand, compat == "official")
    real = batch.audio_mask
    for name, ours, wanted in (
        ("logits", output.logits, told["logits"]),
        ("spans", output.spans, told["spans"]),
        ("saliency", output.saliency[real], told["saliency"][real]),
        ("attention", output.extras["adaptive-cross-attention"], told["W"]),
        ("dummies", output.extras["dummy-tokens"], told["dummies"]),
    ):
        worst = float((ours - wanted).detach().abs().max())
        assert worst < CLOSE, f"{name}: {worst}"
    for b, other in told["mismatched"].items():
        n = FRAMES[b]
        ours = output.extras["negative-pairs"][b, :n]
        assert float((ours - other["saliency"][:n]).detach().abs().max()) < CLOSE
    loss = Criterion(found.recipe, detector)(output, batch)
    terms = by_hand.losses(told, hand, compat == "official")
    assert set(loss.raw) == set(terms)
    weights = {"span": 10, "giou": 1, "label": 4}
    total = torch.zeros((), dtype=torch.float64)
    for name, value in terms.items():
        last = value[-1] if value.dim() else value
        assert float(loss.raw[name]) == pytest.approx(last.item(), rel=CLOSE, abs=CLOSE), name
        summed = weights.get(name, 1) * value.sum()
        assert float(loss.weighted[name]) == pytest.approx(summed.item(), rel=CLOSE, abs=CLOSE), name
        total = total + summed
    if not total.requires_grad:
        return
    total.backward()
    loss.total.backward()
    for name, parameter in detector.named_parameters():
        key = official.theirs(name, CG_DETR)
        grad = theirs[key].grad
        assert parameter.grad is not None, name
        assert grad is not None, key
        grad = torch.roll(grad, -2, -1) if key in CG_DETR.tef_columns else grad
        worst = float((parameter.grad - grad.reshape(parameter.shape)).norm())
        assert worst < 1e-4 * float(grad.norm()) + CLOSE, f"{name}: {worst} of {float(grad.norm())}"

"""`amrctl predict` through the real command: several checkpoints, official files, mistakes."""

from __future__ import annotations

import json
import os
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from amrctl import recipe as recipes
from amrctl.data.manifest import read_manifest
from amrctl.data.npz import import_npz
from amrctl.data.predictions import meta_path, read_predictions
from amrctl.model import checkpoint, official
from amrctl.model.checkpoint import Checkpoint
from amrctl.model.detector import build
from tests.conftest import Cli
from tests.pipeline import heard
from tests.pipeline.heard import Heard

SMALL = ["model.hidden_dim=16", "compat=official"]
BLOCKS = ("fusion.text-to-audio", "encoder.transformer", "decoder")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    return heard.make(tmp_path_factory.mktemp("heard") / "data")


@pytest.fixture(scope="module")
def second(made: Heard) -> Path:
    return heard.train(made, made.checkpoint.parents[1] / "run2", "--seed", 1)


def predict(cli: Cli, made: Heard, out: Path, *checkpoints: Path, **options: object) -> Any:
    given = {"features": made.features, "test": made.test, "device": "cpu", **options}
    chosen = [part for path in checkpoints or (made.checkpoint,) for part in ("--checkpoint", path)]
    return cli("predict", *chosen, "--out", out, *(p for k, v in given.items() for p in (f"--{k}", v)))


@pytest.mark.parametrize(("rounding", "keep"), [(0, 10), (1, 3)])
def test_two_checkpoints_are_two_predictions_pooled(
    cli: Cli, made: Heard, second: Path, tmp_path: Path, rounding: int, keep: int
) -> None:
    a, b, both, pooled = (tmp_path / f"{name}.jsonl" for name in ("a", "b", "both", "pooled"))
    for out, paths in ((a, [made.checkpoint]), (b, [second]), (both, [made.checkpoint, second])):
        done = predict(cli, made, out, *paths, round=rounding, keep=keep)
        assert done.code == 0, done.err
    assert cli("fuse", a, b, "--pool", "--keep", keep, "--out", pooled).code == 0
    assert both.read_bytes() == pooled.read_bytes()
    assert a.read_bytes() != b.read_bytes()
    assert max(len(item.windows) for item in read_predictions(both)) == min(keep, 8)
    meta, fused = read_predictions(both).meta, read_predictions(pooled).meta
    assert meta["checkpoints"] == fused["checkpoints"]
    assert len(meta["checkpoints"]) == 2


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("rounding", [0, 1])
def test_saliency_proposals_are_predictions_with_saliency_fused(
    cli: Cli, made: Heard, second: Path, tmp_path: Path, several: bool, rounding: int
) -> None:
    a, b, both, fused, plain = (tmp_path / f"{name}.jsonl" for name in ("a", "b", "both", "fused", "plain"))
    common = ("--features", made.features, "--test", made.test, "--device", "cpu", "--round", rounding)
    for out, path in ((a, made.checkpoint), (b, second)):
        assert cli("predict", "--checkpoint", path, "--saliency", *common, "--out", out).code == 0
    paths = [made.checkpoint, second] if several else [second]
    keeps_curve = () if several else ("--saliency",)
    asked = ("--saliency-proposals", 0.5, *keeps_curve, *common, "--out", both)
    done = cli("predict", "--checkpoint", *paths, *asked)
    assert done.code == 0, done.err
    assert cli("fuse", *([a, b] if several else [b]), "--saliency", "--out", fused).code == 0
    assert both.read_bytes() == fused.read_bytes()
    assert cli("fuse", *([a, b] if several else [b]), "--pool", "--out", plain).code == 0
    assert plain.read_bytes() != fused.read_bytes()


def test_the_answer(cli: Cli, made: Heard, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    done = predict(cli, made, out)
    assert done.code == 0, done.err
    manifest = read_manifest(made.test)
    found = read_predictions(out)
    assert [item.qid for item in found] == [query.qid for query in manifest]
    assert all(float(x).is_integer() for item in found for x in item.windows[:, :2].ravel())
    assert done.out.strip() == f"{out}: 4 queries, {sum(len(i.windows) for i in found)} windows"
    again = cli("predict", "--checkpoint", made.checkpoint, "--features", made.features, "--test", made.test,
                "--out", tmp_path / "q.jsonl", "--saliency", "--json", "--device", "cpu")  # fmt: skip
    assert json.loads(again.out)["queries"] == 4
    for item, other in zip(found, read_predictions(tmp_path / "q.jsonl"), strict=True):
        np.testing.assert_array_equal(item.windows, other.windows)
        assert other.saliency is not None
        assert len(other.saliency) == 12


# --- mistakes ------------------------------------------------------------------------------------


def refused(cli: Cli, made: Heard, out: Path, *checkpoints: Path, **options: object) -> str:
    done = predict(cli, made, out, *checkpoints, **options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("amrctl: ")
    assert done.err.count("\n") == 1
    assert not meta_path(out).exists()
    return str(done.err)


@pytest.mark.parametrize("share", ["0", "1.5", "nan", "-0.5"])
def test_a_share_that_no_frame_or_every_frame_has(cli: Cli, made: Heard, tmp_path: Path, share: str) -> None:
    told = refused(cli, made, tmp_path / "p.jsonl", **{"saliency-proposals": share})
    assert f"saliency threshold {float(share):g} is not above 0" in told
    assert not (tmp_path / "p.jsonl").exists()


def test_features_of_other_width(cli: Cli, made: Heard, tmp_path: Path) -> None:
    folder, manifest = tmp_path / "npz", read_manifest(made.test)
    folder.mkdir()
    for vid in manifest.recordings:
        np.savez(folder / f"{vid}.npz", features=np.ones((12, 5), np.float32))
    heard.extract(tmp_path / "f.h5", made.audio, made.test, sides=("text",))
    import_npz(tmp_path / "f.h5", folder, None, "clap", manifest)
    told = refused(cli, made, tmp_path / "p.jsonl", features=tmp_path / "f.h5")
    assert "audio features logmel (229)" in told
    assert "has width 5" in told
    assert not (tmp_path / "p.jsonl").exists()


def test_an_output_that_exists(cli: Cli, made: Heard, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    out.write_text("mine")
    assert "--overwrite" in refused(cli, made, out)
    assert out.read_text() == "mine"
    done = cli("predict", "--checkpoint", made.checkpoint, "--features", made.features, "--test", made.test,
               "--out", out, "--overwrite", "--device", "cpu")  # fmt: skip
    assert done.code == 0
    assert len(read_predictions(out)) == 4


def test_a_missing_stream_names_the_command_that_adds_it(cli: Cli, made: Heard, tmp_path: Path) -> None:
    features = tmp_path / "audio.h5"
    heard.extract(features, made.audio, made.test, sides=("audio",))
    told = refused(cli, made, tmp_path / "p.jsonl", features=features)
    assert "no text stream" in told
    assert "--text-encoder words" in told


def test_missing_ids_are_counted(cli: Cli, made: Heard, tmp_path: Path) -> None:
    test = tmp_path / "m.jsonl"
    extra = '{"qid": "new", "query": "a tone", "vid": "rec0", "duration": 12}\n'
    test.write_text(made.test.read_text() + extra)
    assert "has no 'new' (1 of 5 missing)" in refused(cli, made, tmp_path / "p.jsonl", test=test)
    test.write_text(made.test.read_text() + extra.replace("rec0", "gone"))
    assert "has no 'gone' (1 of 3 missing)" in refused(cli, made, tmp_path / "p.jsonl", test=test)


class _Touch:
    """Unpickled, it would make a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_not_a_checkpoint(cli: Cli, made: Heard, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    text, plain, ckpt = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.ckpt"
    text.write_text("hello")
    assert "not a readable safetensors file" in refused(cli, made, out, text)
    safetensors.torch.save_file({"x": torch.zeros(2)}, str(plain))
    assert "has no amrctl metadata" in refused(cli, made, out, plain)
    ckpt.write_bytes(b"hello")
    assert "c.ckpt cannot be read" in refused(cli, made, out, ckpt)
    torch.save({"model": {"x": torch.zeros(2)}}, ckpt)
    assert "not a checkpoint of the official QD-DETR" in refused(cli, made, out, ckpt)
    torch.save({"model": _Touch(str(tmp_path / "harm"))}, ckpt)
    assert "c.ckpt cannot be read safely" in refused(cli, made, out, ckpt)
    assert not (tmp_path / "harm").exists()
    assert "none.safetensors does not exist" in refused(cli, made, out, tmp_path / "none.safetensors")


def test_a_wrong_key(cli: Cli, made: Heard, tmp_path: Path) -> None:
    told = refused(cli, made, tmp_path / "p.jsonl", set="inference.keeep=3")
    assert "keeep: unknown key" in told


# --- the official file -----------------------------------------------------------------------------


class EasyDict(dict[str, Any]):
    """Items are attributes too, so both are pickled, as those of the package of that name."""

    def __init__(self, **items: Any) -> None:
        for key, value in items.items():
            setattr(self, key, value)

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        super().__setitem__(key, value)


def test_an_official_file_predicts_as_its_weights_do(
    cli: Cli, made: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`{model, optimizer, lr_scheduler, epoch, opt}` with an EasyDict, as the released code saves it."""
    torch.manual_seed(0)
    sets = [*SMALL, *(f"model.{block}.inner=24" for block in BLOCKS)]
    recipe = recipes.load("qd-detr", "finetune", sets)
    detector = build(recipe, (229,), (256,), training=False)
    streams = {
        side: [{"name": "auto", "dim": dim, "encoder": "unknown", "hop": 1.0, "attrs": {}}]
        for side, dim in (("audio", 229), ("text", 256))
    }
    ours = Checkpoint(dict(detector.state_dict()), recipe, streams, epoch=7, rounding=1)
    checkpoint.write(tmp_path / "ours.safetensors", ours)

    easydict = types.ModuleType("easydict")
    monkeypatch.setattr(EasyDict, "__module__", "easydict")
    easydict.EasyDict = EasyDict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "easydict", easydict)
    adam = torch.optim.AdamW(detector.parameters(), lr=1e-4)
    saved = {
        "model": OrderedDict(official.export(ours)),
        "optimizer": adam.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(adam, 400).state_dict(),
        "epoch": 7,
        "opt": EasyDict(hidden_dim=16, device="cuda", dset_name="castella", clip_length=1.0),
    }
    torch.save(saved, tmp_path / "best.ckpt")
    assert b"easydict" in (tmp_path / "best.ckpt").read_bytes()
    monkeypatch.delitem(sys.modules, "easydict")  # who predicts need not have it

    answers = []
    for name in ("ours.safetensors", "best.ckpt"):
        out = tmp_path / f"{name}.jsonl"
        done = predict(cli, made, out, tmp_path / name)
        assert done.code == 0, done.err
        answers.append(out.read_bytes())
    assert answers[0] == answers[1]
    assert len(read_predictions(tmp_path / "best.ckpt.jsonl")) == 4
    meta = read_predictions(tmp_path / "best.ckpt.jsonl").meta
    assert meta["datasets"] == ["unknown"]

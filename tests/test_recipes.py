"""Every shipped recipe, found by walking the folder, is built and trained two steps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import amrctl
from amrctl import registry
from amrctl.data.batch import Batch
from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.evaluation import retrieval
from amrctl.evaluation.moments import METRICS
from amrctl.inference.predict import predict
from amrctl.losses.total import Criterion
from amrctl.model.detector import build
from amrctl.recipe import STAGES, Recipe, Stage, load, load_any, shipped
from tests.small import AUDIO_DIM, TEXT_DIM, features_for, manifest, query

FOLDER = Path(amrctl.__file__).parent / "recipes"
FILES = sorted(FOLDER.rglob("*.y*ml"))
TASKS = {path: yaml.safe_load(path.read_text(encoding="utf-8"))["task"] for path in FILES}
DETECTORS = [path for path in FILES if TASKS[path] == "moments"]
QUERIES = manifest(
    *(query(f"q{i}", f"v{i // 2}", 10 + 2 * (i // 2), [(1 + i % 3, 5 + i % 3)]) for i in range(8))
)


def test_some_recipes_were_found_and_all_are_known_by_name() -> None:
    assert FILES
    assert {path.stem: path for path in FILES} == shipped()


def narrowed(path: Path, stage: Stage) -> Recipe:
    """The recipe as it is, but for its width (time) and its streams (the test's file has one)."""
    return load(str(path), stage, ["model.hidden_dim=32", "features.audio=[auto]", "features.text=[auto]"])


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = {f"v{i}": 10 + 2 * i for i in range(4)}
    return features_for(tmp_path_factory.mktemp("f") / "f.h5", QUERIES, frames=frames)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("path", DETECTORS, ids=lambda p: p.stem)
def test_it_trains_and_predicts(path: Path, stage: Stage, features: Path) -> None:
    recipe = narrowed(path, stage)
    torch.manual_seed(0)
    detector = build(recipe, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    criterion = Criterion(recipe, detector)
    config = recipe.train.optimizer
    optimizer = registry.find("optimizer", config.kind).build(config, detector.parameters())
    with FeatureFile(features) as file:
        train = Moments(QUERIES, file, recipe, training=True)
        test = Moments(QUERIES, file, recipe, training=False)
    names: set[str] = set()
    for epoch in range(2):
        (batch,) = train.epoch(0, epoch)
        detector.train()

        def closure(batch: Batch = batch) -> Tensor:
            loss = criterion(detector(batch), batch)
            assert {name for name, value in loss.raw.items() if not value.isfinite()} == set()
            names.update(loss.raw)
            optimizer.zero_grad()
            torch.autograd.backward(loss.total)
            return loss.total.detach()

        optimizer.step(closure)
    assert {term.kind for term in recipe.losses} <= names
    still = {name for name, p in detector.named_parameters() if torch.equal(p, before[name])}
    declared = {f"decoder.{name}" for name in getattr(detector.decoder, "zero_gradient", ())}
    for part in detector.components():  # what an earlier component makes and this one has no use for
        declared |= set(getattr(part, "unread", ()))
    assert still <= declared
    predictions = predict(detector, test, recipe)
    assert [p.qid for p in predictions] == [q.qid for q in QUERIES]
    for p in predictions:
        assert 0 < len(p.windows) <= recipe.inference.keep
        assert ((p.windows[:, 0] >= 0) & (p.windows[:, 0] < p.windows[:, 1])).all()
        assert (p.windows[:, 1] <= p.duration).all()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_it_says_where_it_comes_from(path: Path) -> None:
    recipe = load_any(path.stem, "finetune")
    assert recipe.name == path.stem
    assert recipe.source
    if isinstance(recipe, Recipe):
        assert set(recipe.train.metrics) <= set(METRICS)
        assert recipe.compat is None  # the released faults come back only when asked for
    else:
        assert set(recipe.train.metrics) <= set(retrieval.METRICS)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#"), "the file opens with what the recipe is"


def test_the_baseline_is_the_published_one() -> None:
    """The literal settings of the released configuration (reference facts 1.2-1.12)."""
    raw = load("qd-detr", "finetune").to_dict()
    model: dict[str, Any] = raw["model"]
    assert model["hidden_dim"] == 256
    assert [model["tokens"][k] for k in ("kind", "layers", "dropout", "tef")] == [
        "projection",
        2,
        0.5,
        "concat-2d",
    ]
    for part in (model["fusion"][0], model["encoder"][0], model["decoder"]):
        assert (part["layers"], part["heads"], part["dropout"]) == (2, 8, 0.1)
        assert part["inner"] in (None, 1024)
    assert model["decoder"]["queries"] == 10
    assert {t["kind"]: t["weight"] for t in raw["losses"]} == {
        "span": 10,
        "giou": 1,
        "label": 4,
        "saliency": 1,
    }
    assert next(t for t in raw["losses"] if t["kind"] == "label")["background"] == 0.1
    assert next(t for t in raw["losses"] if t["kind"] == "saliency")["margin"] == 0.2
    train = raw["train"]
    assert {k: train[k] for k in ("epochs", "batch", "eval_batch", "clip", "max_windows", "max_frames")} == {
        "epochs": 200,
        "batch": 32,
        "eval_batch": 100,
        "clip": 0.1,
        "max_windows": 5,
        "max_frames": 300,
    }
    assert (train["optimizer"]["lr"], train["optimizer"]["weight_decay"]) == (1e-4, 1e-4)
    assert train["metrics"][0] == "R1@0.7"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_key_of_the_file_is_lost(path: Path) -> None:
    """What the YAML says is what the resolved recipe says (the running stage's block on top)."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    resolved = load_any(path.stem, "finetune").to_dict()
    train = copy.deepcopy(raw["train"]) | (raw.get("finetune") or {})
    for key, value in train.items():
        if not isinstance(value, (dict, str)):
            assert resolved["train"][key] == value, key
    for slot, value in raw["model"].items():
        if isinstance(value, list):
            kinds = [v if isinstance(v, str) else v["kind"] for v in value]
            assert [part["kind"] for part in resolved["model"][slot]] == kinds


def test_the_dual_encoder_is_the_published_one() -> None:
    """JKU's report where it speaks, the public baseline where it does not."""
    raw = load_any("jku-passt-roberta", "finetune").to_dict()
    audio, text, train = raw["model"]["audio"], raw["model"]["text"], raw["train"]
    assert [audio[k] for k in ("kind", "segment", "hop", "train_from")] == ["passt", 10, 5, 8]
    assert audio["masking"] is not None
    assert (audio["drop_columns"], audio["drop_rows"]) == (15, 2)
    assert (text["checkpoint"], text["pool"], text["max_tokens"]) == ("FacebookAI/roberta-large", "mean", 32)
    assert (text["plain"], text["dropout"]) == (True, 0.2)
    assert raw["model"]["pooling"]["kind"] == "attention"
    assert (raw["model"]["dim"], raw["model"]["temperature"]) == (1024, {"initial": 0.05, "learned": True})
    assert [loss["kind"] for loss in raw["losses"]] == ["contrastive"]
    assert (train["optimizer"]["kind"], train["optimizer"]["weight_decay"]) == ("adamw", 1e-4)
    assert (train["optimizer"]["lr"], train["schedule"]["kind"]) == (2e-5, "cosine")
    assert (train["epochs"], train["batch"], train["max_seconds"], train["clip"]) == (20, 64, 30, None)

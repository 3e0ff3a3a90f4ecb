"""The Guangzhou ladder: each recipe adds one thing to the one before, and that thing works.

The stages are trained 50 steps each on a tiny set, every one from the checkpoint of the one before,
through the same loading as `finetune --init`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amrctl import recipe as recipes
from amrctl import registry
from amrctl.data.predictions import Prediction, write_predictions
from amrctl.inference.predict import predict
from amrctl.losses.total import Criterion
from amrctl.model import checkpoint
from amrctl.model.checkpoint import Checkpoint
from amrctl.model.detector import Detector, build
from amrctl.recipe import Recipe
from amrctl.training import run
from tests.training.test_partial_init import Notes
from tests.training.tiny import Tiny, make

STAGES = ("student", "boundary", "quality", "span", "distill")
NEW = {
    "boundary": ("model.heads", ["boundary"]),
    "quality": ("model.heads", ["quality"]),
    "span": ("model.refine", ["span-evidence"]),
    "distill": ("losses", ["teacher-span", "teacher-score"]),
}
STEPS = 50
NARROW = (
    "model.hidden_dim=16",
    "model.decoder.layers=1",
    "model.encoder.transformer.layers=1",
    "model.fusion.text-to-audio.layers=1",
    "train.optimizer.lr=1e-3",
    "train.batch=6",
)


def resolved(stage: str, *sets: str) -> Recipe:
    return recipes.load(f"guangzhou-{stage}", "finetune", sets)


# --- the files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("earlier", "later"), [*pairwise(STAGES)])
def test_each_recipe_adds_one_entry_to_the_one_before(earlier: str, later: str) -> None:
    before, after = resolved(earlier).to_dict(), resolved(later).to_dict()
    path, kinds = NEW[later]
    *outer, last = path.split(".")
    holder = after
    for key in outer:
        holder = holder[key]
    added = [part for part in holder[last] if part["kind"] in kinds]
    assert [part["kind"] for part in added] == kinds
    holder[last] = [part for part in holder[last] if part not in added]
    for key in ("name", "source"):
        assert before.pop(key) != after.pop(key)
    if later == "quality":  # the head is there to rank: its score comes with it
        assert before["inference"].pop("score") == {"kind": "foreground"}
        assert after["inference"].pop("score") == {"kind": "quality-blend", "lambda": 0.8}
    assert after == before


def test_the_published_numbers() -> None:
    """Sections 3.3 to 3.7 and 4, eq. 10."""
    raw = resolved("distill").to_dict()
    model = raw["model"]
    assert {t["kind"]: t["weight"] for t in raw["losses"]} == {
        "span": 10,
        "giou": 1,
        "focal": 4,
        "quality": 1,
        "saliency": 1,
        "teacher-span": 2.0,
        "teacher-score": 0.5,
    }
    focal = next(t for t in raw["losses"] if t["kind"] == "focal")
    assert (focal["alpha"], focal["gamma"]) == (0.75, 2.0)
    heads = {part["kind"]: part for part in model["heads"]}
    assert (heads["boundary"]["weight"], heads["boundary"]["sigma"], heads["quality"]["weight"]) == (1, 1, 1)
    assert model["fusion"][0]["kind"] == "text-guided-enhancer"
    assert [model["hidden_dim"], model["decoder"]["layers"], model["decoder"]["queries"]] == [256, 2, 10]
    assert [(p["layers"], p["heads"]) for p in (model["encoder"][0], model["decoder"])] == [(2, 8)] * 2
    train = raw["train"]
    assert (train["epochs"], train["batch"], train["optimizer"]["lr"]) == (200, 32, 1e-4)
    assert train["metrics"] == ["R1@0.7", "mAP", "mAP@0.5"]  # soups need the best of each
    assert run.TeacherChoice(()).top_k == 3


# --- the chain ---------------------------------------------------------------------------------------


@dataclass
class Stage:
    """One trained stage. `before`: its weights before the first step."""

    job: run.Job
    detector: Detector
    before: Mapping[str, Tensor]
    told: list[str]


def prepared(
    tiny: Tiny, stage: str, init: Path | None, teacher: Path | None, *sets: str
) -> tuple[run.Job, list[str]]:
    request = run.Request(
        recipe=resolved(stage, *NARROW, *sets),
        train=(tiny.train,),
        val=(tiny.val,),
        features=tiny.features,
        init=init,
        teacher=run.TeacherChoice((teacher,)) if teacher else None,
        device="cpu",
    )
    notes = Notes()
    return run.load(request, run.fingerprint(request), notes), notes.told


def trained(job: run.Job, steps: int = STEPS) -> tuple[Detector, dict[str, Tensor]]:
    """The job's detector after some steps, and its weights before them."""
    detector = run.assemble(job, 0)
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    criterion = Criterion(job.recipe, detector)
    config = job.recipe.train.optimizer
    optimizer = registry.find("optimizer", config.kind).build(config, list(detector.parameters()))
    detector.train()
    done, epoch = 0, 0
    while done < steps:
        epoch += 1
        for batch in job.train.epoch(0, epoch):
            optimizer.zero_grad()
            criterion(detector(batch), batch).total.backward()
            optimizer.step()
            done += 1
    return detector, before


def saved(path: Path, job: run.Job, detector: Detector) -> Path:
    checkpoint.write(path, Checkpoint(dict(detector.state_dict()), job.recipe, job.train.streams))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def teacher(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labels a little out of place: a teacher that knows more than a tiny student."""
    job, _ = prepared(tiny, "student", None, None)
    items = []
    for item in job.train.items:
        query = item.query
        assert query.windows is not None
        start, end = query.windows[0]
        windows = np.array([[start, min(end + 0.5, query.duration), 0.9], [0.0, query.duration, 0.2]])
        items.append(Prediction(query.qid, query.query, query.vid, query.duration, windows, None))
    path = tmp_path_factory.mktemp("teacher") / "t.jsonl"
    write_predictions(path, items, {"rounding": 0})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def chain(tiny: Tiny, teacher: Path, folder: Path) -> dict[str, Stage]:
    made: dict[str, Stage] = {}
    init = None
    for stage in STAGES:
        job, told = prepared(tiny, stage, init, teacher if stage == "distill" else None)
        # distillation brings no weights of its own
        detector, before = trained(job, steps=4 if stage == "distill" else STEPS)
        init = saved(folder / f"{stage}.safetensors", job, detector)
        made[stage] = Stage(job, detector, before, told)
    return made


def test_only_the_new_part_starts_fresh(chain: dict[str, Stage], folder: Path) -> None:
    fresh = {stage: [text for text in chain[stage].told if "fresh" in text] for stage in STAGES}
    added = {"boundary": "heads.boundary", "quality": "heads.quality", "span": "refine.span-evidence"}
    for earlier, stage in pairwise(STAGES):
        path = folder / f"{earlier}.safetensors"
        wanted = f"{path} has no {added.get(stage)}: fresh weights there, the rest is loaded"
        assert fresh[stage] == ([wanted] if stage in added else [])
        for name, value in chain[earlier].detector.named_parameters():
            assert torch.equal(chain[stage].before[name], value), name
    assert [chain[stage].job.verb for stage in STAGES] == ["finetune"] * 4 + ["distill"]


@pytest.mark.parametrize(
    ("stage", "part"),
    [
        ("student", "fusion.text-guided-enhancer"),
        ("boundary", "heads.boundary"),
        ("quality", "heads.quality"),
        ("span", "refine.span-evidence"),
    ],
)
def test_its_parameters_moved(chain: dict[str, Stage], stage: str, part: str) -> None:
    found = chain[stage]
    own = [name for name, _ in found.detector.named_parameters() if name.startswith(f"{part}.")]
    assert own
    for name in own:
        assert not torch.equal(found.detector.get_parameter(name), found.before[name]), name


def windows(detector: Detector, job: run.Job, recipe: Recipe | None = None) -> list[Any]:
    found = predict(detector, job.val[0][1], recipe or job.recipe)
    return [item.windows.tolist() for item in found]


def without(found: Stage, sets: str, part: str) -> Detector:
    """The trained detector less one part."""
    recipe = recipes.from_dict(found.job.recipe.to_dict(), where="less", sets=[sets])
    less = build(recipe, found.job.train.audio_dims, found.job.train.text_dims, training=False)
    kept = {k: v for k, v in found.detector.state_dict().items() if not k.startswith((part, "auxiliary."))}
    less.load_state_dict(kept)
    return less


@pytest.mark.parametrize(
    ("stage", "sets", "part"),
    [
        ("student", "model.fusion.text-guided-enhancer=null", "fusion.text-guided-enhancer."),
        ("quality", "model.heads.boundary=null", "heads.boundary."),  # the quality head reads it
        ("span", "model.refine.span-evidence=null", "refine."),
    ],
)
def test_switching_it_off_changes_predictions(
    chain: dict[str, Stage], stage: str, sets: str, part: str
) -> None:
    found = chain[stage]
    assert windows(without(found, sets, part), found.job) != windows(found.detector, found.job)


@pytest.mark.parametrize("stage", ["quality", "span"])
def test_lambda_changes_the_scores_without_training(
    chain: dict[str, Stage], folder: Path, stage: str
) -> None:
    path, job = folder / f"{stage}.safetensors", chain[stage].job
    scores = {}
    for share in (0.0, 0.8, 1.0):
        read = checkpoint.read(path, sets=[f"inference.score.lambda={share}"])
        found = predict(checkpoint.restore(read), job.val[0][1], read.recipe)
        rows = [sorted(item.windows.tolist()) for item in found]
        scores[share] = torch.tensor([[row[2] for row in item] for item in rows])
    assert (scores[0.0] - scores[1.0]).abs().min() > 0
    torch.testing.assert_close(scores[0.8], 0.2 * scores[0.0] + 0.8 * scores[1.0], rtol=0, atol=2e-6)
    plain = checkpoint.read(path, sets=["inference.score=foreground"])
    foreground = predict(checkpoint.restore(plain), job.val[0][1], plain.recipe)
    rows = [sorted(item.windows.tolist()) for item in foreground]
    assert torch.equal(scores[0.0], torch.tensor([[row[2] for row in item] for item in rows]))


@pytest.mark.parametrize(
    ("stage", "off"),
    [
        ("student", ("losses.quality.weight=0",)),
        ("student", ("losses.focal=null", "losses.label=4")),
        ("boundary", ("model.heads.boundary.weight=0",)),
        ("quality", ("model.heads.quality.weight=0",)),
    ],
)
def test_what_only_teaches_changes_the_shared_weights(
    chain: dict[str, Stage], tiny: Tiny, folder: Path, stage: str, off: tuple[str, ...]
) -> None:
    place = STAGES.index(stage)
    init = folder / f"{STAGES[place - 1]}.safetensors" if place else None
    _, on = shared(prepared(tiny, stage, init, None)[0])
    _, other = shared(prepared(tiny, stage, init, None, *off)[0])
    assert any(not torch.equal(value, other[name]) for name, value in on.items())


def test_the_teacher_changes_the_student(
    chain: dict[str, Stage], tiny: Tiny, teacher: Path, folder: Path
) -> None:
    init = folder / "span.safetensors"
    job, _ = prepared(tiny, "distill", init, teacher)
    taught, on = shared(job)
    _, alone = shared(prepared(tiny, "distill", init, None)[0])
    assert any(not torch.equal(value, alone[name]) for name, value in on.items())
    # all terms on the labels stay on
    (batch, *_) = job.train.epoch(0, 1)
    loss = Criterion(job.recipe, taught)(taught.train()(batch), batch)
    truth = {"span", "giou", "focal", "quality", "saliency", "boundary", "quality-head"}
    assert set(loss.raw) == truth | {"teacher-span", "teacher-score"}
    assert all(float(value) > 0 for value in loss.raw.values())
    for name, weight in (("teacher-span", 2.0), ("teacher-score", 0.5)):
        assert float(loss.weighted[name]) == pytest.approx(weight * float(loss.raw[name]))


def shared(job: run.Job) -> tuple[Detector, dict[str, Tensor]]:
    """Weights that all stages have, after four steps."""
    detector, _ = trained(job, steps=4)
    chosen = ("tokens.", "encoder.", "decoder.", "fusion.text-to-audio.")
    return detector, {n: p.detach() for n, p in detector.named_parameters() if n.startswith(chosen)}

"""The recipe `cg-detr`: its published settings, what each part does in it, and a run through the commands."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.errors import RecipeError
from amrctl.losses.total import Criterion
from amrctl.model.detector import Detector, build
from amrctl.model.types import Matches
from amrctl.recipe import Recipe, load
from tests.conftest import Cli
from tests.pipeline import heard
from tests.pipeline.heard import SENTENCES
from tests.small import AUDIO_DIM, TEXT_DIM, batch, row_of
from tests.test_contract import without_dropout, zero_gradient

# every part that is not QD-DETR's: how it leaves the recipe
OFF = {
    "dummy-tokens": ["model.fusion.dummy-tokens=null", "model.auxiliary.clip-words=null"],
    "summary-to-frames": ["model.encoder.summary-to-frames=null"],
    "types": ["model.tokens.types=false"],
}
TRAINING_ONLY = {
    "clip-words": ["model.auxiliary.clip-words=null"],
    "negative-pairs": ["model.auxiliary.negative-pairs=null"],
    "attention-saliency": ["model.fusion.adaptive-cross-attention.weight=0"],
    "orthogonal-prompts": ["model.fusion.adaptive-cross-attention.apart=0"],
    "orthogonal-dummies": ["model.fusion.dummy-tokens.weight=0"],
    "ms-align": ["model.auxiliary.clip-words.align=0"],
    "distill": ["model.auxiliary.clip-words.distill=0"],
}

NO_MATCHES = Matches(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))


def test_the_published_settings_are_in_the_file() -> None:
    """lighthouse's configuration: clap, cg_detr, castella."""
    raw = load("cg-detr", "finetune").to_dict()
    model: dict[str, Any] = raw["model"]
    dummies, attention = model["fusion"]
    encoder, last = model["encoder"]
    _, learner = model["auxiliary"]
    blocks = (dummies, attention, encoder, model["decoder"], learner)
    assert all((b["heads"], b["dropout"], b["drop_path"]) == (8, 0.1, 0.1) for b in blocks)
    assert all(b["inner"] in (None, 1024) for b in blocks)
    assert [b["layers"] for b in blocks[:4]] == [2, 2, 3, 3]
    assert (learner["moment_layers"], learner["sentence_layers"], learner["sentence"]) == (1, 1, "own")
    assert (dummies["count"], attention["prompts"], attention["top"]) == (45, 10, 2)
    assert [dummies["weight"], attention["weight"], attention["apart"]] == [1, 1, 1]
    assert [learner["align"], learner["distill"]] == [1, 1]
    assert last["kind"] == "summary-to-frames"
    assert (model["hidden_dim"], model["tokens"]["dropout"], model["decoder"]["queries"]) == (256, 0.5, 10)
    weights = {term["kind"]: term["weight"] for term in raw["losses"]}
    assert weights == {"span": 10, "giou": 1, "label": 4, "saliency": 1}
    (text,) = raw["features"]["text"]
    assert (text["l2"], text["max_tokens"]) == (True, 32)
    train = raw["train"]
    assert (train["epochs"], train["batch"], train["clip"], train["max_windows"]) == (200, 32, 0.1, 5)
    assert (train["optimizer"]["lr"], train["optimizer"]["weight_decay"]) == (1e-4, 1e-4)
    assert train["metrics"] == ["R1@0.7", "mAP"]  # lighthouse chooses by mAP


# --- what the parts do -------------------------------------------------------------------------------


def made(*sets: str, training: bool = True) -> tuple[Recipe, Detector]:
    recipe = load("cg-detr", "finetune", ["model.hidden_dim=32", *sets])
    torch.manual_seed(0)
    detector = build(recipe, (AUDIO_DIM,), (TEXT_DIM,), training=training)
    without_dropout(detector)
    return recipe, detector


def trained(steps: int, *sets: str) -> tuple[Detector, dict[str, Tensor]]:
    """The detector after `steps` small steps, and the weights it began with, whatever it lacks."""
    _, whole = made()
    recipe, detector = made(*sets)
    begun = {name: value.clone() for name, value in whole.state_dict().items()}
    detector.load_state_dict({name: begun[name] for name in detector.state_dict()})
    criterion = Criterion(recipe, detector)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    detector.train()
    data = batch()
    for _ in range(steps):
        loss = criterion(detector(data), data)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    return detector, begun


@cache
def after_fifty() -> tuple[Detector, dict[str, Tensor]]:
    return trained(50)


@cache
def after_three() -> dict[str, Tensor]:
    return trained(3)[0].state_dict()


def answers(detector: Detector, data: Batch) -> Iterator[Tensor]:
    with torch.inference_mode():
        output = detector.eval()(data)
    yield from (output.logits[-1], output.saliency, output.spans[-1])


def test_every_parts_parameters_moved() -> None:
    detector, begun = after_fifty()
    still = {name for name, value in detector.state_dict().items() if torch.equal(value, begun[name])}
    assert still <= zero_gradient(detector)
    for prefix in ("fusion.dummy-tokens.", "fusion.adaptive-cross-attention.", "auxiliary.clip-words."):
        assert any(name.startswith(prefix) for name in begun)
        assert not any(name.startswith(prefix) for name in still)


@pytest.mark.parametrize("part", OFF)
def test_switching_a_part_off_in_the_trained_checkpoint_changes_predictions(part: str) -> None:
    detector, _ = after_fifty()
    data = batch(seed=3)
    _, bare = made(*OFF[part], training=False)
    weights = detector.state_dict()
    bare.load_state_dict({name: weights[name] for name in bare.state_dict()})
    *_, mine = answers(bare, data)
    *_, theirs = answers(detector, data)
    assert float((mine - theirs).abs().max()) > 1e-3


@pytest.mark.parametrize("part", TRAINING_ONLY)
def test_a_part_of_the_training_changed_the_shared_weights(part: str) -> None:
    without, _ = trained(3, *TRAINING_ONLY[part])
    mine, whole = without.state_dict(), after_three()
    shared = [name for name in mine if not name.startswith("auxiliary.")]
    assert shared
    assert any(not torch.equal(mine[name], whole[name]) for name in shared)


def test_the_trained_detector_answers_alike_alone_and_in_a_batch() -> None:
    detector, _ = after_fifty()
    data = batch(frames=(12, 17, 1), seed=4)
    together = list(answers(detector, data))
    for b in range(3):
        for alone, whole in zip(answers(detector, row_of(data, b)), together, strict=True):
            other = whole[b, : int(data.lengths[b])] if whole.shape == data.audio_mask.shape else whole[b]
            torch.testing.assert_close(alone[0], other, rtol=1e-4, atol=2e-5)


def test_without_moments_and_with_one_frame_it_trains_on() -> None:
    recipe, detector = made()
    data = batch(frames=(1, 1, 2))
    assert data.targets is not None
    for name in ("mask", "saliency", "positives", "negatives", "pair_mask"):
        getattr(data.targets, name).zero_()
    finite(recipe, detector, data)


@pytest.mark.parametrize("compat", ["null", "official"])
def test_a_pair_alone_trains_on(compat: str) -> None:
    recipe, detector = made(f"compat={compat}")
    data = batch(frames=(9,), tokens=(3,))
    assert data.targets is not None
    data.targets.negative_row = torch.tensor([0 if compat == "official" else -1])
    finite(recipe, detector, data)


def finite(recipe: Recipe, detector: Detector, data: Batch) -> None:
    loss = Criterion(recipe, detector)(detector.train()(data), data)
    loss.total.backward()
    assert all(value.isfinite() for value in loss.raw.values()), loss.raw
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in detector.parameters())


def test_the_sentence_token_of_the_fusion_gives_what_the_learners_own_does() -> None:
    """The same weights in `sentence-token`, which also runs at inference: the same losses."""
    recipe, own = made()
    fusion = "model.fusion=[{kind: sentence-token, drop_path: 0.1}, {kind: dummy-tokens, drop_path: 0.1}, "
    fusion += "{kind: adaptive-cross-attention, drop_path: 0.1}]"
    other_recipe, other = made(fusion, "model.auxiliary.clip-words.sentence=fusion")
    weights = {
        name.replace("auxiliary.clip-words.sentence.", "fusion.sentence-token.encoder."): value
        for name, value in own.state_dict().items()
    }
    other.load_state_dict(weights)
    data = batch()
    mine, theirs = (Criterion(r, d)(d.train()(data), data) for r, d in ((recipe, own), (other_recipe, other)))
    for name, value in mine.raw.items():
        torch.testing.assert_close(theirs.raw[name], value)
    with torch.inference_mode():
        extras = other.eval()(data).extras
    assert extras["sentence-token"].shape == (3, 32)
    assert extras["dummy-tokens"].shape == (3, 45, 32)


def test_the_correlation_is_exact_in_half_precision() -> None:
    """Unscaled products of normed rows are large, and stand in an exponent: bfloat16 has steps of 0.5."""
    _, detector = made()
    learner: Any = dict(detector.auxiliary.items())["clip-words"]
    generator = torch.Generator().manual_seed(5)
    frames, dummies, words = (
        8 * torch.randn(2, rows, 64, generator=generator).bfloat16() for rows in (7, 3, 4)
    )
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    with torch.autocast("cpu", torch.bfloat16):
        found = learner._correlation(frames, dummies, words, real)
    products = frames.double() @ torch.cat((dummies, words), dim=1).double().transpose(1, 2)
    assert products.abs().max() > 100
    products[1, :, 5:] = -math.inf
    torch.testing.assert_close(found, products.softmax(-1).float(), rtol=1e-3, atol=1e-6)
    assert not found.requires_grad


def test_what_the_learner_needs_is_named() -> None:
    _, detector = made("model.fusion.dummy-tokens=null")
    with pytest.raises(RecipeError, match=r"clip-words: needs 'dummy-tokens' and 'adaptive-cross-attention'"):
        detector.train()(batch())
    _, detector = made("model.auxiliary.clip-words.sentence=fusion")
    with pytest.raises(RecipeError, match=r"sentence 'fusion' needs 'sentence-token'"):
        detector.train()(batch())
    with pytest.raises(RecipeError, match="top cannot be more than prompts"):
        load("cg-detr", "finetune", ["model.fusion.adaptive-cross-attention.prompts=1"])


def test_clear_mistakes_and_full_shares_stay_finite() -> None:
    """Where the released code says 100 (a sigmoid rounded to 1) and infinity (no dummy takes a share)."""
    data = batch()
    found = {}
    for compat in ("null", "official"):
        recipe, detector = made(f"compat={compat}")
        output = detector.train()(data)
        output.extras["clip-words.frames"] = torch.full_like(output.extras["clip-words.frames"], 40.0)
        key = "negative-pairs.adaptive-cross-attention.share"
        output.extras[key] = torch.ones_like(output.extras[key])
        terms = {term.name: term for term in Criterion(recipe, detector).terms}
        found[compat] = [
            terms[name](output, data, NO_MATCHES, 0).item() for name in ("ms-align", "attention-saliency")
        ]
    assert data.targets is not None
    outside = float(((1 - data.targets.saliency) * data.audio_mask).sum())
    real, padded = float(data.audio_mask.sum()), data.audio_mask.numel()
    assert 40 * outside / real < found["null"][0] < 40 * outside / real + 10
    assert 100 * outside / padded < found["official"][0] < 100 * outside / padded + 10
    assert math.isinf(found["official"][1])
    assert found["null"][1] == pytest.approx(-math.log(1e-6) * real / 3, rel=0.05)


def test_without_dummies_the_share_teaches_nothing() -> None:
    """It is 1 for every frame, whatever the weights: no gradient, and none that is made of rounding."""
    recipe, detector = made(*OFF["dummy-tokens"])
    data = batch()
    output = detector.train()(data)
    (term,) = (t for t in Criterion(recipe, detector).terms if t.name == "attention-saliency")
    cost = term(output, data, NO_MATCHES, 0)
    assert cost.isfinite()
    cost.backward()
    worst = max(float(p.grad.abs().max()) for p in detector.parameters() if p.grad is not None)
    assert worst < 1e-3


# --- through the commands ----------------------------------------------------------------------------


def test_it_trains_predicts_and_searches_through_the_commands(cli: Cli, tmp_path: Path) -> None:
    """The loss falls within a few epochs, and the checkpoint answers from features and from sound."""
    data = heard.make(tmp_path / "data")
    run, out = tmp_path / "run", tmp_path / "p.jsonl"
    sets = [
        "model.hidden_dim=32",
        "train.epochs=6",
        "train.batch=4",
        "train.optimizer.lr=1e-3",
        "train.clip=1.0",
    ]
    words = [word for item in sets for word in ("--set", item)]
    given = ("--train", data.train, "--val", data.test, "--features", data.features)
    done = cli("finetune", "--recipe", "cg-detr", *given, "--out", run, *words)
    assert done.code == 0, done.err
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]
    done = cli("predict", "--checkpoint", run, "--features", data.features, "--test", data.test, "--out", out)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 4
    assert all(0 < len(row["pred_relevant_windows"]) <= 10 for row in rows)
    sound = data.audio / "rec0.wav"
    done = cli("search", sound, *SENTENCES, "--checkpoint", run, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert [len(query["moments"]) for query in json.loads(done.out)["queries"]] == [3, 3]

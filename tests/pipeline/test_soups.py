"""Greedy and Fisher soups: against plain loops, and what they refuse."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from amrctl import provenance
from amrctl.data.batch import Batch
from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.data.manifest import read_manifest
from amrctl.ensemble.importance import FLOOR, Importance
from amrctl.ensemble.ingredients import open_source
from amrctl.ensemble.mix import Mix
from amrctl.ensemble.soup import make_soup, write_soup
from amrctl.errors import AmrctlError, CheckpointError
from amrctl.evaluation.moments import headline
from amrctl.inference.predict import predict
from amrctl.losses.total import Criterion
from amrctl.model import checkpoint
from amrctl.model.checkpoint import Checkpoint
from amrctl.model.detector import Detector, build
from amrctl.pipeline import fisher, greedy
from amrctl.pipeline.fisher import FisherRequest, fisher_soup
from amrctl.pipeline.greedy import GreedyRequest, greedy_soup
from amrctl.progress import Reporter
from amrctl.recipe import Recipe, load
from amrctl.run_folder import seed_folder, write_seeds
from tests.conftest import Cli
from tests.ensemble.test_soup import save
from tests.test_recipes import DETECTORS
from tests.training.tiny import Tiny, make


class Notes(Reporter):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"))


def recipe_of(tiny: Tiny, *sets: str) -> Recipe:
    return load(str(tiny.recipe), "finetune", sets)


def write(
    tiny: Tiny, path: Path, seed: int, *sets: str, spread: float = 0.1, trained_on: Path | None = None
) -> Path:
    """A checkpoint near the untrained weights of seed 0; all have those as their ancestor."""
    recipe = recipe_of(tiny, *sets)
    torch.manual_seed(0)
    tensors = dict(build(recipe, (6,), (6,), training=True).state_dict())
    torch.manual_seed(seed)
    for key, value in tensors.items():
        if value.is_floating_point():
            tensors[key] = value + spread * torch.randn_like(value)
    stream = {"name": "noise", "dim": 6, "encoder": "noise", "hop": 1.0, "attrs": {}}
    seen = [{"path": str(trained_on), "sha256": provenance.sha256(trained_on)}] if trained_on else []
    origin = {"ancestry": ["root"], "trained_on": [*seen, {"path": "old.jsonl", "sha256": "0"}]}
    made = Checkpoint(tensors, recipe, {"audio": [stream], "text": [stream]}, rounding=1, provenance=origin)
    checkpoint.write(path, made)
    return path


# --- importance and the weighted mean ----------------------------------------------------------------


def shares_file(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_the_mean_is_weighted_number_by_number(tmp_path: Path) -> None:
    """Against the formula in numpy; where nothing is important, and what is in no file, the plain mean."""
    rng = np.random.default_rng(0)
    parts = [
        {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=5), "free": rng.normal(size=2)} for _ in range(3)
    ]
    important = [{"w": rng.gamma(0.3, size=(4, 3)), "b": np.zeros(5)} for _ in range(3)]
    important[1]["w"][0] = 0.0
    important[2]["b"][2] = 5.0
    paths = [
        save(tmp_path / f"{i}.safetensors", {k: torch.tensor(v) for k, v in part.items()})
        for i, part in enumerate(parts)
    ]
    files = [
        shares_file(tmp_path / f"f{i}", {k: torch.tensor(v) for k, v in part.items()})
        for i, part in enumerate(important)
    ]
    importance = Importance(files)
    floor = FLOOR * sum(v.sum() for part in important for v in part.values()) / (17 * 3)
    assert importance.floor == pytest.approx(floor)
    mix = Mix([open_source(path) for path in paths], importance.mean_shares, importance=importance)
    made = load_file(write_soup(mix, tmp_path / "soup.safetensors").path)
    shares = []
    for key in ("w", "b"):
        raised = np.stack([np.maximum(part[key], floor) for part in important])
        shares.append((raised / raised.sum(0)).reshape(3, -1))
        mean = (raised * np.stack([part[key] for part in parts])).sum(0) / raised.sum(0)
        np.testing.assert_allclose(made[key].numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(made["free"].numpy(), np.mean([part["free"] for part in parts], axis=0))
    even = np.mean([part["b"] for part in parts], axis=0)
    np.testing.assert_allclose(made["b"].numpy()[[0, 1, 3, 4]], even[[0, 1, 3, 4]])
    assert importance.mean_shares == pytest.approx(np.concatenate(shares, axis=1).mean(1))


def test_equal_importance_is_the_uniform_soup(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    parts = [{"w": torch.randn(6, 4, generator=generator)} for _ in range(4)]
    paths = [save(tmp_path / f"{i}.safetensors", part) for i, part in enumerate(parts)]
    same = {"w": torch.rand(6, 4, generator=generator) * torch.tensor([0.0, 1e-30, 1.0, 1e6])}
    importance = Importance([shares_file(tmp_path / f"f{i}", same) for i in range(4)])
    mix = Mix([open_source(path) for path in paths], importance.mean_shares, importance=importance)
    weighed = load_file(write_soup(mix, tmp_path / "weighed.safetensors").path)["w"]
    plain = load_file(make_soup(paths, tmp_path / "plain.safetensors").path)["w"]
    torch.testing.assert_close(weighed, plain, rtol=1e-6, atol=1e-7)
    nothing = Importance([shares_file(tmp_path / f"z{i}", {"w": torch.zeros(6, 4)}) for i in range(4)])
    assert nothing.mean_shares == pytest.approx([0.25] * 4)


# --- Fisher information ------------------------------------------------------------------------------

STILL = (
    "model.tokens.dropout=0",
    "model.fusion.text-to-audio.dropout=0",
    "model.encoder.transformer.dropout=0",
)
QUIET = (*STILL, "model.decoder.dropout=0", "train.batch=1")


def loaded(tiny: Tiny, recipe: Recipe) -> Moments:
    with FeatureFile(tiny.features) as features:
        return Moments(read_manifest(tiny.val), features, recipe, training=True)


def test_fisher_information_is_the_mean_squared_gradient(tiny: Tiny, tmp_path: Path) -> None:
    """Against a loop over queries, and against differences of the loss for single weights."""
    recipe = recipe_of(tiny, *QUIET)
    torch.manual_seed(1)
    detector = build(recipe, (6,), (6,), training=True).train()
    criterion, data = Criterion(recipe, detector), loaded(tiny, recipe)
    found = fisher.diagonal(detector, criterion, data, torch.device("cpu"))
    batches = list(data.epoch(0, 1))
    assert [len(batch) for batch in batches] == [1] * 6
    named = dict(detector.named_parameters())
    assert found.keys() == named.keys()
    squares: dict[str, list[Tensor]] = {name: [] for name in named}
    for batch in batches:
        loss = criterion(detector(batch), batch).total
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
            squares[name].append(torch.zeros_like(parameter) if gradient is None else gradient.square())
    for name, listed in squares.items():
        torch.testing.assert_close(found[name], torch.stack(listed).mean(0), rtol=1e-4, atol=1e-9)
    for name in (
        "heads.span.mlp.layers.2.bias",
        "heads.foreground.linear.weight",
        "decoder.query_embed.weight",
    ):
        flat = named[name].detach().view(-1)
        place = int(found[name].argmax())
        slopes = [_slope(detector, criterion, batch, flat, place) for batch in batches]
        assert float(found[name].view(-1)[place]) == pytest.approx(np.mean(np.square(slopes)), rel=0.05)


def test_a_query_is_not_held_against_its_own_sentence(tiny: Tiny) -> None:
    """With `compat: official` the row after the last is the first: in a batch of one that is the query."""
    found = []
    for parts in ("[negative-pairs]", "[]"):
        recipe = recipe_of(tiny, *QUIET, "compat=official", f"model.auxiliary={parts}")
        torch.manual_seed(1)
        detector = build(recipe, (6,), (6,), training=True).train()
        data, criterion = loaded(tiny, recipe), Criterion(recipe, detector)
        found.append(fisher.diagonal(detector, criterion, data, torch.device("cpu")))
    for name, importance in found[0].items():
        torch.testing.assert_close(importance, found[1][name], msg=name)
    assert found[0]["heads.saliency.frame.weight"].any()


def _slope(detector: Detector, criterion: Criterion, batch: Batch, weights: Tensor, place: int) -> float:
    """Central difference of the loss of one query."""
    values = []
    for step in (1e-3, -2e-3, 1e-3):
        weights[place] += step
        with torch.no_grad():
            values.append(criterion(detector(batch), batch).total.item())
    return (values[0] - values[1]) / 2e-3


def test_dropout_and_shift_play_no_part(tiny: Tiny, tmp_path: Path) -> None:
    """A recipe with both gives the soup of one without; the caller's random numbers are left alone."""
    states = []
    noisy = ("train.shift=true", "model.encoder.transformer.drop_path=0.3")
    for name, sets in (("quiet", QUIET), ("loud", noisy)):
        paths = [write(tiny, tmp_path / f"{name}{i}.safetensors", i, *sets) for i in range(2)]
        torch.manual_seed(4)
        request = FisherRequest(
            tuple(paths), tmp_path / f"{name}.safetensors", (tiny.val,), tiny.features, "cpu"
        )
        fisher_soup(request)
        states.append(torch.rand(1))
    quiet, loud = (load_file(tmp_path / f"{name}.safetensors") for name in ("quiet", "loud"))
    assert all(torch.equal(quiet[key], loud[key]) for key in quiet)
    assert torch.equal(*states)


@pytest.mark.parametrize("name", [path.stem for path in DETECTORS])
def test_no_shipped_recipe_keeps_a_dropout(name: str) -> None:
    """Whatever the part is called: no rate is left in the network whose gradients are squared."""
    recipe = fisher._quiet(load(name, "finetune", ["model.hidden_dim=32", "train.shift=true"]))
    assert (recipe.train.shift, recipe.train.batch) == (False, 1)
    plain = load(name, "finetune", ["model.hidden_dim=32"])

    def rates(recipe: Recipe) -> set[float]:
        detector = build(
            recipe, (6,) * len(recipe.features.audio), (6,) * len(recipe.features.text), training=True
        )
        found = (getattr(m, key, 0.0) for m in detector.modules() for key in ("p", "dropout", "drop"))
        return {rate for rate in found if isinstance(rate, float)}

    assert rates(recipe) == {0.0} != rates(plain)


def test_a_fisher_soup_goes_on_after_a_stop(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tuple(write(tiny, tmp_path / f"{i}.safetensors", i) for i in range(3))
    whole = FisherRequest(paths, tmp_path / "whole.safetensors", (tiny.val,), tiny.features, "cpu")
    soup = fisher_soup(whole)
    assert sum(part.weight for part in soup.ingredients) == pytest.approx(1)
    assert soup.method["fisher"]["queries"] == 6
    original, calls = fisher.diagonal, []

    def stops(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(fisher, "diagonal", stops)
    broken = replace(whole, out=tmp_path / "broken.safetensors")
    with pytest.raises(KeyboardInterrupt):
        fisher_soup(broken)
    assert not broken.out.exists()
    parts = tmp_path / "broken.safetensors.part"
    assert len(list(parts.iterdir())) == 2
    (parts / ".fisher-0.safetensors.1.tmp").touch()  # as a kill leaves it
    fisher_soup(broken)
    assert len(calls) == 4  # only the third was computed again
    ours, theirs = load_file(broken.out), load_file(whole.out)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    uniform = load_file(make_soup(paths, tmp_path / "uniform.safetensors").path)
    assert any(not torch.equal(ours[key], uniform[key]) for key in uniform)
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".*"))


def test_fisher_data_must_be_unseen(tiny: Tiny, tmp_path: Path) -> None:
    seen = write(tiny, tmp_path / "seen.safetensors", 0, trained_on=tiny.val)
    other = write(tiny, tmp_path / "other.safetensors", 1)
    copy = tmp_path / "renamed.jsonl"
    copy.write_bytes(tiny.val.read_bytes())
    request = FisherRequest((other, seen), tmp_path / "soup.safetensors", (copy,), tiny.features, "cpu")
    with pytest.raises(CheckpointError, match=r"seen\.safetensors was trained on .*renamed\.jsonl"):
        fisher_soup(request)
    # a soup of it has seen the same
    make_soup([seen, other], tmp_path / "first.safetensors")
    with pytest.raises(CheckpointError, match=r"first\.safetensors was trained on"):
        fisher_soup(replace(request, inputs=(tmp_path / "first.safetensors", other)))
    assert not list(tmp_path.glob("soup*"))
    notes = Notes()
    tensors, meta = checkpoint.read(other), checkpoint.read(other).provenance
    checkpoint.write(other, replace(tensors, provenance={**meta, "trained_on": []}))
    third = write(tiny, tmp_path / "third.safetensors", 2)
    fisher_soup(replace(request, inputs=(other, third)), notes)
    assert any("other.safetensors does not say what it was trained on" in said for said in notes.said)


# --- greedy ------------------------------------------------------------------------------------------


def judged(tiny: Tiny, paths: list[Path], which: tuple[int, ...], metric: str) -> float:
    """The metric of a plain mean in memory."""
    with FeatureFile(tiny.features) as features:
        data = Moments(read_manifest(tiny.val), features, recipe_of(tiny), training=False)
    parts = [checkpoint.read(paths[i]) for i in which]
    tensors = {
        key: sum((part.tensors[key].double() for part in parts), start=torch.zeros(())) / len(parts)
        for key in parts[0].tensors
    }
    made = replace(parts[0], tensors={key: value.float() for key, value in tensors.items()})
    answers = predict(checkpoint.restore(made), data, made.recipe, rounding=1)
    return headline(answers, data.manifest, [metric])[metric]


@pytest.mark.parametrize("metric", ["mIoU", "R1@0.5"])
def test_greedy_follows_the_rule(tiny: Tiny, tmp_path: Path, metric: str) -> None:
    """All subsets are validated beforehand; then the rule is applied to that table by hand."""
    paths = [write(tiny, tmp_path / f"{i}.safetensors", i + 1, spread=0.6) for i in range(3)]
    values = {
        which: judged(tiny, paths, which, metric)
        for size in range(1, 4)
        for which in itertools.combinations(range(3), size)
    }
    order = sorted(range(3), key=lambda i: -values[(i,)])
    kept = [order[0]]
    for i in order[1:]:
        if values[tuple(sorted([*kept, i]))] >= values[tuple(sorted(kept))]:
            kept.append(i)
    request = GreedyRequest(
        tuple(paths), tmp_path / "soup.safetensors", (tiny.val,), tiny.features, metric, "cpu"
    )
    soup = greedy_soup(request)
    tried = soup.method["greedy"]["tried"]
    assert [step["path"] for step in tried] == [str(paths[i]) for i in order]
    assert [step["alone"] for step in tried] == pytest.approx([values[(i,)] for i in order])
    assert [str(part.path) for part in soup.ingredients] == [str(paths[i]) for i in kept]
    assert [step["kept"] for step in tried] == [i in kept for i in order]
    value = values[tuple(sorted(kept))]
    meta = checkpoint.read_metadata(request.out)
    assert meta["metrics"] == {metric: pytest.approx(value)}
    assert meta["provenance"]["greedy"]["val"][0]["sha256"] == provenance.sha256(tiny.val)
    # the file is what was validated
    assert judged(tiny, [request.out], (0,), metric) == pytest.approx(value)


def test_of_equals_all_are_kept_and_a_bad_one_is_not(tiny: Tiny, tmp_path: Path) -> None:
    values = iter([10.0, 30.0, 20.0, 30.0, 29.9])
    paths = tuple(write(tiny, tmp_path / f"{i}.safetensors", i) for i in range(3))
    request = GreedyRequest(paths, tmp_path / "soup.safetensors", (tiny.val,), tiny.features, "mAP", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy._Judge, "value", lambda *_: next(values))
        soup = greedy_soup(request)
    steps = [(s["alone"], s["soup"], s["kept"]) for s in soup.method["greedy"]["tried"]]
    assert steps == [(30.0, 30.0, True), (20.0, 30.0, True), (10.0, 29.9, False)]
    assert [part.path.stem for part in soup.ingredients] == ["1", "2"]
    # one alone is a soup too
    alone = iter([3.0, 1.0, 2.0, 0.0, 0.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy._Judge, "value", lambda *_: next(alone))
        soup = greedy_soup(replace(request, overwrite=True))
    first, made = load_file(paths[0]), load_file(request.out)
    assert all(torch.equal(first[key], made[key]) for key in first)
    assert json.loads(json.dumps(soup.to_dict()))["farthest"]["distance"] == 0


# --- the command -------------------------------------------------------------------------------------


def test_the_command_end_to_end(tiny: Tiny, tmp_path: Path, cli: Cli) -> None:
    runs = tmp_path / "runs"
    for seed in range(3):
        write(tiny, seed_folder(runs, seed) / "best.safetensors", seed + 1, trained_on=tiny.train)
    write_seeds(runs, range(3), range(3), {})
    out = tmp_path / "soup.safetensors"
    data = ("--features", tiny.features, "--device", "cpu")
    result = cli("soup", runs, "--greedy", "--val", tiny.val, *data, "--metric", "mAP", "--out", out)
    assert result.code == 0, result.err
    assert result.out.count("kept") + result.out.count("left out") == 3
    weighed = ("--fisher", "--fisher-data", tiny.val, *data)
    result = cli("soup", runs, *weighed, "--out", out, "--overwrite", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert told["fisher"]["data"] == [{"path": str(tiny.val), "sha256": provenance.sha256(tiny.val)}]
    assert sum(part["weight"] for part in told["ingredients"]) == pytest.approx(1)
    assert "ancestor" not in result.err
    made = checkpoint.read_metadata(out)["provenance"]
    assert made["fisher"] == told["fisher"]
    assert [entry["path"] for entry in made["trained_on"]] == [str(tiny.train), "old.jsonl"]
    predicted = cli("predict", "--checkpoint", out, *data, "--test", tiny.val, "--out", tmp_path / "p.jsonl")
    assert predicted.code == 0, predicted.err

    blind = tmp_path / "blind.jsonl"
    blind.write_text('{"qid": 1, "query": "x", "vid": "rec1", "duration": 19}\n')
    wide = make(tmp_path / "wide", audio_dim=7)
    x = tmp_path / "x.safetensors"
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--greedy", "--uniform"), "choose one way to average"),
        (("--greedy", "--features", tiny.features), "--greedy needs --val"),
        (("--fisher", "--fisher-data", tiny.val), "--fisher needs --features"),
        (("--uniform", "--val", tiny.val), "--val does not belong to --uniform"),
        ((*weighed, "--metric", "mAP"), "--metric does not belong to"),
        (("--greedy", "--val", tiny.val, *data, "--fill-missing", "identity"), "--fill-missing does not"),
        (("--fisher", "--fisher-data", tiny.train, *data), "was trained on"),
        (("--fisher", "--fisher-data", blind, *data), "blind.jsonl:1: qid 1"),
        (("--fisher", "--fisher-data", tmp_path / "no.jsonl", *data), "no.jsonl"),
        (
            ("--greedy", "--val", tiny.val, *data, "--metric", "R1@0.6"),
            "no metric is called 'R1@0.6'; did you",
        ),
        (("--greedy", "--val", wide.val, "--features", wide.features), "was trained on audio features"),
        (("--fisher", "--fisher-data", wide.val, "--features", wide.features), "was trained on"),
    ]
    for words, message in cases:
        result = cli("soup", runs, *words, "--out", x)
        assert (result.code, result.out) == (2, ""), words
        assert message in result.err.strip().splitlines()[-1], result.err
        assert not x.exists()
        assert not list(tmp_path.glob("x.safetensors*"))
    told_val = cli("soup", runs, "--greedy", "--val", tiny.train, *data, "--out", x)
    assert "is a training manifest of these checkpoints" in told_val.err


def test_errors_are_of_one_root() -> None:
    with pytest.raises(AmrctlError, match="at least two checkpoints, this is 0"):
        fisher_soup(FisherRequest((), Path("x.safetensors"), (), Path("f.h5"), "cpu"))

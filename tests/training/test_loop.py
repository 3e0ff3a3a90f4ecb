"""The loop's promises: which epoch is best, which weights are saved, when it stops, what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from amrctl import recipe as recipes
from amrctl.errors import AmrctlError, PredictionError
from amrctl.inference.predict import predict
from amrctl.losses.total import Criterion, Loss
from amrctl.model.checkpoint import read_metadata
from amrctl.run_folder import RunFolder
from amrctl.training import moments, run, state
from amrctl.training.loop import DivergedError, Outcome, train
from amrctl.training.precision import compiled
from amrctl.training.run import Request, TeacherChoice
from tests.training.tiny import Tiny

Trainer = Callable[..., Outcome]


@pytest.fixture
def trained(tiny: Tiny, tmp_path: Path) -> Trainer:
    """Train the tiny recipe with `--set` items in this process."""

    def go(*sets: str, precision: str = "fp32", val: tuple[Path, ...] = (), seed: int = 0) -> Outcome:
        request = Request(
            recipe=recipes.load(str(tiny.recipe), "finetune", sets),
            train=(tiny.train,),
            val=val or (tiny.val,),
            features=tiny.features,
            device="cpu",
            precision=precision,
        )
        made_of = run.fingerprint(request)
        job = run.load(request, made_of)
        return train(job, RunFolder(tmp_path / "run"), seed, {**made_of, "seed": seed}, resume=False)

    return go


def script(monkeypatch: pytest.MonkeyPatch, values: Sequence[float]) -> None:
    """Let the validations give these values of R1@0.7 (and their negatives of mAP)."""
    left = iter(values)

    def headline(*_: Any) -> dict[str, float]:
        value = next(left)
        return {"R1@0.7": value, "mAP": 100 - value}

    monkeypatch.setattr(moments, "headline", headline)


def log(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.folder.log.read_text().splitlines()]


@pytest.mark.parametrize(
    ("values", "sets", "best"),
    [
        ([0, 0, 0], (), 1),  # all zero: there is a best all the same
        ([1, 3, 3], (), 2),  # ties keep the earlier
        ([10.001, 10.004, 10.003], (), 2),
        ([10.001, 10.004, 10.003], ("compat=official",), 1),  # equal when printed with two decimals
        ([10.001, 10.006, 10.009], ("compat=official",), 2),
    ],
)
def test_best_is_strictly_better(
    trained: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    values: list[float],
    sets: tuple[str, ...],
    best: int,
) -> None:
    script(monkeypatch, values)
    outcome = trained(*sets)
    assert outcome.best["R1@0.7"]["epoch"] == best
    assert read_metadata(outcome.folder.best())["epoch"] == best
    assert read_metadata(outcome.folder.best("R1@0.7"))["epoch"] == best
    assert read_metadata(outcome.folder.last)["epoch"] == 3
    worst = [100 - value for value in values]
    assert read_metadata(outcome.folder.best("mAP"))["epoch"] == worst.index(max(worst)) + 1


@pytest.mark.parametrize("ema", ["train.ema.decay=0.9", "train.ema=null"])
def test_the_weights_that_were_validated_are_saved(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch, ema: str
) -> None:
    script(monkeypatch, [1, 5, 2])
    seen: list[dict[str, torch.Tensor]] = []
    original = predict

    def watching(detector: torch.nn.Module, *args: Any, **options: Any) -> Any:
        seen.append({key: value.clone() for key, value in detector.state_dict().items()})
        return original(detector, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(moments, "predict", watching)
    folder = trained(ema).folder
    for path, epoch in ((folder.best(), 2), (folder.best("mAP"), 1), (folder.last, 3)):
        saved = load_file(path)
        assert saved.keys() == seen[epoch - 1].keys()
        assert all(torch.equal(saved[key], value) for key, value in seen[epoch - 1].items())
    committed = state.read(folder.state)
    assert committed.weights is not None
    raw = all(torch.equal(committed.weights[key], value) for key, value in seen[-1].items())
    assert raw == (ema == "train.ema=null")


def test_early_stop_counts_validations(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [5, 4, 6, 6, 6, 9])
    outcome = trained("train.epochs=30", "train.patience=2", "train.evaluate_every=2")
    assert outcome.epochs == 10  # validated after 2, 4, 6, 8, 10; best after 6
    assert outcome.best["R1@0.7"] == {"value": 6, "epoch": 6}
    assert [entry["epoch"] for entry in log(outcome) if entry["val"]] == [2, 4, 6, 8, 10]
    assert state.read(outcome.folder.state).finished


def test_the_last_epoch_is_always_validated(trained: Trainer) -> None:
    outcome = trained("train.evaluate_every=2")
    assert [bool(entry["val"]) for entry in log(outcome)] == [False, True, True]


def test_the_log_and_the_files(trained: Trainer, tiny: Tiny) -> None:
    outcome = trained(val=(tiny.val, tiny.train))
    entries = log(outcome)
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    for entry in entries:
        assert set(entry["terms"]) == {"span", "giou", "label", "saliency"}
        assert set(entry["val"]) == {"val", "train"}
        assert set(entry["val"]["val"]) == {"R1@0.7", "mAP"}
        assert entry["seconds"] > 0
    # 9 steps, of which round(0.2 * 9) warm up: the rate of each epoch's last step
    rates = [(1 + math.cos(math.pi * (step - 2) / 7)) / 2 * 1e-3 for step in (2, 5, 8)]
    assert [entry["lr"] for entry in entries] == pytest.approx(rates)
    # the loss is the weighted sum over both decoder layers, the terms are the last layer's
    assert entries[0]["loss"] > entries[0]["terms"]["span"] * 10
    folder = outcome.folder
    assert folder.curves.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert recipes.load(str(folder.recipe), "finetune").train.epochs == 3
    assert len(folder.predictions.read_text().splitlines()) == 6
    assert "MR-full-R1@0.7" in json.loads(folder.metrics.read_text())["brief"]
    meta = read_metadata(folder.best())
    assert meta["rounding"] == 1  # all labels are whole seconds
    assert meta["provenance"]["seed"] == 0
    assert [entry["path"] for entry in meta["provenance"]["trained_on"]] == [str(tiny.train)]


def test_a_loss_that_is_no_number_stops_the_run_at_its_last_commit(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original, calls = Criterion.__call__, []

    def poisoned(self: Criterion, *args: Any) -> Loss:
        loss = original(self, *args)
        calls.append(1)
        if len(calls) != 5:  # the second step of the second epoch
            return loss
        nan = torch.tensor(float("nan"))
        return replace(loss, total=loss.total * nan, raw={**loss.raw, "giou": nan})

    monkeypatch.setattr(Criterion, "__call__", poisoned)
    with pytest.raises(
        DivergedError, match=r"epoch 2, step 2: the loss term 'giou' is nan .* epoch 1 is the last"
    ):
        trained()
    folder = RunFolder(tmp_path / "run")
    committed = state.read(folder.state)
    assert (committed.epoch, committed.finished) == (1, False)
    assert len(folder.log.read_text().splitlines()) == 1
    assert not list(folder.path.glob(".*"))


def test_gradients_are_clipped_by_their_global_norm(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[tuple[float, float]] = []
    original = torch.optim.AdamW.step

    def watching(self: torch.optim.AdamW, closure: Any = None) -> Any:
        before = torch.nn.utils.clip_grad_norm_
        found: list[float] = []

        def clip(parameters: Any, limit: float, **options: Any) -> torch.Tensor:
            norm = before(parameters, limit, **options)
            found.append(float(norm))
            return norm

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
        result = original(self, closure)
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", before)
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append((found[0], math.sqrt(sum(float(g.double().pow(2).sum()) for g in grads))))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", watching)
    trained("train.epochs=1", "train.clip=0.5")
    assert len(norms) == 3
    assert all(before > 0.5 and after == pytest.approx(0.5, rel=1e-4) for before, after in norms)


def test_bf16_computes_losses_in_float32(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: set[torch.dtype] = set()
    products: set[torch.dtype] = set()
    original = Criterion.__call__

    def watching(self: Criterion, output: Any, batch: Any) -> Loss:
        for value in (*vars(output).values(), *output.extras.values()):
            if isinstance(value, torch.Tensor):
                dtypes.add(value.dtype)
        assert not torch.is_autocast_enabled("cpu")
        return original(self, output, batch)

    def product(self: Any, args: Any, result: Any) -> None:
        if self.training and isinstance(result, torch.Tensor):
            products.add(result.dtype)

    monkeypatch.setattr(Criterion, "__call__", watching)
    handle = torch.nn.modules.module.register_module_forward_hook(product)
    try:
        outcome = trained("train.epochs=1", precision="bf16")
    finally:
        handle.remove()
    assert dtypes == {torch.float32}
    assert torch.bfloat16 in products
    assert all(tensor.dtype == torch.float32 for tensor in load_file(outcome.folder.last).values())


@pytest.mark.filterwarnings("ignore")  # the compiler looks where it warns against looking
def test_a_compiled_step_trains_the_same_network(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Through the compiler's front end; what its machine code computes is the library's own affair."""
    compile_with = torch.compile
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda m, **how: compile_with(m, **how, backend=backend))
    sets = ("train.epochs=1", "train.ema=null", "model.tokens.dropout=0")
    plain = trained(*sets, "model.decoder.dropout=0")
    losses = [log(plain)[0]["loss"]]
    before = load_file(plain.folder.last)
    again = trained(*sets, "model.decoder.dropout=0", "train.compile=true")
    assert graphs
    after = load_file(again.folder.last)
    assert list(before) == list(after)  # no prefix in the names
    assert log(again)[0]["loss"] == pytest.approx(losses[0], rel=1e-4)


def test_a_compiler_that_gives_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(*_: Any) -> Any:
        raise torch._dynamo.exc.BackendCompilerFailed(gives_up, RuntimeError("no C++ compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda module, **how: gives_up)
    with pytest.raises(AmrctlError, match=r"train\.compile: torch\.compile fails here: .*; leave it out"):
        compiled(torch.nn.Linear(1, 1))(torch.ones(1))
    monkeypatch.setattr(torch, "compile", lambda module, **how: module)
    with pytest.raises(RuntimeError, match="shapes"):  # a fault of the network keeps its own words
        compiled(torch.nn.Linear(1, 1))(torch.ones(1, 2))


def test_one_seed_one_result_another_seed_another(trained: Trainer, tmp_path: Path) -> None:
    tensors = []
    for i, seed in enumerate((3, 3, 4)):
        folder = trained("train.epochs=1", seed=seed).folder
        tensors.append(load_file(folder.last))
        folder.path.rename(tmp_path / f"run-{i}")
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert any(not torch.equal(tensors[0][key], tensors[2][key]) for key in tensors[0])


def test_differences_name_the_key_and_both_values() -> None:
    old = {"recipe": {"train": {"epochs": 3}, "losses": [{"kind": "span", "weight": 10}]}, "init": None}
    new = {"recipe": {"train": {"epochs": 5}, "losses": [{"kind": "span", "weight": 2}]}, "init": "a" * 64}
    assert state.differences(old, old) == []
    assert state.differences(old, new) == [
        "recipe.train.epochs: 3 there, 5 now",
        "recipe.losses.span.weight: 10 there, 2 now",
        "init: null there, content aaaaaaaa now",
    ]
    assert state.differences([1], [1, 2]) != []


def test_every_epoch_of_every_seed_has_its_own_random_numbers() -> None:
    drawn = {state.mix(seed, epoch) for seed in range(40) for epoch in range(40)}
    assert len(drawn) == 1600
    assert all(0 <= value < 2**63 for value in drawn)


@pytest.mark.parametrize("teacher", ["missing.jsonl", "."])
def test_a_teacher_that_is_no_prediction_file_has_its_own_message(
    tiny: Tiny, tmp_path: Path, teacher: str
) -> None:
    request = Request(
        recipe=recipes.load(str(tiny.recipe), "finetune"),
        train=(tiny.train,),
        val=(tiny.val,),
        features=tiny.features,
        device="cpu",
        teacher=TeacherChoice((tmp_path / teacher,)),
    )
    with pytest.raises(PredictionError, match="cannot read"):
        run.fingerprint(request)

"""The folders of seeds trained together keep the promises of one seed's: files, kills, failures, refusals."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from amrctl import recipe as recipes
from amrctl.errors import OutputError, RecipeError
from amrctl.model.encoder.transformer import Transformer
from amrctl.model.types import Memory
from amrctl.run_folder import RunFolder
from amrctl.training import stacked, state, together
from amrctl.training.run import Request
from amrctl.training.seeds import Summary, train_seeds
from tests.conftest import Cli
from tests.training.test_resume import same_run
from tests.training.tiny import Tiny

STILL = (  # no dropout; a step that does not blow rounding up where the gradient is none
    *(
        f"model.{part}.dropout=0"
        for part in ("tokens", "fusion.text-to-audio", "encoder.transformer", "decoder")
    ),
    "train.optimizer={kind: periodic-asam, lr: 1.0e-3, every: 2, eps: 1.0e-4}",
)
# everything that draws random numbers or counts, beside the recipe's dropout, EMA and warm-up
DRAWS = (
    "train.shift=true",
    "train.optimizer={kind: periodic-asam, lr: 1.0e-3, every: 2}",
    "model.auxiliary=[negative-pairs, {kind: sigreg, slices: 16}]",
)


def request_for(tiny: Tiny, *sets: str) -> Request:
    return Request(
        recipe=recipes.load(str(tiny.recipe), "finetune", sets),
        train=(tiny.train,),
        val=(tiny.val,),
        features=tiny.features,
        device="cpu",
        precision="fp32",
    )


def run_together(request: Request, out: Path, seeds: Sequence[int] = (0, 1)) -> Summary:
    return train_seeds(request, out, seeds, several=True, together=True)


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_without_dropout_runs_are_those_of_seeds_alone(tiny: Tiny, tmp_path: Path) -> None:
    request = request_for(tiny, *STILL)
    train_seeds(request, tmp_path / "alone", [0, 1], several=True)
    summary = run_together(request, tmp_path / "together")
    assert not summary.failed
    for seed in (0, 1):
        one, other = (tmp_path / kind / f"seed-{seed}" for kind in ("alone", "together"))
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
        for name in (path.name for path in one.glob("*.safetensors")):
            ours, theirs = load_file(other / name), load_file(one / name)
            assert all(torch.allclose(ours[key], theirs[key], atol=1e-5, rtol=0) for key in theirs), name
        for here, there in zip(log(other), log(one), strict=True):
            assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
            assert here["terms"] == pytest.approx(there["terms"], rel=1e-4, abs=1e-5)
            assert (here["epoch"], here["lr"], here["val"]) == (there["epoch"], there["lr"], there["val"])
        ended = [state.read(run / "state.pt") for run in (one, other)]
        assert ended[0].optimizer is not None
        assert ended[1].optimizer is not None
        assert ended[1].optimizer["param_groups"] == ended[0].optimizer["param_groups"]
        for key, value in ended[0].optimizer["state"][0].items():
            assert torch.allclose(ended[1].optimizer["state"][0][key], value, atol=1e-6), key


@pytest.fixture(scope="module")
def unbroken(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together") / "runs"
    assert not run_together(request_for(tiny, *DRAWS), out).failed
    return out


class Killed(BaseException):
    """As a kill would end it: nothing of ours catches it."""


@pytest.mark.parametrize("commits", [1, 3, 5])  # at the start; between the two commits of an epoch
def test_a_kill_changes_no_bit(
    tiny: Tiny, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    original, written = state.write, []

    def counted(path: Path, found: state.State) -> None:
        original(path, found)
        written.append(path.parent.name)
        if len(written) == commits:
            raise Killed

    monkeypatch.setattr(together, "COMMIT_EVERY", 0.0)
    monkeypatch.setattr(state, "write", counted)
    with pytest.raises(Killed):
        run_together(request_for(tiny, *DRAWS), tmp_path / "runs")
    stands = [RunFolder(tmp_path / "runs" / f"seed-{seed}").state for seed in (0, 1)]
    epochs = [state.read(path).epoch if path.exists() else None for path in stands]
    assert epochs == {1: [0, None], 3: [1, 0], 5: [2, 1]}[commits]
    summary = run_together(request_for(tiny, *DRAWS), tmp_path / "runs")
    assert not summary.failed
    for seed in (0, 1):
        same_run(unbroken / f"seed-{seed}", tmp_path / "runs" / f"seed-{seed}")


def test_kills_between_any_two_files_change_no_bit(
    tiny: Tiny, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced, left, kills = os.replace, 0, 0

    def counted(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        replaced(source, target)

    monkeypatch.setattr(together, "COMMIT_EVERY", 0.0)
    monkeypatch.setattr(os, "replace", counted)
    for left in (1, 2, 3, 4, 5, 7, 8, 11, 13, 17):  # noqa: B007  # counted down
        with contextlib.suppress(Killed):
            run_together(request_for(tiny, *DRAWS), tmp_path / "runs")
            break
        kills += 1
    assert kills >= 8
    left = 0
    assert not run_together(request_for(tiny, *DRAWS), tmp_path / "runs").failed
    for seed in (0, 1):
        same_run(unbroken / f"seed-{seed}", tmp_path / "runs" / f"seed-{seed}")
    assert json.loads((tmp_path / "runs" / "seeds.json").read_text())["done"] == [0, 1]


def test_a_seed_that_diverges_leaves_the_others_their_bits(
    tiny: Tiny, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = stacked.clip_each, []

    def poisoned(parameters: Any, limit: float | None) -> torch.Tensor:
        found = list(parameters)
        calls.append(1)
        if len(calls) == 7:  # the second step of the second epoch: every second step is two passes
            found[0].grad[0] = float("nan")
        return original(found, limit)

    monkeypatch.setattr(together, "clip_each", poisoned)
    monkeypatch.setattr(together, "COMMIT_EVERY", 0.0)
    summary = run_together(request_for(tiny, *DRAWS), tmp_path / "runs")
    assert list(summary.failed) == [0]
    assert "DivergedError" in summary.failed[0]
    assert (
        "epoch 2, step 2: the gradient's norm is nan; epoch 1 is the last that is saved" in summary.failed[0]
    )
    listed = json.loads((tmp_path / "runs" / "seeds.json").read_text())
    assert (listed["done"], [entry["seed"] for entry in listed["failed"]]) == ([1], [0])
    assert state.read(tmp_path / "runs" / "seed-0" / "state.pt").epoch == 1
    same_run(unbroken / "seed-1", tmp_path / "runs" / "seed-1")
    # the same command goes on with it, in the program it began in
    assert not run_together(request_for(tiny, *DRAWS), tmp_path / "runs").failed
    same_run(unbroken / "seed-0", tmp_path / "runs" / "seed-0")


def test_what_would_not_be_the_same_is_refused(tiny: Tiny, tmp_path: Path, unbroken: Path) -> None:
    with pytest.raises(RecipeError, match=r"compat: official .* leave out --together"):
        run_together(request_for(tiny, "compat=official"), tmp_path / "runs")
    with pytest.raises(RecipeError, match=r"train\.compile"):
        run_together(request_for(tiny, "train.compile=true"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(OutputError, match=r"together: \[0, 1\] there, null now"):
        train_seeds(request_for(tiny, *DRAWS), unbroken, [0, 1], several=True)
    assert run_together(request_for(tiny, *DRAWS), unbroken).already


def test_what_depends_on_padding_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    hook = "model.hooks=[{kind: denoising, empty: background}]"
    with pytest.raises(
        RecipeError, match=r"model\.decoder\.hooks\.denoising: empty: background .* leave out"
    ):
        run_together(request_for(tiny, hook), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_part_that_looks_at_values_is_named(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Transformer.forward

    def looking(self: Transformer, memory: Memory) -> Memory:
        return original(self, memory) if memory.audio.sum() > -1e9 else memory

    monkeypatch.setattr(Transformer, "forward", looking)
    with pytest.raises(
        RecipeError, match=r"^model\.encoder\.transformer cannot be .*\); leave out --together$"
    ) as found:
        run_together(request_for(tiny), tmp_path / "runs")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "runs").exists()


def test_dual_encoders_are_refused() -> None:
    with pytest.raises(RecipeError, match="task: retrieval: only detectors are trained together"):
        stacked.stackable(recipes.load_any("retrieval-small", "finetune"))


def test_optimisers_that_see_whole_tensors_are_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked, "_ELEMENTWISE", (torch.optim.SGD,))
    with pytest.raises(RecipeError, match="'adamw' looks at more than single weights"):
        run_together(request_for(tiny), tmp_path / "runs")


def test_the_command(tiny: Tiny, unbroken: Path, tmp_path: Path, cli: Cli) -> None:
    arguments = [
        *("finetune", "--recipe", tiny.recipe, "--train", tiny.train, "--val", tiny.val),
        *("--features", tiny.features, "--out", tmp_path / "runs", "--together", "--device", "cpu"),
        *("--precision", "fp32", *(word for change in DRAWS for word in ("--set", change))),
    ]
    result = cli(*arguments)
    assert result.code == 2
    assert "--together: give the seeds to train together with --seeds" in result.err
    result = cli(*arguments, "--seeds", "0-1")
    assert result.code == 0
    for seed in (0, 1):
        same_run(unbroken / f"seed-{seed}", tmp_path / "runs" / f"seed-{seed}")
    # a longer list: those that are there stay, the new one is a program of its own
    assert cli(*arguments, "--seeds", "0-2").code == 0
    marks = [state.read(tmp_path / "runs" / f"seed-{s}" / "state.pt").fingerprint for s in range(3)]
    assert [mark["together"] for mark in marks] == [[0, 1], [0, 1], [2]]

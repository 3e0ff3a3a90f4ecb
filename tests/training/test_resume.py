"""A run that was killed ends with the same bits as one that was not: real SIGKILLs, real files."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from amrctl import recipe as recipes
from amrctl.training import loop
from amrctl.training.run import Request
from amrctl.training.seeds import train_seeds
from tests.conftest import Cli
from tests.training.tiny import Tiny

# with the recipe's dropout, EMA and warm-up: everything that draws random numbers or counts. An epoch has
# three steps, so that an ASAM step is the second of one epoch and the first and third of the next
SETS = (
    "train.epochs=4",
    "train.patience=50",
    "train.shift=true",
    "train.optimizer={kind: periodic-asam, lr: 1.0e-3, every: 2}",
    "model.decoder.widths=[50, 85]",  # set before the first step and never again
    "model.auxiliary=[negative-pairs, {kind: sigreg, slices: 16}]",
)


def request_for(tiny: Tiny) -> Request:
    return Request(
        recipe=recipes.load(str(tiny.recipe), "finetune", SETS),
        train=(tiny.train,),
        val=(tiny.val,),
        features=tiny.features,
        device="cpu",
        precision="fp32",
    )


def train_until(request: Request, out: Path, events: int) -> None:
    """In a process of its own: train, and die by SIGKILL at the given event (before or after an
    optimiser step, before or after a file gets its name). 0: live."""
    torch.set_num_threads(1)
    left = events

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            count()
            result = function(*args, **options)
            count()
            return result

        return call

    loop._Run._step = counted(loop._Run._step)  # type: ignore[method-assign]
    os.replace = counted(os.replace)
    train_seeds(request, out, [0, 1], several=True)


def log_of(run: Path) -> list[dict[str, Any]]:
    """The log without the only thing that may differ, the time it took."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def same_run(left: Path, right: Path) -> None:
    """Every tensor of every checkpoint, every logged number, every predicted window."""
    names = sorted(path.name for path in left.glob("*.safetensors"))
    assert {"best.safetensors", "best.mAP.safetensors", "best.R1@0.7.safetensors", "last.safetensors"} == {
        *names
    }
    assert sorted(path.name for path in left.iterdir()) == sorted(path.name for path in right.iterdir())
    for name in names:
        ours, theirs = load_file(left / name), load_file(right / name)
        assert list(ours) == list(theirs)
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]), (name, key)
    assert log_of(left) == log_of(right)
    for name in ("val_predictions.jsonl", "metrics.json", "recipe.yaml"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


@pytest.fixture(scope="module")
def unbroken(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "runs"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train_seeds(request_for(tiny), out, [0, 1], several=True)
    torch.set_num_threads(before)
    return out


def test_twenty_kills_change_no_bit(tiny: Tiny, unbroken: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(  # what is slow to import
        ["pytest", "amrctl.training.seeds", "torch._dynamo", "matplotlib.figure", "hypothesis"]
    )
    out, draw, kills = tmp_path / "runs", random.Random(7), 0
    # first at each of the first eight moments, when there is hardly anything; last not at all
    for events in (*range(1, 9), *(draw.randint(1, 40) for _ in range(12)), 0):
        process = context.Process(target=train_until, args=(request_for(tiny), out, events))
        process.start()
        process.join(60)
        code = process.exitcode
        process.close()
        kills += code == -signal.SIGKILL
        if code == 0:
            break
        assert code == -signal.SIGKILL
        for path in out.rglob("*.safetensors"):  # whole or not there, at any moment
            assert load_file(path)
    assert kills >= 10
    assert code == 0
    for seed in (0, 1):
        same_run(unbroken / f"seed-{seed}", out / f"seed-{seed}")
    assert json.loads((out / "seeds.json").read_text()) == {"seeds": [0, 1], "done": [0, 1], "failed": []}


def test_the_command_goes_on_after_a_kill(tiny: Tiny, unbroken: Path, tmp_path: Path, cli: Cli) -> None:
    arguments = [
        *("finetune", "--recipe", tiny.recipe, "--train", tiny.train, "--val", tiny.val),
        *("--features", tiny.features, "--out", tmp_path / "runs", "--seeds", "0-1"),
        *("--device", "cpu", "--precision", "fp32", *(word for change in SETS for word in ("--set", change))),
    ]
    log = tmp_path / "runs" / "seed-0" / "log.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "amrctl", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    until = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 1) and time.monotonic() < until:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "runs" / "seed-1" / "curves.png").exists()

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    result = cli(*arguments)
    torch.set_num_threads(before)
    assert result.code == 0
    assert "seed-0: goes on after epoch" in result.err or "seed-0: finished before" in result.err
    for seed in (0, 1):
        same_run(unbroken / f"seed-{seed}", tmp_path / "runs" / f"seed-{seed}")

    again = cli(*arguments, "--json")
    assert again.code == 0
    assert again.err.count("finished before (epoch 4); nothing to do") == 2
    assert json.loads(again.out)["already_finished"] is True

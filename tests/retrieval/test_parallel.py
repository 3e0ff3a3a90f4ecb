"""Several processes train one dual encoder: the same result as one, one voice, and resuming to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from amrctl import launch
from amrctl.encoders.dual.model import DualEncoder, Pairs
from amrctl.errors import AmrctlError
from amrctl.launch import Ranks
from amrctl.losses.retrieval_total import RetrievalCriterion
from amrctl.recipe import RetrievalRecipe, load_any
from amrctl.training import parallel
from tests.conftest import Cli
from tests.retrieval.ranks import Team, command
from tests.retrieval.small import SETS, Sounds, make

STILL = ("model.text.dropout=0", "model.audio.masking={stripes: 0}")  # nothing is drawn
TOTALS = (7, 2)  # pairs of a batch: three ranks take 2, 2, 3 and 0, 1, 1


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Sounds:
    return make(tmp_path_factory.mktemp("sounds"), clips=3, held_out=2)


def training(sounds: Sounds, out: Path, *sets: str) -> list[object]:
    words = [word for item in (*SETS, *sets) for word in ("--set", item)]
    return [
        "finetune", "--recipe", "retrieval-small", "--train", sounds.train, "--val", sounds.val,
        "--audio", sounds.audio, *words, "--device", "cpu", "--precision", "fp32", "--out", out,
    ]  # fmt: skip


def network() -> tuple[RetrievalRecipe, DualEncoder]:
    """A small one with a parameter that no output depends on."""
    recipe = load_any("retrieval-small", "finetune", [*SETS, *STILL])
    assert isinstance(recipe, RetrievalRecipe)
    torch.manual_seed(0)
    made = DualEncoder(recipe.model)
    made.register_parameter("unused", nn.Parameter(torch.ones(3)))
    return recipe, made.train()


def batch(total: int, own: slice) -> Pairs:
    """Those of `total` pairs that are `own`; pair i has i % 3 + 1 segments."""
    spectra = [
        torch.randn(i % 3 + 1, 40, 64, generator=torch.Generator().manual_seed(i)) for i in range(total)
    ]
    words = ("a dog", "rain falls on a roof", "bell", "wind", "a siren far away", "knocking", "a clock")
    share = spectra[own] or spectra[:1]
    return Pairs(torch.cat(share), tuple(map(len, share)), words[:total][own] or words[:1], total)


def gradients(folder: Path) -> None:
    """One rank's work: loss and gradients of each batch."""
    ranks = launch.from_environment()
    with parallel.opened(ranks, "cpu"):
        recipe, made = network()
        forward, criterion = parallel.spread(made, ranks), RetrievalCriterion(recipe)
        found = []
        for total in TOTALS:
            made.zero_grad()
            loss = criterion(forward(batch(total, ranks.own(total))), None).total
            torch.autograd.backward(loss)
            grads = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
            found.append((loss.detach(), grads))
    torch.save(found, folder / f"{ranks.rank}.pt")


def test_gradients_of_three_ranks_are_those_of_one(tmp_path: Path) -> None:
    assert Team(tmp_path, 3, gradients, tmp_path).codes() == [0, 0, 0]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    for position, total in enumerate(TOTALS):
        recipe, alone = network()
        loss = RetrievalCriterion(recipe)(alone(batch(total, slice(None))), None).total
        torch.autograd.backward(loss)
        wanted = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
        assert "unused" not in wanted
        largest = max(float(grad.norm()) for grad in wanted.values())
        for told, grads in (rank[position] for rank in ranks):
            assert float(told) == pytest.approx(loss.item(), rel=1e-6)
            assert grads.keys() == wanted.keys()
            for name, grad in wanted.items():
                assert float((grads[name] - grad).norm()) < 1e-5 * grad.norm() + 1e-6 * largest, name
                assert torch.equal(grads[name], ranks[0][position][1][name])


def test_two_ranks_end_as_one_process(sounds: Sounds, tmp_path: Path, cli: Cli) -> None:
    # eps: weights whose gradient is rounding alone (biases of keys) must not take steps of full length
    sets = (*STILL, "train.epochs=2", "train.batch=11", "train.optimizer.eps=1e-3", "train.ema={decay: 0.9}")
    team = Team(tmp_path / "said", 2, command, *training(sounds, tmp_path / "two", *sets), "--json")
    assert cli(*training(sounds, tmp_path / "one", *sets)).code == 0
    assert team.codes() == [0, 0], team.said(0)
    assert json.loads(team.said(0, "out"))["epochs"] == 2
    assert team.said(1) + team.said(1, "out") == ""
    one, two = (
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-6)
        assert theirs["val"]["val"] == pytest.approx(mine["val"]["val"])
    first, last = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in first.items():
        torch.testing.assert_close(last[key], value, rtol=1e-4, atol=1e-6, msg=key)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        path.name for path in (tmp_path / "two").iterdir()
    }


def weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(run / f"{name}.safetensors")
    return found


def after_epoch(team: Team, run: Path, number: int) -> None:
    """Wait until a run has written that it trained `number` epochs."""
    log = run / "log.jsonl"
    until = time.monotonic() + 60
    while not log.is_file() or len(log.read_text().splitlines()) < number:
        assert team.ranks[0].is_alive(), team.said(0)
        assert time.monotonic() < until
        time.sleep(0.01)


def test_killed_ranks_go_on_to_the_same_bits(sounds: Sounds, tmp_path: Path, cli: Cli) -> None:
    """With everything drawn that can be: dropout and masks differ between ranks and stay what they were."""
    sets = ("train.epochs=3", "train.ema={decay: 0.9}", "model.audio.dropout=0.2")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert Team(tmp_path / "0", 2, command, *training(sounds, whole, *sets)).codes() == [0, 0]

    team = Team(tmp_path / "1", 2, command, *training(sounds, cut, *sets))
    after_epoch(team, cut, 1)
    for process in team.ranks:
        process.kill()
    assert team.codes() == [-9, -9]

    team = Team(tmp_path / "2", 2, command, *training(sounds, cut, *sets))
    after_epoch(team, cut, 2)
    team.ranks[1].kill()
    assert team.codes() == [2, -9]
    assert "another of the 2 processes ended" in team.said(0).splitlines()[-1]
    assert "Traceback" not in team.said(0)

    told = cli(*training(sounds, cut, *sets))
    assert told.code == 2
    assert "ranks: 2 there, null now" in told.err
    team = Team(tmp_path / "3", 2, command, *training(sounds, cut, *sets))
    assert team.codes() == [0, 0], team.said(0)
    assert "goes on after epoch" in team.said(0)
    for name in ("last", "best", "best.R@1"):
        one, two = weights(whole, name), weights(cut, name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_torchrun_with_another_verb_is_one_line(tmp_path: Path) -> None:
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "amrctl", "predict"]
    told = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    assert told.returncode
    lines = [line for line in told.stderr.splitlines() if line.startswith("amrctl:")]
    assert len(lines) == 1
    assert "predict takes one; data parallel training is for pretrain and finetune" in lines[0]


@pytest.mark.parametrize(
    ("words", "changed", "told"),
    [
        ("finetune --recipe qd-detr --features f.h5", {}, "a detector trains in one process, several of"),
        ("distill --recipe qd-detr", {}, "distill takes one"),
        ("finetune --recipe retrieval-small --audio .", {"LOCAL_WORLD_SIZE": "1"}, "for one machine"),
    ],
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_several_processes_do_not_do(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: str, changed: dict[str, str], told: str, rank: str
) -> None:
    monkeypatch.setattr(launch, "_HELD", 0.0)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for key, value in (numbers | changed).items():
        monkeypatch.setenv(key, value)
    found = cli(*words.split(), "--train", "a", "--val", "b", "--out", "nowhere", "--quiet")
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert told in found.err


def test_shares_cover_a_batch() -> None:
    for count in (1, 2, 3, 7):
        for total in (1, 2, 5, 64, 65):
            ranks = [Ranks(rank, count, count) for rank in range(count)]
            sizes = ranks[0].sizes(total)
            things = list(range(total))
            assert [i for rank in ranks for i in things[rank.own(total)]] == things
            assert [len(things[rank.own(total)]) for rank in ranks] == sizes
            assert max(sizes) - min(sizes) <= 1


def test_batch_norms_are_refused_on_the_cpu() -> None:
    _, made = network()
    assert parallel.prepared(made, Ranks(0, 2, 2)) is made
    made.add_module("norm", nn.BatchNorm1d(4))
    assert parallel.prepared(made, launch.ALONE) is made
    with pytest.raises(AmrctlError, match="the recipe's network has batch norms"):
        parallel.prepared(made, Ranks(0, 2, 2))

"""`soup` through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli
from tests.training.tiny import make


def test_soup_of_two_seeds_predicts(tmp_path: Path, cli: Cli) -> None:
    tiny = make(tmp_path / "data")
    runs, soup = tmp_path / "runs", tmp_path / "soup.safetensors"
    result = cli(
        *("finetune", "--recipe", tiny.recipe, "--train", tiny.train, "--val", tiny.val, "--out", runs),
        *("--features", tiny.features, "--seeds", "0-1", "--device", "cpu", "--precision", "fp32"),
    )
    assert result.code == 0

    result = cli("soup", runs, "--uniform", "--out", soup)
    assert result.code == 0
    assert "no known common ancestor" in result.err  # two seeds from scratch
    assert "farthest apart" in result.out
    parts = [load_file(runs / f"seed-{seed}" / "best.safetensors") for seed in (0, 1)]
    for key, mean in load_file(soup).items():
        torch.testing.assert_close(mean, ((parts[0][key].double() + parts[1][key]) / 2).float())
    result = cli(
        *("predict", "--checkpoint", soup, "--features", tiny.features, "--test", tiny.val),
        *("--out", tmp_path / "p.jsonl"),
    )
    assert result.code == 0, result.err

    # the last and the best of one run grew from the same weights
    one = runs / "seed-0"
    mixed = ["soup", one / "best.safetensors", one / "last.safetensors", "--weights", "0.8,0.2"]
    result = cli(*mixed, "--out", tmp_path / "mix.safetensors", "--json")
    assert result.code == 0
    assert "ancestor" not in result.err
    assert [part["weight"] for part in json.loads(result.out)["ingredients"]] == pytest.approx([0.8, 0.2])
    for arguments, message in (
        ([*mixed, "--uniform", "--out", tmp_path / "x"], "choose one way to average"),
        ([*mixed[:-2], "--out", tmp_path / "x"], "choose one way to average"),
        ([*mixed, "--out", soup], "exists; choose another --out or add --overwrite"),
        (["soup", one, tmp_path / "p.jsonl", "--uniform", "--out", tmp_path / "x"], "p.jsonl"),
    ):
        result = cli(*arguments)
        assert result.code == 2
        assert message in result.err
        assert len(result.err.strip().splitlines()) == 1
        assert not (tmp_path / "x").exists()

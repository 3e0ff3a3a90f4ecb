"""`amrctl recipes` through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from amrctl import recipe, registry
from tests.conftest import Cli


def test_the_list_names_every_shipped_recipe(cli: Cli) -> None:
    shown = cli("recipes")
    assert shown.code == 0
    listed = json.loads(cli("recipes", "--json").out)
    assert [entry["name"] for entry in listed] == list(recipe.shipped())
    assert "qd-detr" in recipe.shipped()
    for entry in listed:
        assert entry["name"] in shown.out
        assert entry["source"]
        assert len(entry["description"]) > 10


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_recipe_is_printed_as_it_resolves(cli: Cli, tmp_path: Path, stage: str) -> None:
    shown = cli(
        "recipes", "qd-detr", "--stage", stage, "--set", "train.epochs=7", "--set", "losses.label=2.5"
    )
    assert (shown.code, shown.err) == (0, "")
    printed = yaml.safe_load(shown.out)
    assert (printed["stage"], printed["train"]["epochs"]) == (stage, 7)
    assert {"kind": "label", "weight": 2.5, "background": 0.1} in printed["losses"]
    assert printed["train"]["optimizer"]["betas"] == [0.9, 0.999]  # defaults are spelled out
    # what is printed is a recipe: it reads back to the same thing
    (tmp_path / "own.yaml").write_text(shown.out)
    again = cli("recipes", tmp_path / "own.yaml", "--stage", stage, "--json")
    assert json.loads(again.out) == printed


def test_components_lists_slots_kinds_and_options(cli: Cli) -> None:
    found = json.loads(cli("recipes", "--components", "--json").out)
    assert list(found) == list(registry.SLOTS)
    assert found["tokens"]["projection"]["layers"] == 2
    assert found["losses"]["label"] == {"weight": "required", "background": 0.1}
    shown = cli("recipes", "--components")
    for slot, kinds in found.items():
        assert slot in shown.out
        assert all(kind in shown.out for kind in kinds)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["qd-dtr"], "no recipe is called 'qd-dtr'; did you mean 'qd-detr'?"),
        (["absent.yaml"], "recipe file absent.yaml does not exist"),
        (
            ["qd-detr", "--stage", "finetun"],
            "--stage finetun: no stage is called so; did you mean 'finetune'?",
        ),
        (["qd-detr", "--set", "train.epoch=3"], "train.epoch"),
        (["qd-detr", "--set", "nonsense"], "write key.path=value"),
        (["qd-detr", "--components"], "--components stands alone"),
        (["--set", "train.epochs=3"], "need a recipe's name"),
        (["--stage", "pretrain"], "need a recipe's name"),
    ],
)
def test_mistakes_get_one_line(cli: Cli, arguments: list[str], words: str) -> None:
    answer = cli("recipes", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("amrctl: ")
    assert answer.err.count("\n") == 1
    assert words in answer.err

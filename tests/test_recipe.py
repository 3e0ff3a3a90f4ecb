"""Recipes: merging, `--set`, and one message for all faults."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from amrctl import recipe as recipes
from amrctl.errors import RecipeError
from amrctl.recipe import Recipe, apply_set, from_dict, load
from tests.small import raw_recipe


def make(*sets: str, raw: dict[str, Any] | None = None, stage: recipes.Stage = "finetune") -> Recipe:
    return from_dict(raw or raw_recipe(), where="r", stage=stage, sets=sets)


def dumped(recipe: Recipe, *path: str | int) -> Any:
    node: Any = recipe.to_dict()
    for key in path:
        node = node[key]
    return node


def test_later_blocks_win_and_the_rest_stays() -> None:
    raw = raw_recipe()
    raw["train"] = {"epochs": 3, "batch": 8, "optimizer": {"kind": "adamw", "lr": 1e-3, "weight_decay": 0.5}}
    raw["finetune"] = {"epochs": 5, "optimizer": {"lr": 2e-3}}
    raw["pretrain"] = {"epochs": 7}
    tuned = make("train.batch=9", raw=copy.deepcopy(raw))
    assert (tuned.stage, tuned.train.epochs, tuned.train.batch) == ("finetune", 5, 9)
    assert dumped(tuned, "train", "optimizer", "lr") == 2e-3
    assert dumped(tuned, "train", "optimizer", "weight_decay") == 0.5
    first = make(raw=raw, stage="pretrain")
    assert (first.train.epochs, first.train.batch) == (7, 8)
    assert dumped(first, "train", "optimizer", "lr") == 1e-3


def test_a_component_of_another_kind_replaces_the_whole_block() -> None:
    raw = raw_recipe()
    raw["train"] = {"schedule": {"kind": "step", "every": 3}}
    raw["finetune"] = {"schedule": {"kind": "cosine", "warmup": 0.1}}
    got = dumped(make(raw=raw), "train", "schedule")
    assert (got["kind"], got["warmup"], got.get("every")) == ("cosine", 0.1, None)


def test_short_and_long_spellings_are_one() -> None:
    raw = raw_recipe()
    raw["model"]["tokens"] = {"kind": "projection"}
    raw["losses"] = [{"kind": k, "weight": w} for k, w in raw["losses"].items()]
    raw["features"]["audio"] = [{"name": "auto"}]
    raw["train"] |= {"optimizer": "adamw", "schedule": {}}
    assert make(raw=raw) == make()


def test_resolved_recipes_read_back_equal(tmp_path: Path) -> None:
    first = make("losses.span=7")
    assert from_dict(first.to_dict(), where="again") == first
    path = tmp_path / "recipe.yaml"
    path.write_text(first.to_yaml())
    assert load(str(path), "finetune") == first
    # and take the same settings as the recipe they came from
    sets = ["losses.span=3", "model.decoder.queries=5", "losses.saliency=null", "train.optimizer.lr=0.5"]
    assert load(str(path), "finetune", sets) == make("losses.span=7", *sets)


@pytest.mark.parametrize(
    ("item", "path", "value"),
    [
        ("model.hidden_dim=64", ("model", "hidden_dim"), 64),
        ("model.fusion.text-to-audio.layers=3", ("model", "fusion", 0, "layers"), 3),
        ("model.encoder.0.dropout=0", ("model", "encoder", 0, "dropout"), 0.0),
        ("model.heads.-1=span", ("model", "heads", 2, "kind"), "span"),
        ("model.tokens.dropout=0.25", ("model", "tokens", "dropout"), 0.25),
        ("losses.giou=2.5", ("losses", 1, "weight"), 2.5),
        ("losses.label.background=0.2", ("losses", 2, "background"), 0.2),
        ("features.audio.0=logmel", ("features", "audio", 0, "name"), "logmel"),
        ("features.audio.0.l2=false", ("features", "audio", 0, "l2"), False),
        ("features.text.auto.max_tokens=32", ("features", "text", 0, "max_tokens"), 32),
        ("train.ema.decay=0.9", ("train", "ema", "decay"), 0.9),
        ("train.optimizer.lr=1e-3", ("train", "optimizer", "lr"), 1e-3),
        ("train.clip=null", ("train", "clip"), 0.1),  # removed: the default
        ("train.metrics=[mAP]", ("train", "metrics"), ["mAP"]),
        ("inference.keep=3", ("inference", "keep"), 3),
        ("compat=official", ("compat",), "official"),
        ("model.auxiliary.negative-pairs=null", ("model", "auxiliary"), []),
    ],
)
def test_set(item: str, path: tuple[str | int, ...], value: object) -> None:
    assert dumped(make(item), *path) == value


def test_set_can_remove_a_loss_and_add_a_list() -> None:
    assert [loss.kind for loss in make("losses.saliency=null").losses] == ["span", "giou", "label"]
    added = make("model.fusion=[text-to-audio, {kind: text-to-audio, layers: 1}]")
    assert [part["layers"] for part in dumped(added, "model", "fusion")] == [2, 1]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("model.hidden_dim", "write key.path=value"),
        ("=3", "write key.path=value"),
        ("train.batch=[", "not readable as YAML"),
        ("model.hidden_dim.x=1", "'model.hidden_dim' is a value, not a block"),
        ("model.encoder.transfromer.layers=1", "did you mean 'transformer'"),
        ("model.encoder.5.layers=1", "the list has no '5'"),
        ("train.epocs=1", "train.epocs: unknown key; did you mean 'epochs'"),
        ("model.decoder.querys=1", "model.decoder.conditional.querys|model.decoder.querys: unknown key"),
        ("model.tokens=projektion", "no tokens component is called 'projektion'; did you mean 'projection'"),
        ("train.batch=0", "train.batch: .*greater than or equal to 1.*it is 0"),
        ("train.batch=many", "train.batch: .*valid integer.*'many'"),
        ("losses.span=heavy", "losses.span.weight: .*valid number.*'heavy'"),
        ("losses.spam=1", "no losses component is called 'spam'; did you mean 'span'"),
        ("model.heads=foreground", "model.heads: a list of components is expected"),
        ("model.heads=[3]", "model.heads.3: needs a 'kind'"),
        ("finetune.epochs=3", "finetune: unknown key"),
        ("features.audio.0.l3=true", "features.audio.0.l3: unknown key; there is: l2, max_tokens, name"),
        ("train.ema.dekay=0.5", "train.ema.dekay: unknown key; did you mean 'decay'"),
        ("compat=offical", "compat: .*'official'"),
        ("features.audio=[]", "features.audio: .*at least 1"),
    ],
)
def test_wrong_settings(item: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        make(item)
    assert "\n" not in str(caught.value)
    assert "ComponentConfig" not in str(caught.value)


def test_all_faults_are_in_one_message() -> None:
    raw = raw_recipe()
    raw["colour"] = "red"
    raw["model"]["encoder"] = ["bimambo"]
    raw["train"] = {"epocs": 3, "optimizer": {"kind": "adamw", "lr": -1}}
    raw["losses"]["span"] = "ten"
    raw["pretrain"] = {"batsh": 2}  # of the stage that does not run
    del raw["inference"]
    with pytest.raises(RecipeError) as caught:
        make(raw=raw)
    message = str(caught.value)
    for part in (
        "recipe r: ",
        "colour: unknown key",
        "model.encoder.bimambo: no encoder component is called 'bimambo'",
        "train.epocs: unknown key; did you mean 'epochs'",
        "train.optimizer.lr: ",
        "pretrain.batsh: unknown key; did you mean 'batch'",
        "losses.span.weight: ",
        "inference: missing",
    ):
        assert message.count(part) == 1, part
    assert "pretrain.epocs" not in message  # the shared block's fault is told once


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("finetune", 3, "finetune: a block of keys is expected"),
        ("pretrain", [1], "pretrain: a block of keys is expected"),
        ("train", 3, "train: "),
        ("model", 3, "model: "),
        ("losses", 3, "losses: a list of components is expected"),
        ("features", "logmel", "features: "),
        ("inference", None, "inference: "),
    ],
)
def test_blocks_of_the_wrong_shape(key: str, value: object, message: str) -> None:
    raw = raw_recipe() | {"finetune": {"epochs": 2}}
    raw[key] = value
    with pytest.raises(RecipeError, match=message):
        make(raw=raw)


def test_hooks_are_set_where_the_recipe_writes_them() -> None:
    raw: dict[str, Any] = {"model": {"hooks": [{"kind": "denoising", "copies": 5}]}}
    apply_set(raw, "model.decoder.hooks.denoising.copies=3")
    assert raw == {"model": {"hooks": [{"kind": "denoising", "copies": 3}]}}
    written = raw_recipe()
    written["model"]["decoder"]["hooks"] = ["denoising-of-nobody"]
    with pytest.raises(RecipeError, match=r"model\.hooks\.denoising-of-nobody: no hooks component"):
        make(raw=written)


def test_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe is called 'qd-dert'; did you mean 'qd-detr'"):
        load("qd-dert", "finetune")
    with pytest.raises(RecipeError, match=r"recipe file .*none\.yaml does not exist"):
        load(str(tmp_path / "none.yaml"), "finetune")
    path = tmp_path / "broken.yaml"
    for text, message in (("a: [", "not readable as YAML"), ("- a\n- b", "this is list"), ("", "NoneType")):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message) as caught:
            load(str(path), "finetune")
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not readable as YAML"):
        load(str(path), "finetune")


def test_a_recipe_without_a_stage_says_so() -> None:
    with pytest.raises(RecipeError, match="stage: "):
        from_dict(raw_recipe(), where="r")


KEYS = st.sampled_from(
    [
        "model",
        "train",
        "losses",
        "features",
        "audio",
        "heads",
        "0",
        "-1",
        "span",
        "kind",
        "",
        "²",
        "x",
        "metrics",
    ]
)


@given(
    st.lists(KEYS, min_size=1, max_size=4), st.sampled_from(["1", "null", "[1]", "{a: 1}", "text", "[", ""])
)
def test_any_set_is_applied_or_refused(keys: list[str], value: str) -> None:
    try:
        made = make(f"{'.'.join(keys)}={value}")
    except RecipeError:
        return  # anything but a RecipeError fails the test
    assert yaml.safe_load(made.to_yaml()) == made.to_dict()


def test_the_callers_mapping_is_left_alone() -> None:
    raw = raw_recipe()
    make("model.hidden_dim=64", "losses.span=1", raw=raw)
    assert raw == raw_recipe()

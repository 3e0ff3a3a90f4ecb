"""Recipes: YAML plus `--set` become one checked object, with every fault in one message.

A recipe names components; their own modules say which options they take. Merging order: the
recipe's `train` block, the block of the running stage (`pretrain` or `finetune`), then `--set`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError

from amrctl import registry
from amrctl.errors import RecipeError, near
from amrctl.recipe_base import STAGES, BaseRecipe, Ema, Stage, StageTrain
from amrctl.recipe_base import Strict as _Strict
from amrctl.recipe_edit import LIST_SLOTS, apply_set
from amrctl.recipe_retrieval import RetrievalRecipe, RetrievalTrain
from amrctl.registry import ComponentConfig

__all__ = [
    "STAGES",
    "AnyRecipe",
    "Ema",
    "Recipe",
    "RetrievalRecipe",
    "Stage",
    "any_from_dict",
    "apply_set",
    "from_dict",
    "load",
    "load_any",
    "shipped",
]


class Stream(_Strict):
    """One feature stream: its name in the feature file (`auto` = the only one) and its treatment."""

    name: str
    l2: bool | None = Field(None, description="scale rows to length 1; default: audio yes, text no")
    max_tokens: int | None = Field(None, ge=1, description="keep only the first tokens of a query")


class Features(_Strict):
    """Which streams the detector reads; the first of each list is the main one."""

    audio: list[Stream] = Field(min_length=1)
    text: list[Stream] = Field(min_length=1)
    published: str | None = Field(None, description="which features the paper used; information only")


class Model(_Strict):
    """The detector's slots, in the order of the data flow."""

    hidden_dim: int = Field(256, ge=8)
    activation: Literal["swish"] | None = Field(
        None, description="x sigmoid(beta x), beta learned, in the place of every ReLU and PReLU"
    )
    tokens: SerializeAsAny[ComponentConfig]
    fusion: list[SerializeAsAny[ComponentConfig]] = Field(default=[])
    encoder: list[SerializeAsAny[ComponentConfig]] = Field(default=[])
    decoder: SerializeAsAny[ComponentConfig]
    hooks: list[SerializeAsAny[ComponentConfig]] = Field(default=[])
    heads: list[SerializeAsAny[ComponentConfig]] = Field(default=[])
    refine: list[SerializeAsAny[ComponentConfig]] = Field(default=[])
    auxiliary: list[SerializeAsAny[ComponentConfig]] = Field(default=[])


class Train(StageTrain):
    """How one stage trains a detector."""

    max_windows: int = Field(5, ge=1, description="moments of a query used per epoch")
    max_frames: int = Field(300, ge=1, description="longer recordings are cut")
    shift: bool = Field(False, description="roll every recording by a random offset that cuts no moment")
    buckets: bool = Field(True, description="batch recordings of like length (seeded order)")
    bucket_pool: int = Field(16, ge=1, description="batches that buckets sort by length together")


class SaliencyProposals(_Strict):
    """Windows that `predict` takes from the saliency curve, beside the decoder's."""

    threshold: float = Field(0.5, gt=0, le=1, description="of the curve's highest frame, reached")
    keep: int = Field(10, ge=1, description="proposals a query and checkpoint, before the merge")


class Inference(_Strict):
    """How outputs become windows."""

    score: SerializeAsAny[ComponentConfig]
    keep: int = Field(10, ge=1, description="windows kept per query")
    saliency_proposals: SaliencyProposals | None = Field(
        None, description="predict takes windows from the saliency curve too"
    )


class Recipe(BaseRecipe):
    """One resolved recipe of a detector: what `recipe.yaml` in a run folder and the checkpoint's metadata
    hold."""

    task: Literal["moments"]
    features: Features
    model: Model
    losses: list[SerializeAsAny[ComponentConfig]]
    train: Train
    inference: Inference
    compat: Literal["official"] | None = None


AnyRecipe = Recipe | RetrievalRecipe


class _Schema(NamedTuple):
    """What the recipes of one task are made of: classes, and the registry's slots by the model's keys."""

    recipe: type[BaseRecipe]
    train: type[StageTrain]
    single: dict[str, str]
    lists: dict[str, str]
    losses: str


_SCHEMAS = {
    "moments": _Schema(
        Recipe,
        Train,
        {"tokens": "tokens", "decoder": "decoder"},
        {slot: slot for slot in (*LIST_SLOTS, "hooks")},
        "losses",
    ),
    "retrieval": _Schema(
        RetrievalRecipe,
        RetrievalTrain,
        {"audio": "retrieval-audio", "text": "retrieval-text", "pooling": "retrieval-pooling"},
        {},
        "retrieval-losses",
    ),
}


def shipped() -> dict[str, Path]:
    """Name → file of every recipe in the package."""
    folder = Path(str(resources.files("amrctl"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(name_or_file: str, stage: Stage, sets: Iterable[str] = ()) -> Recipe:
    """As `load_any`, of a recipe that makes a detector (`task: moments`)."""
    return _moments(load_any(name_or_file, stage, sets), str(name_or_file))


def _moments(recipe: AnyRecipe, where: str) -> Recipe:
    if not isinstance(recipe, Recipe):
        raise RecipeError(
            f"recipe {where}: its task is {recipe.task}; a recipe of task moments is needed here"
        )
    return recipe


def load_any(name_or_file: str, stage: Stage, sets: Iterable[str] = ()) -> AnyRecipe:
    """Find a recipe by name or path, apply the stage's block and `--set`, and check everything.

    Raises `RecipeError` with one line per fault: unknown keys, unknown kinds, wrong types.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise RecipeError(f"recipe file {path} does not exist")
    else:
        known = shipped()
        if name_or_file not in known:
            raise RecipeError(f"no recipe is called '{name_or_file}'{near(name_or_file, list(known))}")
        path = known[name_or_file]
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, this is {type(raw).__name__}")
    return any_from_dict(raw, where=str(name_or_file), stage=stage, sets=sets)


def from_dict(
    raw: dict[str, Any], *, where: str, stage: Stage | None = None, sets: Iterable[str] = ()
) -> Recipe:
    """As `any_from_dict`, of a recipe that makes a detector (`task: moments`)."""
    return _moments(any_from_dict(raw, where=where, stage=stage, sets=sets), where)


def any_from_dict(
    raw: dict[str, Any], *, where: str, stage: Stage | None = None, sets: Iterable[str] = ()
) -> AnyRecipe:
    """Check a raw mapping (as in YAML, or as `to_dict` wrote it) and return the recipe."""
    raw = _one_spelling(copy.deepcopy(raw))
    chosen = raw.pop("stage", None) if stage is None else stage
    raw["stage"] = chosen
    train = raw.get("train")
    blocks = {name: block for name in STAGES if (block := raw.pop(name, None)) is not None}
    for name, block in blocks.items():
        if not isinstance(block, dict):
            raise RecipeError(f"recipe {where}: {name}: a block of keys is expected (it is {block!r})")
        if name == chosen and isinstance(train, dict | None):
            raw["train"] = _merge(train or {}, block)
    for item in sets:
        apply_set(raw, item)
    idle: dict[str, dict[str, Any]] = {
        name: _merge(train, block)
        for name, block in blocks.items()
        if name != chosen and isinstance(train, dict)
    }
    return _check(raw, where, idle)


def _one_spelling(raw: dict[str, Any]) -> dict[str, Any]:
    """Bring the forms that a recipe may use to one, so that `--set` paths fit all of them."""
    model, losses = raw.get("model"), raw.get("losses")
    if isinstance(model, dict) and isinstance(model.get("decoder"), dict) and "hooks" in model["decoder"]:
        model["hooks"] = model["decoder"].pop("hooks")
    if isinstance(losses, list) and all(
        isinstance(e, dict) and isinstance(e.get("kind"), str) for e in losses
    ):
        by_kind = {e["kind"]: {k: v for k, v in e.items() if k != "kind"} for e in losses}
        if len(by_kind) == len(losses):
            raw["losses"] = by_kind
    return raw


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`; a component of another kind replaces the one below with its options."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and _same_kind(below, value):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _same_kind(base: dict[str, Any], over: dict[str, Any]) -> bool:
    return "kind" not in over or over["kind"] == base.get("kind", over["kind"])


def _check(raw: dict[str, Any], where: str, idle: Mapping[str, dict[str, Any]]) -> AnyRecipe:
    """Build the recipe; `idle` is the `train` block that each other stage would have, checked too."""
    faults: list[str] = []
    task = raw.get("task", "moments")
    if task not in _SCHEMAS:
        raise RecipeError(
            f"recipe {where}: task: no task is called '{task}'{near(str(task), list(_SCHEMAS))}"
        )
    schema = _SCHEMAS[task]

    def one(slot: str, entry: Any, path: str) -> Any:
        if isinstance(entry, ComponentConfig):
            return entry
        if isinstance(entry, str):
            entry = {"kind": entry}
        if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
            faults.append(f"{path}: needs a 'kind'{near('', registry.kinds(slot))}")
            return None
        try:
            config = registry.find(slot, entry["kind"]).config
        except RecipeError as error:
            faults.append(f"{path}: {error}")
            return None
        try:
            return config.model_validate(entry)
        except ValidationError as error:
            faults.extend(_lines(error, path, config))
            return None

    def several(slot: str, entries: Any, path: str) -> list[Any]:
        if not isinstance(entries, list):
            faults.append(f"{path}: a list of components is expected")
            return []
        done = []
        for i, entry in enumerate(entries):
            kind = entry.get("kind", i) if isinstance(entry, dict) else entry
            done.append(one(slot, entry, f"{path}.{kind}"))
        return done

    raw = copy.deepcopy(raw)
    model = raw.get("model")
    if isinstance(model, dict):
        for key, slot in schema.single.items():
            if key in model:
                model[key] = one(slot, model[key], f"model.{key}")
        for key, slot in schema.lists.items():
            if key in model:
                model[key] = several(slot, model[key], f"model.{key}")
    losses = raw.get("losses")
    if isinstance(losses, dict):
        losses = [{"kind": k, **(v if isinstance(v, dict) else {"weight": v})} for k, v in losses.items()]
    if losses is not None:
        raw["losses"] = several(schema.losses, losses, "losses")
    for block, train in (("train", raw.get("train")), *idle.items()):
        if isinstance(train, dict):
            for slot, default in (("optimizer", "adamw"), ("schedule", "constant")):
                entry = train.get(slot, default)
                if isinstance(entry, dict):
                    entry = {"kind": default, **entry}
                train[slot] = one(slot, entry, f"{block}.{slot}")
    inference = raw.get("inference")
    if isinstance(inference, dict) and "score" in inference:
        inference["score"] = one("score", inference["score"], "inference.score")
    features = raw.get("features")
    if isinstance(features, dict):
        for side in ("audio", "text"):
            streams = features.get(side)
            if isinstance(streams, list):
                features[side] = [{"name": s} if isinstance(s, str) else s for s in streams]
    recipe: BaseRecipe | None = None
    # a component that failed above is None here: its own fault is already listed
    try:
        recipe = schema.recipe.model_validate(raw)
    except ValidationError as error:
        faults.extend(f for f in _lines(error, "", schema.recipe) if "ComponentConfig" not in f)
    for block, train in idle.items():
        try:
            schema.train.model_validate(train)
        except ValidationError as error:
            faults.extend(f for f in _lines(error, block, schema.train) if "ComponentConfig" not in f)
    # a fault of the shared block shows in every stage; once is enough
    shared = {f"{block}{fault[5:]}" for fault in faults if fault.startswith("train.") for block in idle}
    faults = [fault for fault in faults if fault not in shared]
    if faults or not isinstance(recipe, AnyRecipe):
        raise RecipeError(f"recipe {where}: " + "; ".join(dict.fromkeys(faults)))
    return recipe


def _lines(error: ValidationError, prefix: str, checked: type[BaseModel]) -> list[str]:
    """One line per fault that pydantic found in an object of class `checked`, which stands at `prefix`."""
    lines = []
    for fault in error.errors():
        path = ".".join(str(part) for part in ([prefix] if prefix else []) + list(fault["loc"]))
        if fault["type"] == "extra_forbidden":
            lines.append(
                f"{path}: unknown key{near(str(fault['loc'][-1]), _keys(checked, fault['loc'][:-1]))}"
            )
        elif fault["type"] == "missing":
            lines.append(f"{path}: missing")
        else:
            lines.append(f"{path}: {fault['msg']} (it is {fault['input']!r})")
    return lines


def _keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the block at `loc` of `model` may have."""
    for part in loc:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
            model = next((a for a in inner if issubclass(a, BaseModel)), model)
    return list(model.model_fields)

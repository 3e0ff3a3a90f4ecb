"""`rows.yaml`: which systems are compared, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from amrctl.recipe import STAGES, Stage, load

HERE = Path(__file__).parent
SETS = ("esc10", "castella")
REFERENCE = "qd-detr"  # the row that all others are tested against
PRETRAINED = "qd-detr+pretrain"  # and what rows of two stages are tested against as well: equal data
SEEDS = (0, 1, 2)
FILES = ("features", "streams", "dual")  # feature files of a set


@dataclass(frozen=True)
class Row:
    """One system: a recipe and how it is trained, or what is made of systems that are trained already.

    `init`: the row whose run of the same seed it goes on from. `before`: commands that make what
    `options`, further words of the training command, name. `make`: commands instead of a training;
    the last writes `{out}`. All three are templates, see `run.Places.fill`. `features`: the one of `FILES`
    that it reads; of `streams`, all that the plan names. `soups`: besides the uniform soup of its seeds,
    `greedy` and `fisher`, both by the validation queries.
    """

    name: str
    recipe: str = ""
    pretrain: bool = False
    set: tuple[str, ...] = ()
    sets: tuple[str, ...] = SETS
    seeds: tuple[int, ...] = SEEDS
    init: str | None = None
    verb: str = "finetune"
    before: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    make: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    features: str = FILES[0]
    soups: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run."""
        if self.make:
            return ()
        return STAGES if self.pretrain else ("finetune",)

    @property
    def references(self) -> tuple[str, ...]:
        """Rows that it is tested against."""
        two_stages = (PRETRAINED,) if self.pretrain else ()
        listed = dict.fromkeys((REFERENCE, *two_stages, *self.against))
        return tuple(name for name in listed if name not in (self.name, "")) if self.name != REFERENCE else ()


@dataclass(frozen=True)
class Plan:
    """The whole file. `epochs`: set → stage → number; `streams`: set → side → names, main first."""

    model: Mapping[str, Any]
    train: tuple[str, ...]
    epochs: Mapping[str, Mapping[str, int]]
    rows: Mapping[str, Row]
    streams: Mapping[str, Mapping[str, Sequence[str]]]

    def changes(self, row: Row, name: str, stage: Stage) -> list[str]:
        """The `--set` values of one stage on the set `name`: shared ones first, the row's own last.

        Of the shared sizes, those are given that the recipe (with the row's changes) has a place for; so
        what the row puts into a whole slot (`model.fusion=...`) goes before them.
        """
        plain = load(row.recipe, stage, row.set).to_dict()["model"]
        named = self.streams[name].items() if row.features == "streams" else ()
        slots = [change for change in row.set if change.partition("=")[0].count(".") == 1]
        slots = [change for change in slots if change.startswith("model.")]
        return [
            *(f"features.{side}=[{', '.join(names)}]" for side, names in named),
            *slots,
            *(f"{path}={value}" for path, value in _places(plain, self.model)),
            *self.train,
            f"train.epochs={self.epochs[name][stage]}",
            *(change for change in row.set if change not in slots),
        ]

    def resolved(self, row: Row, name: str) -> dict[str, Any]:
        """Stage → the recipe as it runs; what else decides a row's numbers stands beside them."""
        more: dict[str, Any] = {
            key: list(getattr(row, key)) for key in ("before", "options", "make") if getattr(row, key)
        }
        if row.features == "dual":
            more["features"] = row.features
        if row.init:
            more["init"] = [row.init]
        return more | {
            stage: load(row.recipe, stage, self.changes(row, name, stage)).to_dict() for stage in row.stages
        }


def read_plan(path: Path = HERE / "rows.yaml") -> Plan:
    """Read the rows; a row with an unknown key or set is a `ValueError` that names it."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = {}
    for name, given in raw["rows"].items():
        unknown = set(given) - {f.name for f in fields(Row)} | {"name"} & set(given)
        foreign = set(given.get("sets", ())) - set(SETS) | set(given.get("soups", ())) - {"greedy", "fisher"}
        foreign |= {given.get("features", FILES[0])} - set(FILES)
        if unknown or foreign or ("recipe" in given) == ("make" in given):
            raise ValueError(f"{path}: row {name}: {sorted(unknown | foreign) or 'a recipe, or make'}")
        lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
        rows[name] = Row(name=name, **{**given, **lists})
    return Plan(raw["model"], tuple(raw["train"]), raw["epochs"], rows, raw["streams"])


def _places(model: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Paths of the keys in `wanted` that a resolved `model` block has.

    `hidden_dim` is the block's own; `slot.key` belongs to that slot's components; a plain key to all.
    """
    for key, value in wanted.items():
        slot_wanted, _, plain = key.rpartition(".")
        if plain in model and not isinstance(model[plain], list | dict):
            yield f"model.{plain}", value
        for slot, content in model.items():
            if slot_wanted not in ("", slot):
                continue
            if isinstance(content, dict) and plain in content:
                yield f"model.{slot}.{plain}", value
            if isinstance(content, list):
                having = [part["kind"] for part in content if plain in part]
                yield from ((f"model.{slot}.{kind}.{plain}", value) for kind in having)

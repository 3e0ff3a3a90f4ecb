"""One trained run: stages, predictions on the test split, metrics.

Kept as `RESULTS/<set>/<row>.seed-<n>.json`.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from amrctl import provenance
from benchmarks.accuracy.commands import Commands
from benchmarks.accuracy.sets import DataSet
from benchmarks.accuracy.settings import PRETRAINED, REFERENCE, Plan, Row

ROUNDED, EXACT = "test.jsonl", "test.exact.jsonl"


@dataclass(frozen=True)
class Places:
    """Where things are kept: `work` is not committed, `results` is."""

    work: Path
    results: Path

    def run(self, name: str, row: str, seed: int) -> Path:
        """Folder of one run's checkpoints and predictions."""
        return self.work / name / "runs" / f"{row}.seed-{seed}"

    def pretrained(self, name: str, row: str) -> Path:
        """One pre-training (seed 0) serves all seeds of a row, so that their weights can be averaged."""
        return self.work / name / "runs" / f"{row}.pretrain"

    def fill(
        self, template: str, row: Row, data: DataSet, seed: int, split: str = "test"
    ) -> list[str | Path]:
        """Words of a command of `rows.yaml`.

        `{features}`, `{train}`, `{val}`, `{pretrain}`, `{split}`, `{queries}` (the split's), `{folder}` (this
        run's), `{part}` (its prefix for files about this split), `{out}` (the split's predictions), `{seed}`,
        `{row:NAME}`, `{next:NAME}` and `{first:NAME}`: folders of another row's runs with this seed, with the
        next and with the first.
        """
        folder = self.run(data.name, row.name, seed)
        after = row.seeds[(row.seeds.index(seed) + 1) % len(row.seeds)] if seed in row.seeds else seed
        known = {
            "features": data.features,
            "train": data.manifest("train"),
            "val": data.manifest("val"),
            "pretrain": data.manifest("pretrain-train"),
            "split": split,
            "queries": data.manifest(split),
            "folder": folder,
            "part": folder / split,
            "out": folder / f"{split}.jsonl",
            "seed": seed,
            "row": _Runs(self, data.name, seed),
            "next": _Runs(self, data.name, after),
            "first": _Runs(self, data.name, row.seeds[0]),
        }
        return [word.format(**known) for word in template.split()]

    def result(self, name: str, row: str, seed: int) -> Path:
        """The stored numbers of one run."""
        return self.results / name / f"{row}.seed-{seed}.json"

    def kept(self, name: str, row: str, seed: int) -> Path:
        """Packed test predictions of the reference row, so that others are tested against it anywhere."""
        return self.results / name / f"{row}.seed-{seed}.predictions.jsonl.xz"


@dataclass(frozen=True)
class _Runs:
    """`{row:NAME}` of a template."""

    places: Places
    name: str
    seed: int

    def __format__(self, row: str) -> str:
        return str(self.places.run(self.name, row, self.seed))


def run_row(
    plan: Plan, row: Row, data: DataSet, seed: int, places: Places, *, again: bool = False
) -> dict[str, Any]:
    """Train, predict and evaluate one row with one seed, or return the stored result.

    A stored result counts when the recipe still resolves to the same values (keys that are new since
    then are ignored); an outdated one is removed with its run. A run that was killed goes on.
    """
    stored = places.result(data.name, row.name, seed)
    folder = places.run(data.name, row.name, seed)
    resolved = plan.resolved(row, data.name)
    if stored.is_file() or again:
        result: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
        if not again and same_settings(result["recipe"], resolved):
            return result
        shutil.rmtree(folder, ignore_errors=True)
        stored.unlink(missing_ok=True)
    commands = Commands()
    if row.make:
        return _make(plan, row, data, seed, places, commands)
    minutes: dict[str, float] = {}
    best: dict[str, Any] = {}
    init: list[str | Path] = []
    if row.init:
        init = ["--init", places.run(data.name, row.init, seed) / "finetune" / "best.safetensors"]
    for template in row.before:
        folder.mkdir(parents=True, exist_ok=True)
        commands.amrctl(*places.fill(template, row, data, seed, "train"), "--overwrite")
    more = [word for template in row.options for word in places.fill(template, row, data, seed, "train")]
    for stage in row.stages:
        prefix = "pretrain-" if stage == "pretrain" else ""
        out = places.pretrained(data.name, row.name) if prefix else folder / stage
        _remove_other(out, resolved[stage])
        sets = [word for change in plan.changes(row, data.name, stage) for word in ("--set", change)]
        commands.amrctl(
            "pretrain" if prefix else row.verb, "--recipe", row.recipe,
            "--train", data.manifest(f"{prefix}train"), "--val", data.manifest(f"{prefix}val"),
            "--features", data.features, *init,
            "--seed", "0" if prefix else str(seed),
            *sets, *([] if prefix else more), "--precision", "fp32", "--device", "cpu", "--out", out,
        )  # fmt: skip
        log = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        minutes[stage] = round(sum(entry["seconds"] for entry in log) / 60, 2)
        best[stage] = max(({"epoch": e["epoch"], **next(iter(e["val"].values()))} for e in log), key=_primary)
        init = ["--init", out]
    common: list[str | Path] = [
        "--checkpoint", folder / "finetune" / "best.safetensors", "--features", data.features, "--overwrite",
    ]  # fmt: skip
    commands.amrctl("predict", *common, "--test", data.manifest("test"), "--out", folder / ROUNDED)
    commands.amrctl(
        "predict", *common, "--test", data.manifest("test"), "--round", "0", "--out", folder / EXACT
    )
    swapped = folder / "test-permuted.jsonl"
    commands.amrctl("predict", *common, "--test", data.manifest("test-permuted"), "--out", swapped)
    result = {
        "row": row.name,
        "set": data.name,
        "seed": seed,
        "metrics": metrics(commands.answer("evaluate", folder / ROUNDED, "--test", data.manifest("test"))),
        "exact": metrics(commands.answer("evaluate", folder / EXACT, "--test", data.manifest("test"))),
        "permuted": metrics(commands.answer("evaluate", swapped, "--test", data.manifest("test-permuted"))),
        "validation": best,
        "minutes": minutes,
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        "versions": provenance.origin().get("versions"),
        "recipe": resolved,
        "commands": commands.ran,
    }
    stored.parent.mkdir(parents=True, exist_ok=True)
    if row.name in (REFERENCE, PRETRAINED):
        packed = lzma.compress((folder / ROUNDED).read_bytes(), preset=9)
        with provenance.writing(places.kept(data.name, row.name, seed), overwrite=True) as path:
            path.write_bytes(packed)
    provenance.write_json(stored, result)  # the last, as it says that the run is finished
    return result


def _make(
    plan: Plan, row: Row, data: DataSet, seed: int, places: Places, commands: Commands
) -> dict[str, Any]:
    """Predictions made of other rows' runs by the row's commands, for the test split and the control."""
    folder = places.run(data.name, row.name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    scores = {}
    for split in ("test", "test-permuted"):
        for template in row.make:
            commands.amrctl(*places.fill(template, row, data, seed, split), "--overwrite")
        queries = data.manifest(split)
        scores[split] = metrics(commands.answer("evaluate", folder / f"{split}.jsonl", "--test", queries))
    result = {
        "row": row.name,
        "set": data.name,
        "seed": seed,
        "metrics": scores["test"],
        "permuted": scores["test-permuted"],
        "minutes": {},
        "versions": provenance.origin().get("versions"),
        "recipe": plan.resolved(row, data.name),
        "commands": commands.ran,
    }
    provenance.write_json(places.result(data.name, row.name, seed), result)
    return result


def _remove_other(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Remove a run, finished or not, that was made with other settings."""
    earlier = folder / "recipe.yaml"
    if earlier.is_file() and not same_settings(yaml.safe_load(earlier.read_text(encoding="utf-8")), recipe):
        shutil.rmtree(folder)


def predictions(name: str, row: str, seed: int, places: Places) -> Path | None:
    """Test predictions of a run: those in the work folder, else the packed ones, else None."""
    found = places.run(name, row, seed) / ROUNDED
    packed = places.kept(name, row, seed)
    if not found.is_file() and packed.is_file():
        found.parent.mkdir(parents=True, exist_ok=True)
        found.write_bytes(lzma.decompress(packed.read_bytes()))
    return found if found.is_file() else None


def metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """Metric → percent, of one `evaluate --json`."""
    return {name: round(told["mean"], 4) for name, told in report["metrics"].items()}


def same_settings(stored: Any, now: Any) -> bool:
    """Whether every value of `stored` is the same in `now`; keys that only `now` has are ignored."""
    if isinstance(stored, dict) and isinstance(now, dict):
        return all(key in now and same_settings(value, now[key]) for key, value in stored.items())
    if isinstance(stored, list) and isinstance(now, list):
        return len(stored) == len(now) and all(map(same_settings, stored, now))
    return bool(stored == now)


def _primary(entry: Mapping[str, float]) -> float:
    return entry["R1@0.7"]

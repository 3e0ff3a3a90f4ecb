"""What can be made of a row's trained runs without more training.

Kept as `RESULTS/<set>/<row>.chain.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amrctl import provenance
from benchmarks.accuracy.commands import Commands
from benchmarks.accuracy.run import EXACT, ROUNDED, Places
from benchmarks.accuracy.sets import DataSet
from benchmarks.accuracy.settings import Row


def run_chain(row: Row, data: DataSet, seeds: Sequence[int], places: Places, *, again: bool) -> None:
    """Fuse, rerank and soup the seeds, and evaluate each result.

    Weights of seeds without a common pre-training have no reason to average well: that soup is there to
    be seen, `soup` warns of it.

    Left alone when it is stored for these very runs, or when a run's files are not in the work folder.
    """
    path = places.results / data.name / f"{row.name}.chain.json"
    if len(seeds) < 2:
        return
    folders = [places.run(data.name, row.name, seed) for seed in seeds]
    if not all((folder / EXACT).is_file() for folder in folders):
        return
    made_of = [provenance.sha256(folder / EXACT) for folder in folders]
    soups: dict[str, list[str | Path]] = {"soup": ["--uniform"]}
    soups |= {f"{way} soup": _soup_options(way, data) for way in row.soups}
    if path.is_file() and not again:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.get("made_of") == made_of and set(soups) <= set(stored["made"]):
            return
    commands = Commands()
    out = places.work / data.name / "runs" / f"{row.name}.chain"
    out.mkdir(parents=True, exist_ok=True)
    exact = [folder / EXACT for folder in folders]
    made: dict[str, list[Path]] = {"not rounded": exact}
    for name, options in (("wbf", ["--wbf"]), ("pool", ["--pool", "--drop-copies", "0.95"])):
        made[name] = [out / f"{name}.jsonl"]
        commands.amrctl("fuse", *exact, *options, "--overwrite", "--out", made[name][0])
    made["rerank"] = [out / f"rerank.seed-{seed}.jsonl" for seed in seeds]
    for folder, target in zip(folders, made["rerank"], strict=True):
        commands.amrctl(
            "rerank", folder / ROUNDED, "--verifier", "similarity", "--features", data.main_features,
            "--train", data.manifest("train"), "--cache", out / "cache", "--overwrite", "--out", target,
        )  # fmt: skip
    checkpoints = [folder / "finetune" / "best.safetensors" for folder in folders]
    for name, words in soups.items():
        soup = out / f"{name.replace(' ', '-')}.safetensors"
        commands.amrctl("soup", *checkpoints, *words, "--overwrite", "--out", soup)
        made[name] = [soup.with_suffix(".jsonl")]
        commands.amrctl(
            "predict", "--checkpoint", soup, "--features", data.features, "--test", data.manifest("test"),
            "--overwrite", "--out", made[name][0],
        )  # fmt: skip
    rounded = [folder / ROUNDED for folder in folders]
    results: dict[str, Any] = {}
    for name, files in made.items():
        report = commands.answer("evaluate", *files, "--test", data.manifest("test"), "--against", *rounded)
        results[name] = {
            "metrics": {metric: round(told["mean"], 4) for metric, told in report["metrics"].items()},
            "against": report["against"]["metrics"],
        }
    told = {"row": row.name, "set": data.name, "seeds": list(seeds), "made_of": made_of, "made": results}
    provenance.write_json(path, {**told, "commands": commands.ran})


def _soup_options(way: str, data: DataSet) -> list[str | Path]:
    """The words of `soup` that average by looking at the validation queries."""
    manifest = {"greedy": "--val", "fisher": "--fisher-data"}[way]
    return [f"--{way}", manifest, data.manifest("val"), "--features", data.features]

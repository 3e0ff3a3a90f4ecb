"""What `inspect` says about checkpoints and run folders: headers and logs, never the weights."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from amrctl.data import jsonlines
from amrctl.data.explained import Explained, Listing, entries, file_facts, metric_text, origin_facts, paths
from amrctl.errors import AmrctlError
from amrctl.run_folder import RunFolder, seed_folder

KEY = "amrctl"  # our metadata in a safetensors file
_OF_THE_BEST = (
    "recipe",
    "source",
    "model",
    "epoch",
    "validation",
    "seed",
    "trained on",
    "parents",
    "parameters",
)


def looks_like_safetensors(path: Path, head: bytes) -> bool:
    """Eight bytes of length, then that much JSON."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    return bool(struct.unpack("<Q", head[:8])[0] <= path.stat().st_size - 8)


def explain_checkpoint(path: Path) -> Explained:
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise AmrctlError(
            f"{path} is not a readable safetensors file ({' '.join(str(error).split())})"
        ) from None
    facts: dict[str, Any] = {}
    tables: list[Listing] = []
    notes: tuple[str, ...] = ()
    meta = jsonlines.parse(metadata.get(KEY, ""))
    if isinstance(meta, dict):
        facts |= _recipe_facts(meta.get("recipe"))
        facts["epoch"] = meta.get("epoch", "unknown")
        metrics = meta.get("metrics")
        if isinstance(metrics, Mapping) and metrics:
            facts["validation"] = metric_text(metrics)
        if meta.get("rounding") is not None:
            facts["rounding (s)"] = meta["rounding"]
        made = meta.get("provenance")
        if isinstance(made, Mapping):
            if made.get("seed") is not None:
                facts["seed"] = made["seed"]
            for key in ("trained_on", "parents"):
                if files := paths(made.get(key)):
                    facts[key.replace("_", " ")] = files
            facts |= origin_facts(made)
        tables.append(_stream_table(meta.get("features")))
    else:
        notes = ("no amrctl metadata: the weights were not written by amrctl, or lost their description",)
    groups: dict[str, int] = {}
    for name, shape in shapes.items():
        part = name.partition(".")[0]
        groups[part] = groups.get(part, 0) + int(np.prod(shape, dtype=np.int64))
    facts["parameters"] = sum(groups.values())
    rows = tuple(sorted(groups.items(), key=lambda item: -item[1])[:10])
    tables.append(Listing("weights", ("part", "parameters"), rows))
    return Explained(
        path,
        "checkpoint",
        {**facts, **file_facts(path, hashed=False)},
        tuple(t for t in tables if t.rows),
        notes,
    )


def _recipe_facts(recipe: Any) -> dict[str, Any]:
    if not isinstance(recipe, Mapping):
        return {}
    facts: dict[str, Any] = {
        "recipe": f"{recipe.get('name')} ({recipe.get('stage')})",
        "source": recipe.get("source"),
    }
    model = recipe.get("model")
    if isinstance(model, Mapping):
        facts["model"] = "; ".join(
            f"{slot}: {kinds}"
            for slot, value in model.items()
            if slot != "hidden_dim" and (kinds := _kinds(value))
        )
        facts["hidden width"] = model.get("hidden_dim")
    if recipe.get("compat"):
        facts["compat"] = recipe["compat"]
    return facts


def _kinds(value: Any) -> str:
    several = value if isinstance(value, list) else [value]
    return ", ".join(str(entry["kind"]) for entry in entries(several) if "kind" in entry)


def _stream_table(features: Any) -> Listing:
    rows = []
    for side in ("audio", "text"):
        for stream in entries(features.get(side)) if isinstance(features, Mapping) else ():
            rows.append((side, *(str(stream.get(key, "unknown")) for key in ("name", "dim", "encoder"))))
    return Listing("features it needs", ("side", "stream", "dim", "encoder"), tuple(rows))


def explain_seeds(path: Path, listed: Mapping[str, Any]) -> Explained:
    failed = {str(entry.get("seed")): str(entry.get("error")) for entry in entries(listed["failed"])}
    rows: list[tuple[str | int | float, ...]] = []
    for seed in listed["seeds"]:
        state = f"failed: {failed[str(seed)]}" if str(seed) in failed else "unfinished"
        if seed in listed["done"]:
            state = "done"
        told = ""
        if type(seed) is int and (best := RunFolder(seed_folder(path, seed)).best()).is_file():
            told = str(explain_checkpoint(best).facts.get("validation", ""))
        rows.append((str(seed), state, told))
    facts = {"seeds": len(listed["seeds"]), "done": len(listed["done"]), "failed": len(failed)}
    table = Listing("seeds", ("seed", "state", "validation of its best"), tuple(rows))
    return Explained(path, "folder of several seeds", facts, (table,))


def explain_run(path: Path, run: RunFolder) -> Explained:
    facts: dict[str, Any] = {}
    tables: list[Listing] = []
    if run.best().is_file():
        best = explain_checkpoint(run.best()).facts
        facts |= {("best epoch" if key == "epoch" else key): best[key] for key in _OF_THE_BEST if key in best}
    if run.log.is_file():
        log = _read_log(run.log)
        facts["epochs done"] = len(log)
        if log:
            facts["seconds"] = _seconds(log)
            tables.append(_log_table(log))
    elif "recipe" not in facts:
        facts["epochs done"] = 0
    rows = tuple((p.name, p.stat().st_size) for p in sorted(path.iterdir()) if p.is_file())
    tables.append(Listing("files", ("file", "bytes"), rows))
    return Explained(path, "run folder", facts, tuple(tables))


def _read_log(path: Path) -> list[dict[str, Any]]:
    text = jsonlines.read_text(path, AmrctlError, "a training log (JSON lines)")
    return [record for _, record in jsonlines.objects(path, text, AmrctlError)]


def explain_log(path: Path) -> Explained:
    log = _read_log(path)
    facts = {"epochs": len(log), "seconds": _seconds(log)}
    return Explained(path, "training log", facts, (_log_table(log),))


def _seconds(log: Sequence[Mapping[str, Any]]) -> float:
    given = [entry.get("seconds") for entry in log]
    return round(sum(value for value in given if isinstance(value, float)), 1)


def _log_table(log: Sequence[Mapping[str, Any]]) -> Listing:
    """The first epoch and the last four."""
    chosen = [log[0], *log[max(1, len(log) - 4) :]]
    rows = []
    for entry in chosen:
        val = entry.get("val")
        told = ""
        if isinstance(val, Mapping):
            told = "; ".join(f"{name} {metric_text(m)}" for name, m in val.items() if isinstance(m, Mapping))
        loss = entry.get("loss")
        rows.append((str(entry.get("epoch")), f"{loss:.4g}" if isinstance(loss, float) else "", told))
    return Listing("log", ("epoch", "loss", "validation"), tuple(rows))

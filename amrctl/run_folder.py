"""What lies where in a run folder, for those who write it and those who are given one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from amrctl import provenance
from amrctl.errors import CheckpointError

SEEDS = "seeds.json"


class RunFolder:
    """Names of the files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.last = self.path / "last.safetensors"
        self.state = self.path / "state.pt"
        self.log = self.path / "log.jsonl"
        self.predictions = self.path / "val_predictions.jsonl"
        self.scores = self.path / "val_scores.h5"  # of a dual encoder, in place of predictions
        self.metrics = self.path / "metrics.json"
        self.curves = self.path / "curves.png"

    def best(self, metric: str | None = None) -> Path:
        """The best checkpoint by `metric`; without one, by the primary metric."""
        return self.path / (f"best.{metric}.safetensors" if metric else "best.safetensors")

    def files(self) -> list[Path]:
        """Those of a run's files that are there, the commit point first."""
        answers = (self.predictions, self.scores, self.metrics)
        fixed = (self.state, self.recipe, self.last, self.log, *answers, self.curves)
        meta = self.predictions.with_name(self.predictions.name + ".meta.json")
        found = [path for path in (*fixed, meta) if path.is_file()]
        return [*found, *sorted(self.path.glob("best.*safetensors"))]

    def clear(self) -> None:
        """Remove a run's files, the commit point first; other files stay."""
        for path in self.files():
            path.unlink()


def seed_folder(path: Path, seed: int) -> Path:
    """Where one of several seeds lives."""
    return path / f"seed-{seed}"


def read_seeds(path: Path) -> dict[str, Any] | None:
    """`seeds.json` of a folder of several seeds: `seeds` asked for, `done`, and `failed` with reasons.

    None where there is no such file. Raises `CheckpointError` when it is damaged.
    """
    if not (path / SEEDS).is_file():
        return None
    try:
        found = json.loads((path / SEEDS).read_text(encoding="utf-8"))
        return {"seeds": list(found["seeds"]), "done": list(found["done"]), "failed": list(found["failed"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path / SEEDS} is damaged; remove it and run the training again") from None


def write_seeds(path: Path, seeds: Iterable[int], done: Iterable[int], failed: Mapping[int, str]) -> None:
    """Update `seeds.json`; seeds of earlier calls on the same folder stay in it."""
    before = read_seeds(path) or {"seeds": [], "done": [], "failed": []}
    finished = sorted({*before["done"], *done} - set(failed))
    reasons = {entry["seed"]: entry["error"] for entry in before["failed"]} | dict(failed)
    provenance.write_json(
        path / SEEDS,
        {
            "seeds": sorted({*before["seeds"], *seeds}),
            "done": finished,
            "failed": [{"seed": s, "error": e} for s, e in sorted(reasons.items()) if s not in finished],
        },
    )


def find_checkpoint(path: Path | str) -> Path:
    """A checkpoint, or a run folder, which stands for its best. Raises `CheckpointError`."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if not path.is_dir():
        return path
    best = RunFolder(path).best()
    if not best.is_file():
        several = " (it holds several seeds; name one of them)" if (path / SEEDS).is_file() else ""
        raise CheckpointError(f"{path} holds no {best.name}{several}")
    return best


def find_checkpoints(path: Path | str, *, allow_incomplete: bool = False) -> list[Path]:
    """As `find_checkpoint`, and a folder of several seeds stands for the best of each.

    Raises `CheckpointError` when seeds failed or are missing, unless `allow_incomplete`.
    """
    path = Path(path)
    listed = read_seeds(path) if path.is_dir() else None
    if listed is None:
        return [find_checkpoint(path)]
    lacking = sorted(set(listed["seeds"]) - set(listed["done"]))
    if lacking and not allow_incomplete:
        names = ", ".join(map(str, lacking))
        raise CheckpointError(
            f"{path}: {len(lacking)} of {len(listed['seeds'])} seeds failed or are unfinished ({names}); "
            "train them, or take those there are with --allow-incomplete"
        )
    return [find_checkpoint(seed_folder(path, seed)) for seed in sorted(listed["done"])]

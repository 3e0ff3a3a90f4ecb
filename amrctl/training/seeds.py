"""One request, one or many seeds: folders, what is done and what failed, mean and spread."""

from __future__ import annotations

import contextlib
import statistics
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from amrctl.errors import CheckpointError, OutputError
from amrctl.progress import SILENT, Reporter
from amrctl.run_folder import SEEDS, RunFolder, read_seeds, seed_folder, write_seeds
from amrctl.training import state
from amrctl.training.folder import find_state
from amrctl.training.loop import Outcome, repeatable, train
from amrctl.training.parallel import announce
from amrctl.training.run import Job
from amrctl.training.stacked import rehearse, stackable
from amrctl.training.task import Asked
from amrctl.training.together import programs, train_together


@dataclass(frozen=True)
class Summary:
    """What came of all seeds. `failed`: seed → what went wrong. `already`: everything was finished
    before this call."""

    path: Path
    outcomes: tuple[Outcome, ...]
    failed: Mapping[int, str]
    several: bool
    already: bool

    def spread(self) -> dict[str, dict[str, float]]:
        """Metric → mean, standard deviation (n - 1; 0 for one seed), lowest and highest best value."""
        found: dict[str, dict[str, float]] = {}
        for metric in self.outcomes[0].best if self.outcomes else ():
            values = [outcome.best[metric]["value"] for outcome in self.outcomes]
            found[metric] = {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else 0.0,
                "min": min(values),
                "max": max(values),
            }
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: one run's own result, or all seeds with their spread."""
        if not self.several:
            return {**self.outcomes[0].to_dict(), "already_finished": self.already}
        return {
            "run": str(self.path),
            "seeds": [outcome.to_dict() for outcome in self.outcomes],
            "failed": [{"seed": seed, "error": error} for seed, error in sorted(self.failed.items())],
            "summary": self.spread(),
            "already_finished": self.already,
        }


def train_seeds(
    request: Asked,
    out: Path | str,
    seeds: Sequence[int],
    *,
    several: bool,
    together: bool = False,
    overwrite: bool = False,
    report: Reporter = SILENT,
) -> Summary:
    """Train `seeds`, each in `out/seed-<n>` (or the only one in `out` itself when not `several`).

    Finished seeds are skipped, unfinished ones go on. With `several`, a seed that fails is listed in
    `out/seeds.json` and the others go on; with `together` as well, the seeds that begin in one call are
    trained in one program (`training.together`) and go on in it. Raises `OutputError` when `out` holds
    something else, `RecipeError` for a recipe that cannot be trained together, and any `AmrctlError` of
    the inputs, before anything is trained.
    """
    out = Path(out)
    folders = {seed: RunFolder(seed_folder(out, seed) if several else out) for seed in seeds}
    _check_kind(out, several)
    if together:
        stackable(request.recipe)
    made_of = request.fingerprint(report)
    marks: dict[int, dict[str, Any]] = {seed: {**made_of, "seed": seed} for seed in folders}
    groups = programs(folders, marks, overwrite) if together else []
    for group in groups:
        for seed in set(group) & marks.keys():
            marks[seed]["together"] = list(group)
    states = {seed: find_state(folder, marks[seed], overwrite) for seed, folder in folders.items()}
    foreign = _foreign(out, seeds, made_of, overwrite) if several else []
    outcomes: dict[int, Outcome] = {}
    failed: dict[int, str] = {}
    for seed, found in states.items():
        if found is not None and found.finished:
            report.note(f"{folders[seed].path}: finished before (epoch {found.epoch}); nothing to do")
            outcomes[seed] = Outcome(folders[seed], seed, found.best, found.epoch, found.epoch)
    missing = [seed for seed in seeds if seed not in outcomes]
    if several and not missing and set(seeds) - set((read_seeds(out) or {"done": ()})["done"]):
        write_seeds(out, seeds, outcomes, {})  # killed after the last seed's end, before it was listed
    plan = {seed: folders[seed].state if states[seed] else None for seed in missing}
    announce(request.ranks, made_of, plan)
    if missing:
        job = request.load(made_of, report)
        # a recipe that cannot run and weights that do not fit are the input's fault, not a seed's
        with repeatable(job.device), job.context():
            job.rehearse(missing[0])
            if together:
                rehearse(cast(Job, job), missing[0])  # `stackable` lets no other through
        if several:
            for path in foreign:
                RunFolder(path).clear()
                with contextlib.suppress(OSError):  # a file of the user's keeps the folder
                    path.rmdir()
            if foreign:
                (out / SEEDS).unlink(missing_ok=True)
            write_seeds(out, seeds, outcomes, {})

        def settled(ended: Mapping[int, Outcome], broken: Mapping[int, Exception]) -> None:
            outcomes.update(ended)
            for seed, error in broken.items():
                failed[seed] = f"{type(error).__name__}: {error}"
                report.note(f"seed {seed} failed: {error}")
                report.detail("".join(traceback.format_exception(error)))
            if several:
                write_seeds(out, seeds, outcomes, failed)

        resume = {seed: states[seed] is not None for seed in missing}
        for group in groups:
            mine = {seed: folders[seed] for seed in missing if seed in group}
            if mine:
                train_together(cast(Job, job), group, mine, marks, resume, tell=settled, report=report)
        for seed in () if together else missing:
            try:
                ended = train(job, folders[seed], seed, marks[seed], resume=resume[seed], report=report)
            except Exception as error:
                if not several or request.ranks.several:  # the others stand in the midst of this seed
                    raise
                settled({}, {seed: error})
            else:
                settled({seed: ended}, {})
    return Summary(
        out, tuple(outcomes[seed] for seed in seeds if seed in outcomes), failed, several, not missing
    )


def _foreign(out: Path, seeds: Sequence[int], made_of: Mapping[str, Any], overwrite: bool) -> list[Path]:
    """Seed folders of another making. Seeds in one folder belong together (they are souped and
    compared), so without `overwrite` those of seeds not asked for are an `OutputError`."""
    found = []
    for path in sorted(out.glob("seed-*/state.pt")):
        try:
            theirs = state.read(path, tensors=False).fingerprint
        except CheckpointError:
            theirs = {}
        differing = state.differences({k: theirs.get(k) for k in made_of}, dict(made_of))
        if not differing:
            continue
        if not overwrite and path.parent.name not in {seed_folder(out, seed).name for seed in seeds}:
            raise OutputError(
                f"{path.parent} is of a different run ({differing[0]}); choose another --out "
                "or add --overwrite"
            )
        found.append(path.parent)
    return found


def _check_kind(out: Path, several: bool) -> None:
    single, many = RunFolder(out).state.is_file(), (out / SEEDS).is_file() or any(out.glob("seed-*/state.pt"))
    if several and single:
        raise OutputError(f"{out} holds a single run; choose another --out for --seeds")
    if many and not several:
        raise OutputError(f"{out} holds runs of several seeds; choose another --out, or give --seeds")
    if several and out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; --out needs a folder")

"""What `pretrain`, `finetune` and `distill` share: options, the call, the tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amrctl.cli._options import parse_seeds
from amrctl.errors import AmrctlError
from amrctl.launch import from_environment

if TYPE_CHECKING:
    from amrctl.cli._console import Console
    from amrctl.recipe import AnyRecipe
    from amrctl.training.seeds import Summary
    from amrctl.training.task import Asked

RecipeOption = Annotated[
    str, typer.Option("--recipe", help="Name of a shipped recipe, or a YAML file.", metavar="NAME|FILE")
]
Train = Annotated[
    list[Path],
    typer.Option(
        "--train", help="Labelled manifests (or lists of captions); several are joined.", metavar="M.jsonl..."
    ),
]
Val = Annotated[
    list[Path],
    typer.Option(
        "--val",
        help="The same, to choose the best epoch; further ones are only logged.",
        metavar="M.jsonl...",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Run folder to write, or to go on with.", metavar="RUN")]
Init = Annotated[
    Path | None,
    typer.Option(
        "--init", help="Checkpoint (or run folder: its best) to start from.", metavar="C.safetensors"
    ),
]
_RETRIEVAL = "Recipes of task retrieval"
Audio = Annotated[
    list[Path] | None,
    typer.Option(
        "--audio",
        help="In place of --features: folders with the recordings of the captions.",
        metavar="DIR...",
        rich_help_panel=_RETRIEVAL,
    ),
]
Exclude = Annotated[
    list[Path] | None,
    typer.Option(
        "--exclude",
        help="Files of ids that are not trained on.",
        metavar="IDS.csv...",
        rich_help_panel=_RETRIEVAL,
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out captions without a recording.", rich_help_panel=_RETRIEVAL),
]
OneSeed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Same seed, same machine: same result (default: 0).")
]
Seeds = Annotated[
    str | None,
    typer.Option("--seeds", help="Several runs, each in RUN/seed-<n>: 0-4 or 1,3,5-7.", metavar="SEEDS"),
]
Together = Annotated[
    bool,
    typer.Option("--together", help="Train the seeds of --seeds in one program, not in turn; made for GPUs."),
]


@dataclass(frozen=True)
class Data:
    """What `pretrain` and `finetune` were given to train on."""

    train: list[Path]
    val: list[Path]
    features: Path | None
    audio: list[Path] | None
    exclude: list[Path] | None
    skip_bad: bool
    clip_windows: bool


def request_of(recipe: AnyRecipe, data: Data, init: Path | None, device: str, precision: str) -> Asked:
    """The request of the recipe's task. Raises `AmrctlError` for options of the other one."""
    from amrctl.recipe import Recipe
    from amrctl.training.run import Request

    common: dict[str, Any] = {"init": init, "device": device, "precision": precision}
    common |= {"train": tuple(data.train), "val": tuple(data.val)}
    told = f"recipe {recipe.name} is of task {recipe.task}"
    if isinstance(recipe, Recipe):
        foreign = {"--audio": data.audio, "--exclude": data.exclude, "--skip-bad": data.skip_bad}
        if wrong := [option for option, given in foreign.items() if given]:
            raise AmrctlError(f"{told}: leave {wrong[0]} out; it reads --features F.h5")
        if data.features is None:
            raise AmrctlError(f"{told}: --features F.h5 is missing (extract-tef writes it)")
        if from_environment().several:
            raise AmrctlError(
                f"{told}: torchrun's data parallel training is for task retrieval; a detector trains in one "
                "process, several of them with --seeds"
            )
        clip = data.clip_windows
        return Request(recipe=recipe, features=data.features, clip_windows=clip, **common)
    from amrctl.training.retrieval import RetrievalRequest

    if wrong := [
        o for o, given in (("--features", data.features), ("--clip-windows", data.clip_windows)) if given
    ]:
        raise AmrctlError(f"{told}: leave {wrong[0]} out; it hears the recordings under --audio DIR")
    if not data.audio:
        raise AmrctlError(f"{told}: --audio DIR is missing, the folder with the recordings")
    return RetrievalRequest(
        recipe=recipe,
        audio=tuple(data.audio),
        exclude=tuple(data.exclude or ()),
        skip_bad=data.skip_bad,
        ranks=from_environment(),
        **common,
    )


def start(
    console: Console,
    request: Asked,
    out: Path,
    seed: int | None,
    seeds: str | None,
    overwrite: bool,
    together: bool,
    teacher: dict[str, object] | None = None,
) -> None:
    """Train, print the result, and exit with code 1 when a seed failed. All but the first of torchrun's
    processes help it, and print nothing."""
    from amrctl.training.memory import keep_freed
    from amrctl.training.parallel import follow, opened
    from amrctl.training.seeds import train_seeds

    keep_freed()
    if seed is not None and seeds is not None:
        raise AmrctlError("--seed and --seeds: give one of them")
    if together and seeds is None:
        raise AmrctlError("--together: give the seeds to train together with --seeds")
    numbers = parse_seeds(seeds) if seeds is not None else [seed or 0]
    with opened(request.ranks, request.device):
        if not request.ranks.first:
            follow(request)
            return
        summary = train_seeds(
            request,
            out,
            numbers,
            several=seeds is not None,
            together=together,
            overwrite=overwrite,
            report=console,
        )
    console.result({**summary.to_dict(), **({"teacher": teacher} if teacher else {})})
    _show(console, summary)
    if summary.failed:
        console.note(f"{len(summary.failed)} of {len(numbers)} seeds failed; {out}/seeds.json says why")
        raise typer.Exit(1)


def _show(console: Console, summary: Summary) -> None:
    from amrctl.cli._console import table

    if not summary.several:
        outcome = summary.outcomes[0]
        shown = table("best validation", "value", "epoch", "checkpoint", title=str(summary.path))
        for metric, best in outcome.best.items():
            name = outcome.folder.best(metric).name
            shown.add_row(metric, f"{best['value']:.2f}", f"{best['epoch']:.0f}", name)
        console.table(shown)
        console.say(f"best by {next(iter(outcome.best))}: {outcome.folder.best()}")
        return
    metrics = list(summary.outcomes[0].best) if summary.outcomes else []
    shown = table("seed", *metrics, "epochs", title=f"{summary.path}: best validation, percent")
    for outcome in summary.outcomes:
        values = [f"{outcome.best[metric]['value']:.2f}" for metric in metrics]
        shown.add_row(str(outcome.seed), *values, str(outcome.epochs))
    for seed, error in sorted(summary.failed.items()):
        shown.add_row(str(seed), *["-"] * len(metrics), "failed: " + error.split(":")[0])
    if len(summary.outcomes) > 1:
        spread = summary.spread()
        shown.add_section()
        shown.add_row("mean", *[f"{spread[m]['mean']:.2f}" for m in metrics], "")
        shown.add_row("std", *[f"{spread[m]['std']:.2f}" for m in metrics], "")
    console.table(shown)

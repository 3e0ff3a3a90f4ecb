"""`amrctl finetune`: the main stage of a recipe, on the target data."""

from __future__ import annotations

from amrctl.cli._options import (
    ClipWindows,
    Device,
    Features,
    Json,
    Overwrite,
    Precision,
    Quiet,
    Sets,
    Verbose,
)
from amrctl.cli._training import Init, OneSeed, Out, RecipeOption, Seeds, Train, Val


def run(
    recipe: RecipeOption,
    train: Train,
    val: Val,
    features: Features,
    out: Out,
    init: Init = None,
    seed: OneSeed = None,
    seeds: Seeds = None,
    sets: Sets = None,
    device: Device = "auto",
    precision: Precision = "auto",
    clip_windows: ClipWindows = False,
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a detector with the recipe's `finetune` settings, from a checkpoint or from scratch.

    RUN gets the best checkpoint by the recipe's first metric (best.safetensors) and by each other
    one, the last, log.jsonl, val_predictions.jsonl, metrics.json and curves.png. Killed at any
    moment, the same command goes on and ends with the same bits.

    Examples:

      amrctl finetune --recipe qd-detr --init pre --train T.jsonl --val V.jsonl --features F.h5 --out run

      amrctl finetune --recipe qd-detr --train T.jsonl --val V.jsonl --features F.h5 --seeds 0-4 --out runs

      amrctl finetune --recipe qd-detr ... --set train.epochs=50 --set "train.schedule={kind: cosine}"
    """
    from amrctl import recipe as recipes
    from amrctl.cli._console import Console
    from amrctl.cli._training import start
    from amrctl.training.run import Request

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    resolved = recipes.load(recipe, "finetune", sets or ())
    if init is None:
        console.note("no --init: training from scratch")
    request = Request(
        recipe=resolved,
        train=tuple(train),
        val=tuple(val),
        features=features,
        init=init,
        device=device,
        precision=precision,
        clip_windows=clip_windows,
    )
    start(console, request, out, seed, seeds, overwrite)

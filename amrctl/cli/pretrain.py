"""`amrctl pretrain`: the first stage of a recipe, on much and simple data."""

from __future__ import annotations

from amrctl.cli._options import (
    ClipWindows,
    Device,
    Json,
    OptionalFeatures,
    Overwrite,
    Precision,
    Quiet,
    Sets,
    Verbose,
)
from amrctl.cli._training import (
    Audio,
    Exclude,
    Init,
    OneSeed,
    Out,
    RecipeOption,
    Seeds,
    SkipBad,
    Together,
    Train,
    Val,
)


def run(
    recipe: RecipeOption,
    train: Train,
    val: Val,
    out: Out,
    features: OptionalFeatures = None,
    audio: Audio = None,
    exclude: Exclude = None,
    skip_bad: SkipBad = False,
    init: Init = None,
    seed: OneSeed = None,
    seeds: Seeds = None,
    together: Together = False,
    sets: Sets = None,
    device: Device = "auto",
    precision: Precision = "auto",
    clip_windows: ClipWindows = False,
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a detector with the recipe's `pretrain` settings, usually on synthetic recordings.

    A recipe of task retrieval trains a dual encoder on captions of recordings instead.
    Killed at any moment, the same command goes on and ends with the same bits.

    Examples:

      amrctl pretrain --recipe qd-detr --train T.jsonl --val V.jsonl --features F.h5 --out pre

      amrctl finetune --recipe qd-detr --init pre ...

      amrctl pretrain --recipe jku-passt-roberta --train clotho.csv audiocaps.csv wavcaps.json
      --val val.csv --audio sounds/ --exclude ids.csv --out pre
    """
    from amrctl import recipe as recipes
    from amrctl.cli._console import Console
    from amrctl.cli._training import Data, request_of, start

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    resolved = recipes.load_any(recipe, "pretrain", sets or ())
    data = Data(train, val, features, audio, exclude, skip_bad, clip_windows)
    request = request_of(resolved, data, init, device, precision)
    start(console, request, out, seed, seeds, overwrite, together)

"""`amrctl finetune`: the main stage of a recipe, on the target data."""

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
    """Train a detector with the recipe's `finetune` settings, from a checkpoint or from scratch.

    A recipe of task retrieval trains a dual encoder on captions of recordings instead.

    RUN gets the best checkpoint by the recipe's first metric (best.safetensors) and by each other
    one, the last, log.jsonl, val_predictions.jsonl, metrics.json and curves.png. Killed at any
    moment, the same command goes on and ends with the same bits.

    Examples:

      amrctl finetune --recipe qd-detr --init pre --train T.jsonl --val V.jsonl --features F.h5 --out run

      amrctl finetune --recipe qd-detr --train T.jsonl --val V.jsonl --features F.h5 --seeds 0-4 --out runs

      amrctl finetune --recipe retrieval-small --train T.jsonl --val V.jsonl --audio sounds/ --out run

      amrctl finetune --recipe qd-detr ... --set train.epochs=50 --set "train.schedule={kind: cosine}"
    """
    from amrctl import recipe as recipes
    from amrctl.cli._console import Console
    from amrctl.cli._training import Data, request_of, start

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    resolved = recipes.load_any(recipe, "finetune", sets or ())
    if init is None:
        console.note("no --init: training from scratch")
    data = Data(train, val, features, audio, exclude, skip_bad, clip_windows)
    request = request_of(resolved, data, init, device, precision)
    start(console, request, out, seed, seeds, overwrite, together)

"""`amrctl rerank`: a second opinion on the order of predicted windows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amrctl.cli._options import Features, Json, Overwrite, Quiet, Verbose

VERIFIERS = ("similarity",)


def run(
    predictions: Annotated[Path, typer.Argument(metavar="P.jsonl", help="The prediction file.")],
    out: Annotated[Path, typer.Option("--out", help="The re-ordered prediction file.")],
    features: Features,
    verifier: Annotated[str, typer.Option("--verifier", help="Who judges: similarity.")] = "similarity",
    train: Annotated[
        Path | None,
        typer.Option(
            "--train",
            help="Labelled queries, to learn a map from text to sound where the two share no space.",
        ),
    ] = None,
    beta: Annotated[
        float, typer.Option("--beta", help="Weight of the verifier, 0..1; 0 changes nothing.")
    ] = 0.35,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Windows a query that are judged; the rest stays below.")
    ] = 10,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", help="Where answers are kept (default ~/.cache/amrctl/rerank)."
        ),
    ] = None,
    audio_stream: Annotated[
        str, typer.Option("--audio-stream", help="Audio stream of the feature file; auto = the only one.")
    ] = "auto",
    text_stream: Annotated[
        str, typer.Option("--text-stream", help="Text stream of the feature file; auto = the only one.")
    ] = "auto",
    overwrite: Overwrite = False,
    json_mode: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Blend the scores of the best windows with a verifier's and sort them again.

    New score = (1 - beta) * score + beta * verifier. Boundaries never move.
    Answers are kept on disk: the same questions cost nothing the next time.

    Examples:

      amrctl rerank p.jsonl --features f.h5 --train train.jsonl --out r.jsonl
    """
    from amrctl import provenance
    from amrctl.cli._console import Console, table
    from amrctl.data.features import FeatureFile
    from amrctl.data.manifest import read_manifest
    from amrctl.data.predictions import merge_meta, read_predictions, write_predictions
    from amrctl.errors import AmrctlError, near
    from amrctl.rerank.cache import Cache, default_folder
    from amrctl.rerank.rerank import rerank
    from amrctl.rerank.similarity import SimilarityVerifier

    if verifier not in VERIFIERS:
        raise AmrctlError(f"no verifier is called '{verifier}'{near(verifier, list(VERIFIERS))}")
    if not 0 <= beta <= 1:
        raise AmrctlError(f"--beta {beta:g} is not in 0..1")
    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    provenance.refuse_existing(out, overwrite)
    file = read_predictions(predictions)
    labelled = None if train is None else read_manifest(train, clip_windows=True, need_windows=True)
    with FeatureFile(features) as opened:
        judge = SimilarityVerifier(
            opened,
            [item.vid for item in file],
            [item.qid for item in file],
            audio=audio_stream,
            text=text_stream,
            train=labelled,
        )
    if judge.map is not None:
        console.note(
            f"map from text to sound: fitted on {judge.map.queries:,} queries of {train}, "
            f"strength {judge.map.strength:.3g}"
        )
    elif train is not None:
        console.note(f"both streams are in the space '{judge.audio.space}'; --train is not needed")
    memory = Cache(default_folder() if cache is None else cache)
    done = rerank(file.items, judge, beta=beta, top_k=top_k, cache=memory, batch=1024, report=console)

    moved = sum(
        bool(len(a.windows)) and tuple(a.windows[0, :2]) != tuple(b.windows[0, :2])
        for a, b in zip(file, done.items, strict=True)
    )
    how = {"verifier": judge.name, "version": judge.version, "kind": judge.kind, "beta": beta, "top_k": top_k}
    told = f"{judge.name} ({judge.kind}, beta {beta:g}, top {top_k})"
    meta = merge_meta([file.meta], "rerank", [predictions], rerank=how)
    meta["verifier"] = f"{file.meta['verifier']} + {told}" if file.meta.get("verifier") else told
    write_predictions(out, done.items, meta, overwrite=overwrite)
    console.result(
        {
            "out": str(out),
            "queries": len(done.items),
            "new_best": moved,
            "asked": done.asked,
            "remembered": done.remembered,
            "cache": str(memory.path),
            **how,
        }
    )
    shown = table("queries", "new best window", "asked", "from cache")
    shown.add_row(f"{len(done.items):,}", f"{moved:,}", f"{done.asked:,}", f"{done.remembered:,}")
    console.table(shown)
    console.say(str(out))
    console.detail(f"answers are kept in {memory.path}")

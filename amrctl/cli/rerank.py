"""`amrctl rerank`: a second opinion on the order of predicted windows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amrctl.cli._options import (
    Device,
    Json,
    OptionalFeatures,
    Overwrite,
    Precision,
    Quiet,
    Verbose,
    parse_floats,
)
from amrctl.errors import AmrctlError

if TYPE_CHECKING:
    from amrctl.cli._console import Console
    from amrctl.data.predictions import Predictions
    from amrctl.pipeline.rerank import Done
    from amrctl.rerank.base import Verifier
    from amrctl.rerank.cache import Cache

BETA = 0.35
KEY = "AMRCTL_API_KEY"
_SIMILARITY, _MODELS, _HTTP = "Of similarity", "Of qwen2.5-omni and http", "Of http"


def run(
    predictions: Annotated[
        Path | None, typer.Argument(metavar="P.jsonl", help="The prediction file.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The re-ordered prediction file.")] = None,
    verifier: Annotated[
        str,
        typer.Option(
            "--verifier", metavar="NAME", help="Who judges: similarity, qwen2.5-omni[:WEIGHTS], http."
        ),
    ] = "similarity",
    listing: Annotated[
        bool, typer.Option("--list", help="Show the verifiers, and where to get their weights.")
    ] = False,
    beta: Annotated[
        float | None,
        typer.Option("--beta", help="Weight of the verifier, 0..1 (default 0.35); 0 changes nothing."),
    ] = None,
    beta_grid: Annotated[
        str | None,
        typer.Option(
            "--beta-grid",
            metavar="A,B",
            help="Try these weights on --val, and take the best by R1@0.7, then mAP.",
        ),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option("--val", metavar="M.jsonl", help="Labels of the queries of P.jsonl, for --beta-grid."),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Windows a query that are judged; the rest stays below.")
    ] = 10,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", help="Where answers are kept (default ~/.cache/amrctl/rerank)."
        ),
    ] = None,
    tolerate: Annotated[
        int,
        typer.Option("--tolerate", min=0, help="Windows that may stay without an answer: their score stays."),
    ] = 0,
    features: OptionalFeatures = None,
    train: Annotated[
        Path | None,
        typer.Option(
            "--train",
            help="Labelled queries, to learn a map from text to sound where the two share no space.",
            rich_help_panel=_SIMILARITY,
        ),
    ] = None,
    audio_stream: Annotated[
        str | None,
        typer.Option(
            "--audio-stream",
            help="Audio stream of the feature file; default: the only one.",
            rich_help_panel=_SIMILARITY,
        ),
    ] = None,
    text_stream: Annotated[
        str | None,
        typer.Option(
            "--text-stream",
            help="Text stream of the feature file; default: the only one.",
            rich_help_panel=_SIMILARITY,
        ),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            "--audio",
            help="The recordings: a folder of <vid>.wav, .flac, .ogg, .mp3, or of WebDataset tars.",
            metavar="DIR",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Windows that the model here hears at a time (default 4)."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="OpenAI-compatible address, as http://localhost:8000/v1; no other is contacted.",
            rich_help_panel=_HTTP,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The endpoint's name for its model.", rich_help_panel=_HTTP),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(
            "--api-key-env",
            metavar="NAME",
            help="Environment variable with the key (default AMRCTL_API_KEY, where it is set).",
            rich_help_panel=_HTTP,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", min=1, max=256, help="Questions at a time (default 4).", rich_help_panel=_HTTP
        ),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            "--retries",
            min=0,
            help="More tries of a question that failed, with growing pauses (default 5).",
            rich_help_panel=_HTTP,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0.1, help="Seconds to wait for an answer (default 120).", rich_help_panel=_HTTP
        ),
    ] = None,
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

      amrctl rerank p.jsonl --verifier qwen2.5-omni:weights/ --audio audio/
      --out r.jsonl

      amrctl rerank val.p.jsonl --verifier http --audio audio/ --endpoint
      http://localhost:8000/v1 --model qwen --beta-grid 0.3,0.35,0.45 --val
      val.jsonl --out val.r.jsonl
    """
    from amrctl.cli._console import Console

    console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
    if listing:
        _list(console)
        return
    from amrctl import provenance
    from amrctl.data.manifest import read_manifest
    from amrctl.data.predictions import read_predictions
    from amrctl.pipeline.rerank import rerank_file
    from amrctl.rerank import catalogue
    from amrctl.rerank.asking import Manner
    from amrctl.rerank.cache import Cache, default_folder

    card, weights = catalogue.find(verifier)
    if predictions is None or out is None:
        raise AmrctlError("rerank needs P.jsonl and --out R.jsonl (or --list)")
    given = {
        "--features": features,
        "--train": train,
        "--audio-stream": audio_stream,
        "--text-stream": text_stream,
        "--audio": audio,
        "--batch": batch,
        "--device": None if device == "auto" else device,
        "--precision": None if precision == "auto" else precision,
        "--endpoint": endpoint,
        "--model": model,
        "--api-key-env": key_env,
        "--concurrency": concurrency,
        "--retries": retries,
        "--timeout": timeout,
    }
    _fit(card.name, {name for name, value in given.items() if value is not None}, card.reads)
    betas = _betas(beta, beta_grid, val)
    provenance.refuse_existing(out, overwrite)
    file = read_predictions(predictions)
    labels = None if val is None else read_manifest(val, need_windows=True)

    judge: Verifier
    manner = Manner(tolerate=tolerate, batch=batch or 4)
    if card.name == "similarity":
        assert features is not None
        judge = _similarity(console, file, features, train, audio_stream or "auto", text_stream or "auto")
        manner = Manner(tolerate=tolerate, batch=1024)
    else:
        from amrctl.rerank.sounds import Sounds

        assert audio is not None
        sounds = Sounds(audio, [item.vid for item in file], report=console)
        if card.name == "http":
            from amrctl.rerank.chat import ChatVerifier

            assert endpoint is not None
            assert model is not None
            judge = ChatVerifier(endpoint, model, sounds, key=_key(key_env), timeout=timeout or 120.0)
            tries = 5 if retries is None else retries
            manner = Manner(batch=1, concurrency=concurrency or 4, retries=tries, tolerate=tolerate)
        else:
            from amrctl.rerank.qwen_omni import QwenOmniVerifier

            judge = QwenOmniVerifier(weights, sounds, device=device, precision=precision, report=console)
    memory = Cache(default_folder() if cache is None else cache)
    done = rerank_file(
        file, judge, out, betas=betas, top_k=top_k, val=labels, cache=memory, manner=manner,
        overwrite=overwrite, report=console,
    )  # fmt: skip
    _show(console, out, done, memory)


# What each verifier takes beyond what all of them do.
_TAKES = {
    "similarity": {"--features", "--train", "--audio-stream", "--text-stream"},
    "qwen2.5-omni": {"--audio", "--batch", "--device", "--precision"},
    "http": {
        *("--audio", "--endpoint", "--model", "--api-key-env", "--concurrency", "--retries", "--timeout"),
    },
}


def _fit(name: str, given: set[str], needs: tuple[str, ...]) -> None:
    """Raise `AmrctlError` for options that the verifier has no use for, and for those it lacks."""
    foreign = sorted(given - _TAKES[name])
    if foreign:
        raise AmrctlError(
            f"--verifier {name} does not go with {', '.join(foreign)}; "
            f"leave {'it' if len(foreign) == 1 else 'them'} out"
        )
    missing = [option for option in needs if option not in given]
    if missing:
        raise AmrctlError(f"--verifier {name} needs {' and '.join(missing)}")


def _betas(beta: float | None, grid: str | None, val: Path | None) -> list[float]:
    if grid is None:
        if val is not None:
            raise AmrctlError("--val goes with --beta-grid, as --beta-grid 0.3,0.35,0.45")
        beta = BETA if beta is None else beta
        if not 0 <= beta <= 1:
            raise AmrctlError(f"--beta {beta:g} is not in 0..1")
        return [beta]
    if beta is not None:
        raise AmrctlError("--beta and --beta-grid: give one of them")
    if val is None:
        raise AmrctlError("--beta-grid needs --val, the labels of the queries of P.jsonl")
    betas = parse_floats("--beta-grid", grid)
    for one in betas:
        if not 0 <= one <= 1:
            raise AmrctlError(f"--beta-grid {grid}: {one:g} is not in 0..1")
    return betas


def _similarity(
    console: Console, file: Predictions, features: Path, train: Path | None, audio: str, text: str
) -> Verifier:
    from amrctl.data.features import FeatureFile
    from amrctl.data.manifest import read_manifest
    from amrctl.rerank.similarity import SimilarityVerifier

    labelled = None if train is None else read_manifest(train, clip_windows=True, need_windows=True)
    vids, qids = [item.vid for item in file], [item.qid for item in file]
    with FeatureFile(features) as opened:
        judge = SimilarityVerifier(opened, vids, qids, audio=audio, text=text, train=labelled)
    if judge.map is not None:
        console.note(
            f"map from text to sound: fitted on {judge.map.queries:,} queries of {train}, "
            f"strength {judge.map.strength:.3g}"
        )
    elif train is not None:
        console.note(f"both streams are in the space '{judge.audio.space}'; --train is not needed")
    return judge


def _key(variable: str | None) -> str | None:
    """The key; only a variable that was named must be there."""
    key = os.environ.get(variable or KEY, "").strip()
    if not key and variable is not None:
        raise AmrctlError(f"--api-key-env {variable}: there is no such environment variable, or it is empty")
    return key or None


def _show(console: Console, out: Path, done: Done, memory: Cache) -> None:
    from dataclasses import asdict

    from amrctl.cli._console import table

    answers = done.answers
    console.result(
        {
            "out": str(out),
            "queries": len(done.items),
            "new_best": done.new_best,
            "asked": answers.asked,
            "remembered": answers.remembered,
            "unanswered": answers.unanswered,
            "cache": str(memory.path),
            **done.how,
        }
    )
    if done.tried:
        grid = table("beta", "R1@0.7", "mAP", "")
        for one in done.tried:
            mark = "chosen" if one.beta == done.beta else "detector alone" if one.beta == 0 else ""
            grid.add_row(f"{one.beta:g}", f"{one.r1:.2f}", f"{one.map:.2f}", mark)
        console.table(grid)
        alone = next(asdict(one) for one in done.tried if one.beta == 0)
        best = next(asdict(one) for one in done.tried if one.beta == done.beta)
        if (alone["r1"], alone["map"]) > (best["r1"], best["map"]):
            console.note("the verifier does not help here: the detector alone is better than every weight")
        console.say(f"beta {done.beta:g} is the best by R1@0.7, then mAP: rerank other files with it")
    shown = table("queries", "new best window", "asked", "from cache")
    shown.add_row(
        f"{len(done.items):,}", f"{done.new_best:,}", f"{answers.asked:,}", f"{answers.remembered:,}"
    )
    console.table(shown)
    if answers.unanswered:
        console.note(f"{answers.unanswered:,} windows have no answer; the same command asks them again")
    console.say(str(out))
    console.detail(f"answers are kept in {memory.path}")


def _list(console: Console) -> None:
    """All verifiers, from their cards: none is built, nothing heavy is imported."""
    from dataclasses import asdict

    from amrctl.cli._console import table
    from amrctl.rerank.catalogue import CARDS

    shown = table("verifier", "judges by", "reads", "packages")
    for card in CARDS:
        packages = f"needs {', '.join(card.missing)}" if card.missing else "installed"
        shown.add_row(card.name, card.what, " ".join(card.reads), packages)
    console.table(shown)
    for card in CARDS:
        if card.weights:
            console.say(card.name)
            for what in ("weights", "licence", "default"):
                console.say(f"  {what}: {getattr(card, what)}")
    console.result([{**asdict(card), "missing": list(card.missing)} for card in CARDS])

"""`amrctl demo`: the whole chain for a newcomer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amrctl.cli._options import Json, Quiet, Seed


def run(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo makes.")] = Path("demo"),
    seed: Seed = 0,
    json_mode: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the whole chain on an embedded data set, in a few minutes on two cores.

    Synthesises recordings, extracts features, pre-trains, fine-tunes two seeds, averages, predicts,
    fuses, re-ranks, evaluates, packs a submission and searches a recording. Prints every command
    as you would type it. Started again on the same folder it goes on where it stopped.

    Examples:

      amrctl demo

      amrctl demo --out try --seed 1
    """
    import contextlib
    import io
    import sys
    import time

    from amrctl.cli._console import Console, table
    from amrctl.cli.app import call
    from amrctl.pipeline import demo

    console = Console(json_mode=json_mode, quiet=quiet)
    began = time.monotonic()
    plan = demo.plan(out, demo.Size(), seed)

    def perform(step: demo.Step) -> None:
        console.note(f"\n# {step.title}\n$ {step.command}")
        if step.makes and all(path.exists() for path in step.makes):
            console.note("already there")
            return
        quiet_out = json_mode or quiet
        with contextlib.redirect_stdout(io.StringIO() if quiet_out else sys.stdout):
            call([*step.arguments, *(["--quiet"] if quiet else [])])

    for step in plan.steps:
        perform(step)
    perform(demo.search_step(out, plan.test))

    found = demo.results(plan, out)
    seconds = time.monotonic() - began
    files = sorted(p for p in out.rglob("*") if p.is_file() and "audio" not in p.parts)
    console.result({"out": str(out), "seconds": round(seconds, 1), "results": found})
    metrics = ("R1@0.5", "R1@0.7", "mAP", "R5@0.7")
    shown = table("system", *metrics, title="\nOn the unseen test split")
    for name, row in found.items():
        shown.add_row(name, *(f"{row.get(m, row.get(f'MR-full-{m}', float('nan'))):.2f}" for m in metrics))
    console.table(shown)
    console.say(f"{len(files)} files in {out} (sound files not listed):")
    for path in files:
        console.say(f"  {path.relative_to(out)}")
    console.say(f"{seconds:.0f} s in all. Next: docs/tutorial.md does the same with your own recordings.")

"""How long a user waits for every verb to say what it takes (`--help`), and for a wrong option."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from amrctl.cli.app import VERBS
from benchmarks.measure import interleaved
from benchmarks.table import Row

GOAL = 0.3  # seconds, of `amrctl --help`


def rows(quick: bool) -> list[Row]:
    """Seconds from start to end of `amrctl VERB --help`; the limit is Python's own start."""
    verbs = ("", *(VERBS[:1] if quick else VERBS))
    works = {verb: partial(run, "-m", "amrctl", *([verb] if verb else []), "--help") for verb in verbs}
    works["python"] = partial(run, "-c", "pass")
    times = interleaved(works, 1 if quick else 5)
    return [
        Row(
            f"amrctl {verb} --help".replace("  ", " "),
            times[verb],
            limit=times["python"],
            note=f"goal: under {GOAL} s" if not verb else "",
        )
        for verb in verbs
    ]


def run(*arguments: str) -> None:
    """Run Python with these arguments."""
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

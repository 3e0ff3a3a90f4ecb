"""Options that mean the same in every verb."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from amrctl.errors import AmrctlError

_IO = "Common"
MOST_SEEDS = 1000
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is at --out.", rich_help_panel=_IO)
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as JSON on stdout; all else on stderr.", rich_help_panel=_IO
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=_IO)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print details.", rich_help_panel=_IO)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same machine: same result.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Precision = Annotated[
    str, typer.Option("--precision", help="fp32, bf16 or auto (the page of the verb says what that is).")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one recipe key: key.path=value (repeatable).", metavar="KEY=VALUE"),
]
ClipWindows = Annotated[
    bool,
    typer.Option(
        "--clip-windows",
        help="Go on when a labelled window ends more than 2 s after its recording.",
    ),
]
_FEATURES = typer.Option("--features", help="Feature file written by extract-tef.")
Features = Annotated[Path, _FEATURES]
OptionalFeatures = Annotated[Path | None, _FEATURES]  # where other inputs can take its place


def parse_seeds(text: str) -> list[int]:
    """`0-4`, `3`, `0,2,5-7` → sorted distinct seeds. Raises `AmrctlError`."""
    seeds: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise AmrctlError(f"--seeds {text}: write numbers and ranges, as 0-4 or 1,3,5-7")
        if len(seeds) + last - first >= MOST_SEEDS:
            raise AmrctlError(f"--seeds {text}: at most {MOST_SEEDS} runs in one command")
        seeds.update(range(first, last + 1))
    return sorted(seeds)


def parse_floats(option: str, text: str) -> list[float]:
    """`0.9,0.1` → numbers. Raises `AmrctlError` naming `option`."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise AmrctlError(f"{option} {text}: write numbers with commas between, as 0.9,0.1") from None

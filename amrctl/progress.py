"""How the library speaks while it works: silent unless the command line hands in something louder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Bar:
    """A running piece of work; the silent one counts nothing."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say that `steps` more are done; `note` (loss, metric) replaces the last note if given."""


class Reporter:
    """Where the library tells what it does. This one is silent; `cli._console` has the loud one."""

    def note(self, text: str) -> None:
        """Tell a fact the user should see once (counts of skipped or clipped things)."""

    def detail(self, text: str) -> None:
        """Tell something that only `--verbose` shows."""

    @contextlib.contextmanager
    def bar(self, title: str, total: int, *, unit: str = "it", done: int = 0) -> Iterator[Bar]:
        """Show a bar of `total` steps, `done` of them finished before (after a resume)."""
        yield Bar()


SILENT = Reporter()

"""What the command line prints: tables and JSON on stdout, progress and notes on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from amrctl.progress import Bar, Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table


class _RichBar(Bar):
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        if note:
            self._progress.update(self._task, advance=steps, note=note)
        else:
            self._progress.update(self._task, advance=steps)


class _PlainBar(Bar):
    """A line now and then, for logs: never more than one in five seconds."""

    def __init__(self, title: str, total: int, unit: str, done: int) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._before, self._done, self._note = done, done, ""
        self._began = self._spoke = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        self._note = note or self._note
        if self._done >= self._total or time.monotonic() - self._spoke >= 5:
            self.speak()

    def speak(self) -> None:
        self._spoke = time.monotonic()
        seconds = max(self._spoke - self._began, 1e-9)
        rate = (self._done - self._before) / seconds
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        print(
            f"{self._title}: {self._done}/{self._total} {self._unit}, {rate:.3g}/s, {left:.0f} s left"
            + (f", {self._note}" if self._note else ""),
            file=sys.stderr,
            flush=True,
        )


class Console(Reporter):
    """The loud reporter, and the one place that decides what goes to which stream."""

    def __init__(self, *, json_mode: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json_mode, self.quiet, self.verbose = json_mode, quiet, verbose

    def note(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        if self.verbose and not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def result(self, value: dict[str, Any] | list[Any]) -> None:
        """Print the machine-readable result when `--json` was given."""
        if self.json_mode:
            text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
            try:
                text.encode(sys.stdout.encoding or "ascii")
            except UnicodeEncodeError:
                text = json.dumps(value, indent=2, allow_nan=False)
            print(text)

    def say(self, text: str) -> None:
        """Print one line of the human result (nothing with `--json` or `--quiet`)."""
        if not self.json_mode and not self.quiet:
            print(text, flush=True)

    def table(self, table: Table) -> None:
        """Print a table of the human result (nothing with `--json` or `--quiet`)."""
        if not self.json_mode and not self.quiet:
            from rich.console import Console as RichConsole

            RichConsole(file=sys.stdout).print(table)

    @contextlib.contextmanager
    def bar(self, title: str, total: int, *, unit: str = "it", done: int = 0) -> Iterator[Bar]:
        if self.quiet:
            yield Bar()
            return
        if not sys.stderr.isatty():
            yield _PlainBar(title, total, unit, done)
            return
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:.3g} {unit}/s" if task.speed else "")

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=RichConsole(stderr=True)) as progress:
            yield _RichBar(progress, progress.add_task(title, total=total, completed=done, note=""))


def table(*columns: str, title: str | None = None) -> Table:
    """A rich table; the first column is left-aligned, the others right-aligned."""
    from rich.table import Table as RichTable

    made = RichTable(title=title, title_justify="left")
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i == 0 else "right")
    return made

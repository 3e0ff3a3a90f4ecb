"""The real command line, called as a user would: every command is printed, and remembered for the page."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """A command of the benchmark failed; it has said why on stderr."""


class Commands:
    """Runs commands from the present folder. `ran`: each as one line of text, in order."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def amrctl(self, *args: str | Path) -> None:
        """`amrctl ARGS`, its progress on stderr."""
        self._run([sys.executable, "-m", "amrctl"], "amrctl", args, capture=False)

    def answer(self, *args: str | Path) -> Any:
        """`amrctl ARGS --json`; returns what it printed."""
        words = (*args, "--json")
        return json.loads(self._run([sys.executable, "-m", "amrctl"], "amrctl", words, capture=True))

    def python(self, script: Path, *args: str | Path) -> None:
        """A script of the shared benchmark tools."""
        self._run([sys.executable, str(script)], f"python {shlex.quote(str(script))}", args, capture=False)

    def _run(self, program: list[str], shown: str, args: Sequence[str | Path], *, capture: bool) -> str:
        words = [str(arg) for arg in args]
        line = " ".join([shown, *map(shlex.quote, words)])
        self.ran.append(line)
        print(f"[{time.strftime('%H:%M:%S')}] $ {line}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [*program, *words], stdout=subprocess.PIPE if capture else sys.stderr, text=True, check=False
        )
        if done.returncode:
            raise CommandError(f"exit code {done.returncode}: {line}")
        return done.stdout or ""

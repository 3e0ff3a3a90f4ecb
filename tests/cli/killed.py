"""Commands that die at a chosen moment: a server that has everything imported and forks for each.

Run as `python -m tests.cli.killed`; a line of JSON in (`Job`), a line of JSON out (`End`). A job dies
by SIGKILL just before its file operation number `event`, or by SIGXFSZ (as final) while it writes what
lies beyond byte `size` of a file, whichever library writes. Neither: it runs to its end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Audit events of operations that change what is on the disk; "open" counts where it is for writing.
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod")


@dataclass(frozen=True)
class Job:
    """One command, run in `folder`; `event` counts from 0."""

    words: list[str]
    folder: str
    event: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class End:
    """How it ended: exit code (negative: the signal), its file operations if it lived, what it said."""

    code: int
    events: int
    said: str


class Server:
    """The process that forks, seen from the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.killed"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: Job) -> End:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(job)), file=self._process.stdin, flush=True)
        return End(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the server and wait for it."""
        self._process.communicate()


def _import_everything() -> None:
    import amrctl

    for module in pkgutil.walk_packages(amrctl.__path__, "amrctl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("matplotlib.pyplot", "rich.table", "torch._dynamo"):  # what is only loaded when used
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def count(folder: Path, fatal: int | None) -> list[int]:
    """Count changes below `folder` from now on, in this process; die before number `fatal`."""
    counted = [0]
    below = f"{folder}{os.sep}"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if not isinstance(path, (str, bytes)):
                return
            writes = any(letter in (mode or "") for letter in "wax+") or flags & (os.O_WRONLY | os.O_RDWR)
            if not writes or not os.path.abspath(os.fsdecode(path)).startswith(below):  # noqa: PTH100
                return
        elif event not in CHANGES:
            return
        if counted[0] == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        counted[0] += 1

    sys.addaudithook(hook)
    return counted


def _child(job: Job, answer: int) -> None:
    from amrctl import provenance
    from amrctl.cli.app import main

    os.chdir(job.folder)
    sys.stdout = sys.stderr = open(answer, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.argv = ["amrctl", *job.words]
    # what differs from run to run by design
    provenance.now = lambda: "2026-01-01T00:00:00Z"
    provenance.command_line = lambda: "amrctl"
    if job.size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.size, job.size))
    counted = count(Path(job.folder), job.event)
    code: object = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    sys.stdout.flush()
    os.write(answer, f"\n{counted[0]}".encode())
    os._exit(int(code) if isinstance(code, int) else 1)


def _serve() -> None:
    _import_everything()
    for line in sys.stdin:
        job = Job(**json.loads(line))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                _child(job, writing)
            except BaseException:
                import traceback

                os.write(writing, traceback.format_exc().encode())
            finally:
                os._exit(70)
        os.close(writing)
        with open(reading, encoding="utf-8", errors="replace") as stream:
            said = stream.read()
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        last = said.rpartition("\n")[2]
        print(json.dumps(asdict(End(code, int(last) if last.isdigit() else 0, said))), flush=True)


if __name__ == "__main__":
    _serve()

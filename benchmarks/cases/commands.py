"""Running `amrctl` as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def own_peak() -> float:
    """The most memory that this process has held since it began, in MB.

    Not `ru_maxrss`: on Linux a child inherits its parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        unit = 1024.0 if sys.platform != "darwin" else 1024.0 * 1024.0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def amrctl(*arguments: object) -> None:
    """Run a command; `RuntimeError` with what it said when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "amrctl", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"amrctl {' '.join(map(str, arguments))}: {done.stderr.strip()}")


def peak_of(*arguments: object) -> float:
    """Run a command, and return the most memory it held, in MB (its first process)."""
    code = (
        "import sys\n"
        "from amrctl.cli.app import main\n"
        "from benchmarks.cases.commands import own_peak\n"
        "sys.argv = ['amrctl', *sys.argv[1:]]\n"
        "try:\n    main()\nfinally:\n"
        "    print(own_peak(), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    return float(done.stderr.strip().splitlines()[-1])

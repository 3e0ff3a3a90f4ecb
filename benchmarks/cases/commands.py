"""Running `amrctl` as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def amrctl(*arguments: object) -> None:
    """Run a command; `RuntimeError` with what it said when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "amrctl", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"amrctl {' '.join(map(str, arguments))}: {done.stderr.strip()}")


def peak_of(*arguments: object) -> float:
    """Run a command, and return the most memory it held, in MB (the largest of all its processes)."""
    code = (
        "import resource, sys\n"
        "from amrctl.cli.app import main\n"
        "sys.argv = ['amrctl', *sys.argv[1:]]\n"
        "try:\n    main()\nfinally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    unit = 1024.0 if sys.platform != "darwin" else 1024.0 * 1024.0
    return float(done.stderr.strip().splitlines()[-1]) / unit

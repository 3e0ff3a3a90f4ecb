"""Work of a reference in a process of its own, as its users run it.

Our command changes how torch's threads wait and how freed memory is kept; a reference in the same process
would have that too. The process begins without them, builds its work, and does it each time it is asked to,
while this process waits.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.measure import Work

OURS = ("GOMP_SPINCOUNT",)  # what our command, and benchmarks.run, set for torch
_READY = "ready"


@contextmanager
def apart(make: Callable[..., Work], **told: Any) -> Iterator[Work]:
    """What `make(**told)` returns, done elsewhere; `make`: a function at the top of a module, `told`: what
    JSON can say. Raises `RuntimeError` when the other process fails."""
    module = make.__module__
    if module == "__main__":  # there it is another
        module = sys.modules[module].__spec__.name  # type: ignore[union-attr]
    asking = {"make": [module, make.__qualname__], "told": told, "threads": torch.get_num_threads()}
    given = {key: value for key, value in os.environ.items() if key not in OURS}
    command = [sys.executable, "-m", "benchmarks.apart", json.dumps(asking)]
    with subprocess.Popen(
        command, env=given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def wait() -> None:
            if answers.readline().strip() != _READY:
                raise RuntimeError(f"the process of {make.__qualname__} failed; see its message above")

        def work() -> None:
            asked.write("again\n")
            asked.flush()
            wait()

        wait()
        yield work
        asked.close()


def _serve(asking: Mapping[str, Any]) -> None:
    """Build the work, say so, and do it once for every line that comes in."""
    torch.set_num_threads(asking["threads"])
    module, name = asking["make"]
    make = getattr(importlib.import_module(module), name)
    with open(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the reference prints goes there
        work = make(**asking["told"])
        print(_READY, file=answers, flush=True)
        for _ in sys.stdin:
            work()
            print(_READY, file=answers, flush=True)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))

"""`python -m benchmarks.run`: one table of times beside reference code, the machine's limit, and memory.

    python -m benchmarks.run --official CLONE --page docs/performance.md
    python -m benchmarks.run --cases training metric --quick

`CLONE` holds the official baseline (`src/`, `config.yml`); without it nothing is measured beside ours
where it is the reference. Ratios come from one run, medians of several, ours and the reference by turns.
"""

from __future__ import annotations

import os

# as the command does; read when torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.measure import machine
from benchmarks.official import Official
from benchmarks.table import Row, markdown, text_table, write_block

Rows = Callable[[bool], list[Row]]
BESIDE = ("training", "prediction", "metric")  # groups that have the official code beside them
ALONE = ("seeds", "tools", "startup", "search")
MODULES = ("scan", "fusion", "extraction", "archive")  # benchmarks of their own with `rows(quick)`


def groups(reference: Official | None) -> dict[str, Rows]:
    """Name → its cases; a module of its own that is not there is left out."""
    found: dict[str, Rows] = {}
    for name in BESIDE:
        rows = importlib.import_module(f"benchmarks.cases.{name}").rows
        found[name] = lambda quick, rows=rows: rows(quick, reference)  # type: ignore[misc]
    for name in ALONE:
        found[name] = importlib.import_module(f"benchmarks.cases.{name}").rows
    for name in MODULES:
        if importlib.util.find_spec(f"benchmarks.{name}") is not None:
            rows = getattr(importlib.import_module(f"benchmarks.{name}"), "rows", None)
            if rows is not None:
                found[name] = rows
    return found


def page(rows: Sequence[Row], described: Sequence[str], command: str) -> str:
    """What stands between the markers of the page."""
    lines = [f"`{command}`", "", *(f"- {line}" for line in described), "", markdown(rows)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 when a group of cases failed (the others are printed)."""
    parser = argparse.ArgumentParser("python -m benchmarks.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--official", type=Path, help="clone of the official baseline")
    parser.add_argument("--cases", nargs="+", metavar="GROUP", help="groups of cases (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: shows that everything runs")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--page", type=Path, help="Markdown page whose block to replace")
    chosen = parser.parse_args(arguments)
    known = groups(Official(chosen.official) if chosen.official else None)
    unknown = set(chosen.cases or ()) - set(known)
    if unknown:
        parser.error(f"there is no group '{min(unknown)}'; there is {', '.join(known)}")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.page and not chosen.page.is_file():
        parser.error(f"--page {chosen.page} does not exist")
    rows: list[Row] = []
    failed = 0
    for name in chosen.cases or known:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += known[name](chosen.quick)
        except Exception as error:  # one broken case must not cost the others' minutes
            failed += 1
            rows.append(Row(name, None, note=f"failed: {type(error).__name__}: {error}"))
    described = machine()
    print("\n".join(described) + "\n\n" + text_table(rows))
    if chosen.page:
        given = [] if chosen.official is None else ["--official CLONE"]
        given += ["--cases " + " ".join(chosen.cases)] if chosen.cases else []
        given += ["--quick"] if chosen.quick else []
        write_block(chosen.page, page(rows, described, " ".join(["python -m benchmarks.run", *given])))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

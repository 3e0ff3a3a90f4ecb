"""`python -m benchmarks.accuracy`: prepare the sets, run what is missing, write the tables.

    python -m benchmarks.accuracy --data ../shared/data --bench ../shared/bench
    python -m benchmarks.accuracy --data ../shared/data --bench ../shared/bench \
        --rows my-row --seeds 0 --sets esc10
    python -m benchmarks.accuracy --tables

Stopped at any point, the same command goes on: finished runs are not repeated, an unfinished one resumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from amrctl import provenance
from amrctl.cli._options import parse_seeds
from amrctl.errors import AmrctlError
from benchmarks.accuracy import dual, second, sets, tables
from benchmarks.accuracy.chain import run_chain
from benchmarks.accuracy.commands import CommandError, Commands
from benchmarks.accuracy.control import add_control
from benchmarks.accuracy.guess import guesses
from benchmarks.accuracy.run import Places, predictions, run_row
from benchmarks.accuracy.settings import SETS, Row, read_plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 when a command failed (its own message is on stderr)."""
    parser = argparse.ArgumentParser("python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with esc10/ and annotations/")
    parser.add_argument("--bench", type=Path, help="folder with crop.py and simfeatures.py")
    parser.add_argument("--rows", nargs="+", help="rows of rows.yaml (default: all)")
    parser.add_argument("--seeds", help="as 0-2 (default: those of each row)")
    parser.add_argument("--sets", nargs="+", choices=SETS, help="default: those of each row")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/accuracy/work"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/accuracy/results"))
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--again", action="store_true", help="run the chosen rows anew")
    parser.add_argument("--tables", action="store_true", help="only write the page from the stored results")
    chosen = parser.parse_args(arguments)
    plan = read_plan()
    unknown = set(chosen.rows or ()) - set(plan.rows)
    if unknown:
        parser.error(f"no row is called {sorted(unknown)[0]}; rows.yaml has: {', '.join(plan.rows)}")
    if not chosen.tables and not (chosen.data and chosen.bench):
        parser.error("--data and --bench say where the material lies (or use --tables)")
    places = Places(chosen.work, chosen.results)
    try:
        if not chosen.tables:
            sources = sets.Sources(chosen.data, chosen.bench)
            for name in chosen.sets or SETS:
                rows = [row for row in plan.rows.values() if name in row.sets]
                rows = [row for row in rows if not chosen.rows or row.name in chosen.rows]
                data = sets.prepare(name, chosen.work, sources, chosen.results)
                provenance.write_json(places.results / name / "guess.json", guesses(data))
                plain = data
                for row in rows:
                    data = plain
                    if row.features == "streams":
                        data = second.add_streams(plain, places.results)
                    elif row.features == "dual":
                        data = dual.add_dual(plain, sources)
                    seeds = parse_seeds(chosen.seeds) if chosen.seeds else list(row.seeds)
                    for seed in seeds:
                        result = run_row(plan, row, data, seed, places, again=chosen.again)
                        add_control(result, plain, places)
                        print(f"{name} {row.name} seed {seed}: R1@0.7 {result['metrics']['R1@0.7']:.2f}")
                        tables.write_page(chosen.page, places.results, SETS, list(plan.rows))
                    compare(row, data, places)
                    run_chain(row, data, stored_seeds(row.name, data, places), places, again=chosen.again)
        tables.write_page(chosen.page, places.results, SETS, list(plan.rows))
    except (AmrctlError, CommandError, sets.FrozenError) as error:
        print(f"benchmarks.accuracy: {error}", file=sys.stderr)
        return 1
    return 0


def stored_seeds(row: str, data: sets.DataSet, places: Places) -> list[int]:
    """Seeds of a row that have a stored result."""
    return [run["seed"] for run in tables.read_results(places.results, data.name).get(row, ())]


def compare(row: Row, data: sets.DataSet, places: Places) -> None:
    """Store the paired tests of a row against its references, over the seeds that both have."""
    for reference in row.references:
        both = set(stored_seeds(row.name, data, places)) & set(stored_seeds(reference, data, places))
        seeds = sorted(both)
        if not seeds:
            continue
        ours = [predictions(data.name, row.name, seed, places) for seed in seeds]
        theirs = [predictions(data.name, reference, seed, places) for seed in seeds]
        if None in ours or None in theirs:
            print(
                f"{data.name} {row.name}: not tested against {reference}, files are missing", file=sys.stderr
            )
            continue
        files = [path for path in ours if path], [path for path in theirs if path]
        report = Commands().answer(
            "evaluate", *files[0], "--test", data.manifest("test"), "--against", *files[1]
        )
        told = {"row": row.name, "reference": reference, "seeds": seeds}
        provenance.write_json(
            places.results / data.name / f"{row.name}.against.{reference}.json",
            {**told, "metrics": report["against"]["metrics"]},
        )


if __name__ == "__main__":
    raise SystemExit(main())

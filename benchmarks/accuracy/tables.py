"""The stored results as Markdown, between the markers of `docs/results.md`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amrctl import provenance

METRICS = ("R1@0.5", "R1@0.7", "mAP", "R5@0.7", "mIoU")
COUNTS = ("recordings", "queries", "moments")
BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"


def mean_and_spread(values: Sequence[float]) -> str:
    """`12.3 ± 0.4`: mean and standard deviation (n - 1); the mean alone for one value."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def paired_cell(told: Mapping[str, Any]) -> str:
    """`+1.2 (0.3 to 2.1), p 0.012`, with **beats** where it does."""
    spread = f"{told['difference']:+.1f} ({told['low']:+.1f} to {told['high']:+.1f}), p {told['p']:.3f}"
    return f"{spread}, **beats**" if told["beats"] else spread


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; numbers to the right, the first column to the left."""
    line = "| " + " | ".join(header) + " |"
    return [line, "|---|" + "---:|" * (len(header) - 1), *("| " + " | ".join(row) + " |" for row in rows)]


def read_results(results: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """Row → its stored runs by seed, in the order of the file names."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in _read(results / name, "*.seed-*.json"):
        rows.setdefault(run["row"], []).append(run)
    return {row: sorted(runs, key=lambda run: int(run["seed"])) for row, runs in rows.items()}


def main_table(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], guess: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Mean and spread over seeds of every row; the guesses first."""
    lines = [[name, "", *(f"{told[m]:.1f}" for m in METRICS), "", "", ""] for name, told in guess.items()]
    for row, runs in rows.items():
        minutes = [sum(run["minutes"].values()) for run in runs]
        lines.append(
            [
                f"`{row}`",
                str(len(runs)),
                *(mean_and_spread([run["metrics"][metric] for run in runs]) for metric in METRICS),
                mean_and_spread([run["permuted"]["R1@0.7"] for run in runs]),
                mean_and_spread([run["control"]["chance"] for run in runs])
                if all("control" in run for run in runs)
                else "",
                f"{statistics.fmean(minutes):.1f}" if any(minutes) else "",
            ]
        )
    return table(["row", "seeds", *METRICS, "R1@0.7 permuted", "by chance", "minutes a run"], lines)


def section(results: Path, name: str, order: Sequence[str]) -> list[str]:
    """Everything that is stored about one set. `order`: rows as `rows.yaml` lists them."""
    stored = read_results(results, name)
    rows = {row: stored[row] for row in (*order, *sorted(set(stored) - set(order))) if row in stored}
    if not rows:
        return [f"### {name}", "", "No results yet.", ""]
    data = json.loads((results / name / "data.json").read_text(encoding="utf-8"))
    guess_file = results / name / "guess.json"
    guess = json.loads(guess_file.read_text(encoding="utf-8")) if guess_file.is_file() else {}
    lines = [f"### {name}", ""]
    lines += table(
        ["manifest", *COUNTS],
        [[n, *(f"{told[key]:,}" for key in COUNTS)] for n, told in data["manifests"].items()],
    )
    lines += ["", *main_table(rows, guess), ""]
    compared = _read(results / name, "*.against.*.json")
    place = {row: i for i, row in enumerate(rows)}
    if compared:
        lines += ["Paired differences (95% interval over recordings, seeds averaged):", ""]
        lines += table(
            ["row", "against", "seeds", "R1@0.7", "mAP"],
            [
                [f"`{c['row']}`", f"`{c['reference']}`", str(len(c["seeds"]))]
                + [paired_cell(c["metrics"][m]) for m in ("R1@0.7", "mAP")]
                for c in sorted(compared, key=lambda c: place.get(c["row"], len(place)))
            ],
        )
        lines.append("")
    chains = _read(results / name, "*.chain.json")
    if chains:
        lines += ["From the same runs, without more training; the difference is to their mean:", ""]
        lines += table(
            ["from", "what", *METRICS, "difference in R1@0.7"],
            [
                [
                    f"`{chain['row']}`", what, *(f"{told['metrics'][m]:.1f}" for m in METRICS),
                    paired_cell(told["against"]["R1@0.7"]),
                ]
                for chain in chains
                for what, told in chain["made"].items()
            ],
        )  # fmt: skip
        lines.append("")
    first = next(iter(rows.values()))[0]
    commands = [*(data.get("commands") or ()), *first["commands"]]
    lines += ["Commands (data, then the first run of the first row):", "", "```", *commands, "```", ""]
    return lines


def write_page(page: Path, results: Path, names: Sequence[str], order: Sequence[str]) -> None:
    """Replace what lies between the markers of `page`; `ValueError` when a marker is missing."""
    text = page.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found_begin and found_end):
        raise ValueError(f"{page} lacks {BEGIN} or {END}")
    lines = [line for name in names for line in section(results, name, order)]
    provenance.write_text(page, f"{before}{BEGIN}\n" + "\n".join(lines) + f"{END}{after}")


def _read(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]

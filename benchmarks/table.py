"""The rows that benchmarks hand in, and the one table they are printed in.

A module with cases has `rows(quick: bool) -> list[Row]`; `quick` asks for small sizes and few
repetitions, where the numbers only show that the case runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amrctl import provenance

BEGIN, END = "<!-- performance:begin -->", "<!-- performance:end -->"
HEADER = ("case", "ours", "reference", "unit", "ratio", "of the limit", "MB", "note")


@dataclass(frozen=True)
class Row:
    """One measured case.

    `ours`, `reference`, `limit` are in `unit` (seconds if nothing else is said; medians of several);
    `reference` is None where nothing was measured beside ours; `limit` is what the machine could do
    at best (its matrix-product time for the counted operations, or the time of just reading), None
    where nothing sensible bounds the case. `memory_mb`: peak of ours beyond what was there before.
    `higher_is_better` for rates.
    """

    case: str
    ours: float | None
    reference: float | None = None
    unit: str = "s"
    limit: float | None = None
    memory_mb: float | None = None
    note: str = ""
    higher_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the reference; None without either."""
        if not self.ours or self.reference is None:
            return None
        return self.ours / self.reference if self.higher_is_better else self.reference / self.ours

    @property
    def of_limit(self) -> float | None:
        """Share of the limit that is reached, 1.0 at the limit; None without one."""
        if not self.ours or not self.limit:
            return None
        return self.ours / self.limit if self.higher_is_better else self.limit / self.ours


def number(value: float | None) -> str:
    """Three significant digits, without exponent; empty for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.6f}".rstrip("0")


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, one entry per column of `HEADER`."""
    ratio, share = row.ratio, row.of_limit
    return (
        row.case,
        number(row.ours),
        number(row.reference),
        row.unit,
        "" if ratio is None else f"{ratio:.2f} x",
        "" if share is None else f"{100 * share:.0f} %",
        "" if row.memory_mb is None else f"{row.memory_mb:,.0f}",
        row.note,
    )


def text_table(rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal."""
    lines = [HEADER, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]

    def laid(line: Sequence[str]) -> str:
        sides = ("<", ">", ">", "<", ">", ">", ">", "<")
        return "  ".join(f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths, strict=True)).rstrip()

    return "\n".join([laid(HEADER), "  ".join("-" * w for w in widths), *(laid(line) for line in lines[1:])])


def markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---:|---:|---|---:|---:|---:|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def write_block(page: Path, content: str) -> None:
    """Replace what lies between the markers of `page`; `ValueError` when a marker is missing."""
    text = page.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found_begin and found_end):
        raise ValueError(f"{page} lacks {BEGIN} or {END}")
    provenance.write_text(page, f"{before}{BEGIN}\n{content}\n{END}{after}")

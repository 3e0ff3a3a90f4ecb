"""What DCASE 2026 Task 6 asks of names and limits: the writer keeps to it, the check holds against it.

Source: the organisers' validator of 2020 for labels. The CSV columns are a convenience of ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from amrctl.errors import SubmissionError

TASK = "task6"
MAX_SYSTEMS = 4
MAX_WINDOWS = 10  # more are never read by the official scorer
COLUMNS = ("qid", "vid", "query", "rank", "start", "end", "score")
END_TOLERANCE = 1e-6  # seconds: the noise of arithmetic, not of annotators
_PART = re.compile(r"[A-Za-z0-9-]+")


@dataclass(frozen=True)
class Label:
    """`Surname_Institute_task6_n`. `base` is the label without its number."""

    surname: str
    institute: str
    number: int

    @property
    def base(self) -> str:
        return f"{self.surname}_{self.institute}_{TASK}"

    def __str__(self) -> str:
        return f"{self.base}_{self.number}"


def parse_label(text: str) -> Label:
    """Exactly four parts: surname, institute, `task6`, 1 to 4. Raises `SubmissionError`."""
    parts = text.split("_")
    wanted = f"'{text}' is no label; write Surname_Institute_{TASK}_1"
    if len(parts) != 4:
        raise SubmissionError(f"{wanted} (4 parts joined by _, this has {len(parts)})")
    for part in parts[:2]:
        if not _PART.fullmatch(part):
            raise SubmissionError(f"{wanted} ('{part}' may hold letters a to z, digits and - only)")
    if parts[2] != TASK:
        raise SubmissionError(f"{wanted} (the third part is '{parts[2]}')")
    if parts[3] not in {str(n) for n in range(1, MAX_SYSTEMS + 1)}:
        raise SubmissionError(f"{wanted} (the number is '{parts[3]}', 1 to {MAX_SYSTEMS} are allowed)")
    return Label(parts[0], parts[1], int(parts[3]))


def labels_for(label: Label, count: int) -> list[Label]:
    """`count` labels from `label` on; `SubmissionError` where they would pass 4."""
    last = label.number + count - 1
    if last > MAX_SYSTEMS:
        raise SubmissionError(
            f"{count} files from {label} on end at number {last}; at most {MAX_SYSTEMS} systems are taken"
        )
    return [replace(label, number=label.number + i) for i in range(count)]

"""Kinds of queries: every query falls into exactly one stratum of each kind.

- `moment_length`: mean length of the query's moments, seconds (the moments of one query are occurrences
  of one event, so one number describes them; the strata add up to all queries);
- `moments`: how many moments the query has (with more than 10, ten windows cannot find them all);
- `recording_length`: duration of the recording, seconds.

The upper bound belongs to the stratum. Moments are those that count (see `moments.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amrctl.evaluation.moments import Paired


@dataclass(frozen=True)
class Kind:
    """One way to divide queries. `bounds`: upper bounds, ascending; `names`: one more than bounds."""

    key: str
    title: str
    bounds: tuple[float, ...]
    names: tuple[str, ...]


KINDS = (
    Kind("moment_length", "moment length", (3, 10, 30), ("<= 3 s", "3-10 s", "10-30 s", "> 30 s")),
    Kind("moments", "moments", (1, 3, 10), ("1", "2-3", "4-10", "> 10")),
    Kind("recording_length", "recording length", (60, 180), ("<= 60 s", "60-180 s", "> 180 s")),
)


def strata(paired: Paired) -> Iterator[tuple[Kind, str, npt.NDArray[np.bool_]]]:
    """Yield `(kind, name, members)`; `members` is a (Q,) mask over the rows of `paired`."""
    for kind in KINDS:
        place = np.searchsorted(kind.bounds, _measure(kind.key, paired), side="left")
        for i, name in enumerate(kind.names):
            yield kind, name, place == i


def _measure(key: str, paired: Paired) -> npt.NDArray[np.float64]:
    def mean(windows: Sequence[tuple[float, float]]) -> float:
        return sum(end - start for start, end in windows) / len(windows)

    if key == "moment_length":
        found = [mean(windows) for windows in paired.moments]
    elif key == "moments":
        found = [float(len(windows)) for windows in paired.moments]
    else:
        found = [query.duration for query in paired.queries]
    # 44.1 - 41.1 is 3 s, not a little more
    return np.array([round(value, 6) for value in found], dtype=np.float64)

"""What `--seeds` understands, and what it says to the rest."""

from __future__ import annotations

import pytest

from amrctl.cli._options import parse_seeds
from amrctl.errors import AmrctlError


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [3]), ("0-4", [0, 1, 2, 3, 4]), ("5, 1,1-2", [1, 2, 5]), ("0-999", [*range(1000)])],
)
def test_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "-1", "3-1", "1,,2", "1-", "\u00b2", "1" * 10, "9" * 5000])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(AmrctlError, match="write numbers and ranges"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["0-1000", "0-499,500-1000", "0-100000000"])
def test_a_slip_does_not_start_a_million_runs(text: str) -> None:
    with pytest.raises(AmrctlError, match="at most 1000 runs"):
        parse_seeds(text)

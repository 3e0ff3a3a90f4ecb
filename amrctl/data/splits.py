"""Dividing things by fractions: how many each split gets, and which clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def shares(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Divide `total` things by `fractions` (sum 1) into whole numbers, largest remainders first."""
    exact = {name: total * share for name, share in fractions.items()}
    # 1e-9: 0.7 * 10 is 7.000000000000001 in floats, and must not take from the others
    got = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    order = sorted(exact, key=lambda name: got[name] - exact[name])
    for name in order[: total - sum(got.values())]:
        got[name] += 1
    return got


def divide(clips: Sequence[tuple[str, str]], splits: Mapping[str, float], seed: int) -> dict[str, str]:
    """Divide (event, file) pairs at random: file → split.

    Every event's clips are divided in the proportions of `splits` (rounded down); what is left
    over goes to the split that is furthest below its share of all clips. Events with one clip,
    as in Clotho, are thus divided as a whole.
    """
    rng = np.random.default_rng([seed, 7_001])
    groups: dict[str, list[str]] = {}
    for event, file in clips:
        groups.setdefault(event, []).append(file)
    given = dict.fromkeys(splits, 0)
    found: dict[str, str] = {}
    names = list(groups)
    for position in rng.permutation(len(names)):
        files = groups[names[position]]
        order = [files[i] for i in rng.permutation(len(files))]
        quota = {name: int(len(order) * share + 1e-9) for name, share in splits.items()}
        for file in order:
            split = next((name for name, left in quota.items() if left), None)
            if split is None:
                total = sum(given.values()) + 1
                split = max(splits, key=lambda name: splits[name] * total - given[name])
            else:
                quota[split] -= 1
            given[split] += 1
            found[file] = split
    return found

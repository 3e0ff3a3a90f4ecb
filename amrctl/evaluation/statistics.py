"""How sure a metric is: the bootstrap over recordings, and the paired comparison of two systems.

**Why recordings.** Queries about one recording share its sound, so they are not independent; what is
drawn again is the recording, with all its queries.

**Bootstrap.** A resample draws as many recordings as there are, with replacement, and takes the mean
over all queries of the drawn recordings (one drawn twice counts twice). The 95% interval runs from the
2.5th to the 97.5th percentile of the resamples (Efron and Tibshirani 1993, section 13.3).

**Several seeds.** A query's value is its mean over the seeds of a system; seeds are not drawn again. The
interval is therefore about the recordings; how far seeds lie apart is told by their standard deviation.

**Paired comparison.** Both systems are scored on the same resamples. With D_b the difference of the two
means in resample b of B, the interval is the percentile interval of D, and the two-sided p-value is

    p = min(1, 2 * (1 + min(#{D_b <= 0}, #{D_b >= 0})) / (B + 1))

the level at which that interval would just touch 0; it is never below 2 / (B + 1). One system beats
another when its mean is higher and p < 0.05. Differences below 1e-12 count as 0: that is what adding the
same seeds in another order can leave behind.

Everything is seeded: the same seed and the same recordings in the same order give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESAMPLES = 2000
NOISE = 1e-12
SIGNIFICANT = 0.05
_CELLS = 4_000_000  # of one block of weights: 32 MB


def groups(names: Sequence[str]) -> Ints:
    """Number equal names alike, from 0 in order of first appearance; shape (len(names),)."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def resampled_means(
    values: npt.ArrayLike, group: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """The mean of every column of `values` in each resample, shape (resamples, M).

    `values`: (Q, M), one row per query. `group`: (Q,), the number of each query's recording, 0 to V - 1,
    each of which occurs. Raises `ValueError` when the two do not fit.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or group.shape != (len(rows),) or not len(rows):
        raise ValueError(f"values {rows.shape} and group {group.shape} do not fit, or are empty")
    counts = np.bincount(group).astype(np.float64)
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, group, rows)
    blocks = [(w @ sums) / (w @ counts)[:, None] for w in _weights(len(counts), resamples, seed)]
    return np.concatenate(blocks)


def interval(means: Floats) -> Floats:
    """The 95% percentile interval of each column: (resamples, M) to (2, M), low and high."""
    return np.asarray(np.quantile(means, (0.025, 0.975), axis=0), dtype=np.float64)


def p_values(differences: Floats) -> Floats:
    """Two-sided p-value of each column: (resamples, M) differences to (M,)."""
    below = (differences <= NOISE).sum(axis=0)
    above = (differences >= -NOISE).sum(axis=0)
    return np.asarray(np.minimum(1.0, 2 * (1 + np.minimum(below, above)) / (len(differences) + 1)))


def _weights(recordings: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each recording is drawn in each resample, in blocks of shape (n, recordings)."""
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS // recordings)
    for begin in range(0, resamples, block):
        n = min(block, resamples - begin)
        drawn = generator.integers(recordings, size=(n, recordings))
        cells = (drawn + np.arange(n)[:, None] * recordings).ravel()
        yield np.bincount(cells, minlength=n * recordings).reshape(n, recordings).astype(np.float64)

"""Hungarian matching against every permutation."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.batch import Targets
from amrctl.losses.matching import MOST, assign, costs, match, match_by_trying, try_all
from amrctl.spans import generalised_iou, to_start_end


def targets(counts: list[int], moments: int, seed: int = 0) -> Targets:
    size = len(counts)
    mask = torch.arange(moments)[None] < torch.tensor(counts)[:, None]
    spans = torch.rand(size, moments, 2, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.1
    none = torch.zeros(size, 2, dtype=torch.int64)
    return Targets(
        spans=spans,
        mask=mask,
        ignored=torch.zeros(size, 1, 2),
        ignored_mask=torch.zeros(size, 1, dtype=torch.bool),
        saliency=torch.zeros(size, 4),
        positives=none,
        negatives=none,
        pair_mask=torch.zeros(size, dtype=torch.bool),
        negative_row=torch.full((size,), -1),
    )


def cheapest(cost: npt.NDArray[np.float64]) -> float:
    """The least total over all one-to-one assignments of the smaller side."""
    if cost.shape[0] < cost.shape[1]:
        cost = cost.T
    queries, moments = cost.shape
    return min(
        (
            sum(float(cost[q, m]) for m, q in enumerate(chosen))
            for chosen in permutations(range(queries), moments)
        ),
        default=0.0,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.integers(0, 6), min_size=1, max_size=3),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_assignment_is_the_cheapest(queries: int, counts: list[int], seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    most = max([*counts, 1])
    cost = rng.normal(size=(len(counts), queries, most))
    if ties:
        cost = np.round(cost)
    cost[:, :, :] = np.where(np.arange(most) < np.array(counts)[:, None, None], cost, -1e9)  # padding tempts
    rows, chosen, moments = assign(cost, np.array(counts, dtype=np.int64))
    assert len(rows) == sum(min(queries, count) for count in counts)
    for b, count in enumerate(counts):
        pairs = [(q, m) for r, q, m in zip(rows, chosen, moments, strict=True) if r == b]
        assert len({q for q, _ in pairs}) == len({m for _, m in pairs}) == len(pairs) == min(queries, count)
        assert all(m < count for _, m in pairs)
        assert sum(cost[b, q, m] for q, m in pairs) == pytest.approx(cheapest(cost[b, :, :count]))


def test_costs_by_hand() -> None:
    """10 L1 - gIoU - 4 p, in float32, for every layer, row, query and moment."""
    made = targets([2, 1], 2)
    generator = torch.Generator().manual_seed(1)
    spans = torch.rand(3, 2, 4, 2, generator=generator).bfloat16().float()
    p = torch.rand(3, 2, 4, generator=generator)
    got = costs(p, spans, made, span=10.0, giou_weight=1.0, label=4.0)
    assert got.shape == (3, 2, 4, 2)
    for s in range(3):
        for b in range(2):
            a, c = spans[s, b].double().numpy(), made.spans[b].double().numpy()
            l1 = np.abs(a[:, None] - c[None]).sum(-1)
            giou = generalised_iou(to_start_end(a), to_start_end(c))
            wanted = 10 * l1 - giou - 4 * p[s, b].double().numpy()[:, None]
            np.testing.assert_allclose(got[s, b].numpy(), wanted, atol=1e-5)


def test_every_layer_is_matched_by_itself() -> None:
    made = targets([1, 2, 0], 2)
    generator = torch.Generator().manual_seed(2)
    cost = torch.rand(2, 3, 5, 2, generator=generator)
    layers = match(cost, made)
    assert len(layers) == 2
    for s, layer in enumerate(layers):
        alone = match(cost[s : s + 1], made)[0]
        assert torch.equal(layer.row, torch.tensor([0, 1, 1]))
        assert all(
            torch.equal(a, b)
            for a, b in ((layer.row, alone.row), (layer.query, alone.query), (layer.moment, alone.moment))
        )
        assert layer.query.dtype == layer.moment.dtype == torch.int64
        first = int(cost[s, 0, :, 0].argmin())
        assert (int(layer.query[0]), int(layer.moment[0])) == (first, 0)


def test_no_targets_at_all() -> None:
    for layer in match(torch.rand(2, 3, 4, 1), targets([0, 0, 0], 1)):
        assert layer.row.shape == layer.query.shape == layer.moment.shape == (0,)
        assert layer.row.dtype == torch.int64


def test_more_targets_than_queries() -> None:
    cost = torch.tensor([[[3.0, 1.0, 2.0], [1.0, 5.0, 5.0]]])[None]
    (layer,) = match(cost, targets([3], 3))
    assert sorted(zip(layer.query.tolist(), layer.moment.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_a_cost_that_is_not_finite_does_not_stop_the_run() -> None:
    """The loss itself is what reports the divergence, with its step."""
    cost = torch.tensor([[[math.nan, 1.0], [2.0, math.inf], [0.0, -math.inf]]])[None]
    (layer,) = match(cost, targets([2], 2))
    assert sorted(zip(layer.query.tolist(), layer.moment.tolist(), strict=True)) == [(1, 0), (2, 1)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, MOST).flatmap(lambda most: st.tuples(st.just(most), st.integers(most, 12))),
    st.integers(1, 6),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_trying_all_is_as_cheap_as_scipy(sizes: tuple[int, int], rows: int, seed: int, ties: bool) -> None:
    """Equal total cost, every real moment with a query of its own, whatever stands on padding."""
    moments, queries = sizes
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(rows, queries, moments)).astype(np.float32)
    if ties:
        cost = np.round(cost)
    counts = rng.integers(0, moments + 1, rows)
    real = np.arange(moments) < counts[:, None]
    cost = np.where(real[:, None], cost, np.float32(-1e6))
    chosen = try_all(torch.from_numpy(cost), torch.from_numpy(real)).numpy()
    wanted = np.zeros(rows)
    for r, q, m in zip(*assign(cost, counts), strict=True):
        wanted[r] += float(cost[r, q, m])
    for r, count in enumerate(counts.tolist()):
        taken = chosen[r, :count]
        assert len(set(taken.tolist())) == count
        assert float(cost[r, taken, np.arange(count)].astype(np.float64).sum()) == pytest.approx(wanted[r])


def test_both_ways_of_matching_agree() -> None:
    """Distinct costs have one best assignment; the pairs come in the same order."""
    made = targets([1, 5, 0, 3], 5)
    cost = torch.rand(3, 4, 10, 5, generator=torch.Generator().manual_seed(3))
    held = made.mask.nonzero()
    for known in (made, replace(made, pairs=held)):
        tried = match_by_trying(cost, known)
        assert len(tried) == 3
        for here, there in zip(match(cost, made), tried, strict=True):
            pairs = [sorted(zip(*(t.tolist() for t in vars(m).values()), strict=True)) for m in (here, there)]
            assert pairs[0] == pairs[1]

"""Plans without audio: the rules, and the published numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st

from amrctl.data.manifest import read_manifest
from amrctl.data.synth import SynthSettings, run, synthesise, with_preset
from amrctl.data.synth.mix import render
from amrctl.data.synth.plan import Planner
from amrctl.data.synth.pool import Clip, SplitPool
from tests.data.synth.helpers import RATE, planned, settings


def fake_planner(made: SynthSettings, events: int, clips: int) -> Planner:
    pools = {}
    for name in made.counts():
        members = tuple(
            Clip(Path(f"{name}{e}-{c}"), f"{name}{e}-{c}", f"e{e}", (f"says {e}", f"tells {e}"))
            for e in range(events)
            for c in range(clips)
        )
        index = {f"e{e}": tuple(range(e * clips, (e + 1) * clips)) for e in range(events)}
        pools[name] = SplitPool(members, index, ())
    return run.make_planner(made, pools)


@few(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    low=st.integers(0, 3),
    more=st.integers(0, 2),
    repeats=st.integers(1, 3),
    overlap=st.booleans(),
    snap=st.booleans(),
    gap=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    long=st.floats(0.05, 4.0),
)
def test_every_plan_keeps_the_rules(
    seed: int, low: int, more: int, repeats: int, overlap: bool, snap: bool, gap: float, long: float
) -> None:
    made = settings(
        seed=seed,
        recordings=4,
        length=(100.0, 120.0),
        events_per_recording=(low, low + max(more, int(low == 0))),
        repeats=(1, repeats),
        overlap=overlap,
        snap=snap,
        gap=gap,
    )
    planner = fake_planner(made, 6, 2)
    lengths = {clip.file: long * (1 + i % 3) for i, clip in enumerate(planner.pools[""].clips)}
    for i in range(4):
        plan = planner.plan("", i, lambda clip: lengths[clip.file])
        assert 100 <= plan.duration <= 120
        assert plan.duration.is_integer()
        grid = 1.0 if snap else 0.1
        for placed in plan.events:
            assert 0 <= placed.start < placed.end <= plan.duration + 1e-9
            assert placed.start / grid == pytest.approx(round(placed.start / grid), abs=1e-6)
            wanted = max(grid, lengths[placed.clip.file])
            assert placed.end - placed.start == pytest.approx(wanted, abs=grid / 2 + 1e-6)
        if not overlap:
            for a, b in zip(plan.events, plan.events[1:], strict=False):
                assert b.start - a.end >= gap - 1e-6
        assert made.events_per_recording[0] <= len(plan.queries) <= made.events_per_recording[1]
        assert len({q.event for q in plan.queries}) == len(plan.queries)
        for query in plan.queries:
            mine = [p for p in plan.events if p.clip.event == query.event]
            assert query.sentence in mine[0].clip.captions
            assert 1 <= len(mine) <= repeats
            # the windows are the union of the occurrences: seen on a fine grid
            at = np.arange(0, plan.duration, 0.05) + 0.025
            inside = np.any([(p.start < at) & (at < p.end) for p in mine], axis=0)
            labelled = np.any([(s < at) & (at < e) for s, e in query.windows], axis=0)
            assert np.array_equal(inside, labelled)
            ends = [e for _, e in query.windows]
            assert all(e < s for e, (s, _) in zip(ends, query.windows[1:], strict=False))


def test_five_minute_plan_has_the_published_counts() -> None:
    """Yokohama report, Table 1."""
    made = with_preset("five-minute", {"events": "builtin"})
    planner = fake_planner(made, 40, 1)
    recordings: Counter[str] = Counter()
    queries: Counter[str] = Counter()
    sizes = set()
    for split, count in made.counts().items():
        for i in range(count):
            plan = planner.plan(split, i, lambda clip: 20.0)
            recordings[split] += 1
            queries[split] += len(plan.queries)
            sizes.add(len(plan.queries))
            assert plan.duration == 300
    assert recordings == {"train": 5_000, "val": 500}
    assert queries == {"train": 14_385, "val": 1_414}
    assert sizes == {1, 2, 3, 4, 5}
    half = with_preset("five-minute", {"events": "builtin", "recordings": 550})
    assert half.counts() == {"train": 500, "val": 50}
    assert half.query_counts() == {"train": round(1438.5), "val": round(141.4)}


def test_clotho_moment_plan_follows_the_published_rules() -> None:
    """Sounds of 20 s, gaps Exp(30 s): P(none) = exp(-40/30); P(two) = 1 - exp(-20/30)(1 + 20/30).

    The published test split has 27.7% without, 15.2% with two or three sounds (20.2 s on average).
    """
    made = with_preset("clotho-moment", {"events": "builtin"})
    assert made.counts() == {"train": 37_930, "val": 5_741, "test": 7_569}
    planner = fake_planner(made, 300, 1)
    plans = [planner.plan("test", i, lambda clip: 20.0) for i in range(7_569)]
    found = Counter(len(plan.events) for plan in plans)
    deviation = np.sqrt(7_569 * 0.25)
    assert found[0] == pytest.approx(7_569 * np.exp(-4 / 3), abs=3 * deviation)
    assert found[2] == pytest.approx(7_569 * (1 - np.exp(-2 / 3) * (5 / 3)), abs=3 * deviation)
    assert found[3] == 0 or max(found) == 3
    for plan in plans:
        for a, b in zip(plan.events, plan.events[1:], strict=False):
            assert b.start >= a.end - 0.11
        assert all(p.end <= 60 and round(p.start * 10) == pytest.approx(p.start * 10) for p in plan.events)
        assert len({p.clip.file for p in plan.events}) == len(plan.events)


def test_clotho_moment_levels(tmp_path: Path) -> None:
    ground = tmp_path / "walks"
    ground.mkdir()
    noise = np.random.default_rng(1).normal(0, 0.02, 70 * RATE).astype(np.float32)
    for name in ("x", "y", "z"):
        soundfile.write(ground / f"{name}.wav", noise, RATE, subtype="FLOAT")
    made = with_preset(
        "clotho-moment", {"events": "builtin", "recordings": 12, "rate": RATE, "backgrounds": str(ground)}
    )
    planner, shelf, plans = planned(made)
    seen = 0
    for plan in plans:
        mixed = render(plan, planner, shelf)
        assert np.abs(mixed.mix).max() == pytest.approx(32767 / 32768, rel=1e-6)
        assert plan.background_start.is_integer()
        assert plan.background_level is not None
        assert -25 <= plan.background_level <= -15
        rms = np.sqrt((mixed.background.astype(np.float64) ** 2).mean())
        start = round(plan.background_start * RATE)
        whole = np.sqrt((noise[start : start + 60 * RATE].astype(np.float64) ** 2).mean())
        assert rms / mixed.scale == pytest.approx(whole * 10 ** (plan.background_level / 20), rel=1e-4)
        for placed, (_, stem) in zip(plan.events, mixed.stems, strict=True):
            ratio = 20 * np.log10(np.abs(stem).max() / rms)
            assert ratio == pytest.approx(placed.level - plan.background_level, abs=0.01)
            assert 10 <= ratio <= 30
            assert len(stem) % RATE == 0
            seen += 1
    assert seen >= 5
    starts = [(p.background, p.background_start) for p in plans if p.split == "train"]
    assert len(set(starts)) == len(starts)


def test_exact_number_of_queries(tmp_path: Path) -> None:
    made = settings(recordings=10, splits={"a": 0.7, "b": 0.3}, queries={"": 33}, events_per_recording=(3, 4))
    result = synthesise(made, tmp_path / "out")
    assert result.recordings == {"a": 7, "b": 3}
    assert sum(result.queries.values()) == 33
    assert {name: len(read_manifest(path)) for name, path in result.manifests.items()} == result.queries

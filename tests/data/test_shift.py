"""The temporal shift against a roll done by hand, frame by frame and moment by moment."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.data.batch import Batch, Targets
from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.data.manifest import Manifest
from amrctl.data.shift import Shifts, rolled
from amrctl.data.targets import mix, saliency_labels
from amrctl.data.teacher import TeacherSet
from amrctl.errors import RecipeError
from amrctl.spans import frame_coverage
from tests.small import manifest, query, recipe, write_features

SHIFT = "train.shift=true"
Windows = list[tuple[float, float]]


def by_hand(windows: Windows, frames: int, hop: float, offset: int) -> Windows | None:
    """The moments after a cyclic roll to the right; None where one of them would be cut."""
    length, moved = frames * hop, []
    for start, end in windows:
        start, end = start + offset * hop, end + offset * hop
        if start < length - 1e-6 < end - 2e-6:
            return None
        shift = length if start >= length - 1e-6 else 0.0
        moved.append((start - shift, end - shift))
    return moved


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Windows, int, float]:
    """Moments in whole or broken frames that may touch, overlap, or cover everything."""
    frames, hop = draw(st.integers(1, 12)), draw(st.sampled_from([1.0, 0.5, 0.96]))
    places = st.one_of(st.integers(0, frames), st.floats(0, frames).map(lambda x: round(x, 3)))
    pairs = draw(st.lists(st.tuples(places, places).filter(lambda p: abs(p[0] - p[1]) > 0.01), min_size=1))
    return [(min(p) * hop, max(p) * hop) for p in pairs], frames, hop


@settings(deadline=None, max_examples=30)
@given(st.lists(recordings(), min_size=1, max_size=4), st.integers(0, 2**32))
def test_offsets_are_those_that_cut_nothing(made: list[tuple[Windows, int, float]], base: int) -> None:
    hop = made[0][2]
    windows = [[(a / h * hop, b / h * hop) for a, b in w] for w, _, h in made]
    frames = np.array([n for _, n, _ in made], dtype=np.int64)
    shifts = Shifts([np.array(w) for w in windows], frames, hop)
    keys = np.arange(len(made), dtype=np.uint64)
    seen: list[set[int]] = [set() for _ in made]
    for number in range(200):
        offset = shifts.draw(int(mix(base, number)), keys)
        source = shifts.sources(offset)
        at = 0
        for i, n in enumerate(frames.tolist()):
            seen[i].add(int(offset[i]))
            assert source[at : at + n].tolist() == np.roll(np.arange(at, at + n), offset[i]).tolist()
            at += n
    for found, w, n in zip(seen, windows, frames.tolist(), strict=True):
        assert found == {k for k in range(n) if by_hand(w, n, hop, k) is not None}


@settings(deadline=None)
@given(recordings())
def test_spans_move_as_their_moments(made: tuple[Windows, int, float]) -> None:
    windows, frames, hop = made
    length = frames * hop
    spans = np.array([[(a + b) / 2, b - a] for a, b in windows]) / length
    for offset in range(frames):
        expected = by_hand(windows, frames, hop, offset)
        moved, whole = rolled(spans, np.full(len(spans), offset / frames))
        assert bool(whole.all()) == (expected is not None)
        if expected is not None:
            back = np.stack([moved[:, 0] - moved[:, 1] / 2, moved[:, 0] + moved[:, 1] / 2], 1) * length
            np.testing.assert_allclose(back, expected, atol=1e-9 * length)
            before = saliency_labels(windows, frames, hop)
            if (frame_coverage(windows, frames, hop) > 0.5).any():  # else the first of the most covered
                np.testing.assert_array_equal(np.roll(before, offset), saliency_labels(expected, frames, hop))


# --- through the batches -----------------------------------------------------------------------------

MANY = [(4.0 * i, 4.0 * i + 2.5) for i in range(9)]


@pytest.fixture(scope="module")
def queries() -> Manifest:
    """20 queries on 6 recordings of 14 to 29 s, one with nine moments, one whose moment covers all."""
    made = [query(f"q{i}", f"v{i % 6}", 14 + 3 * (i % 6), [(i % 4, i % 4 + 3), (8, 11.5)]) for i in range(18)]
    return manifest(*made, query("many", "m", 36.5, MANY), query("all", "v0", 14, [(0, 14)]))


def load(path: Path, queries: Manifest, *sets: str, training: bool = True, **more: Any) -> Moments:
    """Two audio streams whose rows say which recording and frame they are, every number its own."""
    if not path.exists():
        rows = {
            vid: np.stack([np.full(int(s), i + 1.0), np.arange(int(s)) + 1.0], 1).astype(np.float32)
            for i, (vid, s) in enumerate(queries.recordings.items())
        }
        words = {q.qid: np.ones((2, 3), np.float32) for q in queries}
        write_features(path, {"a": rows, "b": {v: r[:, ::-1] for v, r in rows.items()}}, {"t": words})
    streams = ["features.audio=[{name: a, l2: false}, {name: b, l2: false}]", "features.text=[t]"]
    with FeatureFile(path) as features:
        return Moments(queries, features, recipe(*streams, *sets), training=training, **more)


def targets(batch: Batch) -> Targets:
    assert batch.targets is not None
    return batch.targets


def seconds(batch: Batch, row: int, *, ignored: bool = False) -> Windows:
    made = targets(batch)
    spans, mask = (made.ignored, made.ignored_mask) if ignored else (made.spans, made.mask)
    real = spans[row][mask[row]].double() * batch.seconds[row]
    return [(round(float(c - w / 2), 4), round(float(c + w / 2), 4)) for c, w in real]


@pytest.mark.parametrize("sets", [(), ("train.max_frames=22",), ("train.buckets=false", "train.batch=7")])
def test_everything_bound_to_time_moves_together(
    tmp_path: Path, queries: Manifest, sets: tuple[str, ...]
) -> None:
    made, plain = (load(tmp_path / "f.h5", queries, *s, *sets) for s in ((SHIFT,), ()))
    offsets: Counter[bool] = Counter()
    for epoch in range(6):
        for batch, still in zip(made.epoch(3, epoch), plain.epoch(3, epoch), strict=True):
            assert batch.qids == still.qids
            for same in ("lengths", "seconds", "starts", "audio_mask"):
                assert torch.equal(getattr(batch, same), getattr(still, same))
            assert torch.equal(batch.text[0], still.text[0])
            assert torch.equal(targets(batch).negative_row, targets(still).negative_row)
            for i, qid in enumerate(batch.qids):
                n = int(batch.lengths[i])
                offset = int((batch.audio[0][i, :n, 1] == 1).nonzero())
                offsets[offset > 0] += 1
                for rows, before in zip(batch.audio, still.audio, strict=True):
                    assert torch.equal(rows[i, :n], before[i, :n].roll(offset, 0))
                    assert not rows[i, n:].any()  # padding stays padding
                for which in (False, True):
                    moved = by_hand(seconds(still, i, ignored=which), n, 1.0, offset)
                    assert moved is not None, (qid, offset)
                    assert seconds(batch, i, ignored=which) == [(round(a, 4), round(b, 4)) for a, b in moved]
                inside = targets(batch).saliency[i]
                assert torch.equal(inside[:n], targets(still).saliency[i, :n].roll(offset))
                assert not inside[n:].any()
                assert (inside[targets(batch).positives[i]] == 1).all()
                if targets(batch).pair_mask[i]:
                    outside = targets(batch).negatives[i]
                    assert (outside < n).all()
                    assert not inside[outside].any()
                assert qid != "all" or offset == 0
    assert offsets[True] > 2 * offsets[False]


def test_an_offset_is_a_function_of_seed_epoch_and_query(tmp_path: Path, queries: Manifest) -> None:
    made = load(tmp_path / "f.h5", queries, SHIFT)

    def offsets(data: Moments, seed: int, epoch: int) -> dict[str, int]:
        return {
            qid: int((b.audio[0][i, :, 1] == 1).nonzero())
            for b in data.epoch(seed, epoch)
            for i, qid in enumerate(b.qids)
        }

    first = offsets(made, 0, 1)
    list(made.epoch(5, 5))
    torch.manual_seed(99)
    assert offsets(made, 0, 1) == first
    assert offsets(load(tmp_path / "f.h5", queries, SHIFT, "train.batch=20"), 0, 1) == first
    some = manifest(*[q for q in queries if q.qid != "q3"])
    assert offsets(load(tmp_path / "f.h5", some, SHIFT), 0, 1) == {
        k: v for k, v in first.items() if k != "q3"
    }
    assert offsets(made, 0, 2) != first != offsets(made, 1, 1)
    same_recording = {first[f"q{i}"] for i in (0, 6, 12)}
    assert len(same_recording) > 1  # each query of a recording has its own


def test_evaluation_is_never_shifted(tmp_path: Path, queries: Manifest) -> None:
    made, plain = (load(tmp_path / "f.h5", queries, *s, training=False) for s in ((SHIFT,), ()))
    for batch, still in zip(made.in_order(), plain.in_order(), strict=True):
        assert batch.qids == still.qids
        assert torch.equal(batch.audio[0], still.audio[0])


def test_a_teachers_windows_move_or_are_left_out(tmp_path: Path, queries: Manifest) -> None:
    """The window of 13 s is cut most often; those that stay come first."""
    told = {q.qid: np.array([[5.0, 7, 0.9], [0, 13, 0.5], [12, 13, 0.25]]) for q in queries}
    teacher = TeacherSet(told, {q.qid: q.vid for q in queries}, top_k=3)
    made = load(tmp_path / "f.h5", queries, SHIFT, teacher=teacher)
    kept: Counter[float] = Counter()
    for epoch in range(5):
        for batch in made.epoch(0, epoch):
            soft = targets(batch).teacher
            assert soft is not None
            for i, qid in enumerate(batch.qids):
                n = int(batch.lengths[i])
                offset = int((batch.audio[0][i, :n, 1] == 1).nonzero())
                count = int(soft.mask[i].sum())
                assert soft.mask[i].tolist() == [True] * count + [False] * (3 - count)
                expected = [
                    (moved[0], score)
                    for start, end, score in told[qid].tolist()
                    if (moved := by_hand([(start, end)], n, 1.0, offset)) is not None
                ]
                spans = soft.spans[i, :count].double() * n
                got = [(round(float(c - w / 2), 4), round(float(c + w / 2), 4)) for c, w in spans]
                assert got == [window for window, _ in expected]
                assert soft.scores[i, :count].tolist() == pytest.approx([score for _, score in expected])
                kept.update(soft.scores[i, :count].tolist())
    assert kept[0.25] == 100 > kept[0.5] + 30


def test_batches_are_shifted_where_the_features_are(tmp_path: Path, queries: Manifest) -> None:
    """On a device without memory nothing can be read back to the host."""
    told = {q.qid: np.array([[5.0, 7, 0.9]]) for q in queries}
    teacher = TeacherSet(told, {q.qid: q.vid for q in queries}, top_k=3)
    made = load(tmp_path / "f.h5", queries, SHIFT, teacher=teacher)
    shapes = [(b.audio[0].shape, targets(b).spans.shape) for b in made.epoch(0, 0)]
    assert made.place("meta")
    there = list(made.epoch(0, 0))
    assert [(b.audio[0].shape, targets(b).spans.shape) for b in there] == shapes
    assert {b.audio[0].device.type for b in there} == {"meta"}


def test_the_released_code_does_not_shift(tmp_path: Path, queries: Manifest) -> None:
    with pytest.raises(RecipeError, match=r"train\.shift: the released code shifts nothing"):
        load(tmp_path / "f.h5", queries, SHIFT, "compat=official")
    load(tmp_path / "f.h5", queries, SHIFT, "compat=official", training=False)

"""Batches: what is in them, that they repeat with their seed, and what happens to odd recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amrctl.data import dataset
from amrctl.data.batch import Batch, Targets
from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.data.manifest import Manifest, Query, read_manifest
from amrctl.errors import FeatureError, ManifestError
from tests.small import AUDIO_DIM, TEXT_DIM, features_for, manifest, query, recipe, write_features


def tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a batch by name."""
    for f in fields(batch):
        value = getattr(batch, f.name)
        if isinstance(value, Targets):
            yield from ((g.name, t) for g in fields(value) if isinstance(t := getattr(value, g.name), Tensor))
        else:
            for i, item in enumerate(value if isinstance(value, tuple) else (value,)):
                if isinstance(item, Tensor):
                    yield f"{f.name}.{i}", item


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    return (
        len(a) == len(b)
        and [x.qids for x in a] == [y.qids for y in b]
        and all(
            n == m and torch.equal(t, u)
            for x, y in zip(a, b, strict=True)
            for (n, t), (m, u) in zip(tensors(x), tensors(y), strict=True)
        )
    )


def data(path: Path, queries: Manifest, *sets: str, training: bool = True, **more: Any) -> Moments:
    file = path / f"f{len(list(path.iterdir()))}.h5"
    with FeatureFile(features_for(file, queries, **more)) as features:
        return Moments(queries, features, recipe(*sets), training=training)


def targets(batch: Batch) -> Targets:
    assert batch.targets is not None
    return batch.targets


def seconds(batch: Batch, row: int) -> list[tuple[float, float]]:
    """The target spans of a row, back in seconds."""
    made = targets(batch)
    spans = made.spans[row][made.mask[row]].double() * batch.seconds[row]
    return [(round(float(c - w / 2), 4), round(float(c + w / 2), 4)) for c, w in spans]


MANY = [(i * 4.0, i * 4.0 + 2 + i % 2) for i in range(9)]


@pytest.fixture(scope="module")
def queries() -> Manifest:
    """22 queries on 8 recordings of 20 to 41 s; one query has nine moments."""
    made = [
        query(f"q{i}", f"v{i % 8}", 20 + 3 * (i % 8), [(i % 5, i % 5 + 3), (10, 13.5)][: 1 + i % 2])
        for i in range(21)
    ]
    return manifest(*made, query("many", "v7", 41, MANY))


# --- order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sets", [(), ("train.buckets=false",), ("compat=official",)])
def test_an_epoch_is_a_function_of_seed_and_epoch(
    tmp_path: Path, queries: Manifest, sets: tuple[str, ...]
) -> None:
    made = data(tmp_path, queries, *sets)
    first = list(made.epoch(3, 5))
    torch.manual_seed(99)
    np.random.seed(99)  # the global generators do not matter
    list(made.epoch(0, 0))
    assert same(first, list(made.epoch(3, 5)))
    assert same(first, list(data(tmp_path, queries, *sets).epoch(3, 5)))
    assert not same(first, list(made.epoch(3, 6)))
    assert not same(first, list(made.epoch(4, 5)))
    assert sorted(qid for b in first for qid in b.qids) == sorted(q.qid for q in queries)
    assert [len(b) for b in first].count(4) == 5
    assert len(first) == made.steps() == 6


def test_a_querys_draw_does_not_depend_on_its_batch(tmp_path: Path, queries: Manifest) -> None:
    def drawn(made: Moments) -> dict[str, Any]:
        return {
            qid: (seconds(b, i), targets(b).positives[i].tolist(), targets(b).negatives[i].tolist())
            for b in made.epoch(1, 2)
            for i, qid in enumerate(b.qids)
        }

    assert drawn(data(tmp_path, queries)) == drawn(data(tmp_path, queries, "train.batch=22"))
    some = manifest(*[q for q in queries if q.qid != "q3"])
    assert drawn(data(tmp_path, some)) == {
        k: v for k, v in drawn(data(tmp_path, queries)).items() if k != "q3"
    }


def test_buckets_pad_less_and_are_still_shuffled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 200).tolist()
    queries = manifest(*(query(f"q{i}", f"v{i}", n, [(0, 3)]) for i, n in enumerate(lengths)))
    made, plain = data(tmp_path, queries), data(tmp_path, queries, "train.buckets=false")

    def padding(epoch: list[Batch]) -> float:
        return 1 - sum(float(b.audio_mask.sum()) for b in epoch) / sum(b.audio_mask.numel() for b in epoch)

    first, second = list(made.epoch(0, 0)), list(made.epoch(0, 1))
    assert padding(first) < 0.5 * padding(list(plain.epoch(0, 0)))
    assert sum(len(b) < 4 for b in first) <= 1
    means = [float(b.lengths.double().mean()) for b in first]
    assert 0.25 < (np.diff(means) > 0).mean() < 0.75  # batches do not come in order of length
    together = [{frozenset(b.qids) for b in epoch} for epoch in (first, second)]
    assert not together[0] & together[1]  # other companions in the next epoch


def test_a_larger_pool_pads_less(tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(5, 60, 280).tolist()
    queries = manifest(*(query(f"q{i}", f"v{i}", n, [(0, 3)]) for i, n in enumerate(lengths)))

    def padded(pool: int) -> int:
        made = data(tmp_path, queries, f"train.bucket_pool={pool}")
        return sum(int((~b.audio_mask).sum()) for b in made.epoch(0, 0))

    assert padded(1) > 2 * padded(4) > 4 * padded(16)


# --- targets -----------------------------------------------------------------------------------------


def test_a_batch_holds_the_features_and_labels_of_its_queries(tmp_path: Path, queries: Manifest) -> None:
    path = features_for(tmp_path / "f.h5", queries)
    by_qid = queries.by_qid
    with FeatureFile(path) as file:
        made = Moments(queries, file, recipe("features.text.0.l2=true"), training=True)
        audio, text = file.load("audio", "noise"), file.load("text", "noise")
    for b in made.epoch(0, 0):
        for i, qid in enumerate(b.qids):
            rows, words = torch.from_numpy(audio.get(b.vids[i])), torch.from_numpy(text.get(qid))
            n, m = len(rows), len(words)
            assert b.vids[i] == by_qid[qid].vid
            assert int(b.lengths[i]) == int(b.audio_mask[i].sum()) == n == b.seconds[i]
            assert b.audio_mask[i, :n].all()
            assert b.text_mask[0][i].tolist() == [True] * m + [False] * (b.text[0].shape[1] - m)
            for got, raw in ((b.audio[0][i, :n], rows), (b.text[0][i, :m], words)):
                torch.testing.assert_close(got, raw / (raw.norm(dim=-1, keepdim=True) + 1e-5))
            assert not b.audio[0][i, n:].any()
            assert not b.text[0][i, m:].any()
            if qid == "many":
                continue
            windows = by_qid[qid].windows
            assert windows is not None
            assert seconds(b, i) == list(windows)
            inside = [any(min(t + 1, e) - max(t, s) >= 0.5 for s, e in windows) for t in range(n)]
            assert targets(b).saliency[i, :n].tolist() == [float(x) for x in inside]
            assert not targets(b).saliency[i, n:].any()
            for frame in targets(b).positives[i].tolist():
                assert inside[frame]
            for frame in targets(b).negatives[i].tolist():
                assert not inside[frame]
        assert targets(b).pair_mask.all()


def test_text_is_raw_and_uncut_unless_asked(tmp_path: Path, queries: Manifest) -> None:
    path = features_for(tmp_path / "f.h5", queries)
    with FeatureFile(path) as file:
        text = file.load("text", "noise")
        plain = Moments(queries, file, recipe("features.audio.0.l2=false"), training=True)
        cut = Moments(queries, file, recipe("features.text.0.max_tokens=2"), training=True)
        audio = file.load("audio", "noise")
    for b in plain.epoch(0, 0):
        for i, qid in enumerate(b.qids):
            torch.testing.assert_close(b.text[0][i][b.text_mask[0][i]], torch.from_numpy(text.get(qid)))
            torch.testing.assert_close(b.audio[0][i][b.audio_mask[i]], torch.from_numpy(audio.get(b.vids[i])))
    for b in cut.epoch(0, 0):
        for i, qid in enumerate(b.qids):
            torch.testing.assert_close(b.text[0][i][b.text_mask[0][i]], torch.from_numpy(text.get(qid)[:2]))


def test_many_moments_are_drawn_and_the_rest_is_ignored(tmp_path: Path) -> None:
    queries = manifest(query("many", "v", 41, MANY), query("few", "w", 41, MANY[:5]))
    made = data(tmp_path, queries, "train.batch=2")
    seen: dict[tuple[float, float], int] = dict.fromkeys(MANY, 0)
    epochs = 600
    for epoch in range(epochs):
        (b,) = made.epoch(0, epoch)
        row, other = b.qids.index("many"), b.qids.index("few")
        drawn = seconds(b, row)
        assert drawn == sorted(drawn)
        assert len(set(drawn)) == 5
        made_targets = targets(b)
        rest = made_targets.ignored[row][made_targets.ignored_mask[row]].double() * 41
        left = [(round(float(c - w / 2), 4), round(float(c + w / 2), 4)) for c, w in rest]
        assert sorted(drawn + left) == MANY
        assert seconds(b, other) == MANY[:5]
        assert not made_targets.ignored_mask[other].any()
        # frames of moments that were not drawn are inside all the same
        inside = sum(int(e - s) for s, e in MANY)
        assert int(made_targets.saliency[row].sum()) == inside
        for window in drawn:
            seen[window] += 1
    p = 5 / 9
    assert all(abs(n / epochs - p) < 4.5 * (p * (1 - p) / epochs) ** 0.5 for n in seen.values())


def test_a_negative_sentence_is_never_about_the_same_recording(tmp_path: Path, queries: Manifest) -> None:
    for sets in ((), ("train.buckets=false",), ("train.batch=9",)):
        made = data(tmp_path, queries, *sets)
        for epoch in range(10):
            for b in made.epoch(0, epoch):
                for i, j in enumerate(targets(b).negative_row.tolist()):
                    if j < 0:
                        assert len(set(b.vids)) == 1
                    else:
                        assert b.vids[i] != b.vids[j]


def test_negative_rows_by_hand(tmp_path: Path) -> None:
    queries = manifest(*(query(f"q{i}", vid, 20, [(0, 3)]) for i, vid in enumerate("aabba")))
    made = data(tmp_path, queries)
    assert made._negative_rows(np.arange(5)).tolist() == [2, 2, 4, 4, 2]
    assert made._negative_rows(np.array([0, 1, 4])).tolist() == [-1, -1, -1]
    official = data(tmp_path, queries, "compat=official")
    assert official._negative_rows(np.arange(5)).tolist() == [1, 2, 3, 4, 0]


# --- windows against features ------------------------------------------------------------------------


def test_windows_that_run_over_the_end(tmp_path: Path) -> None:
    queries = manifest(
        query("late", "v", 60, [(50, 61)]),
        query("after", "v", 60, [(60, 61)]),
        query("far", "v", 60, [(63, 64)]),
        query("mixed", "v", 60, [(1, 2), (70, 80)]),
        query("fine", "v", 60, [(58, 60)]),
    )
    made = data(tmp_path, queries, "train.batch=8")
    (b,) = made.epoch(0, 0)
    got = {qid: seconds(b, i) for i, qid in enumerate(b.qids)}
    assert got == {"late": [(50, 60)], "after": [(59, 60)], "mixed": [(1, 2)], "fine": [(58, 60)]}
    assert [note.split(";")[0] for note in made.notes] == [
        "4 windows end after their features",
        "1 queries have no window within the frames used",
    ]
    assert queries.by_qid["late"].windows == ((50, 61),)  # labels are never changed


def test_features_shorter_than_the_duration_define_the_span(tmp_path: Path) -> None:
    queries = manifest(query("q", "v", 60.4, [(30, 60.4)]))
    made = data(tmp_path, queries, frames={"v": 60})
    (b,) = made.epoch(0, 0)
    assert b.seconds.tolist() == [60.0]
    assert seconds(b, 0) == [(30, 60)]
    assert float(targets(b).spans[0, 0, 0]) == pytest.approx(45 / 60)


def test_real_labels_with_their_oddities(tmp_path: Path, shared: Path) -> None:
    """CASTELLA train: 162 queries end late, one of them 4,500 s; ids begin with "-"."""
    path = shared / "data" / "annotations" / "castella_train_release.jsonl"
    queries = read_manifest(path, clip_windows=True)
    late = [(q, w) for q in queries for w in q.windows or () if w[1] > q.duration]
    assert len(late) == 162
    assert any(q.vid.startswith("-") for q in queries)
    frames = {vid: int(d) for vid, d in queries.recordings.items()}
    features = write_features(
        tmp_path / "f.h5",
        {"ones": {vid: np.ones((n, 1), np.float16) for vid, n in frames.items()}},
        {"ones": {q.qid: np.ones((1, 1), np.float16) for q in queries}},
    )
    with FeatureFile(features) as file:
        made = Moments(queries, file, recipe("train.batch=256"), training=True)
        asis = Moments(queries, file, recipe("train.batch=256", "compat=official"), training=True)
    far = [q.qid for q, w in late if w[1] > q.duration + 2]
    assert far == ["67AE9ZKvECs_1"]
    seen: set[str] = set()
    for b in made.epoch(0, 0):
        spans, mask = targets(b).spans.double(), targets(b).mask
        start, end = (spans[..., 0] + sign * spans[..., 1] / 2 for sign in (-1, 1))
        assert (start[mask] > -1e-6).all()
        assert (end[mask] < 1 + 1e-6).all()
        assert ((spans[..., 1] * b.seconds[:, None])[mask] > 0.99).all()  # whole seconds stay whole seconds
        assert (targets(b).saliency.sum(1) > 0).all()
        for i, qid in enumerate(b.qids):
            used = int(mask[i].sum()) + int(targets(b).ignored_mask[i].sum())
            assert used == len(queries.by_qid[qid].windows or ()) - (qid in far)
            assert int(mask[i].sum()) == min(used, 5)
        seen |= set(b.qids)
    assert seen == {q.qid for q in queries}
    assert made.notes == ("162 windows end after their features; they are clipped for training",)
    # the released code takes the labels as they are: spans past 1
    past = [b.qids[i] for b in asis.epoch(0, 0) for i in range(len(b)) if _last(b, i) > 1 + 1e-6]
    assert 100 < len(past) <= 162


def _last(batch: Batch, row: int) -> float:
    made = targets(batch)
    return float((made.spans[row, :, 0] + made.spans[row, :, 1] / 2).max())


# --- long recordings ---------------------------------------------------------------------------------


def test_training_cuts_long_recordings(tmp_path: Path) -> None:
    queries = manifest(
        query("q", "v", 50, [(5, 8), (18, 25), (30, 40)]),
        query("gone", "v", 50, [(20, 21)]),
        query("w", "w", 12, [(0, 3)]),
    )
    made = data(tmp_path, queries, "train.max_frames=20", "train.batch=8")
    (b,) = made.epoch(0, 0)
    assert sorted(b.qids) == ["q", "w"]
    row = b.qids.index("q")
    assert (int(b.lengths[row]), float(b.seconds[row]), int(b.starts[row])) == (20, 20.0, 0)
    assert seconds(b, row) == [(5, 8), (18, 20)]
    assert [note.split(";")[0] for note in made.notes] == [
        "2 queries are about recordings of more than 20 frames",
        "1 queries have no window within the frames used",
    ]


@pytest.mark.parametrize("frames", [21, 29, 30, 31, 40, 41, 55, 100])
def test_evaluation_reads_long_recordings_in_overlapping_chunks(tmp_path: Path, frames: int) -> None:
    queries = manifest(query("long", "v", frames, None), query("short", "w", 12, None))
    path = features_for(tmp_path / "f.h5", queries)
    with FeatureFile(path) as file:
        made = Moments(
            queries, file, recipe("train.max_frames=20", "features.audio.0.l2=false"), training=False
        )
        rows = file.load("audio", "noise").get("v")
    batches = list(made.in_order())
    assert max(len(b) for b in batches) <= 3
    assert all(b.targets is None for b in batches)
    seen: list[int] = []
    covered = np.zeros(frames, dtype=int)
    for b in batches:
        for i, qid in enumerate(b.qids):
            if qid == "short":
                assert (int(b.lengths[i]), int(b.starts[i])) == (12, 0)
                continue
            start = int(b.starts[i])
            assert (int(b.lengths[i]), float(b.seconds[i])) == (20, 20.0)
            torch.testing.assert_close(b.audio[0][i, :20], torch.from_numpy(rows[start : start + 20]))
            covered[start : start + 20] += 1
            seen.append(start)
    assert covered.all()
    assert (np.diff(sorted(seen)) <= 10).all()  # at least half of a chunk is shared with the next
    assert len(seen) == len(set(seen)) == 1 + -(-(frames - 20) // 10)
    assert made.notes[0].startswith("1 queries are about recordings of more than 20 frames")


def test_evaluation_keeps_the_files_order_for_the_released_code(tmp_path: Path, queries: Manifest) -> None:
    official = data(tmp_path, queries, "compat=official", "train.max_frames=30", training=False)
    batches = list(official.in_order())
    assert [qid for b in batches for qid in b.qids] == [q.qid for q in queries]
    assert [len(b) for b in batches] == [3] * 7 + [1]
    for b in batches:
        for i, qid in enumerate(b.qids):
            assert float(b.seconds[i]) == queries.by_qid[qid].duration  # decoded with the duration
            assert int(b.lengths[i]) == min(queries.by_qid[qid].duration, 30)  # cut, not chunked
    ours = list(data(tmp_path, queries, training=False).in_order())
    lengths = [int(n) for b in ours for n in b.lengths]
    assert lengths == sorted(lengths)
    assert sorted(qid for b in ours for qid in b.qids) == sorted(q.qid for q in queries)


def test_queries_of_one_recording_share_it(tmp_path: Path) -> None:
    """Each chunk is gathered once; spread to the pairs it is what every pair would have gathered."""
    queries = manifest(
        *(query(f"q{i}", f"v{i % 3}", 25 + 20 * (i % 3), None) for i in range(8)), query("w", "w", 12, None)
    )
    made = data(tmp_path, queries, "train.max_frames=20", "train.eval_batch=7", training=False)
    alone = data(tmp_path, queries, "train.max_frames=20", "train.eval_batch=1", training=False)
    single = {(b.qids[0], int(b.starts[0])): b for b in alone.in_order()}
    assert all(b.recordings is None for b in single.values())
    saved = 0
    for b in made.in_order():
        chunks = {(vid, int(start)) for vid, start in zip(b.vids, b.starts, strict=True)}
        assert len(b.heard.mask) == len(b.heard.audio[0]) == len(b.heard.lengths) == len(chunks)
        saved += len(b) - len(chunks)
        assert torch.equal(b.spread(b.heard.audio[0]), b.audio[0])
        assert torch.equal(b.spread(b.heard.mask), b.audio_mask)
        assert torch.equal(b.spread(b.heard.lengths), b.lengths)
        moved = b.to("cpu")
        assert torch.equal(moved.audio[0], b.audio[0])
        assert len(moved.audio) == len([*moved.audio]) == len(moved.audio[:]) == 1
        for i, (qid, start) in enumerate(zip(b.qids, b.starts.tolist(), strict=True)):
            n = int(b.lengths[i])
            assert torch.equal(b.audio[0][i, :n], single.pop((qid, start)).audio[0][0])
            assert not b.audio[0][i, n:].any()
    assert saved > 5
    assert not single


def test_features_that_do_not_fit_stay_on_the_host(
    tmp_path: Path, queries: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = data(tmp_path, queries)
    assert made.place("cpu")
    size = sum(s.bytes for s in (*made._audio, *made._text))
    rows = sum(len(s.packed.rows) * 4 * (s.info.dim + s.l2) for s in (*made._audio, *made._text))
    assert size == rows
    free = [0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 10**12))
    free[0] = 2 * size
    assert not made.place("cuda")
    assert made.device.type == "cpu"
    assert len(list(made.epoch(0, 0))) == made.steps()
    free[0] = 2 * size + 2
    assert dataset.fits(size, torch.device("cuda"))
    assert dataset.fits(10**15, torch.device("cpu"))


@pytest.mark.parametrize("sets", [(), ("compat=official",)])
def test_batches_are_made_where_the_features_are(
    tmp_path: Path, queries: Manifest, sets: tuple[str, ...]
) -> None:
    """A device without memory stands for one that computes elsewhere: whatever would be read back from
    it, and so would make the host wait, is an error there."""
    for training in (True, False):
        here, there = (data(tmp_path, queries, *sets, training=training) for _ in range(2))
        assert there.place("meta")
        batches = [list(m.epoch(0, 0) if training else m.in_order()) for m in (here, there)]
        for a, b in zip(*batches, strict=True):
            assert a.qids == b.qids
            for (name, x), (same_name, y) in zip(tensors(a), tensors(b), strict=True):
                assert name == same_name
                assert y.device.type == "meta", name
                assert (x.shape, x.dtype) == (y.shape, y.dtype), name


# --- the released code's targets ---------------------------------------------------------------------


def test_official_targets(tmp_path: Path) -> None:
    queries = manifest(query("many", "v", 41, MANY), query("late", "w", 20, [(18, 21), (3, 6)]))
    made = data(tmp_path, queries, "compat=official", "train.batch=2")
    orders = set()
    for epoch in range(40):
        (b,) = made.epoch(0, epoch)
        row, late = b.qids.index("many"), b.qids.index("late")
        drawn = seconds(b, row)
        assert set(drawn) <= set(MANY)
        assert len(drawn) == 5
        orders.add(tuple(drawn))
        start, end = drawn[0]  # only the first of the shuffled windows is inside
        assert targets(b).saliency[row].nonzero().flatten().tolist() == list(range(int(start), int(end)))
        assert not targets(b).ignored_mask.any()  # the others are background
        assert seconds(b, late) == [(18, 21), (3, 6)]  # neither clipped nor sorted
        assert targets(b).saliency[late].nonzero().flatten().tolist() == [18, 19]
        assert sorted(targets(b).negative_row.tolist()) == [0, 1]
    assert any(list(order) != sorted(order) for order in orders)
    assert len(orders) > 30


def test_half_second_frames_give_half_second_spans(tmp_path: Path) -> None:
    queries = manifest(query("q", "v", 10, [(2, 4.5)]))
    noise = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float16)
    path = write_features(
        tmp_path / "f.h5", {"fine": {"v": noise}}, {"t": {"q": noise[:2]}}, hops={"fine": 0.5}
    )
    with FeatureFile(path) as file:
        made = Moments(queries, file, recipe(), training=True)
    (b,) = made.epoch(0, 0)
    assert (made.hop, b.seconds.tolist()) == (0.5, [10.0])
    assert seconds(b, 0) == [(2, 4.5)]
    assert targets(b).saliency[0].nonzero().flatten().tolist() == [4, 5, 6, 7, 8]
    assert b.audio[0].dtype == torch.float32


# --- mistakes ----------------------------------------------------------------------------------------


def test_mistakes_are_told(tmp_path: Path, queries: Manifest) -> None:
    blind = Query("b", "s", "v0", 20, None, line=7)
    with pytest.raises(ManifestError, match=r"^the manifests: qid b has no relevant_windows"):
        data(tmp_path, manifest(blind))
    with pytest.raises(ManifestError, match=r"^m\.jsonl:7: qid b has no relevant_windows"):
        data(tmp_path, Manifest(Path("m.jsonl"), (blind,), ()))
    with pytest.raises(ManifestError, match="the manifests: no query is left to work on"):
        data(tmp_path, manifest(query("q", "v", 20, [(30, 40)])))
    path = features_for(tmp_path / "f.h5", manifest(*list(queries)[:3]))
    with FeatureFile(path) as file:
        with pytest.raises(FeatureError, match=r"has no 'v3' \(5 of 8 missing\)"):
            Moments(queries, file, recipe(), training=True)
        with pytest.raises(FeatureError, match="no audio stream 'nose'; did you mean 'noise'"):
            Moments(queries, file, recipe("features.audio.0=nose"), training=True)


def test_what_a_checkpoint_remembers(tmp_path: Path, queries: Manifest) -> None:
    made = data(tmp_path, queries)
    assert (made.audio_dims, made.text_dims) == ((AUDIO_DIM,), (TEXT_DIM,))
    (audio,), (text,) = made.streams["audio"], made.streams["text"]
    assert (audio["name"], audio["dim"], audio["encoder"], audio["hop"]) == ("noise", AUDIO_DIM, "noise", 1.0)
    assert (text["name"], text["dim"], text["hop"]) == ("noise", TEXT_DIM, None)
    assert audio["attrs"]["window"] == 1.0

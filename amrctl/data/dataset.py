"""Queries and features in memory, and the batches that are drawn from them.

A training epoch is a pure function of (seed, epoch): the order, the windows drawn of queries with
many, the frames drawn for the saliency pairs. Nothing is read from disk after construction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amrctl.data.batch import Batch, Targets, Teacher
from amrctl.data.manifest import Manifest, Query
from amrctl.data.streams import FeatureSource, hop_of, load_streams
from amrctl.data.targets import (
    clip_windows,
    draw_pairs,
    draw_windows,
    mix,
    released_saliency_labels,
    saliency_labels,
)
from amrctl.data.teacher import TeacherSet
from amrctl.errors import ManifestError
from amrctl.recipe import Recipe
from amrctl.spans import Floats, to_centre_width

Ints = npt.NDArray[np.int64]
_BUCKET = 16  # batches that are sorted by length together


@dataclass(frozen=True)
class Item:
    """One row of a batch: a query, and which frames of its recording it sees."""

    query: Query
    audio: int  # position in the packed audio
    text: int
    start: int  # frames
    frames: int
    seconds: float
    windows: Floats | None  # clipped, seconds from `start`
    key: int  # hash of the qid


class Moments:
    """A manifest with its features, ready to be batched for training or for evaluation.

    Raises `FeatureError` for missing streams or ids, `ManifestError` when training data has
    queries without windows or none are left. `notes` counts what had to be changed.
    """

    def __init__(
        self,
        manifest: Manifest,
        features: FeatureSource,
        recipe: Recipe,
        *,
        training: bool,
        teacher: TeacherSet | None = None,
    ) -> None:
        if training and not manifest.has_windows:
            blind = next((q for q in manifest if q.windows is None), None)
            where = _where(manifest)
            if blind is not None:
                where += f":{blind.line}: qid {blind.qid}" if manifest.path else f": qid {blind.qid}"
            raise ManifestError(f"{where} has no relevant_windows; training needs labelled queries")
        self.manifest, self.recipe, self.training = manifest, recipe, training
        self.teacher = teacher
        if teacher is not None:
            teacher.require(manifest)
        self.official = recipe.compat == "official"
        self._audio, self._text = load_streams(
            features, recipe, list(manifest.recordings), [q.qid for q in manifest]
        )
        self.hop = hop_of(self._audio[0].info)
        self.audio_dims = tuple(s.info.dim for s in self._audio)
        self.text_dims = tuple(s.info.dim for s in self._text)
        self.notes: tuple[str, ...] = ()
        self.items = self._training_items() if training else self._evaluation_items()
        if not self.items:
            raise ManifestError(f"{_where(manifest)}: no query is left to work on")
        self._vid_codes = self._codes([item.query.vid for item in self.items])

    @property
    def streams(self) -> dict[str, list[dict[str, Any]]]:
        """What a checkpoint has to remember about its features, per side, main stream first."""
        return {
            side: [
                {
                    "name": s.info.name,
                    "dim": s.info.dim,
                    "dtype": s.info.dtype,
                    "encoder": s.info.encoder,
                    "hop": s.info.hop,
                    "attrs": {k: v for k, v in s.info.attrs.items() if isinstance(v, (str, int, float))},
                }
                for s in streams
            ]
            for side, streams in (("audio", self._audio), ("text", self._text))
        }

    def __len__(self) -> int:
        return len(self.items)

    def steps(self) -> int:
        """Batches per training epoch; the last one may be smaller."""
        return -(-len(self.items) // self.recipe.train.batch)

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of one training epoch; the same arguments give the same batches."""
        order = self._order(seed, epoch)
        base = int(mix(seed, epoch))
        for rows in order:
            yield self._batch(rows, draw=base)

    def in_order(self) -> Iterator[Batch]:
        """Evaluation batches: file order with `compat: official`, else by length (less padding)."""
        order = np.arange(len(self.items))
        if not self.official:
            order = order[np.argsort([item.frames for item in self.items], kind="stable")]
        size = self.recipe.train.eval_batch
        for i in range(0, len(order), size):
            yield self._batch(order[i : i + size], draw=None)

    # --- items ---------------------------------------------------------------------------------

    def _training_items(self) -> list[Item]:
        limit = self.recipe.train.max_frames
        items: list[Item] = []
        clipped = cut = dropped = 0
        for query, audio, text, total in self._located():
            frames = min(total, limit)
            seconds = frames * self.hop
            windows = np.asarray(query.windows, dtype=np.float64).reshape(-1, 2)
            if not self.official:
                # a window the labeller let run over the end is repaired; one beyond a cut is not
                windows, changed = clip_windows(windows, seconds, self.hop, 2.0 if frames == total else 0.0)
                clipped += changed if frames == total else 0
            cut += frames < total
            if len(windows) == 0:
                dropped += 1
                continue
            items.append(self._item(query, audio, text, 0, frames, seconds, windows))
        notes = []
        if clipped:
            notes.append(f"{clipped:,} windows end after their features; they are clipped for training")
        if cut:
            notes.append(
                f"{cut:,} queries are about recordings of more than {limit} frames; training cuts them"
            )
        if dropped:
            notes.append(f"{dropped:,} queries have no window within the frames used; they are left out")
        self.notes = tuple(notes)
        return items

    def _evaluation_items(self) -> list[Item]:
        limit = self.recipe.train.max_frames
        items: list[Item] = []
        chunked = cut = 0
        for query, audio, text, total in self._located():
            starts = [0]
            if self.official:
                cut += total > limit
                total = min(total, limit)
            elif total > limit:
                step = max(limit // 2, 1)
                starts = [*range(0, total - limit, step), total - limit]
                chunked += 1
            for start in starts:
                frames = min(total, limit)
                seconds = query.duration if self.official else frames * self.hop
                items.append(self._item(query, audio, text, start, frames, seconds, None))
        if chunked:
            self.notes = (
                f"{chunked:,} queries are about recordings of more than {limit} frames; "
                "they are read in overlapping chunks",
            )
        if cut:
            self.notes = (
                f"{cut:,} queries are about recordings of more than {limit} frames; with compat=official "
                "only the beginning is read, as the released code does (--set compat=null reads all)",
            )
        return items

    def _located(self) -> Iterator[tuple[Query, int, int, int]]:
        audio, text = self._audio[0], self._text[0]
        for query in self.manifest:
            a, t = audio.packed.index[query.vid], text.packed.index[query.qid]
            yield query, a, t, int(audio.packed.offsets[a + 1] - audio.packed.offsets[a])

    @staticmethod
    def _item(
        query: Query, audio: int, text: int, start: int, frames: int, seconds: float, windows: Floats | None
    ) -> Item:
        key = int.from_bytes(hashlib.sha256(query.qid.encode()).digest()[:8], "little")
        return Item(query, audio, text, start, frames, seconds, windows, key)

    @staticmethod
    def _codes(names: list[str]) -> Ints:
        table: dict[str, int] = {}
        return np.array([table.setdefault(name, len(table)) for name in names], dtype=np.int64)

    # --- batches -------------------------------------------------------------------------------

    def _order(self, seed: int, epoch: int) -> list[Ints]:
        """Rows of each batch. With buckets, neighbours in length share a batch, batches are shuffled."""
        rng = np.random.default_rng([seed, epoch])
        size = self.recipe.train.batch
        rows = rng.permutation(len(self.items))
        if self.recipe.train.buckets and not self.official:
            lengths = np.array([item.frames for item in self.items])
            pool = size * _BUCKET
            groups = [rows[i : i + pool] for i in range(0, len(rows), pool)]
            rows = np.concatenate([g[np.argsort(lengths[g], kind="stable")] for g in groups])
            batches = [rows[i : i + size] for i in range(0, len(rows), size)]
            return [batches[i] for i in rng.permutation(len(batches))]
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _batch(self, rows: Ints, draw: int | None) -> Batch:
        items = [self.items[i] for i in rows.tolist()]
        lengths = np.array([item.frames for item in items], dtype=np.int64)
        starts = np.array([item.start for item in items], dtype=np.int64)
        audio_at = np.array([item.audio for item in items], dtype=np.int64)
        text_at = np.array([item.text for item in items], dtype=np.int64)
        audio, audio_mask = zip(*(s.gather(audio_at, starts, lengths) for s in self._audio), strict=True)
        zero = np.zeros_like(text_at)
        text, text_mask = zip(*(s.gather(text_at, zero, s.lengths(text_at)) for s in self._text), strict=True)
        return Batch(
            qids=[item.query.qid for item in items],
            vids=[item.query.vid for item in items],
            audio=tuple(audio),
            audio_mask=audio_mask[0],
            text=tuple(text),
            text_mask=tuple(text_mask),
            lengths=torch.from_numpy(lengths),
            seconds=torch.tensor([item.seconds for item in items], dtype=torch.float64),
            starts=torch.from_numpy(starts),
            targets=None if draw is None else self._targets(items, rows, audio_mask[0], draw),
        )

    def _targets(self, items: list[Item], rows: Ints, real: Tensor, draw: int) -> Targets:
        frames = real.shape[1]
        limit = self.recipe.train.max_windows
        keys = np.array([item.key for item in items], dtype=np.uint64)
        most = max(len(item.windows) for item in items if item.windows is not None)
        window_keys = mix(draw, keys[:, None], np.arange(most)[None])
        chosen, left_out, inside = [], [], np.zeros((len(items), frames), dtype=bool)
        for b, item in enumerate(items):
            assert item.windows is not None
            pick = draw_windows(window_keys[b], len(item.windows), limit)
            if self.official and len(item.windows) > limit:
                pick = pick[np.argsort(window_keys[b][pick], kind="stable")]  # shuffled, as released
            rest = np.setdiff1d(np.arange(len(item.windows)), pick)
            seconds = item.frames * self.hop
            chosen.append(to_centre_width(item.windows[pick] / seconds))
            left_out.append(to_centre_width(item.windows[rest] / seconds))
            if self.official:
                labels = released_saliency_labels(item.windows[pick[:1]], item.frames, self.hop)
            else:
                labels = saliency_labels(item.windows, item.frames, self.hop)
            inside[b, : item.frames] = labels
        frame_keys = mix(draw, keys[:, None], (1 << 32) + np.arange(frames)[None])
        pairs = draw_pairs(inside, real.numpy(), frame_keys, released=self.official)
        spans, mask = _padded(chosen)
        ignored, ignored_mask = _padded([] if self.official else left_out, rows=len(items))
        return Targets(
            spans=spans,
            mask=mask,
            ignored=ignored,
            ignored_mask=ignored_mask,
            saliency=torch.from_numpy(inside.astype(np.float32)),
            positives=torch.from_numpy(pairs.positives),
            negatives=torch.from_numpy(pairs.negatives),
            pair_mask=torch.from_numpy(pairs.mask),
            negative_row=torch.from_numpy(self._negative_rows(rows)),
            teacher=self._teacher_targets(items),
        )

    def _negative_rows(self, rows: Ints) -> Ints:
        """The next row of the batch (cyclic) that is about another recording; -1 where there is none."""
        size = len(rows)
        if self.official:
            return np.roll(np.arange(size), -1)
        vids = self._vid_codes[rows]
        after = (np.arange(size)[:, None] + np.arange(1, size + 1)[None]) % size
        other = vids[after] != vids[:, None]
        found = after[np.arange(size), other.argmax(1)]
        return np.where(other.any(1), found, -1).astype(np.int64)

    def _teacher_targets(self, items: list[Item]) -> Teacher | None:
        if self.teacher is None:
            return None
        pairs = [self.teacher.spans_for(item.query.qid, item.seconds) for item in items]
        spans, mask = _padded([spans for spans, _ in pairs])
        scores = torch.zeros(mask.shape)
        for b, (_, values) in enumerate(pairs):
            scores[b, : len(values)] = torch.from_numpy(values)
        return Teacher(spans, scores, mask)


def _where(manifest: Manifest) -> str:
    return str(manifest.path or "the manifests")  # several files have no one path


def _padded(pieces: list[Any], rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Ragged (n, 2) arrays → float32 [B, max n (at least 1), 2] and the bool mask [B, max n]."""
    size = len(pieces) if rows is None else rows
    longest = max([len(piece) for piece in pieces] + [1])
    spans = torch.zeros(size, longest, 2)
    mask = torch.zeros(size, longest, dtype=torch.bool)
    for b, piece in enumerate(pieces):
        spans[b, : len(piece)] = torch.from_numpy(np.asarray(piece, dtype=np.float32))
        mask[b, : len(piece)] = True
    return spans, mask

"""Queries and features in memory, and the batches that are drawn from them.

A training epoch is a pure function of (seed, epoch): the order, the windows drawn of queries with
many, the temporal shift, the frames drawn for the saliency pairs. Nothing is read from disk after
construction. Features and labels are packed, so that a batch is gathered by index, where `place` put
them: on the host, or on the device that computes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amrctl.data.batch import Batch, Heard, Spread
from amrctl.data.labels import Ints, Labels
from amrctl.data.manifest import Manifest, Query
from amrctl.data.streams import FeatureSource, Gathered, hop_of, load_streams
from amrctl.data.targets import clip_windows, mix
from amrctl.data.teacher import TeacherSet
from amrctl.errors import ManifestError, RecipeError
from amrctl.recipe import Recipe
from amrctl.spans import Floats

_SHARE = 0.5  # of a device's free memory that features may take


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
    queries without windows or none are left, `RecipeError` for a shift with `compat: official`.
    `notes` counts what had to be changed.
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
        if training and self.official and recipe.train.shift:
            raise RecipeError(
                "train.shift: the released code shifts nothing; leave out this or compat=official"
            )
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
        self.device = torch.device("cpu")
        self._columns: dict[str, Tensor] = {}
        self._labels: Labels | None = None
        self._pack()

    def place(self, device: torch.device | str) -> bool:
        """Keep features and labels on `device`, so that batches are gathered there.

        Returns whether they are: with features of more than half of the device's free memory
        everything stays on the host, and its batches have to be moved.
        """
        device = torch.device(device)
        if device == self.device:
            return True
        if not fits(sum(s.bytes for s in (*self._audio, *self._text)), device):
            return False
        for stream in (*self._audio, *self._text):
            stream.place(device)
        if self._labels is not None:
            self._labels.place(device)
        self._columns = {name: column.to(device) for name, column in self._columns.items()}
        self.device = device
        return True

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

    @property
    def widths(self) -> Floats:
        """Width of every training moment as a share of its recording, [M]."""
        shares = [
            (i.windows[:, 1] - i.windows[:, 0]) / i.seconds for i in self.items if i.windows is not None
        ]
        return np.concatenate(shares) if shares else np.zeros(0)

    def __len__(self) -> int:
        return len(self.items)

    def steps(self) -> int:
        """Batches per training epoch; the last one may be smaller."""
        return -(-len(self.items) // self.recipe.train.batch)

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of one training epoch; the same arguments give the same batches."""
        assert self._labels is not None
        batches = self._order(seed, epoch)
        drawn = self._labels.draw(int(mix(seed, epoch))).to(self.device)
        negatives = self._there(np.concatenate([self._negative_rows(rows) for rows in batches]))
        at = 0
        for rows, there in zip(batches, self._split(batches), strict=True):
            batch = self._batch(rows, there, drawn.offset)
            negative_row = negatives[at : at + len(rows)]
            batch.targets = self._labels.batch(drawn, rows, there, batch.audio_mask, negative_row)
            at += len(rows)
            yield batch

    def in_order(self) -> Iterator[Batch]:
        """Evaluation batches: file order with `compat: official`, else by length (less padding).

        Queries about the same frames stand together, and share them.
        """
        order = np.arange(len(self.items))
        if not self.official:
            order = np.lexsort((order, self._starts, self._vid_codes, self._lengths))
        size = self.recipe.train.eval_batch
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        for rows, there in zip(batches, self._split(batches), strict=True):
            yield self._batch(rows, there)

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

    # --- batches -------------------------------------------------------------------------------

    def _pack(self) -> None:
        """Columns of the items, on the host and where batches are made."""
        items, audio, text = self.items, self._audio[0], self._text
        self._lengths = np.array([item.frames for item in items], dtype=np.int64)
        self._starts = np.array([item.start for item in items], dtype=np.int64)
        self._vid_codes = np.array([item.audio for item in items], dtype=np.int64)
        self._qids = np.array([item.query.qid for item in items], dtype=object)
        self._vids = np.array([item.query.vid for item in items], dtype=object)
        texts = np.array([item.text for item in items], dtype=np.int64)
        self._tokens = [stream.lengths(texts) for stream in text]
        columns = {
            "frames": self._lengths,
            "starts": self._starts,
            "audio": audio.packed.offsets[self._vid_codes] + self._starts,
            **{f"text{i}": stream.packed.offsets[texts] for i, stream in enumerate(text)},
            **{f"tokens{i}": lengths for i, lengths in enumerate(self._tokens)},
        }
        self._columns = {name: torch.from_numpy(c) for name, c in columns.items()}
        self._columns["seconds"] = torch.tensor([item.seconds for item in items], dtype=torch.float64)
        if self.training:
            teacher = self.teacher
            taught = teacher and [teacher.spans_for(item.query.qid, item.seconds) for item in items]
            self._labels = Labels(
                [item.windows for item in items if item.windows is not None],
                self._lengths,
                np.array([item.key for item in items], dtype=np.uint64),
                hop=self.hop,
                limit=self.recipe.train.max_windows,
                official=self.official,
                shift=self.recipe.train.shift,
                teacher=taught or None,
            )

    def _order(self, seed: int, epoch: int) -> list[Ints]:
        """Rows of each batch. With buckets, neighbours in length share a batch, batches are shuffled."""
        rng = np.random.default_rng([seed, epoch])
        size = self.recipe.train.batch
        rows = rng.permutation(len(self.items))
        if self.recipe.train.buckets and not self.official:
            # of a small set a quarter, so that a query has other companions every epoch
            pool = size * min(self.recipe.train.bucket_pool, -(-self.steps() // 4))
            groups = [rows[i : i + pool] for i in range(0, len(rows), pool)]
            rows = np.concatenate([g[np.argsort(self._lengths[g], kind="stable")] for g in groups])
            batches = [rows[i : i + size] for i in range(0, len(rows), size)]
            return [batches[i] for i in rng.permutation(len(batches))]
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _there(self, rows: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.device)

    def _split(self, batches: list[Ints]) -> tuple[Tensor, ...]:
        """The rows of each batch on the device, brought there all at once."""
        parts: tuple[Tensor, ...] = self._there(np.concatenate(batches)).split([len(b) for b in batches])
        return parts

    def _batch(self, rows: Ints, there: Tensor, offset: Tensor | None = None) -> Batch:
        """One batch; `offset`: frames that every item's recording is rolled by."""
        column = {name: values[there] for name, values in self._columns.items()}
        lengths = self._lengths[rows]
        recordings, row, share = None, None, None
        if not self.training:  # in training, dropout and shift differ between a recording's queries
            share = _distinct(self._vid_codes[rows], self._starts[rows], lengths)
        audio: Sequence[Tensor]
        if share is None:
            rolled = None if offset is None else offset[there]
            audio, mask = _gather(self._audio, column["audio"], column["frames"], lengths, rolled)
        else:
            first, row = (self._there(index) for index in share)
            frames = column["frames"][first]
            streams, heard = _gather(self._audio, column["audio"][first], frames, lengths)
            recordings = Heard(streams, heard, frames)
            audio, mask = Spread(streams, row), heard[row]
        texts = [
            stream.gather(column[f"text{i}"], column[f"tokens{i}"], counts[rows])
            for i, (stream, counts) in enumerate(zip(self._text, self._tokens, strict=True))
        ]
        return Batch(
            qids=self._qids[rows].tolist(),
            vids=self._vids[rows].tolist(),
            audio=audio,
            audio_mask=mask,
            text=tuple(text for text, _ in texts),
            text_mask=tuple(real for _, real in texts),
            lengths=column["frames"],
            seconds=column["seconds"],
            starts=column["starts"],
            recordings=recordings,
            row=row,
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


def fits(size: int, device: torch.device) -> bool:
    """Whether features of `size` bytes leave the larger part of the device's free memory to the work."""
    return device.type != "cuda" or size < _SHARE * torch.cuda.mem_get_info(device)[0]


def _gather(
    streams: list[Gathered], first: Tensor, frames: Tensor, lengths: Ints, offset: Tensor | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Every audio stream of some chunks, and their mask; `lengths` is `frames` on the host."""
    made = [stream.gather(first, frames, lengths, offset) for stream in streams]
    return tuple(rows for rows, _ in made), made[0][1]


def _distinct(vids: Ints, starts: Ints, lengths: Ints) -> tuple[Ints, Ints] | None:
    """A row of each distinct chunk, and which of them every row is; None where all are distinct."""
    chunks = np.stack([vids, starts, lengths], axis=1)
    _, first, row = np.unique(chunks, axis=0, return_index=True, return_inverse=True)
    return None if len(first) == len(vids) else (first, row.reshape(-1))


def _where(manifest: Manifest) -> str:
    return str(manifest.path or "the manifests")  # several files have no one path

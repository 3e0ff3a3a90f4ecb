"""Tiny recipes, batches and feature files for tests of the model, the losses and the data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from torch import Tensor

from amrctl.data.batch import Batch, Targets
from amrctl.data.feature_packing import StreamSpec, packing, write_stream
from amrctl.data.manifest import Manifest, Query
from amrctl.recipe import Recipe, from_dict

AUDIO_DIM, TEXT_DIM = 5, 6
_RAW = """
name: small
source: tests
task: moments
features: {audio: [auto], text: [auto]}
model:
  hidden_dim: 32
  tokens: projection
  fusion: [text-to-audio]
  encoder: [transformer]
  decoder: {kind: conditional, queries: 7}
  heads: [foreground, span, saliency]
  auxiliary: [negative-pairs]
losses: {span: 10, giou: 1, label: 4, saliency: 1}
train: {batch: 4, eval_batch: 3}
inference: {score: foreground}
"""


def raw_recipe() -> dict[str, Any]:
    """A whole recipe as YAML gives it."""
    raw: dict[str, Any] = copy.deepcopy(yaml.safe_load(_RAW))
    return raw


def recipe(*sets: str) -> Recipe:
    """The small recipe with `--set` items."""
    return from_dict(raw_recipe(), where="small", stage="finetune", sets=sets)


def rows_of(lengths: Sequence[int], dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random rows [B, longest, dim], zero on padding, and their mask."""
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return torch.randn(*mask.shape, dim, generator=generator) * mask[..., None], mask


def batch(frames: Sequence[int] = (12, 17, 9), tokens: Sequence[int] = (4, 2, 6), *, seed: int = 0) -> Batch:
    """Pairs of several lengths with one to three moments each."""
    generator = torch.Generator().manual_seed(seed)
    audio, audio_mask = rows_of(frames, AUDIO_DIM, generator)
    text, text_mask = rows_of(tokens, TEXT_DIM, generator)
    size = len(frames)
    saliency = torch.zeros(audio_mask.shape)
    saliency[:, 2:5] = 1
    moments = torch.arange(3)[None] < torch.arange(size)[:, None] % 3 + 1
    spans = torch.rand(size, 3, 2, generator=generator) * 0.4 + 0.1
    return Batch(
        qids=[f"q{b}" for b in range(size)],
        vids=[f"v{b}" for b in range(size)],
        audio=(audio,),
        audio_mask=audio_mask,
        text=(text,),
        text_mask=(text_mask,),
        lengths=torch.tensor(frames),
        seconds=torch.tensor(frames, dtype=torch.float64),
        starts=torch.zeros(size, dtype=torch.int64),
        targets=Targets(
            spans=spans * moments[..., None],
            mask=moments,
            ignored=torch.zeros(size, 1, 2),
            ignored_mask=torch.zeros(size, 1, dtype=torch.bool),
            saliency=saliency,
            positives=torch.tensor([[2, 4]] * size),
            negatives=torch.tensor([[0, 6]] * size),
            pair_mask=torch.ones(size, dtype=torch.bool),
            negative_row=torch.arange(1, size + 1) % size if size > 1 else torch.tensor([-1]),
        ),
    )


def row_of(whole: Batch, b: int) -> Batch:
    """Row `b` alone, without the padding that the others needed, without targets."""
    frames, tokens = int(whole.lengths[b]), [int(mask[b].sum()) for mask in whole.text_mask]
    return replace(
        whole,
        qids=[whole.qids[b]],
        vids=[whole.vids[b]],
        audio=tuple(x[b : b + 1, :frames] for x in whole.audio),
        audio_mask=whole.audio_mask[b : b + 1, :frames],
        text=tuple(x[b : b + 1, :n] for x, n in zip(whole.text, tokens, strict=True)),
        text_mask=tuple(mask[b : b + 1, :n] for mask, n in zip(whole.text_mask, tokens, strict=True)),
        lengths=whole.lengths[b : b + 1],
        seconds=whole.seconds[b : b + 1],
        starts=whole.starts[b : b + 1],
        targets=None,
    )


def padded(whole: Batch, frames: int, tokens: int) -> Batch:
    """The same batch with so many padded frames and tokens more; what is padded is not zero."""

    def longer(x: Tensor, more: int, value: float) -> Tensor:
        return torch.cat((x, x.new_full((x.shape[0], more, *x.shape[2:]), value)), dim=1)

    assert whole.targets is not None
    return replace(
        whole,
        audio=tuple(longer(x, frames, 9.0) for x in whole.audio),
        audio_mask=longer(whole.audio_mask, frames, 0),
        text=tuple(longer(x, tokens, -9.0) for x in whole.text),
        text_mask=tuple(longer(x, tokens, 0) for x in whole.text_mask),
        targets=replace(whole.targets, saliency=longer(whole.targets.saliency, frames, 0)),
    )


def query(
    qid: str, vid: str, duration: float, windows: Sequence[tuple[float, float]] | None, line: int = 0
) -> Query:
    """One query whose sentence is its id."""
    return Query(qid, f"sentence {qid}", vid, duration, None if windows is None else tuple(windows), line)


def manifest(*queries: Query) -> Manifest:
    """A manifest in memory."""
    return Manifest(None, queries, ())


def write_features(
    path: Path,
    audio: Mapping[str, Mapping[str, npt.NDArray[Any]]],
    text: Mapping[str, Mapping[str, npt.NDArray[Any]]],
    *,
    hops: Mapping[str, float] | None = None,
) -> Path:
    """A feature file of streams name → id → rows."""
    with packing(path, [], overwrite=False) as file:
        for name, rows in audio.items():
            hop = (hops or {}).get(name, 1.0)
            spec = StreamSpec("audio", name, list(rows), {"encoder": name, "window": hop, "hop": hop})
            _write(file, spec, rows)
        for name, rows in text.items():
            _write(file, StreamSpec("text", name, list(rows), {"encoder": name}), rows)
    return path


def _write(file: Any, spec: StreamSpec, rows: Mapping[str, npt.NDArray[Any]]) -> None:
    first = next(iter(rows.values()))
    lengths = [len(r) for r in rows.values()]
    write_stream(file, spec, lengths, first.shape[1], str(first.dtype), ((r, None) for r in rows.values()))


def features_for(path: Path, queries: Manifest, *, frames: Mapping[str, int] | None = None) -> Path:
    """Random features for every recording (one frame a second unless `frames` says) and query."""
    rng = np.random.default_rng(7)
    audio = {
        vid: rng.standard_normal(((frames or {}).get(vid, round(seconds)), AUDIO_DIM)).astype(np.float32)
        for vid, seconds in queries.recordings.items()
    }
    text = {
        q.qid: rng.standard_normal((int(rng.integers(1, 5)), TEXT_DIM)).astype(np.float32) for q in queries
    }
    return write_features(path, {"noise": audio}, {"noise": text})

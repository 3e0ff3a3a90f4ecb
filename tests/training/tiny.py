"""A data set and a recipe that train in a blink: 12 recordings of 20 frames, hidden width 16."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amrctl.data.manifest import read_manifests
from amrctl.data.npz import import_npz

# dropout, EMA, warm-up: everything that has state or draws random numbers
RECIPE = """
name: tiny
source: made for tests
task: moments
features: {audio: [auto], text: [auto]}
model:
  hidden_dim: 16
  tokens: {kind: projection, layers: 2, dropout: 0.5, tef: concat-2d}
  fusion: [{kind: text-to-audio, layers: 1, heads: 2, dropout: 0.1}]
  encoder: [{kind: transformer, layers: 1, heads: 2, dropout: 0.1}]
  decoder: {kind: conditional, layers: 2, queries: 4, heads: 2, dropout: 0.1}
  heads: [foreground, span, saliency]
  auxiliary: [negative-pairs]
losses: {span: 10, giou: 1, label: 4, saliency: 1}
train:
  epochs: 3
  batch: 5
  optimizer: {kind: adamw, lr: 1.0e-3}
  schedule: {kind: cosine, warmup: 0.2}
  metrics: [R1@0.7, mAP]
  ema: {decay: 0.9}
pretrain: {schedule: constant}
inference: {score: foreground, keep: 4}
"""


@dataclass(frozen=True)
class Tiny:
    """Paths of the files."""

    recipe: Path
    train: Path
    val: Path
    features: Path


def make(folder: Path, *, audio_dim: int = 6, seed: int = 0) -> Tiny:
    """Write manifests, features and recipe; the sound inside a moment looks like its sentence."""
    rng = np.random.default_rng(seed)
    audio, text = folder / "audio", folder / "text"
    audio.mkdir(parents=True)
    text.mkdir()
    kinds = rng.normal(size=(3, audio_dim)).astype(np.float32)
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for i in range(18):
        vid, split = f"rec{i}", "train" if i < 12 else "val"
        frames = 20 - i % 3
        rows = rng.normal(size=(frames, audio_dim)).astype(np.float32)
        start = int(rng.integers(0, frames - 6))
        end = start + int(rng.integers(3, 7))
        rows[start:end] += 3 * kinds[i % 3]
        np.savez(audio / f"{vid}.npz", features=rows)
        tokens = np.stack([kinds[i % 3], rng.normal(size=audio_dim).astype(np.float32)])
        np.savez(text / f"qid{i}.npz", last_hidden_state=tokens)
        windows = [[start, end], [0, 2]] if i % 4 == 0 and start > 2 else [[start, end]]
        lines[split].append(
            json.dumps(
                {
                    "qid": i,
                    "query": f"kind {i % 3}",
                    "vid": vid,
                    "duration": frames,
                    "relevant_windows": windows,
                }
            )
        )
    made = Tiny(folder / "tiny.yaml", folder / "train.jsonl", folder / "val.jsonl", folder / "features.h5")
    made.recipe.write_text(RECIPE)
    for split, path in (("train", made.train), ("val", made.val)):
        path.write_text("\n".join(lines[split]) + "\n")
    import_npz(made.features, audio, text, "noise", read_manifests([made.train, made.val]))
    return made

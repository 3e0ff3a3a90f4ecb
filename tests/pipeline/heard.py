"""Recordings with two kinds of sound, and a small detector trained on them by the real commands."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import soundfile

from amrctl.cli.app import main

RATE = 16_000
SENTENCES = ("a tone sounds", "noise hisses")
RECIPE = """
name: little
source: made for tests
task: moments
features: {audio: [auto], text: [auto]}
model:
  hidden_dim: 32
  tokens: {kind: projection, layers: 1, dropout: 0.0, tef: concat-2d}
  fusion: [{kind: text-to-audio, layers: 1, heads: 2, dropout: 0.0}]
  encoder: [{kind: transformer, layers: 1, heads: 2, dropout: 0.0}]
  decoder: {kind: conditional, layers: 1, queries: 4, heads: 2, dropout: 0.0}
  heads: [foreground, span, saliency]
losses: {span: 10, giou: 1, label: 4, saliency: 1}
train:
  epochs: 1
  batch: 8
  max_frames: 20
  optimizer: {kind: adamw, lr: 1.0e-3}
inference: {score: foreground, keep: 10}
"""


@dataclass(frozen=True)
class Heard:
    """Paths of what was made; recordings lie in `audio` as `rec<i>.wav`, 12 s each."""

    audio: Path
    train: Path
    test: Path
    features: Path
    checkpoint: Path


def sound(
    seconds: float, tone: tuple[float, float], noise: tuple[float, float], seed: int = 0
) -> npt.NDArray[np.float32]:
    """Quiet hum with a tone and with noise between the given times (s); float32 at `RATE`."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    samples = 0.002 * rng.standard_normal(len(time))
    samples += 0.4 * np.sin(2 * np.pi * 880 * time) * ((time >= tone[0]) & (time < tone[1]))
    samples += 0.2 * rng.standard_normal(len(time)) * ((time >= noise[0]) & (time < noise[1]))
    return samples.astype(np.float32)


def amrctl(*args: object) -> None:
    """Run a command that must succeed."""
    with mock.patch.object(sys, "argv", ["amrctl", *map(str, args)]):
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    assert not code, args


def make(folder: Path, recordings: int = 8) -> Heard:
    """Write recordings, manifests and features, and train for one epoch."""
    audio = folder / "audio"
    audio.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines: list[str] = []
    for i in range(recordings):
        first, second = int(rng.integers(0, 4)), int(rng.integers(6, 9))
        moments = [(first, first + 2), (second, second + 3)]
        if i % 2:
            moments.reverse()
        samples = sound(12, moments[0], moments[1], i)
        soundfile.write(audio / f"rec{i}.wav", samples, RATE)
        for k, sentence in enumerate(SENTENCES):
            record = {"qid": 2 * i + k, "query": sentence, "vid": f"rec{i}", "duration": 12}
            lines.append(json.dumps({**record, "relevant_windows": [list(moments[k])]}))
    made = Heard(
        audio,
        folder / "train.jsonl",
        folder / "test.jsonl",
        folder / "f.h5",
        folder / "run/best.safetensors",
    )
    made.train.write_text("\n".join(lines[:-4]) + "\n")
    made.test.write_text("\n".join(lines[-4:]) + "\n")
    extract(made.features, audio, made.train, made.test)
    train(made, made.checkpoint.parent)
    return made


def extract(out: Path, audio: Path, *manifests: Path, sides: tuple[str, ...] = ("audio", "text")) -> None:
    """`extract-tef` with the embedded encoders."""
    encoders: dict[str, list[object]] = {
        "audio": ["--audio", audio, "--audio-encoder", "logmel"],
        "text": ["--text-encoder", "words"],
    }
    chosen = [part for side in sides for part in encoders[side]]
    amrctl("extract-tef", "--manifest", *manifests, *chosen, "--workers", 1, "--out", out, "-q")


def train(made: Heard, run: Path, *options: object) -> Path:
    """`finetune` the little recipe for one epoch; its best checkpoint."""
    recipe = run.with_name("little.yaml")
    recipe.write_text(RECIPE)
    data = ["--train", made.train, "--val", made.test, "--features", made.features]
    amrctl("finetune", "--recipe", recipe, *data, "--out", run, "--device", "cpu", "-q", *options)
    return run / "best.safetensors"

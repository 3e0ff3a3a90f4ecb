"""What tests of archives need: encoders that share a space, recordings, a small detector."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from amrctl import registry
from amrctl.archive import build as build_archive
from amrctl.data.extract_jobs import described
from amrctl.encoders.base import (
    AUDIO,
    TEXT,
    AudioEncoder,
    EncoderConfig,
    Rows,
    Sentence,
    TextEncoder,
    load_audio_encoder,
    load_text_encoder,
)
from amrctl.model import checkpoint
from amrctl.model.detector import build
from amrctl.recipe import load
from tests.pipeline.heard import RECIPE

RATE, DIM = 8000, 12
BEGIN = build_archive._begin
TONES = {"low": 300.0, "middle": 900.0, "high": 2500.0}  # Hz of what the sentences name


def bands(windows: Rows) -> Rows:
    """`(n, samples)` to the roots of the powers in twelve bands, `(n, 12)`."""
    power = np.abs(np.fft.rfft(windows.astype(np.float64), axis=1)) ** 2
    pieces = np.array_split(power, DIM, axis=1)
    return np.stack([np.sqrt(piece.sum(axis=1)) for piece in pieces], axis=1).astype(np.float32) + 1e-3


class Ear:
    """Counts what it hears in `heard`, over all its kind."""

    name = "pair"
    sample_rate = RATE
    dim = DIM
    heard = 0

    def __init__(self, config: EncoderConfig) -> None:
        self.window, self.hop = config.window or 1.0, config.hop or 1.0
        self.sha256 = hashlib.sha256(Path(str(config.checkpoint)).read_bytes()).hexdigest()

    def encode(self, windows: Rows) -> Rows:
        assert windows.shape[1] == round(self.window * RATE)
        Ear.heard += len(windows)
        return bands(windows)

    def attributes(self) -> Mapping[str, Any]:
        return {"checkpoint_sha256": self.sha256, "space": f"pair:{self.sha256[:16]}", "version": 1}


class Reader:
    """Sentences that hold a word of `TONES`; any other is the mean of all."""

    name = "pair"
    dim = DIM

    def __init__(self, config: EncoderConfig) -> None:
        self.sha256 = hashlib.sha256(Path(str(config.checkpoint)).read_bytes()).hexdigest()

    def encode(self, sentences: Sequence[str]) -> list[Sentence]:
        time = np.arange(RATE) / RATE
        known = {word: bands(np.sin(2 * np.pi * f * time)[None])[0] for word, f in TONES.items()}
        rows = []
        for sentence in sentences:
            said = [known[word] for word in known if word in sentence] or list(known.values())
            rows.append(Sentence(np.ones((1, DIM), np.float32), np.mean(said, axis=0, dtype=np.float32)))
        return rows

    def attributes(self) -> Mapping[str, Any]:
        return {"checkpoint_sha256": self.sha256, "space": f"pair:{self.sha256[:16]}", "version": 1}


def register() -> None:
    """Make the pair known."""
    registry.kinds(AUDIO), registry.kinds(TEXT)  # scanned before ours is there
    for slot, encoder in ((AUDIO, Ear), (TEXT, Reader)):
        registry.component(slot, "pair", EncoderConfig)(encoder)


def begin(*given: Any) -> Any:
    """What a worker process begins with, where the pair is not known yet."""
    register()
    return BEGIN(*given)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[str]:
    """How the pair is spelt; it is registered for as long as the test runs."""
    weights = tmp_path / "pair.bin"
    weights.write_bytes(b"weights")
    register()
    yield f"pair:{weights}"
    for slot in (AUDIO, TEXT):
        del registry._found[slot, "pair"]


def write(path: Path, word: str, seconds: float, *, seed: int = 0) -> None:
    """A recording of the tone of `word` in quiet noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    sound = 0.3 * np.sin(2 * np.pi * TONES[word] * time) + 0.01 * rng.standard_normal(len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, RATE)


def tree(root: Path) -> dict[str, bytes]:
    """All that an archive holds by name, but for the lock and what searches leave."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "lock" and "cache" not in path.relative_to(root).parts
    }


def detector(path: Path) -> Path:
    """A small untrained detector that hears `logmel` and reads `words`; its checkpoint."""
    torch.manual_seed(0)
    written = path.with_suffix(".yaml")
    written.write_text(RECIPE)
    recipe = load(str(written), "finetune", ())
    sides: dict[str, AudioEncoder | TextEncoder] = {
        "audio": load_audio_encoder("logmel"),
        "text": load_text_encoder("words"),
    }
    features = {
        side: [
            {
                "name": encoder.name,
                "dim": encoder.dim,
                "dtype": "float16",
                "encoder": encoder.name,
                "hop": getattr(encoder, "hop", None),
                "attrs": {key: value for key, value in described(encoder).items() if value is not None},
            }
        ]
        for side, encoder in sides.items()
    }
    dims = [(sides[side].dim,) for side in ("audio", "text")]
    tensors = build(recipe, dims[0], dims[1], training=False).state_dict()
    made = checkpoint.Checkpoint(
        tensors=tensors, recipe=recipe, features=features, epoch=1, metrics={}, provenance={}, rounding=0
    )
    checkpoint.write(path, made)
    return path

"""`search` in a recording of one hour, and of ten minutes: time, and memory that does not grow."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.cases.commands import amrctl, peak_of
from benchmarks.table import Row

RATE = 16_000


def rows(quick: bool) -> list[Row]:
    """Seconds of the whole command, start-up included."""
    lengths = (30, 60) if quick else (600, 3600)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = trained(folder)
        made = []
        for seconds in lengths:
            path = folder / f"{seconds}.flac"
            noise(path, seconds)
            command = ("search", path, "a bell rings", "a dog barks", "--checkpoint", checkpoint, "-q")
            began = time.perf_counter()
            amrctl(*command)
            took = time.perf_counter() - began
            made.append(
                Row(
                    f"search {seconds:,} s of sound",
                    took,
                    memory_mb=peak_of(*command),
                    note=f"{seconds / took:,.0f} times faster than listening; memory of the whole process",
                )
            )
        return made


def noise(path: Path, seconds: int) -> None:
    """Write `seconds` of quiet noise, a minute at a time."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE, 1) as out:
        for start in range(0, seconds, 60):
            out.write(0.01 * rng.standard_normal(RATE * min(60, seconds - start)))


def trained(folder: Path) -> Path:
    """A checkpoint of recipe qd-detr (default size) on the embedded encoders, one epoch."""
    amrctl(
        *("synth", "--events", "builtin", "--recordings", 4, "--length", 20, "--out", folder / "data", "-q"),
    )
    manifest, features = folder / "data" / "manifest.jsonl", folder / "f.h5"
    assert json.loads(manifest.read_text().splitlines()[0])
    amrctl(
        *("extract-tef", "--manifest", manifest, "--audio", folder / "data" / "audio", "--out", features),
        *("--audio-encoder", "logmel", "--text-encoder", "words", "-q"),
    )
    amrctl(
        *("finetune", "--recipe", "qd-detr", "--train", manifest, "--val", manifest, "--features", features),
        *("--set", "train.epochs=1", "--out", folder / "run", "-q"),
    )
    return folder / "run" / "best.safetensors"

"""Soups against reading their ingredients; synthesis and extraction on one and on two processes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from amrctl import provenance
from amrctl.ensemble.soup import make_soup
from amrctl.model import checkpoint
from amrctl.model.checkpoint import Checkpoint
from benchmarks import inputs
from benchmarks.cases.commands import amrctl
from benchmarks.cases.training import detector_of
from benchmarks.measure import interleaved, peak_mb
from benchmarks.table import Row


def rows(quick: bool) -> list[Row]:
    """Seconds; commands with their start-up."""
    with tempfile.TemporaryDirectory() as folder:
        return [*soup(Path(folder), quick), *workers(Path(folder), quick)]


def soup(folder: Path, quick: bool) -> list[Row]:
    """The average of 25 checkpoints of recipe qd-detr; the limit is the time of reading them and their
    SHA-256, which the soup's provenance names."""
    count, width = (3, 8) if quick else (25, 768)
    recipe = inputs.recipe("qd-detr", *(("model.hidden_dim=16",) if quick else ()))
    tensors = {name: value.detach() for name, value in detector_of(recipe, width).state_dict().items()}
    paths = [folder / f"{i}.safetensors" for i in range(count)]
    features = {side: [{"name": "noise", "dim": width, "encoder": "noise"}] for side in ("audio", "text")}
    for i, path in enumerate(paths):
        torch.manual_seed(i)
        moved = {name: value + 0.01 * torch.randn_like(value) for name, value in tensors.items()}
        checkpoint.write(path, Checkpoint(tensors=moved, recipe=recipe, features=features))
    out = folder / "soup.safetensors"

    def mix() -> None:
        make_soup(paths, out, overwrite=True)

    def read() -> None:
        for path in paths:
            provenance.sha256(path)
            for tensor in load_file(path).values():
                tensor.sum()  # touches every page

    times = interleaved({"soup": mix, "read": read}, 1 if quick else 5)
    size = sum(path.stat().st_size for path in paths) / 1e6
    return [
        Row(
            f"soup of {count} checkpoints",
            times["soup"],
            limit=times["read"],
            memory_mb=peak_mb(mix),
            note=f"{size:,.0f} MB; limit: only reading and hashing them",
        )
    ]


def workers(folder: Path, quick: bool) -> list[Row]:
    """`synth` and `extract-tef` with 1 worker (the reference) and with 2 (ours)."""
    recordings, length = (2, 20) if quick else (60, 60)
    made = []

    def synth(count: int) -> None:
        shutil.rmtree(folder / f"synth{count}", ignore_errors=True)
        size = ("--recordings", recordings, "--length", length, "--workers", count)
        amrctl("synth", "--events", "builtin", *size, "--out", folder / f"synth{count}", "-q")

    def extract(count: int) -> None:
        data = folder / "synth1"
        amrctl(
            *("extract-tef", "--manifest", data / "manifest.jsonl", "--audio", data / "audio"),
            *("--audio-encoder", "logmel", "--text-encoder", "words", "--workers", count),
            *("--out", folder / f"features{count}.h5", "--overwrite", "-q"),
        )

    for name, work in (("synth", synth), ("extract-tef", extract)):
        times = interleaved({"1": lambda w=work: w(1), "2": lambda w=work: w(2)}, 1 if quick else 3, warm=0)  # type: ignore[misc]
        made.append(
            Row(
                f"{name}, {recordings} recordings, 2 workers",
                times["2"],
                times["1"],
                note="reference: 1 worker; start-up included",
            )
        )
    return made

"""A sound set that a dual encoder learns in seconds, and tiny networks of the published architectures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import soundfile

from amrctl.data.soundbank import render
from amrctl.data.soundbank_captions import CAPTIONS

KINDS = ("bell", "siren", "dog", "rain", "knock", "clock")
RATE = 16_000
# two small blocks, no dropout: it learns in a hundred steps
SETS = (
    "model.audio.segment=2", "model.audio.hop=1", "model.audio.channels=[16,32,64]",
    "model.audio.dropout=0", "model.audio.masking=null", "model.text.width=64", "model.text.inner=64",
    "model.text.layers=1", "model.text.rows=2048", "model.dim=64", "train.batch=12",
)  # fmt: skip


@dataclass(frozen=True)
class Sounds:
    """Paths: the folder of recordings, and lists of captions by split."""

    audio: Path
    train: Path
    val: Path
    test: Path


def make(folder: Path, *, clips: int = 4, held_out: int = 4, seconds: float = 2.5) -> Sounds:
    """Write `clips` recordings of each kind for training and `held_out` for validation and test each."""
    audio = folder / "audio"
    audio.mkdir(parents=True)
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for kind in KINDS:
        splits = ["train"] * clips + ["val"] * held_out + ["test"] * held_out
        for number, split in enumerate(splits):
            vid = f"{kind}, no. {number} (x)"  # as odd as Clotho's names
            wave = render(kind, [number], rate=RATE, seconds=seconds)
            soundfile.write(audio / f"{vid}.wav", wave, RATE)
            texts = CAPTIONS[kind][:3] if split == "train" else CAPTIONS[kind][1:2]
            lines[split] += [json.dumps({"vid": vid, "caption": text}) for text in texts]
    paths = {split: folder / f"{split}.jsonl" for split in lines}
    for split, found in lines.items():
        paths[split].write_text("\n".join(found) + "\n", encoding="utf-8")
    return Sounds(audio, paths["train"], paths["val"], paths["test"])

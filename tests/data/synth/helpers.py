"""What the tests of synthesis share: settings, plans, small folders of clips."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from amrctl.data.synth import SynthSettings, run, with_preset
from amrctl.data.synth.plan import Planner, RecordingPlan
from amrctl.data.synth.pool import Shelf, load_pools

RATE = 16_000
Floats = npt.NDArray[np.float32]


def settings(**choices: Any) -> SynthSettings:
    base: dict[str, Any] = {"events": "builtin", "recordings": 3, "length": (20.0, 20.0), "max_event": 4.0}
    return with_preset(None, {**base, **choices})


def planned(made: SynthSettings) -> tuple[Planner, Shelf, list[RecordingPlan]]:
    planner, shelf = run.make_planner(made, load_pools(made)), Shelf(made)
    jobs = [(name, i) for name, count in made.counts().items() for i in range(count)]
    return planner, shelf, [planner.plan(name, i, shelf.seconds) for name, i in jobs]


def digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "recordings.jsonl").read_text().splitlines()]


def clip_folder(
    folder: Path, clips: Mapping[str, tuple[Floats, int]], rows: Sequence[tuple[str, ...]]
) -> Path:
    folder.mkdir(parents=True)
    for name, (samples, rate) in clips.items():
        soundfile.write(folder / name, samples, rate, subtype="FLOAT" if name.endswith("wav") else None)
    with open(folder / "captions.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return folder


def tone(seconds: float, hertz: float, rate: int = RATE) -> Floats:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)

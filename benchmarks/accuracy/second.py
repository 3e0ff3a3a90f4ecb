"""Second feature streams, for systems that read several; the first streams and their file stay as they are.

`esc10`: the embedded encoders `gammatone` and `chars` hear and read what `logmel` and `words` did.

`castella`: a second view of the simulated sounds. `simfeatures.py` run with another seed would draw other
distractors and another background, but two real encoders hear the same ones. So what it drew is drawn again
here (checked against the first stream, frame by frame), and seen through a projection and a noise of the
view's own, 512 numbers a frame. The text view has two tokens a word and 384 numbers a token.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amrctl import provenance
from amrctl.data.features import FeatureFile
from benchmarks.accuracy.commands import Commands
from benchmarks.accuracy.meanings import MEANINGS, Doubles, Meanings, draws, read_rows, words
from benchmarks.accuracy.sets import DISTRACTORS, MANIFESTS, SNR, DataSet, FrozenError

SEED = "sim0"  # of simfeatures.py
WIDTH = 768  # of its rows
VIEW, TEXT_VIEW = 512, 384  # numbers of the second view
NOISE, TEXT_NOISE = 0.9, 0.3  # as there


def add_streams(made: DataSet, results: Path) -> DataSet:
    """The set with the file that holds both streams of each side; made on the first call.

    What made it is kept as `RESULTS/<set>/streams.json`. Killed, the same call goes on.
    """
    both = made.reading("streams")
    told = both.folder / "streams.txt"
    if not told.is_file():
        commands = Commands()
        if not both.features.is_file() and not both.features.with_name(both.features.name + ".part").exists():
            copied = both.features.with_name("streams.copy.h5")
            shutil.copyfile(made.features, copied)
            copied.rename(both.features)
        manifests = [made.manifest(name) for name in MANIFESTS]
        if made.name == "esc10":
            commands.amrctl(
                "extract-tef", "--manifest", *manifests, "--audio", made.folder / "mixed",
                "--audio-encoder", "gammatone", "--text-encoder", "chars", "--out", both.features,
            )  # fmt: skip
        else:
            folder = made.folder / "second"
            with FeatureFile(made.features) as first:
                write_view(manifests, folder, first)
            commands.amrctl(
                "extract-tef", "--manifest", *manifests, "--audio-npz", folder / "clap",
                "--text-npz", folder / "clap_text", "--name", "simulated-2", "--out", both.features,
            )  # fmt: skip
            shutil.rmtree(folder)
        provenance.write_text(told, "\n".join(commands.ran) + "\n")
        provenance.write_json(results / made.name / "streams.json", {"commands": commands.ran})
    return both


@dataclass(frozen=True)
class Scene:
    """What simfeatures.py draws for a recording of T frames: `background` `(T, 48)`, events as sentence,
    gain, start and end (seconds; the labelled ones first), and the first stream's noise `(T, 768)`."""

    vid: str
    background: Doubles
    events: tuple[tuple[str, float, float, float], ...]
    noise: Doubles


def scenes(rows: Sequence[dict[str, Any]]) -> Iterator[Scene]:
    """Every recording of `rows` (those of all manifests), drawn in the order of simfeatures.py."""
    queries = [row["query"] for row in rows]
    by_vid: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_vid.setdefault(row["vid"], []).append(row)
    loudness = float(SNR) * math.sqrt(MEANINGS) * 0.45
    for vid, own in by_vid.items():
        g, frames = draws(SEED + vid), max(int(own[0]["duration"]), 1)
        x, background, events = g.standard_normal(MEANINGS) * 0.5, [], []
        for _ in range(frames):
            x = 0.97 * x + 0.12 * g.standard_normal(MEANINGS)
            background.append(x)
        for row in own:
            gain = loudness * g.uniform(0.6, 1.4)
            events += [(row["query"], gain, start, end) for start, end in row.get("relevant_windows", ())]
        for _ in range(g.poisson(float(DISTRACTORS) * frames / 300)):
            sentence = queries[g.integers(len(queries))]
            gain = loudness * g.uniform(0.6, 1.4)
            start = g.uniform(0, frames)
            events.append((sentence, gain, start, start + g.exponential(8) + 1))
        noise = g.standard_normal((frames, WIDTH)) * NOISE
        yield Scene(vid, np.stack(background), tuple(events), noise)


def heard(scene: Scene, meanings: Meanings) -> Doubles:
    """What is to be heard in a recording, per frame `(T, 48)`."""
    sounds, t = scene.background, np.arange(len(scene.background))
    for sentence, gain, start, end in scene.events:
        share = np.clip(np.minimum(t + 1, end) - np.maximum(t, start), 0, 1)
        sounds = sounds + gain * np.outer(share, meanings.query(sentence))
    return sounds


def write_view(manifests: Sequence[Path], folder: Path, first: FeatureFile) -> None:
    """The second view as npz files in `folder`. `FrozenError` where the draws are not those of `first`."""
    rows = read_rows(manifests)
    meanings = Meanings(rows)
    seen = draws(SEED + ":audio").standard_normal((MEANINGS, WIDTH)) / math.sqrt(MEANINGS)
    gap = draws("ba").standard_normal(WIDTH) * 0.6
    view = draws("second:audio").standard_normal((MEANINGS, VIEW)) / math.sqrt(MEANINGS)
    offset = draws("second:ba").standard_normal(VIEW) * 0.6
    audio, text = folder / "clap", folder / "clap_text"
    audio.mkdir(parents=True, exist_ok=True)
    text.mkdir(parents=True, exist_ok=True)
    for scene in scenes(rows):
        vid, sounds = scene.vid, heard(scene, meanings)
        stored = first.load("audio", "simulated", [vid]).rows
        drawn = sounds @ seen + gap + scene.noise
        if drawn.shape != stored.shape or not np.allclose(drawn, stored, atol=1e-3):
            raise FrozenError(f"recording {vid}: simfeatures.py no longer draws what is drawn again here")
        own = draws("second:" + vid).standard_normal((len(sounds), VIEW)) * NOISE
        np.savez(audio / f"{vid}.npz", features=(sounds @ view + offset + own).astype(np.float32))
    read = draws("second:text").standard_normal((MEANINGS, TEXT_VIEW)) / math.sqrt(MEANINGS)
    shift = draws("second:bt").standard_normal(TEXT_VIEW) * 0.6
    for row in rows:
        meaning = meanings.query(row["query"])
        tokens = [0.6 * meanings.word(w) + 0.4 * meaning for w in words(row["query"])[:30] for _ in range(2)]
        own = draws(f"second:{row['qid']}").standard_normal((len(tokens), TEXT_VIEW)) * TEXT_NOISE
        states = (np.stack(tokens) * math.sqrt(MEANINGS)) @ read + shift + own
        np.savez(text / f"qid{row['qid']}.npz", last_hidden_state=states.astype(np.float32))

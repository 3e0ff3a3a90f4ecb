"""The demo at its true size, once: what it promises a newcomer, and that its numbers are earned."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from amrctl.data.manifest import Manifest, Query, read_manifest, write_manifest
from amrctl.data.predictions import read_predictions
from tests.pipeline.heard import amrctl

SYSTEMS = ("seed-0", "seed-1", "soup", "fused", "reranked")
Window = tuple[float, float]


@dataclass(frozen=True)
class Demo:
    """The demo's folder, and what its first run printed."""

    out: Path
    told: str  # stdout
    notes: str  # stderr

    @property
    def test(self) -> Manifest:
        return read_manifest(self.out / "data/test.jsonl")

    @property
    def recordings(self) -> list[dict[str, Any]]:
        """What was mixed into each recording of the target set."""
        return lines(self.out / "data/recordings.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`amrctl demo` as a user starts it, on one thread: other tests have the other cores, and threads that
    wait for each other on a busy core take several times as long."""
    return subprocess.run(
        [sys.executable, "-m", "amrctl", "demo", "--out", str(out), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock: of several test processes the first runs the demo, the others wait for it."""
    fcntl = pytest.importorskip("fcntl")
    with open(path, "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Demo:
    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        base = base.parent  # that of all processes
    out, said = base / "demo", base / "demo.json"
    with alone(base / "demo.lock"):
        if not said.exists():
            done = run(out)
            assert done.returncode == 0, done.stderr[-3000:]
            said.write_text(json.dumps([done.stdout, done.stderr]))
    told, notes = json.loads(said.read_text())
    return Demo(out, told, notes)


def recall(queries: Iterable[Query], best: dict[str, Window]) -> float:
    """R1@0.7 in percent, counted plainly: `best` is the first window of each query."""
    hits = []
    for query in queries:
        start, end = best[query.qid]
        hits.append(
            any(
                min(end, b) - max(start, a) >= 0.7 * (max(end, b) - min(start, a))
                for a, b in query.windows or ()
            )
        )
    return 100 * sum(hits) / len(hits)


def answers(path: Path) -> dict[str, Window]:
    return {item.qid: (item.windows[0, 0], item.windows[0, 1]) for item in read_predictions(path)}


def test_it_finds_most_moments_of_recordings_it_never_heard(demo: Demo) -> None:
    found = {}
    for name in SYSTEMS:
        found[name] = recall(demo.test, answers(demo.out / f"predictions/{name}.jsonl"))
        told = json.loads((demo.out / f"results/{name}.json").read_text())
        assert told["brief"]["MR-full-R1@0.7"] == pytest.approx(found[name], abs=0.005)
        assert told["trained_on_reference"] is False
        assert ("against" in told) == (name != "seed-0")
    assert max(found.values()) >= 50, found
    assert min(found.values()) >= 40, found  # none of them is there for show
    # the closing table holds them side by side
    table = demo.told.split("On the unseen test split")[1]
    for name, value in found.items():
        row = next(line for line in table.splitlines() if f" {name} " in line)
        assert f"{value:.2f}" in row


def test_a_guess_finds_little(demo: Demo) -> None:
    """Without listening: any window as often as any other, and the one that suits the training set best."""
    length = round(demo.test.queries[0].duration)
    every = [(float(s), float(e)) for s in range(length) for e in range(s + 1, length + 1)]

    def constant(queries: Manifest, window: Window) -> float:
        return recall(queries, dict.fromkeys(queries.by_qid, window))

    blind = [constant(demo.test, window) for window in every]
    assert sum(blind) / len(blind) < 5
    train = read_manifest(demo.out / "data/train.jsonl")
    fixed = constant(demo.test, max(every, key=lambda window: constant(train, window)))
    assert fixed < 5
    listened = max(recall(demo.test, answers(demo.out / f"predictions/{n}.jsonl")) for n in SYSTEMS)
    assert listened > 3 * max(fixed, sum(blind) / len(blind))


def test_language_matters(demo: Demo, tmp_path: Path) -> None:
    """With the sentences permuted among the queries, almost nothing is found: the answers follow the
    sentence, not the loudest event. (One query in twenty gets a sentence of its own kind of sound by
    chance, which makes about four of the points; hence the mean of three permutations.)"""
    queries = demo.test.queries
    manifest, features = tmp_path / "permuted.jsonl", tmp_path / "permuted.h5"
    permuted: list[Query] = []
    for n in range(3):
        order = list(range(len(queries)))
        random.Random(n).shuffle(order)
        permuted += [
            replace(q, qid=f"{q.qid}-{n}", query=queries[k].query)
            for q, k in zip(queries, order, strict=True)
        ]
    write_manifest(manifest, permuted)
    amrctl(
        *("extract-tef", "--manifest", manifest, "--audio", demo.out / "data/audio", "--workers", 1),
        *("--audio-encoder", "logmel", "--text-encoder", "words", "--out", features, "-q"),
    )
    for name, checkpoint in (("single", "finetune/seed-0"), ("soup", "soup.safetensors")):
        out = tmp_path / f"{name}.jsonl"
        amrctl(
            *("predict", "--checkpoint", demo.out / checkpoint, "--features", features),
            *("--test", manifest, "--round", 0, "--out", out, "-q"),
        )
        assert recall(permuted, answers(out)) < 10, name


def test_the_test_split_is_hard_enough_to_mean_something(demo: Demo) -> None:
    clips: dict[str, set[str]] = {}
    for entry in demo.recordings:
        clips.setdefault(entry["split"], set()).update(event["file"] for event in entry["events"])
        if entry["split"] == "test":
            assert len({event["event"] for event in entry["events"]}) >= 3, entry["vid"]
    assert set(clips) == {"train", "val", "test"}
    assert all(clips.values())
    assert not clips["test"] & (clips["train"] | clips["val"])
    assert not clips["train"] & clips["val"]
    per_recording: dict[str, set[str]] = {}
    for query in demo.test:
        per_recording.setdefault(query.vid, set()).add(query.query)
    assert all(len(sentences) >= 3 for sentences in per_recording.values())
    assert len(demo.test) >= 200
    pretraining = read_manifest(demo.out / "pretrain-data/train.jsonl")
    assert any(len(query.windows or ()) > 1 for query in pretraining)


def test_it_prints_every_command_and_every_file(demo: Demo) -> None:
    commands = re.findall(r"^\$ amrctl (\S+)", demo.notes, re.MULTILINE)
    order = ["synth", "extract-tef", "pretrain", "finetune", "soup", "predict", "fuse", "rerank"]
    order += ["evaluate", "submit", "search"]
    assert list(dict.fromkeys(commands)) == order
    assert "already there" not in demo.notes
    listed = {line.strip() for line in demo.told.split("sound files not listed):")[1].splitlines()}
    there = {
        str(path.relative_to(demo.out))
        for path in demo.out.rglob("*")
        if path.is_file() and "audio" not in path.parts
    }
    assert there <= listed
    assert {"soup.safetensors", "predictions/fused.jsonl", "results/soup.json"} <= there
    assert not [name for name in there if name.endswith((".tmp", ".part"))]
    package = next((demo.out / "submission").glob("*.zip"))
    amrctl("submit", "--check", package, "--queries", demo.out / "data/test.jsonl", "-q")


def test_again_it_says_that_all_is_there(demo: Demo) -> None:
    paths = [*(demo.out / "predictions").iterdir(), demo.out / "soup.safetensors"]
    before = {path: path.read_bytes() for path in paths}
    began = time.monotonic()
    done = run(demo.out, "--json")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 90  # minutes of work are not done again
    assert done.stderr.count("already there") >= 15
    assert done.stderr.count("nothing to do") >= 3  # the runs
    assert {path: path.read_bytes() for path in before} == before
    told = json.loads(done.stdout)
    assert list(told["results"]) == list(SYSTEMS)
    assert told["results"]["soup"]["MR-full-R1@0.7"] > 40
